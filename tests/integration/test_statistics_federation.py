"""Statistics over mutual TLS: asked of three sites, released by two, then a model in groups."""

import json
from pathlib import Path

import numpy as np
import pytest

from privacy.ledger.ledger import Ledger
from privacy.statistics.results import read_results
from tests.support.processes import BIN, World, told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCHEMA = """
label = "ill"
test = 0.2
[columns.age]
type = "number"
min = 20
max = 80
[columns.sex]
type = "category"
values = ["f", "m"]
[columns.ill]
type = "category"
values = ["no", "yes"]
"""
COMMON = 'schema = "schema.toml"\nsites = 3\nrows = 600\ndelta = 1e-5\n'
TRAINING = f'task = "table"\n{COMMON}rounds = 3\nrate = 1.0\nlr = 2.0\nclip = 1.0\nsigma = 4.0\n'
STATISTICS = f"""task = "statistics"
{COMMON}epsilon = 2.0
[statistics]
of = "table"
label = "ill"
groups = ["sex"]
[statistics.columns]
age = ["quantiles", "moments"]
ill = ["frequencies"]
"""


def rows(path: Path, seed: int) -> Path:
    source = np.random.default_rng(seed)
    lines = ["age,sex,ill"]
    for _ in range(600):
        age, sex = source.uniform(20, 80), source.choice(["f", "m"])
        lines.append(f"{age:.1f},{sex},{'yes' if age > 50 + source.normal(0, 8) else 'no'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def state(world: World, run: str) -> str:
    runs = json.loads(world.order("runs", "--json"))["runs"]
    return str(next(one["state"] for one in runs if one["run"] == run))


def test_sites_that_allow_it_release_statistics_and_the_others_decline_unpaid(
    tmp_path: Path,
) -> None:
    (tmp_path / "schema.toml").write_text(SCHEMA)
    (tmp_path / "training.toml").write_text(TRAINING)
    (tmp_path / "statistics.toml").write_text(STATISTICS)
    world = World(tmp_path)
    with told(world):
        for number, site in enumerate(world.sites):
            data = rows(tmp_path / f"{site}.csv", number)
            limits = ["--epsilon", "8", "--delta", "1e-3", "--approve", "within-limits"]
            limits += ["--output", "statistics"] if site != "east" else []
            world.site(site, "policy", "new", *limits)
            added = ("--ledger", world.sites[site] / "people.jsonl", "--data", data)
            world.site(site, "data", "add", "people", *added, "--schema", tmp_path / "schema.toml")
            words = ("--dir", world.sites[site], "--server", f"127.0.0.1:{world.port}")
            world.start(f"{site}.log", BIN / "tacit-client", "run", *words, "--json")
        world.serve()
        world.order("submit", tmp_path / "training.toml", "--name", "model", "--min-sites", 3)
        world.until(lambda: state(world, "model") == "done")
        more = ("--from", "model", "--name", "looked", "--min-sites", 2)
        world.order("submit", tmp_path / "statistics.toml", *more)
        world.until(lambda: state(world, "looked") == "done")
        assert world.statuses("east", "looked") == ["output-not-allowed"]
        folder = world.home / "runs" / "looked"
        results = read_results(folder)
        assert set(results.sites) == {"north", "south"}
        content = json.loads((folder / "statistics.json").read_text())
        assert abs(content["all"]["rows"]["value"] - 1200) < 60
        (fair,) = json.loads((folder / "fairness.json").read_text())["fairness"]
        assert {one["group"] for one in fair["groups"]} == {"f", "m"}
        assert all(one["accuracy"]["value"] > 0.6 for one in fair["groups"])
        paid = [Ledger.open(world.sites[s] / "people.jsonl").entries() for s in world.sites]
        assert [len(entries) for entries in paid] == [4, 4, 3]
