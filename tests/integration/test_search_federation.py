"""A search over mutual TLS: pilots and run in one approved plan, paid for round by round."""

from pathlib import Path

import pytest

from privacy.contract.pilots import chosen
from privacy.ledger.ledger import Ledger
from privacy.report.bundle.write import file_report
from server.rounds.run_folder import RunFolder
from tests.integration.test_statistics_federation import SCHEMA, rows, state
from tests.support.processes import BIN, World, told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PLAN = """task = "table"
schema = "schema.toml"
sites = 3
rows = 600
rounds = 7
rate = 1.0
lr = 1.0
clip = 1.0
epsilon = 4.0
delta = 1e-5
metrics = ["loss"]
metrics_sigma = 60.0
[tune]
epsilon = 1.0
rounds = 2
lr_times = [0.01, 3.0]
metric = "site_loss"
"""


def test_sites_take_part_in_a_search_and_pay_what_the_plan_says(tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_text(SCHEMA)
    (tmp_path / "plan.toml").write_text(PLAN)
    world = World(tmp_path)
    with told(world):
        for number, site in enumerate(world.sites):
            data = rows(tmp_path / f"{site}.csv", number)
            limits = ["--epsilon", "8", "--delta", "1e-3", "--approve", "within-limits"]
            limits += ["--output", "loss"]
            world.site(site, "policy", "new", *limits)
            added = ("--ledger", world.sites[site] / "people.jsonl", "--data", data)
            world.site(site, "data", "add", "people", *added, "--schema", tmp_path / "schema.toml")
            words = ("--dir", world.sites[site], "--server", f"127.0.0.1:{world.port}")
            world.start(f"{site}.log", BIN / "tacit-client", "run", *words, "--json")
        world.serve()
        world.order("submit", tmp_path / "plan.toml", "--name", "searched", "--min-sites", 3)
        world.until(lambda: state(world, "searched") == "done")
        folder = RunFolder.open(world.home / "runs" / "searched")
        history, plan = folder.history(), folder.plan()
        assert [line.get("pilot") for line in history] == [0, 0, 1, 1, None, None, None]
        choice = chosen(plan, history)
        assert {line.get("choice") for line in history[4:]} == {choice}
        for name, directory in world.sites.items():
            entries = Ledger.open(directory / "people.jsonl").entries()
            paid = [(e.round, e.event.sigma) for e in entries if e.event.sigma != 60.0]
            want = [(n, plan.events_of_round(name, n)[0].sigma) for n in range(1, 8)]
            assert paid == want
        report, _, _ = file_report([folder.path], tmp_path / "report")
        assert report.sound, report.problems
