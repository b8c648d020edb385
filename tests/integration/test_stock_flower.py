"""docs/stock-flower.md is run as it stands: Flower's own processes on 127.0.0.1, real apps."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.contract.policy import builtin_policy
from privacy.ledger.ledger import Ledger
from tests.support.patience import patience

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "stock-flower.md"
BIN = Path(sys.executable).parent
PLAN = "rounds=2 sigma=2.0 rate=0.2 delta=3e-4 rows=300"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

UNTIL_IT_LISTENS = """
until python -c "import socket; socket.create_connection(('127.0.0.1', $PORT))" 2>/dev/null
do [ "$(jobs -r | wc -l)" = 2 ] || exit 9; done
"""
WHAT_A_STRANGER_SEES = """
python - <<END
import socket, ssl
context = ssl.create_default_context(cafile="coordinator/ca.pem")
context.maximum_version = ssl.TLSVersion.TLSv1_2
with socket.create_connection(("127.0.0.1", $PORT)) as plain:
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as link:
        link.sendall(b"GET /openapi.json HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n")
        seen = b"".join(iter(lambda: link.recv(65536), b""))
        print("SEEN", link.version(), b"/v1/control/" in seen, b"/v1/runtime/" in seen)
END
"""


def blocks(port: int) -> list[str]:
    """The documentation's commands, on ports that are free, with fewer and smaller rounds."""
    text = DOCS.read_text("utf-8")
    for number in range(3):
        text = text.replace(str(8443 + number), str(port + number))
    return re.findall(r"```sh\n(.*?)```", text.replace("rounds=2", PLAN), re.DOTALL)


def free_ports() -> int:
    """The first of three neighbours that are free, where no outgoing connection takes them."""
    while True:
        port = random.randrange(20000, 32000)
        with ExitStack() as stack, suppress(OSError):
            for number in range(3):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port + number))
            return port


@dataclass(frozen=True)
class Done:
    """What the script left: its folder, what it wrote, what `flwr list` said at the end."""

    folder: Path
    text: str

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self.folder / "list.json").read_text())["runs"]
        return sorted(found, key=lambda run: str(run["pending-at"]))

    def history(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / "coordinator" / "runs" / name / "history.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    def ledger(self, site: str) -> Ledger:
        (path,) = (self.folder / site / "ledgers").glob("*.jsonl")
        return Ledger.open(path)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Two runs over the same processes; before the second, one site's owner changes the policy."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not here, which turns a key into OpenSSH's form")
    folder, port = tmp_path_factory.mktemp("stock"), free_ports()
    keys, link, names, nodes, run = blocks(port)
    strict = replace(builtin_policy(), min_sigma=50.0).to_toml()
    (folder / "strict.toml").write_text(strict)
    again = run.replace("first", "second").replace("min-sites=2", "min-sites=1")
    never = run.replace("first", "third").replace("sigma=2.0", "sigma=0")
    script = "\n".join(
        [
            *("set -e", keys, link, UNTIL_IT_LISTENS, WHAT_A_STRANGER_SEES, names, nodes, run),
            *("cp strict.toml south/policy.toml", again, never),
            "flwr list tacit --format json > list.json",
        ]
    )
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "TACIT": str(ROOT),
        "PORT": str(port),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)  # an app process knows the bundle, or what is installed
    del environment["FLWR_HOME"]
    with (folder / "script.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(patience(800))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = (folder / "script.log").read_text("utf-8", errors="replace")
    assert code == 0, text[-8000:]
    return Done(folder, text)


def test_flwr_run_trains_both_sites_and_leaves_the_folder_of_a_run(done: Done) -> None:
    assert done.runs()[0]["status"] == "finished:completed"
    run = done.folder / "coordinator" / "runs" / "first"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["reason"], summary["rounds"], summary["private"]) == ("done", 2, True)
    assert summary["metrics"]["accuracy"] > 0.2
    for line in done.history("first"):
        assert {s: said["status"] for s, said in line["sites"].items()} == dict.fromkeys(
            ("north", "south"), "trained"
        )
    assert len(list((run / "checkpoints").glob("*.sig"))) == 2
    head = json.loads((run / "heads" / "south.jsonl").read_text().splitlines()[-1])
    assert (head["n"], head["digest"]) == (2, done.ledger("south").head.digest)


def test_each_sites_ledger_holds_the_rounds_that_it_trained(done: Done) -> None:
    for site, rounds in (("north", 4), ("south", 2)):
        ledger = done.ledger(site)
        assert [e.event for e in ledger.entries()] == [Event("record", 2.0, 0.2, 1)] * rounds
        assert len(list((done.folder / site / "replies").glob("*.reply"))) == rounds
    epsilon = done.history("second")[-1]["sites"]["north"]["epsilon"]
    events = done.ledger("north").entries()[2:]
    assert spent([e.event for e in events], 3e-4) == pytest.approx(epsilon, rel=1e-9)


def test_a_site_whose_policy_now_refuses_declines(done: Done) -> None:
    assert done.runs()[1]["status"] == "finished:completed"
    for line in done.history("second"):
        said = line["sites"]["south"]
        assert (said["status"], said["reason"]) == ("declined", "noise-too-low")
        assert line["sites"]["north"]["status"] == "trained"


def test_the_released_model_is_handed_to_the_sites(done: Done) -> None:
    index = (done.folder / "north" / "models" / "index.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in index] == [2, 2]


def test_a_run_that_cannot_be_is_shown_as_failed_with_one_line(done: Done) -> None:
    failed = done.runs()[2]
    assert failed["status"] == "finished:failed"
    assert "sigma must be a number" in failed["status-details"]
    assert not (done.folder / "coordinator" / "runs" / "third").exists()


def test_what_ran_is_the_bundle_and_not_this_checkout(done: Done) -> None:
    told = set(re.findall(r"stock_flower bundle=(\S+)", done.text))
    apps = {path for path in done.folder.glob("*/flwr/apps/*") if path.is_dir()}
    assert {path.parent.parent.parent.name for path in apps} == {"coordinator", "north", "south"}
    assert told == {str(path) for path in apps}
    assert all(path.name.startswith("tacit.tacit.") for path in apps)


def test_what_the_page_says_is_lost_is_lost(done: Done) -> None:
    assert "SEEN TLSv1.2 True True" in done.text
