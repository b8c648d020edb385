"""`tacit-client serve` under clients without a token that open connections and send heads."""

import contextlib
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.http import everything
from tests.support.models import own_key, release
from tests.support.patience import patience

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SERVE = (
    "import resource, sys\nresource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))\n"
    "import typer\nfrom client.commands.models import register\n"
    "app = typer.Typer()\nregister(app)\napp()"
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The service, at no more than 1,024 open files."""
    folder = tmp_path / "run"
    folder.mkdir()
    release(folder, 5, key=own_key(folder))
    log = tmp_path / "log"
    words = ["serve", "--model", str(folder), "--listen", "127.0.0.1:0"]
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, "-c", SERVE, *words], cwd=ROOT, stderr=file)
    try:
        deadline = time.monotonic() + patience(60)
        while "listening on" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield process, int(log.read_text().split("listening on http://127.0.0.1:")[1].split()[0])
        assert "Traceback" not in log.read_text()
        assert len(log.read_text().splitlines()) < 10
    finally:
        process.kill()
        process.wait()


def healthy(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).is_success


def memory(process: subprocess.Popen[bytes]) -> int:
    """Its peak, in bytes."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(text.split("VmHWM:")[1].split()[0])


def test_slow_connections_do_not_keep_others_out(
    service: tuple[subprocess.Popen[bytes], int],
) -> None:
    _, port = service
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("the attacker needs 4,096 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX: "
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for number in range(1100):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            sock.sendall(head)
            assert number % 100 or healthy(port)
        assert healthy(port)
    assert healthy(port)


def test_a_head_without_end_is_refused_and_costs_no_memory(
    service: tuple[subprocess.Popen[bytes], int],
) -> None:
    process, port = service
    assert healthy(port)
    before = memory(process)
    sent = 0
    line = b"X-Field: " + b"a" * 65_000 + b"\r\n"
    while sent < 400_000_000:
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            try:
                sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
                for _ in range(200):
                    sock.sendall(line)
                    sent += len(line)
            except OSError:
                sent += 10_000_000  # it was refused: the rest would never have been read
                continue
            assert everything(sock)[:12] in (b"", b"HTTP/1.1 431")
    assert healthy(port)
    assert memory(process) - before < 50_000_000
