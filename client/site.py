"""A site: its name, its rules, its ledger, its rows; what the resident process holds."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from client.tasks.registry import task_of
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.arrays import Buffer, memory
from privacy.contract.plan import Plan
from privacy.contract.policy import Policy
from privacy.files import DocumentError, Limits, parse_json, write_atomic
from privacy.ledger.heads import Head, Proof
from privacy.ledger.ledger import Ledger, LedgerError
from privacy.secagg.parties import Attempt, Roster
from privacy.secagg.party import Advertised, Confirmed, Masked, Shared
from privacy.task_package.archive import Package

_CLAIM: Final = Limits(size=2048, depth=2, digits=16, length=512, count=16)
"""A coordinator's word on a ledger's head: a count, a digest, a signature, a ledger's name."""
_STORED: Final = Limits(size=1 << 26, depth=8, length=1 << 26)
"""The fields of a stored reply, which hold whole proofs as text."""


class SiteError(ValueError):
    """A site that cannot be set up: one line for its operator."""


class Replies(Protocol):
    """Stored replies: what was paid for once is sent again, never drawn again.

    A key is RUN/ROUND/WEIGHTS; `holds` asks by RUN/ROUND, where the weights are not known yet. A
    reply is put in parts.
    """

    def holds(self, run_and_round: str) -> bool: ...

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, reply: Sequence[Buffer]) -> None: ...


@dataclass(slots=True)
class LastReply:
    """Keeps the last reply in memory: enough where a killed process pays again (simulations)."""

    key: str = ""
    reply: bytes | None = None

    def holds(self, run_and_round: str) -> bool:
        """Whether the last reply belongs to this round."""
        return self.key.rpartition("/")[0] == run_and_round and self.reply is not None

    def get(self, key: str) -> bytes | None:
        """The reply to this very request, if it was the last."""
        return self.reply if key == self.key else None

    def put(self, key: str, reply: Sequence[Buffer]) -> None:
        """Replace the reply kept."""
        self.key, self.reply = key, b"".join(map(memory, reply))


@dataclass(frozen=True, slots=True)
class KeptReplies:
    """Keeps replies as files: a restarted client sends again and does not spend again.

    A coordinator that was restored from a backup may ask for every round since again: as many are
    kept as `most` and `most_bytes` allow, the latest always.
    """

    folder: Path
    most: int = 1000
    most_bytes: int = 2 << 30

    def get(self, key: str) -> bytes | None:
        """The reply to this very request, whole, or None."""
        for path in (self._path(key), self._old_path(key)):
            with suppress(FileNotFoundError):
                return path.read_bytes()
        return None

    def holds(self, run_and_round: str) -> bool:
        """Whether a reply to a request of this round is kept."""
        return any(self.folder.glob(f"{_short(run_and_round)}-*.reply"))

    def put(self, key: str, reply: Sequence[Buffer]) -> None:
        """Write a reply in one step, then drop the oldest."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(self._path(key), map(memory, reply))
        facts = [(path, path.stat()) for path in self.folder.glob("*.reply")]
        facts.sort(key=lambda pair: pair[1].st_mtime_ns, reverse=True)
        total = 0
        for place, (path, fact) in enumerate(facts):
            total += fact.st_size
            if place and (place >= self.most or total > self.most_bytes):
                path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{_short(key.rpartition('/')[0])}-{_short(key)}.reply"

    def _old_path(self, key: str) -> Path:
        """Where version 0.1.0 kept it."""
        return self.folder / f"{_short(key)}.reply"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def packed(values: Mapping[str, Any]) -> tuple[Buffer, ...]:
    """A reply as parts that can be kept: its fields as JSON, then the update."""
    head = json.dumps({name: v for name, v in values.items() if name != "update"}).encode()
    return len(head).to_bytes(8, "little") + head, values["update"]


def unpacked(data: bytes) -> dict[str, Any]:
    """What `packed` had."""
    size = int.from_bytes(data[:8], "little")
    values: dict[str, Any] = parse_json(data[8 : 8 + size], _STORED)
    return values | {"update": data[8 + size :]}


@dataclass(slots=True)
class SecureState:
    """Where this site stands in secure aggregation: in one attempt at most, in memory alone.

    `masks` is False only in a simulation that leaves them out.
    """

    masks: bool = True
    attempt: Attempt | None = None
    state: Advertised | Shared | Masked | Confirmed | None = None


def _no_key(payload: bytes) -> bytes:
    raise SiteError("signing.key: this site has no key to sign with")


def _nothing(*_: Any, **facts: Any) -> None:
    return None


@dataclass(slots=True)
class Site:
    """One data owner, as its own process sees it.

    `rows(task)` gives the training rows. `check_head(head)` says whether a ledger's head bears the
    coordinator's signature; `coordinator` is its verifying key, to which runs in the ledger are
    bound; `ledger_id` tells this ledger from the others of a site that has several. `ledger` is
    None only where no private plan may run. `on_event(event, **facts)` is for the log and never
    gets a value of a record. `on_plan(plan)` is called before a plan is judged, since the owner may
    have changed the policy meanwhile; `on_package(plan, package)` with the task package that came
    with a proposal, to be kept for the owner to read; `on_model(plan, run, round, weights)` with
    each released model that arrives. `accepts(plan)` says whether a plan is for this site's data,
    by its task and schema alone. `tasks(plan)` gives its task, of a package by approved bytes alone
    (TaskError).
    `on_fault(error)` is called where rows could not be read or trained on in a round that was paid
    for; the round is answered all the same. `sign` signs with this site's key, and `parties(plan)`
    are the verifying keys of a plan's parties, in secure aggregation.
    """

    name: str
    policy: Policy
    ledger: Ledger | None
    rows: Callable[[Task], Rows]
    _: KW_ONLY
    check_head: Callable[[Any], bool]
    coordinator: str = ""
    ledger_id: str = ""
    replies: Replies = field(default_factory=LastReply)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    on_event: Callable[..., None] = _nothing
    on_model: Callable[..., None] = _nothing
    on_plan: Callable[[Plan], None] = _nothing
    on_package: Callable[[Plan, Package], None] = _nothing
    on_fault: Callable[[Exception], None] = _nothing
    accepts: Callable[[Plan], bool] = lambda plan: True
    tasks: Callable[[Plan], Task] = task_of
    paused: Callable[[], bool] = lambda: False
    sign: Callable[[bytes], bytes] = _no_key
    parties: Callable[[Plan], Roster] = lambda plan: plan.roster
    secure: SecureState = field(default_factory=SecureState)

    def is_addressed_by(self, head: object) -> bool:
        """Whether a head that a coordinator sent is one of this ledger, not of another here."""
        try:
            claim = parse_json(head, _CLAIM) if isinstance(head, str) else None
        except DocumentError:
            return False
        return isinstance(claim, dict) and claim.get("ledger", "") == self.ledger_id

    def follows(self, head: object) -> bool:
        """Whether the ledger extends a coordinator's last head, or a break was acknowledged."""
        last, proof = self._last(head), self.proof(head)
        return proof is not None and (proof.base == last or proof.acknowledged)

    def proof(self, head: object) -> Proof | None:
        """How the ledger goes on from the head that a coordinator says it counter-signed last."""
        last = self._last(head)
        if last is None or self.ledger is None:
            return None
        try:
            return self.ledger.proof(last)
        except LedgerError:
            return None

    def _last(self, head: object) -> Head | None:
        if not isinstance(head, str):
            return None
        try:
            claim = parse_json(head, _CLAIM)
            return Head(claim["n"], claim["digest"]) if self.check_head(claim) else None
        except (ValueError, KeyError, TypeError):
            return None
