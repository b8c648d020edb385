"""A task package over mutual TLS: three sites as processes approve it, one of them late."""

import json
import subprocess
from pathlib import Path

import pytest

from privacy.ledger.ledger import Ledger
from tests.support.patience import patience
from tests.support.processes import BIN, World, told
from tests.support.task_packages import MODEL, READ, package, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PLAN = """
task = "mine"
code = "{code}"
rounds = 4000
rate = 0.5
rows = 100
sites = 3
lr = 1.0
clip = 1.0
sigma = 80.0
delta = 1e-4

[task_options]
width = 6
"""


def test_three_sites_approve_the_same_bytes_and_train_them(tmp_path: Path) -> None:
    found = package(tmp_path / "task")
    packed = tmp_path / "mine.tacit-task"
    told_by = subprocess.run(
        [BIN / "tacit-privacy", "task", "pack", tmp_path / "task", "--out", packed, "--json"],
        capture_output=True,
        check=True,
        text=True,
        timeout=patience(120),
    )
    assert json.loads(told_by.stdout)["code"] == found.code
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(code=found.code))
    world = World(tmp_path)
    with told(world):
        for number, site in enumerate(world.sites):
            data = rows(tmp_path / f"{site}.csv", 120, seed=number)
            limits = ("--epsilon", "8", "--delta", "1e-3", "--approve", "within-limits")
            world.site(site, "policy", "new", *limits)
            ledger = world.sites[site] / "people.jsonl"
            world.site(site, "data", "add", "people", "--ledger", ledger, "--data", data)
            world.site(site, "task", "add", packed)
            if site != "east":
                assert "is approved" in world.site(site, "task", "approve", found.digest[:12])
            where = f"127.0.0.1:{world.port}"
            world.start(
                f"{site}.log",
                BIN / "tacit-client",
                *("run", "--dir", world.sites[site], "--server", where),
                *("--data", data, "--json"),
            )
        world.server("--min-sites", 2, "--task", packed, plan=str(plan))
        world.until(lambda: "trained" in world.statuses("north"))
        world.until(lambda: "task-not-approved" in world.statuses("east"))
        assert not world.said("east", "trained")
        assert Ledger.open(world.sites["east"] / "people.jsonl").entries() == ()
        shown = world.site("east", "task", "show", found.digest[:12])
        assert "examined: the model can be trained" in shown and found.code in shown
        world.site("east", "task", "approve", found.digest[:12])
        world.until(lambda: "trained" in world.statuses("east"))
        listed = json.loads(world.site("east", "task", "list", "--json"))["packages"]
        assert [(one["name"], one["state"]) for one in listed] == [("mine", "approved")]
        changed = package(tmp_path / "other", READ + MODEL.replace("Tanh", "ReLU"))
        (tmp_path / "other.tacit-task").write_bytes(changed.content)
        world.site("east", "task", "add", tmp_path / "other.tacit-task")
        changes = world.site("east", "task", "diff", changed.digest[:12])
        assert "-    return nn.Sequential(nn.Linear(3, width), nn.Tanh()" in changes
        rounds = len(world.history())
        stored = world.sites["east"] / "tasks" / f"{found.digest}.tacit-task"
        stored.write_bytes(stored.read_bytes().replace(b"nn.Tanh", b"nn.ReLU"))
        world.until(lambda: "task-not-approved" in world.statuses("east")[rounds:])


def test_a_package_comes_with_its_proposal_and_runs_once_it_was_read_and_approved(
    tmp_path: Path,
) -> None:
    found = package(tmp_path / "task")
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN.format(code=found.code).replace("4000", "3"))
    world = World(tmp_path)
    with told(world):
        world.order("task", "add", tmp_path / "task")
        for number, site in enumerate(world.sites):
            data = rows(tmp_path / f"{site}.csv", 120, seed=number)
            limits = ("--epsilon", "8", "--delta", "1e-3", "--approve", "within-limits")
            world.site(site, "policy", "new", *limits)
            ledger = world.sites[site] / "people.jsonl"
            world.site(site, "data", "add", "people", "--ledger", ledger, "--data", data)
        world.serve()
        for site in world.sites:
            where = ("--server", f"127.0.0.1:{world.port}")
            data = tmp_path / f"{site}.csv"
            run = ("run", "--dir", world.sites[site], *where, "--data", data, "--json")
            world.start(f"{site}.log", BIN / "tacit-client", *run)
        world.order("propose", plan, "--min-sites", 3, "--name", "first")
        for site in world.sites:
            world.until(lambda site=site: "package_shown" in world.log(site))
            listed = json.loads(world.site(site, "task", "list", "--json"))["packages"]
            assert [one["state"] for one in listed] == ["shown by the coordinator, not approved"]
            assert not (world.sites[site] / "tasks").exists()
            world.site(site, "task", "approve", found.digest[:12])
            assert (world.sites[site] / "tasks" / f"{found.digest}.tacit-task").is_file()
        world.order("submit", "first")
        world.until(lambda: len(world.history("first")) == 3)
        assert world.statuses("north", "first") == ["trained"] * 3


def test_a_hash_that_is_not_here_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [BIN / "tacit-client", "task", "show", "0123456789", "--dir", tmp_path],
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "must be the hash of a package here" in done.stderr
