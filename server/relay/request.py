"""What a coordinator asks of its relay, as values, checked before anything is passed down."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from privacy.arrays import Arrays, WireError, decode_any
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import from_json
from server.registry.relays import needs_single_replies
from server.rounds.messages import ARRAYS, REQUEST, STYPE

_RUN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Refusal(Exception):
    """The relay passes a request on to nobody; the coordinator is told a code."""

    def __init__(self, code: str, *, status: str = "declined") -> None:
        super().__init__(code)
        self.code, self.status = code, status


@dataclass(frozen=True, slots=True)
class RoundRequest:
    """A coordinator's request as a value."""

    run: str
    round: int
    plan: Plan
    base: str


def read_request(content: RecordDict, name: str, *, proposal: bool = False) -> RoundRequest:
    """The request to the relay of this name; Refusal where it is none, or needs single replies."""
    fields = request_fields(content)
    run, number, text = fields.get("run"), fields.get("round"), fields.get("plan")
    base = fields.get("base", "")
    known = isinstance(run, str) and (_RUN.fullmatch(run) or (proposal and run == ""))
    if not known or not isinstance(text, str) or not isinstance(base, str):
        raise Refusal("bad-request", status="failed")
    if isinstance(number, bool) or not isinstance(number, int):
        raise Refusal("bad-request", status="failed")
    try:
        plan = from_json(text)
    except PlanError:
        raise Refusal("bad-request", status="failed") from None
    if not 1 <= number <= plan.rounds or fields.get("site") != name:
        raise Refusal("bad-request", status="failed")
    if needs_single_replies(plan) is not None:
        raise Refusal("output-not-allowed")
    return RoundRequest(str(run), number, plan, base)


def request_fields(content: RecordDict) -> Mapping[str, Any]:
    """The request's fields; none where there is no request."""
    record = content.get(REQUEST)
    return record if isinstance(record, ConfigRecord) else {}


def read_weights(content: RecordDict) -> Arrays:
    """The round's weights, whatever their names and shapes; Refusal."""
    record = content.get(ARRAYS)
    array = record.get("weights") if isinstance(record, ArrayRecord) else None
    if array is None or array.stype != STYPE or array.dtype != "uint8":
        raise Refusal("bad-weights")
    try:
        return decode_any(array.data)
    except WireError:
        raise Refusal("bad-weights") from None
