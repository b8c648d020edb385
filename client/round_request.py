"""A coordinator's request, read and judged before it costs: no model is built and no weight read.

What needs no weights is judged first: the request's form, pause, task, approval, denial, steps.
Then a model is built, and its own shapes say how many bytes of weights are taken.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from client.dpsgd.weights import WeightsError, base_of, read, shapes
from client.site import Site
from client.tasks.rows import TaskError
from client.tasks.task import Task
from privacy.arrays import Arrays, most
from privacy.contract.decision import permitted
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import from_json

ARRAYS: Final = "arrays"
REQUEST: Final = "request"
STYPE: Final = "safetensors"
_RUN_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
NO_SUBJECTS: Final = (
    "the schema must name a subject column: the plan's unit is the person, or the policy's "
    "records_per_subject is above 1"
)


class Refused(Exception):
    """A request that this site declines, with a code and nothing else."""

    def __init__(self, code: str, *, status: str = "declined") -> None:
        super().__init__(code)
        self.code = code
        self.status = status


@dataclass(frozen=True, slots=True)
class RoundRequest:
    """Which round of which plan is asked; `fields` are the request's, as they came.

    `choice` is the candidate of the plan's search that is trained after its pilots.
    """

    run: str
    round: int
    plan: Plan
    fields: Mapping[str, Any]
    choice: int | None = None

    def stage(self) -> tuple[Plan, int]:
        """The plan that the round follows, and which of its rounds it is."""
        return self.plan.stage(self.round, self.choice)


def fields_of(content: RecordDict) -> Mapping[str, Any]:
    """The request's fields; none where there is no request."""
    # Not `content.config_records`: such a view lies in a reference cycle and keeps the weights.
    record = content.get(REQUEST)
    return record if isinstance(record, ConfigRecord) else {}


def read_round_request(site: Site, fields: Mapping[str, Any]) -> RoundRequest:
    """The request as a value; Refused where it is none to this site."""
    run, number, text = fields.get("run"), fields.get("round"), fields.get("plan")
    if not is_run_id(run) or not isinstance(text, str):
        raise Refused("bad-request")
    if isinstance(number, bool) or not isinstance(number, int) or fields.get("site") != site.name:
        raise Refused("bad-request")
    try:
        plan = from_json(text)
        float(plan.learning_rate)  # PlanError where the rule for "auto" lacks a number
    except PlanError:
        raise Refused("bad-request") from None
    if not 1 <= number <= plan.rounds:
        raise Refused("bad-request")
    return RoundRequest(run, number, plan, fields, _choice(plan, number, fields.get("choice")))


def _choice(plan: Plan, number: int, choice: object) -> int | None:
    """The candidate that is asked: one of the plan's, after its pilots and nowhere else.

    It changes no event: what a round costs follows from its number alone.
    """
    if number <= plan.pilot_rounds or plan.tune is None:
        if choice is not None:
            raise Refused("bad-request")
        return None
    if isinstance(choice, bool) or not isinstance(choice, int):
        raise Refused("bad-request")
    if not 0 <= choice < plan.candidates:
        raise Refused("bad-request")
    return choice


def is_run_id(run: object) -> TypeGuard[str]:
    """Whether a value names a run: a word, which in a line of a log cannot look like more facts."""
    return isinstance(run, str) and bool(_RUN_ID.fullmatch(run))


def check_permitted(site: Site, request: RoundRequest, *, handed_out: bool = False) -> Task:
    """The task, if the owner's rules allow the request; a released model only of a paid run.

    Else its epsilon here would be unknown, and a coordinator's word would stand on the site's own
    model card.
    """
    plan = request.plan
    site.on_plan(plan)
    if site.paused():
        raise Refused("paused")
    refusal = permitted(plan, site.policy)
    if refusal is not None:
        site.on_event("plan_refused", code=refusal.code, message=refusal.message)
        raise Refused(refusal.code)
    if handed_out and plan.noised_at_site and not _has_paid(site, request):
        raise Refused("plan-not-approved")
    try:
        learning = site.tasks(plan)
    except TaskError as error:
        site.on_event("task_refused", message=str(error))
        raise Refused("task-not-approved" if plan.code else "task-not-allowed") from None
    if changed := learning.changed():
        site.on_event("task_refused", message=f"{plan.task}: {changed}")
        raise Refused("task-not-approved")
    if not handed_out and not site.accepts(plan):
        raise Refused("schema-differs")
    if not handed_out and site.policy.needs_subjects(plan) and not learning.subjects:
        site.on_event("task_refused", message=NO_SUBJECTS)
        raise Refused("no-subjects")
    return learning


def weights_limit(site: Site, fields: Mapping[str, Any], kind: str) -> int:
    """How many bytes of arrays a request may bring; 0 where it is refused without them."""
    try:
        request = read_round_request(site, fields)
        learning = check_permitted(site, request, handed_out=kind == "evaluate")
        return most(shapes(learning, request.plan.seed))
    except Exception:  # noqa: BLE001 - the app refuses it with its code; no bytes are taken
        return 0


def read_weights(content: RecordDict, learning: Task, seed: int) -> tuple[Arrays, str]:
    """The trained weights by name, and the digest that they are known by.

    What is frozen does not travel: where the coordinator says what it is, it must be the same here.
    """
    base = fields_of(content).get("base", "")
    if base and base != base_of(learning, seed):
        raise Refused("bad-weights")
    record = content.get(ARRAYS)
    array = record.get("weights") if isinstance(record, ArrayRecord) else None
    if array is None or array.stype != STYPE or array.dtype != "uint8":
        raise Refused("bad-weights")
    try:
        return read(learning, seed, array.data)
    except WeightsError:
        raise Refused("bad-weights") from None


def _has_paid(site: Site, request: RoundRequest) -> bool:
    """Whether this site took part in this coordinator's run: its ledger knows what the model cost.

    An entry of 0.1.0 names no coordinator, and counts for every one.
    """
    if site.ledger is None:
        return False
    return any(
        (entry.run, entry.plan) == (request.run, request.plan.digest)
        and entry.coordinator in ("", site.coordinator)
        for entry in site.ledger.entries()
    )
