"""The ClientApp and its one door: what may leave a site, in which order things happen."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import client.app
from client.release import DoorError, Paid, Public, Trusted, release
from client.site import Site
from client.tasks.registry import task
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.accounting.events import Event
from privacy.arrays import decode, encode
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from privacy.contract.policy import Policy
from privacy.ledger.ledger import Ledger
from tests.support.desk import PERMISSIVE, PLAN, SHAPES, WEIGHTS, Desk, unsigned


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    yield Desk(tmp_path)


def test_a_good_request_is_paid_then_trained(desk: Desk) -> None:
    reply = desk.ask()
    assert desk.said(reply) == ("trained", "")
    assert [e.event for e in desk.ledger.entries()] == [Event("record", 2.0, 0.2, 1)]
    update = reply.content.array_records["arrays"]["update"]
    assert decode(update.data, SHAPES)["bias"].shape == (10,)


def test_the_ledger_is_on_disk_before_a_row_is_looked_at(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[int] = []

    def looking(learning: Task) -> Rows:
        lines.append(len(desk.path.read_text().splitlines()))
        return desk.rows(learning)

    desk.site.rows = looking
    desk.ask()
    assert lines == [1]


def test_only_declared_fields_are_in_a_reply(desk: Desk) -> None:
    fields = desk.ask().content.config_records["reply"]
    assert set(fields) == {"run", "round", "site", "status", "reason", "events", "sigma"}


def test_the_same_request_again_is_answered_by_the_stored_reply_and_costs_nothing(
    desk: Desk, tmp_path: Path
) -> None:
    first = desk.ask().content.array_records["arrays"]["update"].data
    again = desk.ask().content.array_records["arrays"]["update"].data
    assert first == again
    assert len(desk.ledger.entries()) == 1
    assert desk.looked == 1
    restarted = Site(
        "north",
        PERMISSIVE,
        Ledger.open(desk.path),
        desk.rows,
        check_head=unsigned,
        replies=desk.site.replies,
    )
    desk.site = restarted
    assert desk.ask().content.array_records["arrays"]["update"].data == first
    assert len(Ledger.open(desk.path).entries()) == 1


@pytest.mark.parametrize("change", [{"round": 2}, {"run": "r2"}])
def test_any_other_repetition_is_a_new_spend(desk: Desk, change: dict[str, Any]) -> None:
    desk.ask()
    desk.ask(**change)
    assert len(desk.ledger.entries()) == 2


def test_other_weights_are_another_request(desk: Desk) -> None:
    desk.ask()
    desk.ask(weights=encode({n: a + np.float32(0.1) for n, a in WEIGHTS.items()}))
    assert len(desk.ledger.entries()) == 2


SEARCH = load_plan(
    "digits",
    [
        *("sigma=2.0", "rate=0.2", "rows=300", "rounds=5", "clip=1.0"),
        *("tune.epsilon=0.5", "tune.rounds=2", "tune.lr_times=[1.0, 3.0]"),
    ],
)


@pytest.mark.parametrize("choice", [None, -1, 2, True, "1", 1.0])
def test_after_the_pilots_one_of_the_plans_candidates_is_asked_or_nothing_is_paid(
    desk: Desk, choice: Any
) -> None:
    asked = {} if choice is None else {"choice": choice}
    assert desk.said(desk.ask(SEARCH, round=5, **asked)) == ("declined", "bad-request")
    assert desk.said(desk.ask(SEARCH, round=4, choice=0)) == ("declined", "bad-request")
    assert desk.said(desk.ask(choice=0)) == ("declined", "bad-request")
    assert not desk.ledger.entries()


def test_what_a_round_of_a_search_costs_follows_from_its_number_alone(desk: Desk) -> None:
    moved = []
    for number, choice in ((1, None), (3, None), (5, 0), (5, 1)):
        asked = {} if choice is None else {"choice": choice}
        reply = desk.ask(SEARCH, round=number, **asked)
        assert desk.said(reply) == ("trained", "")
        update = decode(reply.content.array_records["arrays"]["update"].data, SHAPES)
        moved.append(float(np.std(update["weight"])))
    sigmas = [entry.event.sigma for entry in desk.ledger.entries()]
    pilot = SEARCH.events_of_round("north", 1)[0].sigma
    assert sigmas == [pilot, pilot, 2.0, 2.0]
    assert 2.5 < moved[1] / moved[0] < 3.5
    assert 2.5 < moved[3] / moved[2] < 3.5


def huge(value: float) -> bytes:
    return encode({n: np.full_like(a, value) for n, a in WEIGHTS.items()})


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"\x80\x04K\x01.",
        huge(np.nan),
        huge(np.inf),
        huge(1e30),
        encode({"weight": WEIGHTS["weight"]}),
        encode(WEIGHTS | {"more": WEIGHTS["bias"]}),
        encode({"weight": WEIGHTS["bias"], "bias": WEIGHTS["weight"]}),
        b"\x00" * 50_000_000,
    ],
)
def test_bad_weights_are_refused_before_anything_is_spent(desk: Desk, weights: bytes) -> None:
    assert desk.said(desk.ask(weights=weights)) == ("declined", "bad-weights")
    assert desk.ledger.entries() == ()
    assert desk.looked == 0


@pytest.mark.parametrize(
    "asked",
    [
        {"plan": "{}"},
        {"plan": 7},
        {"run": ""},
        {"run": "r" * 65},
        {"round": 0},
        {"round": 6},
        {"round": 1.0},
        {"site": "south"},
    ],
)
def test_a_request_that_is_none_is_refused_by_a_code(desk: Desk, asked: dict[str, Any]) -> None:
    assert desk.said(desk.ask(**asked)) == ("declined", "bad-request")
    assert desk.ledger.entries() == ()


def test_a_spent_client_declines(tmp_path: Path) -> None:
    tight = Policy(epsilon=0.8, delta=1e-4, approve="within-limits", min_sigma=0.0)
    desk = Desk(tmp_path, tight)
    answers = [desk.said(desk.ask(round=n)) for n in range(1, 6)]
    assert answers[0] == ("trained", "")
    assert answers[-1] == ("declined", "budget-exhausted")
    before = desk.path.read_bytes()
    desk.ask(round=5)
    assert desk.path.read_bytes() == before
    assert desk.ledger.spent(1e-4) <= 0.8


@pytest.mark.parametrize("unit", ["client", "none"])
def test_unnoised_updates_leave_only_where_the_policy_trusts(tmp_path: Path, unit: str) -> None:
    sets = ["unit=none"] if unit == "none" else ["unit=client", "sigma=1.0"]
    plan = load_plan("digits", [*sets, "rows=300", "rounds=5"])
    desk = Desk(tmp_path)
    assert desk.said(desk.ask(plan, clip=1.0)) == ("declined", "coordinator-not-trusted")
    assert desk.looked == 0
    (tmp_path / "two").mkdir()
    trusting = Desk(tmp_path / "two", replace(PERMISSIVE, trust_coordinator=True))
    assert trusting.said(trusting.ask(plan, clip=1.0)) == ("trained", "")
    assert trusting.ledger.entries() == ()
    assert not (tmp_path / "two" / "replies").exists()


def test_a_released_model_is_taken_and_nothing_is_spent_or_looked_at(desk: Desk) -> None:
    kept: list[tuple[str, int, list[str]]] = []
    desk.site.on_model = lambda plan, run, round, weights: kept.append((run, round, [*weights]))
    refused = ("declined", "plan-not-approved")
    assert desk.said(desk.ask(kind="evaluate", round=5)) == refused, (
        "this site paid for no such run"
    )
    assert kept == []
    assert desk.said(desk.ask())[0] == "trained"
    before, looked = desk.ledger.entries(), desk.looked
    assert desk.said(desk.ask(kind="evaluate", round=5)) == ("received", "")
    assert kept == [("r1", 5, ["weight", "bias"])]
    assert desk.said(desk.ask(kind="evaluate", round=5, run="r2")) == refused
    assert desk.said(desk.ask(weights=huge(np.nan), kind="evaluate"))[0] == "declined"
    desk.site.paused = lambda: True
    assert desk.said(desk.ask(kind="evaluate", round=5)) == ("declined", "paused")
    assert len(kept) == 1
    assert desk.looked == looked
    assert desk.ledger.entries() == before


def test_another_coordinators_model_of_a_paid_run_is_not_taken(desk: Desk) -> None:
    """Else it would stand on the site's own card with the epsilon of a model that it paid for."""
    kept: list[str] = []
    desk.site.on_model = lambda plan, run, round, weights: kept.append(run)
    desk.site.coordinator = "a" * 64
    assert desk.said(desk.ask()) == ("trained", "")
    desk.site.coordinator = "b" * 64
    assert desk.said(desk.ask(kind="evaluate", round=5)) == ("declined", "plan-not-approved")
    assert kept == []
    desk.site.coordinator = "a" * 64
    assert desk.said(desk.ask(kind="evaluate", round=5)) == ("received", "")


def test_a_paused_site_declines(desk: Desk) -> None:
    desk.site.paused = lambda: True
    assert desk.said(desk.ask()) == ("declined", "paused")
    assert desk.ledger.entries() == ()


def test_the_reply_proves_its_ledger_from_the_countersigned_head(desk: Desk) -> None:
    head = {"n": 0, "digest": "0" * 64, "signature": ""}
    fields = desk.ask(head=json.dumps(head)).content.config_records["reply"]
    proof = json.loads(str(fields["head"]))
    assert proof["head"]["n"] == 1
    assert len(proof["leaves"]) == 1


def test_a_ledger_that_the_coordinator_knew_longer_spends_nothing_until_acknowledged(
    desk: Desk,
) -> None:
    desk.ledger.spend(EVENT, None, run="r0", round=1, plan="p")
    lost = json.dumps({"n": 3, "digest": "7" * 64, "signature": ""})
    assert desk.said(desk.ask(head=lost)) == ("declined", "ledger-untrusted")
    assert len(desk.ledger.entries()) == 1
    assert desk.looked == 0
    desk.ledger.acknowledge("the disk was restored")
    reply = desk.ask(head=lost)
    assert desk.said(reply)[0] == "trained"
    proof = json.loads(str(reply.content.config_records["reply"]["head"]))
    assert proof["acknowledged"]
    assert len(proof["leaves"]) == 1


def test_a_head_that_is_not_the_coordinators_spends_nothing(desk: Desk) -> None:
    desk.site.check_head = lambda head: False
    head = json.dumps({"n": 0, "digest": "0" * 64, "signature": ""})
    assert desk.said(desk.ask(head=head)) == ("declined", "ledger-untrusted")
    assert desk.said(desk.ask(head="[]")) == ("declined", "ledger-untrusted")
    assert desk.ledger.entries() == ()


def test_a_plan_is_heard_of_before_it_is_judged(desk: Desk) -> None:
    heard: list[str] = []

    def approve(plan: Plan) -> None:
        heard.append(plan.digest)
        desk.site.policy = replace(desk.site.policy, plans=(plan.digest,))

    desk.site.policy = replace(PERMISSIVE, approve="list")
    assert desk.said(desk.ask()) == ("declined", "plan-not-approved")
    desk.site.on_plan = approve
    assert desk.said(desk.ask())[0] == "trained"
    assert heard == [PLAN.digest]


def entry(desk: Desk, event: Event, run: str = "r") -> Any:
    return desk.ledger.spend(event, None, run=run, round=1, plan="0" * 64)


EVENT = Event("record", 2.0, 0.2, 1)


def test_the_door_lets_out_what_is_public_paid_or_trusted(desk: Desk) -> None:
    paid = Paid(b"noised", EVENT, entry(desk, EVENT))
    out = release(
        {"status": Public("trained"), "update": paid}, ledger=desk.ledger, trust_coordinator=False
    )
    assert out == {"status": "trained", "update": b"noised"}
    assert release({"x": Trusted(1)}, ledger=None, trust_coordinator=True) == {"x": 1}


def test_nothing_unpaid_gets_through_the_door(desk: Desk, tmp_path: Path) -> None:
    mine = entry(desk, EVENT)
    (tmp_path / "other").mkdir()
    foreign = entry(Desk(tmp_path / "other"), EVENT, run="other")
    silent = entry(desk, Event("record", 0.0, 0.2, 1))
    tries: list[dict[str, object]] = [
        {"loss": Public(0.3)},
        {"num-examples": Public(300)},
        {"accuracy": 0.9},
        {"reason": Public("patient 4711")},
        {"update": Trusted(b"clear")},
        {"update": Paid(b"x", EVENT, foreign)},
        {"update": Paid(b"x", Event("record", 1.0, 0.2, 1), mine)},
        {"update": Paid(b"x", EVENT, mine), "loss": Paid(0.3, EVENT, mine)},
        {"update": Paid(b"x", silent.event, silent)},
        {"update": b"x"},
        {"update": None},
    ]
    for fields in tries:
        with pytest.raises(DoorError):
            release(fields, ledger=desk.ledger, trust_coordinator=False)


@pytest.mark.parametrize("name", ["loss", "num-examples"])
def test_a_planted_leak_in_the_reply_never_leaves(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    honest = client.app._fields

    def leaking(*args: Any) -> dict[str, Any]:
        return honest(*args) | {name: Public(0.25)}

    monkeypatch.setattr(client.app, "_fields", leaking)
    reply = desk.ask()
    assert desk.said(reply) == ("failed", "failed")
    assert name not in str(reply.content.config_records["reply"])
    assert "arrays" not in reply.content


def test_the_first_weights_of_every_task_pass_their_own_check() -> None:
    for name in ("digits", "fashion-mnist", "heart-disease", "adult"):
        model = task(name).model(0)
        weights = {n: p.detach().numpy() for n, p in model.named_parameters()}
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
        assert set(decode(encode(weights), shapes)) == set(shapes)


def test_a_model_that_mixes_is_refused_before_it_is_paid_for(desk: Desk) -> None:
    class Centred(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x - x.mean(0))

    mixing = replace(task("digits"), model=lambda seed: Centred(64, 10))
    desk.site.tasks = lambda plan: mixing
    assert desk.said(desk.ask()) == ("declined", "model-refused")
    assert not desk.ledger.events()
    assert not desk.looked
    (why,) = [facts["message"] for what, facts in desk.heard if what == "model_refused"]
    assert "Centred" in why or "loss" in why


BY_PERSON = replace(PLAN, unit="subject", rows=None, subjects=100)


def with_people(desk: Desk) -> None:
    """Let the task say whose its rows are: three of each person."""
    digits = replace(task("digits"), subjects=True)
    desk.site.tasks = lambda plan: digits
    rows = desk.rows
    desk.site.rows = lambda learning: replace(rows(learning), subject=torch.arange(300) // 3)


@pytest.mark.parametrize(
    ("plan", "policy"),
    [(BY_PERSON, PERMISSIVE), (PLAN, replace(PERMISSIVE, records_per_subject=2))],
)
def test_rows_of_nobody_are_refused_where_people_count_and_nothing_is_spent(
    tmp_path: Path, plan: Plan, policy: Policy
) -> None:
    desk = Desk(tmp_path, policy)
    assert desk.said(desk.ask(plan)) == ("declined", "no-subjects")
    assert (desk.looked, desk.ledger.entries()) == (0, ())


@pytest.mark.parametrize(
    ("plan", "unit", "records"), [(BY_PERSON, "subject", 1), (PLAN, "record", 2)]
)
def test_people_are_paid_for_as_one_and_their_records_by_the_cap(
    tmp_path: Path, plan: Plan, unit: str, records: int
) -> None:
    desk = Desk(tmp_path, replace(PERMISSIVE, records_per_subject=2))
    with_people(desk)
    assert desk.said(desk.ask(plan)) == ("trained", "")
    (entry,) = desk.ledger.entries()
    assert (entry.event.unit, entry.event.records) == (unit, records)
    other = PLAN if unit == "subject" else BY_PERSON
    assert desk.said(desk.ask(other, round=2)) == ("declined", "ledger-untrusted")
    assert len(desk.ledger.entries()) == 1
