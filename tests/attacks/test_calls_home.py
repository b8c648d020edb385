"""Nothing calls home: every command of every role, watched at its system calls.

No name is asked for and nothing outside this machine is dialled; on this machine, only the
coordinator's port and the services that a command itself starts.
"""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_docs import generator
from tests.integration.test_readme import BIN, free_port
from tests.support.models import digits_csv
from tests.support.patience import patience

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

ROLES = r"""
background() { "$@" > /dev/null 2>&1 & last=$!; }
# A background process of a script ignores SIGINT.
ended() { kill -TERM $1 2> /dev/null; wait $1; true; }
quietly() { "$@" > /dev/null; code=$?; [ $code -le 5 ] || echo "ended with $code: $*"; }
ready() { for _ in $(seq 600); do python -c "import socket; \
socket.create_connection(('127.0.0.1', $1)).close()" 2> /dev/null && return; sleep 0.2; done; }

quietly tacit-simulate new mine
quietly tacit-privacy task check mine
quietly tacit-privacy task pack mine
quietly tacit-client task add mine --dir tasks
quietly tacit-client task list --dir tasks
quietly tacit-client task show 00000000 --dir tasks
quietly tacit-client task diff 00000000 11111111 --dir tasks
quietly tacit-client task check 00000000 --dir tasks
quietly tacit-client task approve 00000000 --dir tasks
quietly tacit-client task remove 00000000 --dir tasks
quietly tacit-simulate digits --set rounds=2 --set epsilon=1 --name first
quietly tacit-privacy plan digits --set rows=287
quietly tacit-privacy ledger verify runs/first/ledgers/site-0.jsonl
quietly tacit-privacy ledger show runs/first/ledgers/site-0.jsonl
quietly tacit-privacy epsilon --segment 1.0,1,10 --delta 1e-5
quietly tacit-privacy sigma --epsilon 1 --delta 1e-5 --rate 1 --steps 3
quietly tacit-privacy report runs/first --out report
quietly tacit-privacy verify report
quietly tacit-privacy constants report --schema none --out none
quietly tacit-client predict --model runs/first --data digits.csv --out predictions.csv
quietly tacit-client evaluate --model runs/first --data digits.csv
quietly tacit-client export --model runs/first --format onnx --out first.onnx
quietly tacit-client adapt --model runs/first --data digits.csv --out adapted.safetensors
quietly tacit-client look digits.csv --plan digits --out look.html
quietly tacit-client importance digits.csv --model runs/first --out importance.html
quietly tacit-client drift digits.csv --against digits.csv --model runs/first
background tacit-client serve --model runs/first --listen 127.0.0.1:SERVICE
ready SERVICE; ended $last
quietly tacit-client audit --epsilon 4 --seconds 10

quietly tacit-server init --dir home --host 127.0.0.1:LINK
quietly tacit-client enroll --dir north --site north
quietly tacit-client enroll --dir south --site south
quietly tacit-server sign --dir home north/north.csr south/south.csr
quietly tacit-client join --dir north north/north.bundle
quietly tacit-client join --dir south south/south.bundle
quietly tacit-client run --dir north --dry-run --plan digits
quietly tacit-client data add people --dir south --ledger south/people.jsonl
quietly tacit-client data list --dir south
quietly tacit-client data move people --data digits.csv --dir south
quietly tacit-client data remove people --dir south
quietly tacit-client data check digits.csv --dir south
quietly tacit-client policy new --dir south
background tacit-client run --dir north --server 127.0.0.1:LINK --data builtin:0/1
north=$last
quietly tacit-server run digits --dir home --listen 127.0.0.1:LINK --min-sites 1 \
    --set rounds=2 --set rate=1.0 --set sigma=4.0
quietly tacit-client plans --dir north
quietly tacit-client approve --dir north 0000
quietly tacit-client deny --dir north 0000
quietly tacit-client budget --dir south
quietly tacit-client pause --dir north
quietly tacit-client pause --dir north --off
quietly tacit-server init --dir ward --host 127.0.0.1:WARD
quietly tacit-client enroll --dir ward/upward --site ward
quietly tacit-server sign --dir home --relay ward/upward/ward.csr
quietly tacit-client join --dir ward/upward ward/upward/ward.bundle
background tacit-server serve --dir home --listen 127.0.0.1:LINK --metrics 127.0.0.1:METRICS
served=$last
background tacit-server relay --dir ward --listen 127.0.0.1:WARD
ready WARD; ended $last
quietly tacit-client doctor --dir north --server 127.0.0.1:LINK --data builtin:0/1
quietly tacit-server submit digits --dir home --name second --set rounds=1
quietly tacit-server propose digits --dir home
for word in pause resume stop show log; do quietly tacit-server $word second --dir home; done
quietly tacit-server runs --dir home
quietly tacit-server authority show --dir home
quietly tacit-server authority rotate --dir home
quietly tacit-server authority finish --dir home --without-missing
ended $served
quietly tacit-client leave --dir north
ended $north
quietly tacit-client ledger acknowledge --dir south --population people --reason "a test"
quietly tacit-client ledger recover --dir south --population people --record home/heads
quietly tacit-client backup south.backup --dir south
quietly tacit-client restore south.backup --dir restored-south
quietly tacit-server backup home.backup --dir home
quietly tacit-server restore home.backup --dir restored-home
quietly tacit-server status --dir home
quietly tacit-server audit-log --dir home
quietly tacit-client audit-log --dir south
quietly tacit-server repair --dir home
quietly tacit-server task add mine --dir home
quietly tacit-server track second --tensorboard board --dir home
quietly tacit-server sites --dir home
quietly tacit-server doctor --dir home
quietly tacit-server renew north --dir home
quietly tacit-server revoke north --dir home
background tacit-server dashboard --dir home --port PAGES
ready PAGES; ended $last
"""
STRACE = ["strace", "-f", "-qq", "--seccomp-bpf", "-s", "80"]
STRACE += ["-e", "trace=connect,sendto,sendmsg,sendmmsg"]
ADDRESS = re.compile(
    r"(connect|sendto|sendmsg|sendmmsg)\(.*?sa_family=(AF_INET6?).*?"
    r"sin6?_port=htons\((\d+)\).*?(?:inet_addr\(|inet_pton\(AF_INET6, )\"([^\"]+)\""
)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_no_command_of_any_role_asks_for_a_name_or_dials_out(tmp_path: Path) -> None:
    digits_csv(tmp_path / "digits.csv", 100)
    ports = {name: free_port() for name in ("LINK", "WARD", "SERVICE", "PAGES", "METRICS")}
    script = ROLES
    for name, port in ports.items():
        script = script.replace(name, str(port))
    trace = tmp_path / "trace"
    process = subprocess.Popen(
        [*STRACE, "-o", str(trace), "bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=patience(600))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "ended with" not in out and "Traceback" not in out, out
    dialled = [match.groups() for match in ADDRESS.finditer(trace.read_text(errors="replace"))]
    assert {int(port) for _, _, port, _ in dialled} & set(ports.values()), "nothing was watched"
    outside = [one for one in dialled if one[3] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
    assert not outside
    assert not [one for one in dialled if one[2] == "53"]


def test_the_script_has_every_command() -> None:
    made: Any = generator()
    names = [name for name, _ in made.commands()]
    loop = re.findall(r"for word in ([a-z ]+); do \w+ (tacit-\w+)", ROLES)
    called = {f"{command} {word}" for words, command in loop for word in words.split()}
    assert not [name for name in names if name not in called and f" {name} " not in ROLES]
