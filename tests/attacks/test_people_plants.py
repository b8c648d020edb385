"""Bugs planted in the unit "subject" are found, by the check that is made for each of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from client.audit import people_checks
from client.audit.audit import one_thread, through_ledger
from client.audit.canary import bounds, planted
from client.dpsgd import people, private_metrics
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.accounting.epsilon import spent
from privacy.contract.plan import Plan
from tests.support.small_models import data


@pytest.fixture(autouse=True)
def _threads():
    with one_thread():
        yield


def rows_drawn_one_by_one(patch):
    """Each row is taken for a person of its own."""
    of = people.People.of
    each = lambda subject, most, count: of(torch.arange(count), most, count)  # noqa: E731
    patch.setattr(people.People, "of", staticmethod(each))


def rows_added_up(patch):
    """A person's rows are summed, not averaged."""
    take = people.People.take

    def taken(self, drawn):
        rows, group = take(self, drawn)
        return rows, replace(group, weights=torch.ones_like(group.weights))

    patch.setattr(people.People, "take", taken)


def some_rows_of_another(patch):
    """The first row of the batch is counted for the last person as well."""
    take = people.People.take

    def taken(self, drawn):
        rows, group = take(self, drawn)
        if len(group) > 1 and group.real[-1].sum() < group.real.shape[1]:
            at, real = group.at.clone(), group.real.clone()
            at[-1, -1], real[-1, -1] = 0, True
            group = replace(group, at=at, real=real)
        return rows, group

    patch.setattr(people.People, "take", taken)


def clipped_by_row(patch):
    """Every row is clipped by itself: a person counts as often as there are rows."""
    take = people.People.take

    def taken(self, drawn):
        rows, _ = take(self, drawn)
        at = torch.arange(len(rows))[:, None]
        return rows, people.Group(at, torch.ones_like(at, dtype=torch.bool), torch.ones(len(rows)))

    patch.setattr(people.People, "take", taken)


def half_of_a_person(patch):
    """Only some rows of the people drawn are taken, by a coin each time."""
    take = people.People.take

    def taken(self, drawn):
        rows, group = take(self, drawn)
        real = group.real & (torch.rand(group.real.shape) < 0.5)
        return rows, replace(group, real=real)

    patch.setattr(people.People, "take", taken)


def metrics_added_up(patch):
    """A person's rows are added up in paid metrics, as if they were people."""
    patch.setattr(private_metrics, "_exact_sum", lambda parts, group: float(parts.sum()))


def losses_unbounded(patch):
    """The means of a person's losses are not held below the bound."""
    patch.setattr(torch.Tensor, "clamp", lambda self, *bounds, **named: self)


PLANTS = {
    "metrics added up": (metrics_added_up, "metrics_of_people_are_bounded"),
    "losses without a bound": (losses_unbounded, "metrics_of_people_are_bounded"),
    "rows drawn one by one": (rows_drawn_one_by_one, "a_person_is_bounded"),
    "clipped by row": (clipped_by_row, "a_person_is_bounded"),
    "rows added up": (rows_added_up, "sums_of_people_are_exact"),
    "some rows of another": (some_rows_of_another, "sums_of_people_are_exact"),
    "half of a person": (half_of_a_person, "sums_of_people_are_exact"),
    "rows drawn one by one, again": (rows_drawn_one_by_one, "people_are_drawn_whole"),
}


@pytest.mark.parametrize("check", [c.__name__ for c in people_checks.PEOPLE_CHECKS])
def test_a_sound_trainer_passes(check):
    found = getattr(people_checks, check)("cpu")
    assert found.passed, found


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_fails_the_check_that_is_made_for_it(name, monkeypatch):
    plant, check = PLANTS[name]
    plant(monkeypatch)
    found = getattr(people_checks, check)("cpu")
    assert not found.passed, found


def a_task() -> tuple[Task, Rows]:
    from client.audit.probes import made_up
    from client.tasks.losses import cross_entropy, seeded

    rows = data("flat", 60)
    task = made_up("flat", seeded(lambda: torch.nn.Linear(8, 2)), rows, cross_entropy)
    return task, replace(rows, subject=torch.arange(60) // 3)


PLAN = Plan(
    task="audit", unit="subject", sites=1, rounds=2, steps=4, rate=0.3, subjects=300, lr=0.5,
    clip=1.0, sigma=1.0, delta=1e-5,
)  # fmt: skip


def test_canaries_are_people_of_five_rows_beside_the_real_ones():
    _, rows = a_task()
    among = planted(rows, np.array([True, False, True]), people=True)
    assert among.subject is not None
    _, counts = among.subject.unique(return_counts=True)
    assert counts.tolist() == [3] * 20 + [5, 5]


def audited() -> tuple[float, float]:
    """The largest lower bound and the claim."""
    task, rows = a_task()
    scored, event = through_ledger(
        task, rows, PLAN, site="audit", count=500, coins=np.random.default_rng(5)
    )
    assert event.unit == "subject"
    claim = spent([event], 1e-5)
    return max(bound.epsilon for bound in bounds(scored, event, claim, 1e-5)), claim


@pytest.mark.slow
def test_canary_people_stay_below_the_claim():
    lower, claim = audited()
    assert lower < claim


@pytest.mark.slow
@pytest.mark.parametrize("plant", [clipped_by_row, rows_drawn_one_by_one])
def test_canary_people_pass_the_claim_where_rows_are_the_unit(plant, monkeypatch):
    plant(monkeypatch)
    lower, claim = audited()
    assert lower > claim
