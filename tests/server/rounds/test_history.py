"""A round's line in the history: what each site's round cost a record, and a person."""

from dataclasses import replace
from typing import Any

import pytest

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from server.rounds.history import RoundRecord, round_line
from server.rounds.loop import Outcome
from server.rounds.messages import Answer
from server.rounds.summary import summarise

PLAN = Plan(
    task="digits", rounds=3, sites=2, rate=1.0, rows=100, lr=1.0, clip=1.0, sigma=9.0, delta=1e-4
)  # fmt: skip
EVENT = Event("record", 9.0, 1.0, 1)


def line(number: int, totals: dict[str, float], **events: tuple[Event, ...]) -> dict[str, Any]:
    answers = {s: Answer(s, "trained", None, events=found) for s, found in events.items()}
    return round_line(PLAN, number, RoundRecord(answers), {}, totals, seconds=1.0)


def test_a_site_whose_policy_caps_records_has_a_persons_epsilon_in_the_federation() -> None:
    capped = (EVENT.for_records(4),)
    sites = line(1, {}, north=(EVENT,), south=capped)["sites"]
    assert "epsilon_person" not in sites["north"]
    assert sites["south"]["records_per_person"] == 4
    assert sites["south"]["epsilon_person"] == spent(capped, 1e-4, records=None)
    assert sites["south"]["epsilon_person"] > 3 * sites["south"]["epsilon"]
    assert sites["south"]["epsilon"] == sites["north"]["epsilon"]


def test_a_cap_that_changed_within_a_run_counts_each_round_as_it_was() -> None:
    both = (EVENT.for_records(4), replace(EVENT, count=2))
    found = line(3, {}, south=both)["sites"]["south"]
    assert found["epsilon_person"] == spent(both, 1e-4, records=None)
    assert spent(both, 1e-4) < found["epsilon_person"] < spent(both, 1e-4, records=4)


def test_the_summary_knows_the_person_of_a_site_that_was_away_in_the_end() -> None:
    totals: dict[str, float] = {}
    first = line(1, totals, north=(EVENT,), south=(EVENT.for_records(4),))
    last = line(2, totals, north=(replace(EVENT, count=2),))
    outcome = Outcome("done", [first, last], epsilons=totals)
    found = summarise(PLAN, outcome, 1.0)
    assert found["records_per_person"] == 4
    assert found["epsilon_person"] == pytest.approx(spent([EVENT.for_records(4)], 1e-4, records=4))


def test_where_people_are_the_unit_their_epsilon_is_the_epsilon() -> None:
    plan = replace(PLAN, unit="subject", rows=None, subjects=100)
    event = Event("subject", 9.0, 1.0, 1)
    record = RoundRecord({"a": Answer("a", "trained", None, events=(event,))})
    found = round_line(plan, 1, record, {}, {}, seconds=1.0)["sites"]["a"]
    assert found["epsilon"] == spent([event], 1e-4)
    assert "epsilon_person" not in found
