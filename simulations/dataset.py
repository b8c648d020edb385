"""The data of a simulated federation, loaded once, and the sites that share it."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from client.data.cache import Cache
from client.data.contents import Contents
from client.site import LastReply, Replies, SecureState, Site
from client.tasks.registry import task_of
from client.tasks.rows import Rows, TaskError
from client.tasks.task import Task
from privacy.arrays import Buffer, memory
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import schema_digest, with_counts
from privacy.contract.policy import Policy
from privacy.identity.keys import new_signing_key, sign, signing_public
from privacy.ledger.ledger import Ledger
from privacy.mechanism import noise
from privacy.secagg.parties import Roster
from simulations.own_task import described
from simulations.partition import split

_KEPT_BYTES: Final = 16_000_000

FAULT: Final = "fault.txt"
"""The file of a run folder that says what failed at a simulated site."""

Data = Path | tuple[Rows, Rows] | None
"""Where a simulation's rows are, or the training and the held-out rows themselves."""

Parts = Mapping[str, np.ndarray[Any, np.dtype[np.int64]]]


@dataclass(frozen=True, slots=True)
class World:
    """All training rows, who holds which of them, and the held-out rows."""

    train: Rows
    test: Rows
    parts: Parts

    def records_per_person(self) -> dict[str, int]:
        """The most training rows of one person at each site, where the task knows persons."""
        if self.train.subject is None:
            return {}
        subject = self.train.subject.numpy()
        return {
            name: int(np.unique(subject[part], return_counts=True)[1].max(initial=1))
            for name, part in self.parts.items()
        }

    def rows(self, site: str) -> Rows:
        """One site's rows, taken out of the whole when they are needed."""
        return self.train.take(self.parts[site])


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how a simulated site lives: enough to make it again in another process."""

    plan: Plan
    train: Rows
    parts: Parts
    folder: Path
    insecure: bool
    signing: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the sites train."""
        return chosen_device()

    @property
    def roster(self) -> Roster:
        """The simulated parties' verifying keys."""
        return {name: signing_public(key) for name, key in self.signing.items()}

    def site(self, name: str, replies: Replies | None = None) -> Site:
        """A simulated site: a ledger that begins with the run, and the plan's limit as policy."""
        policy = Policy.simulated(self.plan, self.plan.limit_of(name))
        ledger = own_ledger(self.folder, name) if self.plan.noised_at_site else None
        part = self.parts[name]
        store = LastReply() if replies is None else replies
        return Site(
            name,
            policy,
            ledger,
            lambda _: self.train.take(part),
            check_head=lambda head: True,  # the coordinator is this process: nothing is signed
            replies=store,
            on_fault=self._fault,
            sign=lambda payload: sign(self.signing[name], payload),
            parties=lambda _: self.roster,
            secure=SecureState(masks=self.plan.simulation.masks),
            device=self.device,
        )

    def _fault(self, error: Exception) -> None:
        """A researcher's own rows have nobody to hide from: what fails is said."""
        (self.folder / FAULT).write_text(described(error) + "\n", encoding="utf-8")
        raise error

    def draws(self, site: str, number: str) -> AbstractContextManager[None]:
        """Where one site's noise of one round comes from: the system, unless marked insecure."""
        if not self.insecure:
            return nullcontext()
        return noise.insecure(f"{self.plan.seed}/{site}/{number}")


def chosen_device() -> torch.device:
    """Where simulated sites train: on the CPU, or on the GPU that TACIT_DEVICE names; PlanError."""
    name = os.environ.get("TACIT_DEVICE", "cpu")
    number = name.removeprefix("cuda:")
    here = torch.cuda.device_count() if name != "cpu" else 0
    if name != "cpu" and not (number.isascii() and number.isdecimal() and int(number) < here):
        raise PlanError(
            f"TACIT_DEVICE must be cpu or cuda:N with N below {here}, the number of GPUs, "
            f"got {name!r:.40}"
        )
    return torch.device(name)


@dataclass(slots=True)
class Recent:
    """A process's replies of this round, up to so many bytes; the older ones are forgotten.

    A site that is asked again for a round whose reply is forgotten trains and pays again.
    """

    most: int = _KEPT_BYTES
    _round: str = ""
    _replies: OrderedDict[tuple[str, str], bytes] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def of(self, site: str) -> Replies:
        """One site's replies."""
        return _Own(self, site)

    def holds(self, site: str, run_and_round: str) -> bool:
        """Whether a reply of this round is kept."""
        replies = self._replies if run_and_round == self._round else ()
        return any(name == site for name, _ in replies)

    def get(self, site: str, key: str) -> bytes | None:
        """The reply to this very request, if it is among the last."""
        return self._replies.get((site, key))

    def put(self, site: str, key: str, reply: Sequence[Buffer]) -> None:
        """Keep a reply, and forget those of other rounds and the oldest beyond the bound."""
        run_and_round = key.rpartition("/")[0]
        if run_and_round != self._round:  # no round is asked again once the next has begun
            self._replies.clear()
            self._round, self._bytes = run_and_round, 0
        if sum(len(part) for part in reply) > self.most:
            return
        whole = b"".join(map(memory, reply))
        self._bytes += len(whole) - len(self._replies.pop((site, key), b""))
        self._replies[site, key] = whole
        while self._bytes > self.most:
            self._bytes -= len(self._replies.popitem(last=False)[1])


def signing_keys(plan: Plan, names: Iterable[str]) -> dict[str, bytes]:
    """Keys of simulated parties, where a plan has them sign; new for each process."""
    return {name: new_signing_key() for name in names} if plan.is_secure else {}


def sites(place: Place) -> Callable[[str], Site]:
    """The sites of one process by name, each made when it is first asked."""
    recent = Recent()
    return cache(lambda name: place.site(name, recent.of(name)))


@dataclass(frozen=True, slots=True)
class _Own:
    recent: Recent
    site: str

    def holds(self, run_and_round: str) -> bool:
        return self.recent.holds(self.site, run_and_round)

    def get(self, key: str) -> bytes | None:
        return self.recent.get(self.site, key)

    def put(self, key: str, reply: Sequence[Buffer]) -> None:
        self.recent.put(self.site, key, reply)


def prepare(plan: Plan, data: Data) -> tuple[Plan, World]:
    """Load the data, split it, write the sites' row counts into the plan; TaskError, PlanError."""
    if isinstance(data, tuple):
        train, test = data
    else:
        learning = task_of(plan)
        if learning.embedded and data is not None:
            raise TaskError(f"--data: {plan.task} is embedded and reads no file, got {data}")
        train, test = _loaded(plan, learning, data)
    sites = plan.sites
    if plan.split == "natural":
        sites = sites or len(set(train.site or ()))
    subject = _subject(plan, train)
    parts = split(plan.split, train.y.numpy(), train.site, sites or 1, plan.seed, subject)
    unknown = sorted(set(plan.site) - set(parts))
    if unknown:
        raise PlanError(f"a site must be one of {', '.join(parts)}, got {unknown[0]}")
    if plan.nominal_units == "actual":
        counts = {
            name: len(rows if subject is None else np.unique(subject[rows]))
            for name, rows in parts.items()
        }
        plan = with_counts(plan, counts)
    return replace(plan, sites=sites), World(train, test, parts)


def _loaded(plan: Plan, learning: Task, data: Path | None) -> tuple[Rows, Rows]:
    """The rows to train on and those held out, by one reading where the task has such."""
    if plan.statistics is not None:
        rows = learning.load(data, "train")
        return rows, rows

    @cache
    def read() -> tuple[Rows, Rows]:
        if learning.load_both is not None and (learning.costly or not learning.pretrained):
            return learning.load_both(data)
        return learning.load(data, "train"), learning.load(data, "test")

    if data is None or not learning.costly:
        return read()
    train = _kept(plan, learning, data, "train", lambda: read()[0])
    return train, _kept(plan, learning, data, "test", lambda: read()[1])


def _kept(plan: Plan, learning: Task, data: Path, part: str, read: Callable[[], Rows]) -> Rows:
    """A part of the data; what took long to encode is kept for the next run."""
    contents = Contents(data)
    state = contents.digest()
    schema = "" if plan.schema is None else schema_digest(plan.schema)
    return Cache(cache_folder()).rows(
        (learning.name, learning.code, learning.options, schema, part, state),
        read,
        lambda: contents.digest() == state,
        costly=True,
    )


def cache_folder() -> Path:
    """Where rows that take long to encode are kept: `TACIT_CACHE`, else the user's cache."""
    folder = os.environ.get("TACIT_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(folder) if folder else Path(home) / "tacit" / "features"


def _subject(plan: Plan, rows: Rows) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Each row's person, where the plan's unit is the person."""
    if plan.unit != "subject":
        return None
    if rows.subject is None:
        raise PlanError(
            f'unit must be "record" or "client" for {plan.task}, whose rows do not say whose they '
            "are (a table's schema names the column: subject)"
        )
    return rows.subject.numpy()


def ledger_path(folder: Path, name: str) -> Path:
    """Where a run folder has a site's ledger."""
    return folder / "ledgers" / f"{name}.jsonl"


def own_ledger(folder: Path, name: str) -> Ledger:
    """A simulation's ledger: the production code without fsync, safe against a kill."""
    path = ledger_path(folder, name)
    if path.exists():
        return Ledger.open(path, durable=False)
    path.parent.mkdir(exist_ok=True)
    return Ledger.create(path, population=f"simulated {name}", durable=False)
