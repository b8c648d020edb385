"""Flower's messages to values and back, nothing more."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from privacy.accounting.events import Event
from privacy.arrays import Arrays, Buffer
from privacy.contract.outputs import REASONS
from privacy.secagg.masks import Words

ARRAYS: Final = "arrays"
REQUEST: Final = "request"
REPLY: Final = "reply"
STYPE: Final = "safetensors"
WORDS: Final = "words"

_LEDGER: Final = re.compile(r"[0-9a-f]{0,32}")
BUDGET: Final = "budget-exhausted"
FINAL_REFUSALS: Final = frozenset(
    {
        BUDGET,
        "plan-denied",
        "coordinator-not-trusted",
        "task-not-allowed",
        "model-refused",
        "no-subjects",
        "unit-not-allowed",
        "output-not-allowed",
        "too-many-steps",
        "noise-too-low",
        "rate-too-high",
        "secure-not-allowed",
        "too-few-parties",
        "too-many-colluding",
    }
)
"""A site that declines with one of these is not asked again in this run, unless it says that it
can take part after all."""

WAITING_REFUSALS: Final = frozenset(
    {
        "plan-not-approved",
        "task-not-approved",
        "paused",
        "ledger-not-written",
        "ledger-untrusted",
        "too-many-rounds-today",
        "parties-not-known",
    }
)
"""A site that declines with one of these waits for a person or for the next day."""


class ReplyError(ValueError):
    """A reply that is not what was asked for: the site is named, the others' round stands."""


@dataclass(frozen=True, slots=True)
class Request:
    """What one site is asked in one round; `head` is its last counter-signed head.

    `base` is the digest of the model's frozen part, which does not travel; "" where there is none.
    `behind` are, where the site is a relay, the sites that it asks: the last head of each.
    `choice` is the candidate of a search that the rounds after its pilots train.
    """

    run: str
    round: int
    site: str
    plan: str
    clip: float | None = None
    head: Mapping[str, Any] | None = None
    base: str = ""
    behind: Mapping[str, Mapping[str, Any]] | None = None
    choice: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one site answered: trained with arrays and what paid for them, or why not."""

    site: str
    status: str
    reason: str | None
    events: tuple[Event, ...] = ()
    sigma: float | None = None
    arrays: Arrays | None = None
    below: float | None = None
    metrics: Mapping[str, float] | None = None
    proof: Mapping[str, Any] | None = None
    size: int = 0
    words: Words | None = None


def packed(content: Buffer, stype: str = STYPE) -> Array:
    """Encoded arrays as one array of Flower's; one serves all sites, and is hashed once."""
    array = Array(dtype="uint8", shape=(len(content),), stype=stype, data=b"")
    vars(array)["data"] = content  # Flower only slices it, and asks for bytes when it is made
    return array


def carried(**arrays: Array) -> ArrayRecord:
    """Arrays by their names, as they are: made of them a record would copy each."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = array
    return record


def ask(
    grid: Grid,
    node: int,
    request: Request,
    weights: Array,
    *,
    kind: str = "train",
    more: Mapping[str, str] = MappingProxyType({}),
) -> Message:
    """The message to one site; `kind` is "train", or "evaluate" to hand out a released model.

    `more` are the fields of secure aggregation.
    """
    fields = {**_fields(request), **more}
    if request.clip is not None:
        fields["clip"] = request.clip
    if request.choice is not None:
        fields["choice"] = request.choice
    if request.base:
        fields["base"] = request.base
    content = RecordDict({ARRAYS: carried(weights=weights), REQUEST: ConfigRecord(fields)})
    return grid.create_message(content, kind, node, str(request.round))


def propose(grid: Grid, node: int, request: Request, package: bytes = b"") -> Message:
    """The message that shows a plan to one site before it runs, with its package to be read."""
    fields = _fields(request)
    if package:
        fields["package"] = package
    content = RecordDict({REQUEST: ConfigRecord(fields)})
    return grid.create_message(content, "query.propose", node, str(request.round))


def _fields(request: Request) -> dict[str, Any]:
    """What every request says of itself."""
    fields: dict[str, Any] = {
        "run": request.run,
        "round": request.round,
        "site": request.site,
        "plan": request.plan,
    }
    return fields if request.head is None else fields | {"head": json.dumps(request.head)}


def read_proposal(message: Message, request: Request, rounds: int) -> tuple[str, str, int, str]:
    """A site's answer to a proposal: status, reason, how many rounds it can pay, from which of its
    ledgers ("" where it has one); ReplyError."""
    if message.has_error():
        raise ReplyError("no-answer")
    fields = message.content.get(REPLY)
    if not isinstance(fields, ConfigRecord) or set(message.content) != {REPLY}:
        raise ReplyError("bad-reply")
    status, reason, fit = fields.get("status"), fields.get("reason"), fields.get("rounds", 0)
    if fields.get("run") != request.run or fields.get("round") != request.round:
        raise ReplyError("old-reply")
    if status not in ("approved", "declined", "failed") or not isinstance(reason, str):
        raise ReplyError("bad-reply")
    if reason not in REASONS or (status == "approved") != (reason == ""):
        raise ReplyError("bad-reply")
    if isinstance(fit, bool) or not isinstance(fit, int) or not 0 <= fit <= rounds:
        raise ReplyError("bad-reply")
    ledger = fields.get("ledger", "")
    if not isinstance(ledger, str) or not _LEDGER.fullmatch(ledger):
        raise ReplyError("bad-reply")
    return status, reason, fit, ledger
