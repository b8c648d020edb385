"""A whole federation through the shipped apps, in one process."""

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from privacy.ledger.ledger import Ledger
from privacy.report.report import build
from privacy.report.sources import read
from server.rounds import aggregation, checkpoint
from server.rounds.run_folder import FolderError, RunFolder
from simulations.run import simulate

QUICK = ("rounds=3", "sites=3", "sigma=2.0", "rate=0.2", "delta=3e-4")


def quick(*overrides: str) -> Plan:
    return load_plan("digits", [*QUICK, *overrides])


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def ledger_events(folder: Path, site: str) -> list[Event]:
    lines = (folder / "ledgers" / f"{site}.jsonl").read_text().splitlines()
    return [Event.from_dict(json.loads(line)["event"]) for line in lines]


def test_a_run_leaves_the_folder_that_it_promises(tmp_path: Path) -> None:
    result = simulate(quick(), tmp_path / "run")
    assert result.outcome.reason == "done"
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("*.safetensors")) == [
        "000001.safetensors",
        "000002.safetensors",
        "000003.safetensors",
    ]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rounds"] == 3
    assert summary["reason"] == "done"
    assert set(summary["sites"]) == {"site-0", "site-1", "site-2"}
    line = history(tmp_path / "run")[-1]
    assert set(line) == {
        "round",
        "metrics",
        "sites",
        "epsilon",
        "seconds",
        "bytes_up",
        "bytes_down",
    }
    assert set(line["sites"]["site-0"]) == {
        "status",
        "reason",
        "epsilon_round",
        "epsilon",
        "delta",
        "sigma",
        "rate",
        "steps",
    }


def test_of_the_models_before_none_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[Any] = []
    combine = aggregation.combine

    def watched(*arguments: Any, **options: Any) -> Any:
        state = combine(*arguments, **options)
        models.append(weakref.ref(next(iter(state.weights.values()))))
        return state

    monkeypatch.setattr(aggregation, "combine", watched)
    alive: list[int] = []
    simulate(
        quick("rounds=4"),
        tmp_path / "run",
        on_round=lambda line: alive.append(sum(model() is not None for model in models)),
    )
    assert alive == [1, 1, 1, 1]


def test_every_ledger_holds_the_plans_event_once_a_round_trained(tmp_path: Path) -> None:
    plan = quick("steps=2")
    result = simulate(plan, tmp_path / "run")
    assert result.outcome.reason == "done"
    for site in ("site-0", "site-1", "site-2"):
        assert ledger_events(tmp_path / "run", site) == [Event("record", 2.0, 0.2, 2)] * 3


def test_epsilon_never_falls_and_is_what_the_events_cost(tmp_path: Path) -> None:
    simulate(quick(), tmp_path / "run")
    lines = history(tmp_path / "run")
    epsilons = [line["epsilon"] for line in lines]
    assert epsilons == sorted(epsilons)
    events = [
        Event("record", said["sigma"], said["rate"], said["steps"])
        for said in (line["sites"]["site-1"] for line in lines)
    ]
    assert lines[-1]["sites"]["site-1"]["epsilon"] == pytest.approx(spent(events, 3e-4), abs=1e-9)
    rounds = [line["sites"]["site-1"]["epsilon_round"] for line in lines]
    assert sum(rounds) == pytest.approx(lines[-1]["sites"]["site-1"]["epsilon"], abs=1e-9)


def test_the_resolved_plan_can_be_run_again_as_it_is(tmp_path: Path) -> None:
    simulate(quick(), tmp_path / "one")
    again = load_plan(tmp_path / "one" / "plan.toml")
    assert RunFolder.open(tmp_path / "one").plan() == again
    simulate(again, tmp_path / "two")
    assert (tmp_path / "two" / "plan.toml").read_bytes() == (
        tmp_path / "one" / "plan.toml"
    ).read_bytes()


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    simulate(quick("rounds=1"), tmp_path / "run")
    with pytest.raises(FolderError, match="--resume"):
        simulate(quick("rounds=1"), tmp_path / "run")


def test_a_finished_run_resumed_does_nothing_and_spends_nothing(tmp_path: Path) -> None:
    simulate(quick(), tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert simulate(quick(), tmp_path / "run", resume=True).outcome.reason == "done"
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


class Killed(BaseException):
    """Stands for a kill: nothing of ours catches it."""


def killed_at(round: int, folder: Path, plan: Plan) -> None:
    def on_round(line: Any) -> None:
        if line["round"] == round:
            raise Killed

    with pytest.raises(Killed):
        simulate(plan, folder, on_round=on_round)


def test_a_killed_run_goes_on_from_its_last_complete_round(tmp_path: Path) -> None:
    plan = quick("rounds=4")
    killed_at(2, tmp_path / "run", plan)
    result = simulate(plan, tmp_path / "run", resume=True)
    assert [line["round"] for line in history(tmp_path / "run")] == [1, 2, 3, 4]
    assert result.summary["rounds"] == 4
    assert len(ledger_events(tmp_path / "run", "site-0")) == 4


def test_a_round_trained_again_is_paid_again_and_reported(tmp_path: Path) -> None:
    plan = quick("rounds=3")
    killed_at(2, tmp_path / "run", plan)
    checkpoint.path_of(tmp_path / "run" / "checkpoints", 2).unlink()
    simulate(plan, tmp_path / "run", resume=True)
    events = ledger_events(tmp_path / "run", "site-0")
    assert len(events) == 4
    line = history(tmp_path / "run")[-1]
    assert line["sites"]["site-0"]["epsilon"] == pytest.approx(spent(events, 3e-4), abs=1e-9)


@pytest.mark.parametrize("tail", [b"", b'{"round": 3, "met', b"not json\n"])
def test_a_history_behind_or_torn_is_repaired_from_the_checkpoints(
    tmp_path: Path, tail: bytes
) -> None:
    plan = quick("rounds=3")
    killed_at(2, tmp_path / "run", plan)
    file = tmp_path / "run" / "history.jsonl"
    file.write_bytes(file.read_bytes().splitlines(keepends=True)[0] + tail)
    simulate(plan, tmp_path / "run", resume=True)
    assert [line["round"] for line in history(tmp_path / "run")] == [1, 2, 3]


def test_resuming_under_another_plan_is_refused(tmp_path: Path) -> None:
    killed_at(1, tmp_path / "run", quick())
    with pytest.raises(FolderError, match="another plan"):
        simulate(quick("sigma=1.0"), tmp_path / "run", resume=True)


def test_limits_that_cover_half_the_rounds_stop_the_run_early(tmp_path: Path) -> None:
    half = spent([Event("record", 2.0, 0.2, 1, count=2)], 3e-4) + 1e-6
    result = simulate(quick("rounds=4", f"limit={half}"), tmp_path / "run")
    assert result.outcome.reason == "budget"
    assert [line["round"] for line in history(tmp_path / "run")] == [1, 2]
    for site in ("site-0", "site-1", "site-2"):
        assert spent(ledger_events(tmp_path / "run", site), 3e-4) <= half


def test_a_spent_site_declines_while_the_others_go_on(tmp_path: Path) -> None:
    one = spent([Event("record", 2.0, 0.2, 1)], 3e-4) + 1e-6
    result = simulate(quick(f"site.site-1.limit={one}"), tmp_path / "run")
    assert result.outcome.reason == "done"
    said = [line["sites"]["site-1"] for line in history(tmp_path / "run")]
    assert [s["status"] for s in said] == ["trained", "declined", "declined"]
    assert said[1]["reason"] == "budget-exhausted"
    assert said[1]["epsilon_round"] == 0.0


def test_a_site_with_its_own_epsilon_gets_its_own_noise(tmp_path: Path) -> None:
    plan = load_plan("digits", ["rounds=2", "sites=2", "epsilon=3", "site.site-1.epsilon=1.0"])
    simulate(plan, tmp_path / "run")
    said = history(tmp_path / "run")[-1]["sites"]
    assert said["site-0"]["epsilon"] == pytest.approx(3.0, rel=5e-3)
    assert said["site-1"]["epsilon"] == pytest.approx(1.0, rel=5e-3)
    assert said["site-1"]["sigma"] > said["site-0"]["sigma"]
    assert history(tmp_path / "run")[-1]["epsilon"] == said["site-0"]["epsilon"]


def test_without_privacy_epsilon_is_null_everywhere(tmp_path: Path) -> None:
    result = simulate(load_plan("digits", ["unit=none", "rounds=2"]), tmp_path / "run")
    assert result.summary["epsilon"] is None
    assert not result.summary["private"]
    for line in history(tmp_path / "run"):
        assert line["epsilon"] is None
        assert all(said["epsilon"] is None for said in line["sites"].values())
    assert not (tmp_path / "run" / "ledgers").exists()


def test_the_client_unit_is_paid_by_the_coordinators_own_ledger(tmp_path: Path) -> None:
    plan = quick("unit=client", "sigma=3.0", "clip=0.5")
    simulate(plan, tmp_path / "run")
    assert ledger_events(tmp_path / "run", "coordinator") == [Event("client", 3.0, 1.0, 1)] * 3
    line = history(tmp_path / "run")[-1]
    expected = spent([Event("client", 3.0, 1.0, 1, count=3)], 3e-4)
    assert line["epsilon"] == pytest.approx(expected, abs=1e-9)


def test_a_site_that_drops_out_spends_nothing_and_a_late_one_has_spent(tmp_path: Path) -> None:
    simulate(quick("simulation.dropout=0.5", "rounds=4"), tmp_path / "drop")
    for site in ("site-0", "site-1", "site-2"):
        said = [line["sites"][site]["status"] for line in history(tmp_path / "drop")]
        path = tmp_path / "drop" / "ledgers" / f"{site}.jsonl"
        assert len(Ledger.open(path).entries()) == said.count("trained")
    simulate(quick("simulation.slow=0.5", "rounds=4"), tmp_path / "slow")
    lines = history(tmp_path / "slow")
    late = sum(said["status"] == "failed" for line in lines for said in line["sites"].values())
    assert late > 0
    assert len(ledger_events(tmp_path / "slow", "site-0")) == 4


def test_a_late_reply_counts_in_the_next_round_and_is_named_there(tmp_path: Path) -> None:
    plan = quick("simulation.slow=0.5", "rounds=4", "rate=1.0")  # a report's groups cost nothing
    simulate(plan, tmp_path / "run")
    lines = history(tmp_path / "run")
    missed = [
        (line["round"], site)
        for line in lines[:-1]
        for site, entry in line["sites"].items()
        if entry["reason"] == "no-answer"
    ]
    counted = [(made, site) for line in lines for site, made in line.get("late", {}).items()]
    assert counted
    assert sorted(counted) == sorted(missed)
    report = build([read(tmp_path / "run")], {"at": "2026-01-02T03:04:05+00:00"})
    assert not report.problems
    assert all(
        made == line["round"] - 1 for line in lines for made in line.get("late", {}).values()
    )


def test_a_late_reply_is_dropped_where_the_coordinator_says_so(tmp_path: Path) -> None:
    simulate(quick("simulation.slow=0.5", "rounds=4", "operation.late_rounds=0"), tmp_path / "run")
    assert not any("late" in line for line in history(tmp_path / "run"))


def test_paid_metrics_are_noised_spent_and_shown(tmp_path: Path) -> None:
    plan = quick('metrics=["loss", "accuracy"]', "metrics_sigma=20")
    simulate(plan, tmp_path / "run")
    events = ledger_events(tmp_path / "run", "site-0")
    assert events == [Event("record", 2.0, 0.2, 1), Event("record", 20.0, 1.0, 1)] * 3
    line = history(tmp_path / "run")[-1]
    assert line["epsilon"] == pytest.approx(spent(events, 3e-4), abs=1e-9)
    assert 0 < line["metrics"]["site_accuracy"] < 1.5


WIRED = ("rounds=10", "sigma=1.0", "rate=1.0")  # of every row: its price has a closed form


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The last round of a run whose updates travel as float32."""
    folder = tmp_path_factory.mktemp("full")
    simulate(quick(*WIRED), folder / "run")
    return history(folder / "run")[-1]


@pytest.mark.parametrize("wire", ["bfloat16", "int8"])
def test_a_smaller_wire_saves_bytes_and_learns_the_same(
    tmp_path: Path, wire: str, full: dict[str, Any]
) -> None:
    simulate(quick(*WIRED, f"wire={wire}"), tmp_path / "small")
    small = history(tmp_path / "small")[-1]
    assert full["metrics"]["accuracy"] > 0.5
    assert small["bytes_up"] < 0.75 * full["bytes_up"]
    assert small["metrics"]["accuracy"] > full["metrics"]["accuracy"] - 0.1


def test_the_checkpoint_is_the_released_model_by_its_own_names(tmp_path: Path) -> None:
    simulate(quick("average=true", "server_momentum=0.5"), tmp_path / "run")
    tensors = load_file(checkpoint.path_of(tmp_path / "run" / "checkpoints", 3))
    names = {n for n in tensors if not n.startswith("server/")}
    assert names == {"weight", "bias"}
    assert {n for n in tensors if n.startswith("server/velocity/")} == {
        "server/velocity/weight",
        "server/velocity/bias",
    }
    assert not np.array_equal(tensors["weight"], tensors["server/weights/weight"])
