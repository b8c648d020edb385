"""A shipped plan, and the client unit, audited: bounded from below, and broken noise is found."""

import numpy as np
import pytest

from privacy.contract.plan import PlanError
from privacy.contract.plan_file import load_plan
from privacy.mechanism import noise
from simulations import audit
from simulations.audit import audit_plan

CLIENTS = [
    'unit="client"',
    "epsilon=4",
    "delta=1e-5",
    "rounds=10",
    "clip=0.5",
    "sites=5",
]


@pytest.fixture
def _without_conformance(monkeypatch):
    monkeypatch.setattr(audit, "conform", lambda device, drawn: ())
    monkeypatch.setattr(audit, "_CLIENTS", 4000)


@pytest.mark.usefixtures("_without_conformance")
def test_a_shipped_plan_is_bounded_from_below():
    found = audit_plan(load_plan("digits"), seed=1, seconds=20)
    assert found["verdict"] == "no violation found"
    best = max(bound["epsilon"] for bound in found["bounds"])
    assert 0.5 * found["claimed"] < best < found["claimed"]


@pytest.mark.slow
@pytest.mark.usefixtures("_without_conformance")
def test_canary_clients_bound_the_client_unit():
    found = audit_plan(load_plan("digits", CLIENTS), seed=1)
    assert found["verdict"] == "no violation found"
    assert found["event"]["unit"] == "client"
    best = max(bound["epsilon"] for bound in found["bounds"])
    assert 0.5 * found["claimed"] < best < found["claimed"]
    # Of 48 such estimates the mean is 4.4 and the standard deviation 0.5: of so few canaries the
    # two spreads are never quite equal, which counts as leakage.
    assert 3 < found["estimate"] < 7


@pytest.mark.usefixtures("_without_conformance")
def test_halved_noise_of_the_coordinator_is_found(monkeypatch):
    privatise = noise.privatise
    monkeypatch.setattr(
        noise, "privatise", lambda sums, std, *, over=1.0: privatise(sums, std / 2, over=over)
    )
    found = audit_plan(load_plan("digits", CLIENTS), seed=1)
    assert found["verdict"] == "violation found"
    assert found["estimate"] > 7


def test_a_plan_without_privacy_cannot_be_audited():
    with pytest.raises(PlanError, match="must"):
        audit_plan(load_plan("digits", ['unit="none"']))


def test_directions_are_drawn_from_the_seed_and_noise_is_not(monkeypatch):
    monkeypatch.setattr(audit, "_CLIENTS", 300)
    plan = load_plan("digits", CLIENTS)
    one, other = (audit._clients(plan, np.random.default_rng(2))[0] for _ in range(2))
    assert (one.included == other.included).all()
    assert (one.scores != other.scores).any()
