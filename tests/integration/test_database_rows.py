"""A site's rows in a real PostgreSQL: simulated, federated and predicted from, memory flat."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from tests.support.patience import patience
from tests.support.postgres import fill, served
from tests.support.processes import BIN, World, told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
postgres = pytest.fixture(scope="module")(served)

ROWS = int(os.environ.get("TACIT_TEST_ROWS", "60000"))
"""A million takes minutes: `TACIT_TEST_ROWS=1000000`."""
WIDTH = 5 * 4 + 8
"""Bytes of a row's features and its label."""
SCHEMA = """
label = "ill"
[columns.age]
type = "number"
min = 0
max = 100
[columns.weight]
type = "number"
min = 0
max = 200
[columns.city]
type = "category"
values = ["Oslo", "Bergen"]
[columns.ill]
type = "category"
values = [false, true]
"""
PLAN = """
task = "table"
schema = "schema.toml"
sites = 1
rounds = 3
rate = 0.05
rows = ROWS
lr = 1.0
clip = 1.0
sigma = 1.0
delta = 1e-6
"""
PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def write(folder: Path, address: str, password: str, rows: int) -> Path:
    """A plan, its schema, and a query of so many rows; the path of the `source.toml`."""
    folder.mkdir(exist_ok=True)
    (folder / "schema.toml").write_text(SCHEMA)
    (folder / "plan.toml").write_text(PLAN.replace("ROWS", str(ROWS * 4 // 5)))
    (folder / "pw").write_text(password + "\n")
    query = f"select * from people where who <= {rows} order by who"
    path = folder / "source.toml"
    path.write_text(f'database = "{address}"\nquery = """{query}"""\npassword_file = "pw"\n')
    return path


def peak(*words: object) -> int:
    """The most memory that a command used, in MiB; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *(str(word) for word in words)],
        capture_output=True,
        text=True,
        timeout=patience(300),
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    code, most = done.stdout.split()[-2:]
    assert code == "0", done.stdout + done.stderr
    return int(most) // 1024


def test_a_run_and_a_prediction_take_their_rows_from_a_database(
    postgres: tuple[str, str], tmp_path: Path
) -> None:
    address, password = postgres
    fill(
        address,
        password,
        "drop table if exists people; create table people as select i as who, i % 90 as age, "
        "(i % 140)::numeric(6,2) as weight, "
        "case i % 2 when 0 then 'Oslo' else 'Bergen' end as city, "
        f"i % 3 = 0 as ill from generate_series(1, {ROWS}) i",
    )
    few = write(tmp_path / "few", address, password, ROWS // 6)
    all_ = write(tmp_path / "all", address, password, ROWS)
    runs = tmp_path / "runs"

    def simulated(data: Path) -> int:
        plan, name = data.parent / "plan.toml", data.parent.name
        where = ("--data", data, "--runs", runs, "--name", name, "--json")
        return peak(BIN / "tacit-simulate", plan, *where)

    def predicted(data: Path) -> int:
        out = tmp_path / f"{data.parent.name}.parquet"
        return peak(
            *(BIN / "tacit-client", "predict", "--model", runs / "all"),
            *("--data", data, "--out", out, "--id", "who"),
        )

    peaks = {
        (way.__name__, data.parent.name): way(data)
        for way in (simulated, predicted)
        for data in ((few, all_) if way is simulated else (all_, few))
    }
    print(f"{ROWS} rows and a sixth of them, peak MiB: {peaks}")
    assert peaks["simulated", "all"] - peaks["simulated", "few"] < 60 + 4 * ROWS * WIDTH // 2**20
    assert peaks["predicted", "all"] - peaks["predicted", "few"] < 60
    found = parquet.read_table(tmp_path / "all.parquet")
    assert found.num_rows == ROWS
    assert found.column("who").to_pylist() == list(range(1, ROWS + 1))


def test_sites_take_part_with_the_rows_of_their_databases(
    postgres: tuple[str, str], tmp_path: Path
) -> None:
    address, password = postgres
    fill(
        address,
        password,
        "drop table if exists people; create table people as select i as who, i % 90 as age, "
        "i % 140 as weight, 'Oslo' as city, i % 3 = 0 as ill "
        f"from generate_series(1, {ROWS}) i",
    )
    names, counts = ("north", "south"), (ROWS // 2, ROWS // 2)
    world = World(tmp_path)
    with told(world):
        clients = []
        for part, name in enumerate(names):
            data = write(tmp_path / f"db-{name}", address, password, ROWS)
            whole = data.read_text()
            data.write_text(whole.replace("order by", f"and who % 2 = {part} order by"))
            schema = ("--schema", data.parent / "schema.toml")
            ledger = ("--ledger", tmp_path / f"{name}.jsonl")
            world.site(name, "data", "add", "people", "--data", data, *schema, *ledger)
            limits = ("--epsilon", "8", "--delta", "1e-3", "--approve", "within-limits")
            world.site(name, "policy", "new", *limits, "--task", "table")
            where = ("--dir", world.sites[name], "--server", f"127.0.0.1:{world.port}")
            run = (BIN / "tacit-client", "run", *where, "--data", data, "--json")
            clients.append(world.start(f"{name}.log", *run))
        plan = tmp_path / "db-north" / "plan.toml"
        plan.write_text(plan.read_text().replace("sites = 1", "sites = 2"))
        server = world.server("--min-sites", 2, plan=str(plan))
        world.until(lambda: server.poll() is not None)
        assert server.returncode == 0, world.log("server")
        for name, count, client in zip(names, counts, clients, strict=True):
            assert world.statuses(name) == ["trained"] * 3
            (read,) = world.said(name, "rows_read")[:1]
            assert f"{count} rows" in str(read["file"])
            assert password not in world.log(name) + json.dumps(world.history())
            status = Path(f"/proc/{client.pid}/status").read_text()
            most = int(status.split("VmHWM:")[1].split()[0]) // 1024
            assert most < 700 + 4 * count * WIDTH // 2**20, most
            print(f"{name}: {count} rows, peak {most} MiB")
