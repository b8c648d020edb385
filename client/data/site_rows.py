"""The rows that a site trains on: where they are, and what is kept of them in memory.

They are read once for each schema, cap and state of the files. Whether they are enough is asked
where the client starts, which no coordinator can bring about, and never in a round.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from client.data.cache import Cache
from client.data.check import check as look
from client.data.contents import Contents
from client.data.loading import release, row_by_row
from client.site import SiteError
from client.tasks.registry import NAMES, task, task_of_schema
from client.tasks.rows import NoRows, Rows, TaskError, builtin, cap
from client.tasks.task import Task, none_of
from privacy.contract.plan import Plan
from privacy.contract.plan_file import schema_digest
from privacy.contract.policy import Policy

BUILTIN_PREFIX: Final = "builtin:"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a site's rows are: a path, or part `part` of `parts` of an embedded task."""

    path: Path | None
    part: int = 0
    parts: int = 0

    @classmethod
    def parse(cls, text: str) -> "Source":
        """`PATH` or `builtin:K/N`; SiteError for anything that is not there."""
        if text.startswith(BUILTIN_PREFIX):
            part, _, parts = text.removeprefix(BUILTIN_PREFIX).partition("/")
            if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts) < 10_000):
                raise SiteError(f"--data: expected builtin:K/N with 0 <= K < N, got {text!r:.80}")
            return cls(None, int(part), int(parts))
        path = Path(text)
        if not path.exists():
            raise SiteError(f"--data {path}: expected a file or folder, found none")
        return cls(path)

    def rows(self, learning: Task, records: int) -> Rows:
        """The training rows of a task, at most `records` of each subject."""
        if self.path is None:
            if not learning.embedded:
                raise TaskError(f"--data builtin: {learning.name} is not embedded, expected a path")
            return builtin(learning.load(None, "train"), self.part, self.parts)
        return cap(learning.load(self.path, "train"), records)


class SiteRows:
    """`rows(task)` of one site: the data's own schema decides what they are, no plan.

    `schema` is the text that the owner registered with the data, None where there is none; `policy`
    gives the policy of now, whose cap holds in the round that it has judged. `cache` keeps copies
    of long ones. `tasks` are the only ones that these rows are for; none: any.
    """

    def __init__(
        self,
        source: Source,
        schema: str | None,
        policy: Callable[[], Policy],
        tell: Callable[..., None],
        cache: Cache | None = None,
        tasks: Sequence[str] = (),
    ) -> None:
        self._tasks = tuple(tasks)
        self._source, self._schema, self._policy, self._tell = source, schema, policy, tell
        self._cache = cache
        self._contents = None if source.path is None else Contents(source.path)
        self._digest = None if schema is None else schema_digest(schema)
        self._key: tuple[str, ...] = ()
        self._rows: Rows | None = None

    def suits(self, plan: Plan) -> bool:
        """Whether a plan is for these data: by its task and its schema, without a look at them."""
        if self._tasks and plan.reads not in self._tasks:
            return False
        if self._source.path is None:
            embedded = plan.code is None and task(plan.reads, plan.schema).embedded
            return plan.schema is None and embedded
        if plan.code is not None:
            return self._digest is None
        if plan.schema is None:
            return self._digest is None and not task(plan.reads, plan.schema).embedded
        return self._digest == schema_digest(plan.schema)

    def overlaps(self, other: "SiteRows") -> bool:
        """Whether some plan would suit both."""
        apart = bool(self._tasks and other._tasks) and not set(self._tasks) & set(other._tasks)
        kinds = {(rows._source.path is None, rows._digest) for rows in (self, other)}
        return len(kinds) == 1 and not apart

    def accepts(self, plan: Plan) -> bool:
        """Whether a plan is for these data; one that is not is told to the owner."""
        taken = self.suits(plan)
        if not taken and self._source.path is not None:
            self._tell(
                "schema_differs",
                plan=plan.digest,
                registered=self._digest or "none",
                next="tacit-client data add --schema FILE, if the plan's schema is right for them",
            )
        return taken

    def __call__(self, learning: Task) -> Rows:
        """The training rows, read again only where the contents, the schema or the cap changed.

        A database is asked once, since nothing says whether its answer has changed.
        """
        records = self._policy().rows_of_a_person
        of = (learning.name, learning.code, learning.options)
        key = (*of, self._digest or "", str(records), self._state())
        if self._rows is None or key != self._key:
            self._rows = None  # not both at once in memory
            try:
                with row_by_row():
                    self._rows = self._read(learning, records, key)
            except NoRows as error:  # like any other number of them: the owner is told
                self._tell("rows_read", training=0, file=str(error))
                self._rows = none_of(learning)
            self._key = key
            if self._rows.reading is not None:
                self._tell("rows_read", training=len(self._rows), file=str(self._rows.reading))
        if isinstance(self._rows.x, torch.Tensor):
            release(self._rows.x)  # what the last round has drawn
        return self._rows

    def _state(self) -> str:
        """A digest of the files' names and contents, or the part of an embedded task."""
        if self._contents is None:
            return f"{self._source.part}/{self._source.parts}"
        return self._contents.digest()

    def _read(self, learning: Task, records: int, key: tuple[str, ...]) -> Rows:
        if self._cache is None or self._contents is None or not self._contents.whole:
            return self._source.rows(learning, records)
        return self._cache.rows(
            key,
            lambda: self._source.rows(learning, records),
            lambda: self._state() == key[-1],
            costly=learning.costly,
        )

    def check(self, approved: Sequence[Task] = ()) -> None:
        """Read the rows before any round, where their task is known, and refuse too few.

        `approved` are the tasks of the packages that the owner allows, one of which is known here
        to be theirs. TaskError or SiteError, one line: only the owner sees it, since no coordinator
        starts this.
        """
        policy, path = self._policy(), self._source.path
        if self._schema is not None:
            learning = task_of_schema(self._schema)
        elif len(ours := [one for one in approved if policy.tasks in (("*",), (one.name,))]) == 1:
            learning = ours[0]
        elif len(policy.tasks) == 1 and policy.tasks[0] in NAMES and policy.tasks[0] != "table":
            learning = task(policy.tasks[0])
        else:
            return
        if policy.records_per_subject > 1 and not learning.subjects:
            raise SiteError(
                f"--data: records_per_subject is {policy.records_per_subject}, but the rows do not "
                "say whose they are (a schema's key `subject` names the column)"
            )
        rows = self(learning)
        if path is None:
            return
        omissions = () if rows.reading is None else rows.reading.omissions
        broken = next((one for one in omissions if not one.column), None)
        titled = bool(learning.wanted.names) and any(one.first == "line 1" for one in omissions)
        if not len(rows) or broken is not None or titled:
            learning.load(path, "train")  # as a whole: what every command says of this file
        if not len(rows):
            raise SiteError(f"--data {path}: expected rows that fit, found none")
        if broken is not None:
            raise SiteError(f"--data {path}: {broken.first}: expected {broken.expected}")
        if len(rows) < policy.min_rows:
            raise SiteError(f"--data: fewer rows than min_rows = {policy.min_rows}")
        if policy.max_unfit < 1 and (worst := _unfit(learning, path, rows)) > policy.max_unfit:
            raise SiteError(
                f"--data {path}: a share of {worst:.3f} does not fit, more than max_unfit = "
                f"{policy.max_unfit:g} (tacit-client data check shows where)"
            )


def _unfit(learning: Task, path: Path, rows: Rows) -> float:
    """The largest share of a column or of the rows that does not fit."""
    if learning.columns is not None:
        return look(learning, path).worst()
    reading = rows.reading
    return 0.0 if reading is None or not reading.rows else reading.left_out / reading.rows
