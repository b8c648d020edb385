"""The engine `ray`: a cluster is joined, refused before anything is written, and may lose nodes."""

import json
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from privacy.accounting.events import Event
from privacy.contract.plan_file import load_plan
from privacy.ledger.ledger import Ledger
from simulations import simulate
from simulations.dataset import own_ledger
from simulations.engines.ledger_copies import Sizes, add, additions, sizes
from simulations.engines.pool import Waiting

CLUSTER = """
import os
import sys
from privacy.runtime import prepare
prepare()
import ray
os.environ["RAY_worker_niceness"] = "0"  # else a busy machine has no time for the workers
from ray.cluster_utils import Cluster
from privacy.contract.plan_file import load_plan
from simulations import simulate

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = cluster.address
settings = ["rounds=4", "sites=4", "steps=1", "simulation.engine=ray", "simulation.workers=2"]
rounds = []

def on_round(line):
    rounds.append(sum(site["status"] == "trained" for site in line["sites"].values()))
    if len(rounds) == 2:
        cluster.remove_node(other, allow_graceful=False)

result = simulate(load_plan("digits", settings), sys.argv[1], on_round=on_round)
print(result.outcome.reason, rounds)
cluster.shutdown()
"""


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "127.0.0.1:99999999", "ray://:x"])
def test_a_cluster_that_is_not_there_is_refused_before_anything_is_written(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    plan = load_plan("digits", ["simulation.engine=ray", "rounds=1"])
    with pytest.raises(ValueError, match="RAY_ADDRESS must be the HOST:PORT"):
        simulate(plan, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_waits_for_a_lost_worker_goes_to_another() -> None:
    class Meta:
        group_id = "1"

    class Request:
        metadata = Meta

    message: Any = Request
    waiting: Waiting[str] = Waiting()
    waiting.put("1", "site-0", message)
    assert waiting.take("one") == ("1", "site-0", message)
    waiting.put("2", "site-0", message)  # the same site again: for the worker that had it
    assert waiting.take("other") is None
    waiting.lost("one")
    assert waiting.take("other") == ("2", "site-0", message)
    assert waiting._again == {} or waiting._again.get("one", deque()) == deque()


def test_a_ledger_goes_to_and_fro_between_machines_that_share_no_files(tmp_path: Path) -> None:
    home, machines, known = (
        tmp_path / "run",
        [tmp_path / "a", tmp_path / "b"],
        list[Sizes]([{}, {}]),
    )
    event = Event("record", 3.0, 0.1, 1)
    for number in range(1, 7):
        at = (0, 1, 1, 0, 1, 0)[number - 1]
        machine = machines[at]
        add(machine, "north", additions(home, "north", known[at]))
        before = sizes(machine, "north")
        ledger = own_ledger(machine, "north")
        assert len(ledger.entries()) == number - 1
        ledger.spend(event, None, run="run", round=number, plan="plan")
        add(home, "north", additions(machine, "north", before))
        known[at] = sizes(home, "north")
    whole = own_ledger(home, "north")
    assert [entry.round for entry in whole.entries()] == [1, 2, 3, 4, 5, 6]
    assert whole.trusted()


@pytest.mark.slow
def test_a_run_goes_on_over_two_nodes_and_after_one_of_them_died(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    ended = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    reason, rounds = ended.stdout.splitlines()[-1].split(" ", 1)
    assert (reason, json.loads(rounds)) == ("done", [4, 4, 4, 4]), "nobody has paid twice"
    for site in range(4):
        ledger = tmp_path / "run" / "ledgers" / f"site-{site}.jsonl"
        assert len(Ledger.open(ledger).entries()) == 4
        assert Ledger.open(ledger).trusted()
