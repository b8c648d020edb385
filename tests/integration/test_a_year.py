"""Four hospitals from nothing to the last round, with few commands."""

import json
import random
import re
import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privacy.accounting.epsilon import spent
from privacy.contract.plan_file import load_plan
from privacy.ledger.ledger import Ledger
from privacy.report.bundle.write import file_report
from tests.support.processes import BIN, Process, World, told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
NAMES = ("cleveland", "hungarian", "va", "switzerland")
SCHEMA = """label = "ill"

[columns.age]
type = "number"
min = 18
max = 100

[columns.pressure]
type = "number"
min = 60
max = 240

[columns.ill]
type = "category"
values = ["no", "yes"]
"""
PLAN = """task = "table"
schema = "schema.toml"
purpose = "Who falls ill, from four hospitals."
sites = 4
rounds = 6
rate = 0.2
rows = 200
lr = 2.0
average = true
clip = 1.0
sigma = 4.0
delta = 1e-4
"""


class Year(World):
    """A federation that is made by its commands alone, each counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, self.sites = folder / "coordinator", {n: folder / n for n in NAMES}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.open: list[Process] = []
        self.coordinator: Process | None = None
        self.count: Counter[str] = Counter()

    def site(self, name: str, *words: object) -> str:
        self.count[name] += 1
        return super().site(name, *words)

    def start_site(self, name: str, *words: object) -> Process:
        self.count[name] += 1
        more = ("--dir", self.sites[name], "--json", *words)
        return self.start(f"{name}.log", BIN / "tacit-client", "run", *more)


def rows(path: Path, seed: int) -> None:
    draw = random.Random(seed)
    lines = ["age,pressure,ill"]
    for _ in range(200):
        age, pressure = draw.randint(20, 90), draw.randint(90, 190)
        ill = (age - 55) / 15 + (pressure - 140) / 25 + draw.gauss(0, 1) > 0
        lines.append(f"{age},{pressure},{'yes' if ill else 'no'}")
    path.write_text("\n".join(lines) + "\n")


def test_four_hospitals_from_nothing_to_the_last_round(tmp_path: Path) -> None:
    """One has a small budget, one denies; two commands at the coordinator, five at each site."""
    world = Year(tmp_path)
    (tmp_path / "schema.toml").write_text(SCHEMA)
    (tmp_path / "plan.toml").write_text(PLAN)
    plan = load_plan(str(tmp_path / "plan.toml"))
    three = spent([replace(e, count=3) for e in plan.events_of_round("va")], 1e-4) + 1e-6
    with told(world):
        init = json.loads(world.order("init", "--host", f"127.0.0.1:{world.port}", "--json"))
        for number, name in enumerate(NAMES):
            rows(tmp_path / f"{name}.csv", number)
            folder = world.sites[name]
            key = json.loads(world.site(name, "enroll", "--site", name, "--json"))["fingerprint"]
            world.order("sign", folder / f"{name}.csr", "--expect", key)
            where = ("--ledger", folder / "people.jsonl", "--data", tmp_path / f"{name}.csv")
            world.site(name, "data", "add", "people", *where, "--schema", tmp_path / "schema.toml")
            budget = three if name == "va" else 5
            world.site(name, "policy", "new", "--epsilon", budget, "--delta", 1e-4)
            world.start_site(
                name, "--join", folder / f"{name}.bundle", "--expect", init["authority"]
            )
        metrics = world.folder / "tacit.prom"
        listen = ("--dir", world.home, "--listen", f"127.0.0.1:{world.port}", "--ask-every", 0.5)
        serve = (BIN / "tacit-server", "serve", *listen, "--metrics-file", metrics)
        world.coordinator = world.start("server.log", *serve)  # the first command
        world.order("submit", tmp_path / "plan.toml", "--min-sites", 2, "--name", "study")  # second
        text = "plan-not-approved"
        world.until(lambda: list(answers(world).values()) == [text] * 4)
        assert all(not Ledger.open(f / "people.jsonl").entries() for f in world.sites.values())
        # It starts by itself with the second approval, and waits for the third once va has spent.
        for name in ("switzerland", "va", "cleveland", "hungarian"):
            answer = "deny" if name == "switzerland" else "approve"
            world.site(name, answer, plan.digest, "--reason", "ethics board")
        world.until(lambda: state(world) == "done")
        assert forecast(world)["va"] == "3 of 6"
        assert world.count == dict.fromkeys(NAMES, 5)
        check_end(world, plan.rounds)
        assert 'tacit_run_state{run="study",state="done"} 1.0' in metrics.read_text()


def check_end(world: Year, planned: int) -> None:
    """Who took part, what was paid, what the logs say."""
    assert [line["round"] for line in world.history("study")] == list(range(1, planned + 1))
    paid = {
        n: [e.round for e in Ledger.open(f / "people.jsonl").entries()]
        for n, f in world.sites.items()
    }
    assert paid["cleveland"] == [1, 2, 3, 4, 5, 6]
    assert paid["va"] == [1, 2, 3]
    assert paid["hungarian"][-3:] == [4, 5, 6]
    assert paid["switzerland"] == []
    log = world.log("server")
    assert log.count("run_started run=study") == 1, "no false start"
    assert not re.search(r" (run_failed|failed) ", log)
    acts = json.loads(world.order("audit-log", "--json"))["acts"]
    commands = [act["command"] for act in acts]
    assert commands == ["init", *["sign"] * 4, "serve", "submit"]
    for name, folder in world.sites.items():
        acts = json.loads(World.site(world, name, "audit-log", "--json"))["acts"]
        answered = [a for a in acts if a["command"] in ("approve", "deny")]
        assert [a["reason"] for a in answered] == ["ethics board"]
        report, _, _ = file_report([folder], world.folder / f"{name}-report")
        assert report.sound, report.problems


def answers(world: World) -> dict[str, str]:
    found = json.loads(world.order("show", "study", "--json"))["sites"]
    return {one["site"]: one["answer"] for one in found}


def forecast(world: World) -> dict[str, str]:
    """Before round 1, as the coordinator's log told it."""
    lines = [line for line in world.log("server").splitlines() if " proposal_answered " in line]
    lines = [line for line in lines if "no-answer" not in line]  # a client that is just starting
    found = {}
    for line in lines:
        site, fits = re.search(r"site=(\S+)", line), re.search(r"rounds=(\d+ of \d+)", line)
        if site and fits and site[1] not in found:
            found[site[1]] = fits[1]
    return found


def state(world: World) -> str:
    found: dict[str, Any] = json.loads(world.order("show", "study", "--json"))
    return str(found["state"])
