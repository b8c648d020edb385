"""`task ..`, `audit --task`, `predict --task`: what an owner and a researcher type, end to end."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from client.__main__ import app as client_app
from privacy.__main__ import app as privacy_app
from privacy.contract.plan import Plan
from privacy.contract.policy import Policy, load_policy
from privacy.task_package.archive import PackageError
from simulations import load_plan, simulate
from simulations.__main__ import new_app
from simulations.new_task import KINDS
from tests.support.task_packages import MODEL, NO_MODEL, READ, package, rows


def run(app: typer.Typer, *words: object) -> Any:
    found = CliRunner().invoke(app, [str(word) for word in words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


@pytest.fixture
def site(tmp_path: Path) -> Path:
    place = tmp_path / "site"
    place.mkdir()
    (place / "policy.toml").write_text(Policy(epsilon=1.0, delta=1e-5).to_toml())
    return place


def test_check_and_pack_say_what_a_plan_writes(tmp_path: Path) -> None:
    found = package(tmp_path / "task")
    said = json.loads(run(privacy_app, "task", "check", tmp_path / "task", "--json").stdout)
    assert said["code"] == found.code and said["refused"] == []
    out = run(privacy_app, "task", "pack", tmp_path / "task").stdout
    assert f'code = "{found.code}"' in out
    assert (tmp_path / "mine-1.tacit-task").read_bytes() == found.content
    package(tmp_path / "task", "import socket\n" + READ + MODEL)
    for word in ("check", "pack"):
        with pytest.raises(PackageError, match=r"task\.py:1: imports socket"):
            run(privacy_app, "task", word, tmp_path / "task")


def test_a_package_is_added_listed_and_removed(tmp_path: Path, site: Path) -> None:
    found = package(tmp_path / "task")
    run(client_app, "task", "add", tmp_path / "task", "--dir", site)
    listed = json.loads(run(client_app, "task", "list", "--dir", site, "--json").stdout)
    assert [one["state"] for one in listed["packages"]] == ["not approved"]
    hostile = package(tmp_path / "bad", "import socket\n" + READ + NO_MODEL)
    run(client_app, "task", "add", tmp_path / "bad", "--dir", site)
    with pytest.raises(PackageError, match=r"cannot be approved: task\.py:1: imports socket"):
        run(client_app, "task", "approve", hostile.digest[:8], "--dir", site)
    assert load_policy(site / "policy.toml").packages == ()
    with pytest.raises(PackageError, match="no package was approved before it"):
        run(client_app, "task", "diff", found.digest[:8], "--dir", site)
    said = run(client_app, "task", "diff", hostile.digest[:8], found.digest[:8], "--dir", site)
    assert "+import socket" in said.stdout and "now does: imports socket" in said.stdout
    run(client_app, "task", "remove", hostile.digest[:8], "--dir", site)
    listed = json.loads(run(client_app, "task", "list", "--dir", site, "--json").stdout)
    assert [one["code"] for one in listed["packages"]] == [found.code]


@pytest.mark.slow
def test_an_owner_reads_audits_and_approves(tmp_path: Path, site: Path) -> None:
    found = package(tmp_path / "task")
    run(client_app, "task", "add", tmp_path / "task", "--dir", site)
    shown = run(client_app, "task", "show", found.digest[:8], "--dir", site, "--source").stdout
    for words in ("imports: csv, torch", "opens files", "the model can be trained", "def encode"):
        assert words in shown
    audit = run(
        client_app, "audit", "--task", found.digest[:8], "--dir", site, "--json", "--epsilon", "4"
    )
    facts = json.loads(audit.stdout)
    assert facts["verdict"] == "no violation found"
    names = {one["name"] for one in facts["checks"]}
    assert {"a record is bounded", "noise of an empty sample"} <= names
    assert any("canaries" in name for name in names)
    run(client_app, "task", "approve", found.digest[:8], "--dir", site)
    policy = load_policy(site / "policy.toml")
    assert policy.packages == (found.code,)
    assert "# task packages whose code may run here" in (site / "policy.toml").read_text()
    run(client_app, "task", "remove", found.digest[:8], "--dir", site)
    assert load_policy(site / "policy.toml").packages == ()


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_new_writes_a_package_that_runs_at_once(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "birds"
    out = run(new_app, place, "--kind", kind).stdout
    assert f"--task {place / 'task'}" in out
    source = (place / "task" / "task.py").read_text()
    assert source.count("\n") <= 60
    assert "REFUSED" not in run(privacy_app, "task", "check", place / "task").stdout
    result = simulate(
        load_plan(place / "plan.toml", ["rounds=12", "epsilon=30"]),
        task=place / "task",
        data=place / "data",
    )
    assert result.outcome.reason == "done"
    assert result.metrics["accuracy"] > 0.6, result.metrics


@pytest.mark.slow
def test_predict_and_evaluate_take_the_package_of_a_model(tmp_path: Path) -> None:
    place, data = tmp_path / "task", rows(tmp_path / "rows.csv", 200)
    package(place)
    keys: dict[str, Any] = {
        "split": "natural",
        "clip": 1.0,
        "epsilon": 8.0,
        "delta": 1e-4,
        "lr": 1.0,
    }
    plan = Plan(task="mine", rounds=8, rate=0.5, rows="actual", **keys)
    simulate(plan, tmp_path / "run", task=place, data=data)
    (tmp_path / "more.csv").write_text("site,a,b,c\nx,2.5,0,0\nx,-2.5,0,0\nx,oops,0,0\n")
    words = ("--model", tmp_path / "run", "--task", place)
    out = tmp_path / "out.csv"
    found = run(
        client_app, "predict", *words, "--data", tmp_path / "more.csv", "--out", out, "--skip-bad"
    )
    with out.open(newline="") as file:
        said = [line["prediction"] for line in csv.DictReader(file)]
    assert said == ["yes", "no"], found.stderr
    facts = json.loads(run(client_app, "evaluate", *words, "--data", data, "--json").stdout)
    assert facts["metrics"]["accuracy"] > 0.7
    with pytest.raises(ValueError, match=r"code must be a task package|must be approved first"):
        run(client_app, "evaluate", "--model", tmp_path / "run", "--data", data)
