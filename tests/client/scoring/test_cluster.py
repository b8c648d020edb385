"""A running cluster scores a file: the same bytes, also where one of its machines is lost."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

CLUSTER = """
import os
import sys
from pathlib import Path
from privacy.runtime import prepare
prepare()
import ray
os.environ["RAY_worker_niceness"] = "0"  # else a busy machine has no time for the workers
from ray.cluster_utils import Cluster
from client.data.formats import records
from client.inference.predictor import predictor
from client.models.loading import find, load
from client.models.provenance import Trust
from client.scoring.actors import Actors
from client.scoring.batch import run
from tests.client.scoring.test_workers import SCHEMA, people
from client.tasks.registry import task as find_task
from tests.support.models import own_key, plan_for, release, shaken

folder = Path(sys.argv[1])
model = folder / "model"
task = find_task("table", SCHEMA)
release(model, 5, plan=plan_for("table", schema=SCHEMA), network=shaken(task), key=own_key(model))
ready = predictor(load(find(str(model)), Trust()), threads=1)
data = people(folder / "people.csv", 3000)
records.BLOCK, records._COLUMN = 1024, 8
run(ready, data, folder / "one.csv", sys.stdout, ident="name")

head = {"num_cpus": 1, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
other = cluster.add_node(num_cpus=1)
results = []

def tell(done):
    results.append(done)
    if len(results) == 20:
        cluster.remove_node(other, allow_graceful=False)

def start(work):
    return Actors(work, None, cluster.address)

tally = run(ready, data, folder / "two.csv", sys.stdout, ident="name", tell=tell, start=start)
try:
    run(ready, data, folder / "no.csv", sys.stdout, start=lambda w: Actors(w, 9, cluster.address))
except ValueError as error:
    print(error)
print(tally.rows, len(results) > 40, (folder / "no.csv").exists())
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_cluster_writes_the_bytes_of_one_process_though_a_node_is_lost(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    ended = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[3],
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    refused, result = ended.stdout.splitlines()[-2:]
    # Ray counts the CPUs of a node that died until it has missed its health checks.
    assert re.fullmatch("--workers must be at most [12], the cluster's CPUs, got 9", refused)
    assert result == "3000 True False"
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
