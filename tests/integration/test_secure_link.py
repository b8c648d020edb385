"""Secure aggregation over the real link: TLS, the enrolled sites' own keys, the real loop."""

import datetime
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from client.agent.credentials import Enrolled
from client.app import make_app
from client.site import Site
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import load_plan
from privacy.identity.keys import sign, signing_public
from privacy.ledger.ledger import Ledger
from server.evaluation import initial_weights
from server.fleet.grid import LinkGrid
from server.registry.roster import with_roster
from server.registry.sites import Home, revoke
from server.rounds.job import Attempts, Job, Model
from server.rounds.loop import Outcome, federate
from server.rounds.run_folder import RunFolder
from tests.support.federation import coordinator, linked, running
from tests.support.patience import patience
from tests.support.secure_sites import NAMES, POLICY, SECURE


def site(folder: Path, name: str) -> Site:
    here = Enrolled(folder)

    def rows(learning: Task) -> Rows:
        at = NAMES.index(name) * 100
        return learning.load(None, "train").take(np.arange(at, at + 100))

    return Site(
        name,
        POLICY,
        Ledger.create(folder / "people.jsonl", population=name, durable=False),
        rows,
        check_head=lambda head: True,
        sign=lambda payload: sign(here.signing_key, payload),
    )


@contextmanager
def federation(folder: Path) -> Iterator[tuple[Path, LinkGrid, dict[str, Site]]]:
    home, folders = coordinator(folder, *NAMES)
    with ExitStack() as stack:
        grid = stack.enter_context(linked(home))
        sites = {name: site(folders[name], name) for name in NAMES}
        for name, one in sites.items():
            app = make_app(lambda context, content, one=one: one)
            stack.enter_context(running(folders[name], grid.address, app))
        for _ in range(200):
            if len(grid.names()) == len(NAMES):
                break
            grid.wait(patience(0.1))
        yield home, grid, sites


def play(plan: Plan, folder: Path, grid: LinkGrid) -> Outcome:
    initial = initial_weights(plan)
    run = RunFolder.create(folder, plan, kind="federation")
    attempts = Attempts(most=3, round_timeout=patience(60))
    return federate(Job(plan, run, grid, Model(lambda: initial), attempts=attempts))


@pytest.mark.slow
def test_a_run_over_tls_ends_with_the_sum_of_all(tmp_path: Path) -> None:
    with federation(tmp_path) as (home, grid, sites):
        plan = with_roster(load_plan("digits", [*SECURE]), Home(home).members())
        keys = {n: (tmp_path / n / "signing.key").read_bytes() for n in NAMES}
        assert plan.roster == {name: signing_public(key) for name, key in keys.items()}
        outcome = play(plan, tmp_path / "run", grid)
        assert outcome.reason == "done", outcome
        for line in outcome.history:
            assert line["secure"]["survived"] == len(NAMES)
        for one in sites.values():
            assert one.ledger is not None
            assert [e.event.shares for e in one.ledger.entries()] == [2, 2]


def test_the_plan_names_the_enrolled_sites_and_no_others(tmp_path: Path) -> None:
    home, _ = coordinator(tmp_path, *NAMES)
    plan = load_plan("digits", [*SECURE])
    named = with_roster(plan, Home(home).members())
    assert sorted(named.roster) == sorted(NAMES)
    assert with_roster(named, Home(home).members()) is named
    revoke(home, "west", datetime.datetime.now(datetime.UTC))
    with pytest.raises(PlanError, match="sites must be 3, the number of enrolled sites"):
        with_roster(plan, Home(home).members())
