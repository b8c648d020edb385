"""What a worker does with a part of a file: encode it, predict it, give it the output's form."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.data.input_files import Chunk, Cut
from client.data.reader import Part
from client.inference.predictor import Predictor, predictor
from client.models.loading import Model, ModelError, Tasks, rebuilt
from client.models.provenance import Origin
from client.scoring.output_files import Form, Formatted, formatted
from client.scoring.tally import Counts, counts
from client.tasks.packages.package_task import package_task
from client.tasks.registry import task_of
from client.tasks.rows import TaskError
from client.tasks.task import Task
from privacy.contract.plan import Plan
from privacy.task_package.archive import SUFFIX, Package, read_package


@dataclass(frozen=True, slots=True)
class Output:
    """What is asked of the predictions: their form, and all probabilities or the best alone."""

    form: Form
    every: bool = False
    skip_bad: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A part's counts and its predictions; none where rows do not fit that may not be skipped."""

    counts: Counts
    output: Formatted | None


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a part cannot be read or predicted, in one line."""

    why: str


@dataclass(slots=True, eq=False)
class Work:
    """A model and a source; a fork has them as they are, another process makes them from bytes.

    `package` is the task package of the model, if it has one.
    """

    model: Model
    data: Path
    ident: str | None
    output: Output
    package: Package | None = None
    _ready: Predictor | None = field(default=None, init=False)
    _cut: Cut | None = field(default=None, init=False)

    @property
    def cut(self) -> Cut | None:
        """The source in parts; None where the task reads its own files."""
        if self._cut is None and self.model.task.read is None:
            self._cut = Cut.of(self.model.task, self.data, ident=self.ident)
        return self._cut

    def done(self, part: Part | Chunk, first: int, explain: int) -> Scored | Refused:
        """A part's predictions, of which row `first` of the source is the first.

        Its first `explain` rows come along, encoded.
        """
        try:
            return self._scored(part, first, explain)
        except ValueError as error:  # told by who asked, in the order of the parts
            return Refused(str(error))

    def _scored(self, part: Part | Chunk, first: int, explain: int) -> Scored:
        if self._ready is None:  # here and not before: no session outlives a fork
            self._ready = predictor(self.model, threads=1)
        if isinstance(part, Chunk):
            chunk = part
        else:
            cut = self.cut
            if cut is None:
                raise TaskError(f"{self.data}: expected rows that the task has read")
            with cut.named():
                chunk = cut.encoded(part, first)
        counted = counts(chunk, explain)
        if counted.faults and not self.output.skip_bad:
            return Scored(counted, None)
        (predictions,) = self._ready.predict(iter([chunk]), every=self.output.every)
        return Scored(counted, formatted(predictions, self.output.form))

    def __reduce__(self) -> tuple[Any, ...]:
        """The model as the bytes of its file, whose origin was asked about here."""
        model = self.model
        packed = None if self.package is None else self.package.content
        facts = (model.path.name, model.content(), model.origin, packed)
        cut = None if self._cut is None else self._cut.sent()
        return _made, (facts, cut, self.data, self.ident, self.output)


def _made(
    facts: tuple[str, bytes, Origin, bytes | None],
    cut: tuple[Any, ...] | None,
    data: Path,
    ident: str | None,
    output: Output,
) -> Work:
    name, content, origin, packed = facts
    model = rebuilt(Path(name), content, origin, task_of if packed is None else _packed(packed))
    work = Work(model, data, ident, output)
    if cut is not None:
        work._cut = Cut(model.task, *cut)
    return work


def _packed(content: bytes) -> Tasks:
    """The task of a package that was sent along."""

    def task(plan: Plan) -> Task:
        with tempfile.TemporaryDirectory(prefix="tacit-") as folder:
            path = Path(folder, f"sent{SUFFIX}")
            path.write_bytes(content)
            package = read_package(path)
        if package.code != plan.code:
            raise ModelError("expected the task package of this model, got another")
        return package_task(package, plan.task_options, name=plan.task)

    return task
