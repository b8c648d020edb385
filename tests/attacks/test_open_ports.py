"""What a stranger finds at a running coordinator: one port, and nothing behind it without a key.

The coordinator is a real `tacit-server run` in the middle of a run, with its evaluating child.
"""

import contextlib
import datetime
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.agent.credentials import Enrolled
from privacy.identity.certificates import Authority, read_request
from server.registry.sites import Home
from tests.support.federation import coordinator, now
from tests.support.patience import wait_for

BIN = Path(sys.executable).parent
ROUNDS = 3000
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's /proc"),
]
ASKED = b"POST /v1/fleet/activate-node HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
GET = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"


class Running:
    """A coordinator in the middle of a run with one site."""

    def __init__(self, home: Path, site: Path, server: subprocess.Popen[bytes], port: int) -> None:
        self.home, self.site, self.server, self.port = home, site, server, port

    def rounds(self) -> int:
        path = self.home / "runs" / "one" / "history.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("ports")
    home, sites = coordinator(folder, "honest", "other")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = f"127.0.0.1:{port}"
    with (folder / "log").open("wb") as log, contextlib.ExitStack() as stack:

        def start(*words: object) -> subprocess.Popen[bytes]:
            quiet = os.environ | {"OMP_NUM_THREADS": "1"}
            found = subprocess.Popen([*map(str, words)], stdout=log, stderr=log, env=quiet)
            stack.callback(found.wait, 20)
            stack.callback(found.kill)
            return found

        options = ("--name", "one", "--min-sites", 1, "--set", f"rounds={ROUNDS}")
        server = start(
            *(BIN / "tacit-server", "run", "digits", "--dir", home, "--listen", where, *options)
        )
        data = ("--data", "builtin:0/1")
        start(BIN / "tacit-client", "run", "--dir", sites["honest"], "--server", where, *data)
        found = Running(home, sites["other"], server, port)
        assert wait_for(lambda: found.rounds() >= 2, 120), (folder / "log").read_text()
        yield found
        before = found.rounds()
        assert wait_for(lambda: found.rounds() > before + 2, 60), "the run did not go on"


def descendants(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [one for child in map(int, text.split()) for one in (child, *descendants(child))]


def listening(process: int) -> set[tuple[str, int]]:
    """The ports on which a process hears anybody, over TCP or UDP."""
    own = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            own.add(str(descriptor.readlink()))
    found = set()
    for kind, states in (("tcp", {"0A"}), ("tcp6", {"0A"}), ("udp", None), ("udp6", None)):
        table = Path(f"/proc/{process}/net/{kind}")
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if (states is None or fields[3] in states) and f"socket:[{fields[9]}]" in own:
                found.add((kind, int(fields[1].rpartition(":")[2], 16)))
    return found


def test_a_running_coordinator_has_one_open_port_and_its_children_none(run: Running) -> None:
    children = descendants(run.server.pid)
    assert children, "the evaluating child is part of what is tested"
    assert any("torch" in Path(f"/proc/{child}/maps").read_text() for child in children)
    assert listening(run.server.pid) == {("tcp", run.port)}
    assert [child for child in children if listening(child)] == []


@pytest.mark.parametrize(
    "sent",
    [GET, ASKED, b"\0" * 300, b"\x16\x03\x01\x02\x00garbage", b"SSH-2.0-x\r\n", b"PRI * HTTP/2.0"],
)
def test_who_speaks_no_tls_reads_a_tls_alert_at_most(run: Running, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", run.port), 20) as sock:
        sock.sendall(sent)
        sock.shutdown(socket.SHUT_WR)
        got = everything(sock)
    alert = got[:3] == b"\x15\x03\x03" or got[:3] == b"\x15\x03\x01"
    assert got == b"" or (alert and len(got) == 7)


@pytest.mark.parametrize("shown", ["none", "own", "another authority's", "expired"])
@pytest.mark.parametrize("asked", [GET, ASKED])
def test_without_a_good_certificate_not_one_byte_is_answered(
    run: Running, tmp_path: Path, shown: str, asked: bytes
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    if shown != "none":
        tls.load_cert_chain(*certificate(run, tmp_path, shown))
    got = b""
    with (
        contextlib.suppress(ssl.SSLError, ConnectionError),
        socket.create_connection(("127.0.0.1", run.port), 20) as plain,
        tls.wrap_socket(plain, server_hostname="x") as sock,
    ):
        assert sock.version() == "TLSv1.3"
        assert sock.selected_alpn_protocol() is None
        sock.sendall(asked)
        got = everything(sock)
    assert got == b""


def test_the_same_question_over_a_sites_certificate_is_answered(run: Running) -> None:
    with (
        socket.create_connection(("127.0.0.1", run.port), 20) as plain,
        Enrolled(run.site).tls().wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        sock.sendall(ASKED)
        assert everything(sock).startswith(b"HTTP/1.1 401")


def certificate(run: Running, folder: Path, shown: str) -> tuple[Path, Path]:
    """A site's certificate with one fault, and its key."""
    here = Enrolled(run.site)
    wish = read_request(next(run.site.glob("*.csr")).read_bytes())
    authority, when = Authority.create("another", now()), now()
    if shown == "own":
        authority = Authority.create("coordinator", now())
    elif shown == "expired":
        home = Home(run.home)
        authority = Authority(home.ca.read_bytes(), home.ca_key.read_bytes())
        when = now() - datetime.timedelta(days=20)
    path = folder / "certificate.pem"
    path.write_bytes(authority.issue(wish, when, 10))
    return path, here.key


def everything(sock: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionError):
        while part := sock.recv(65536):
            got += part
    return got


def test_the_certificate_that_everybody_sees_names_the_coordinator_and_no_software(
    run: Running,
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", run.port), 20) as plain,
        tls.wrap_socket(plain, server_hostname="x") as sock,
    ):
        shown = sock.getpeercert(binary_form=True) or b""
    words = json.dumps(shown.decode("latin-1")).lower()
    assert shown
    assert not any(name in words for name in ("flwr", "flower", "uvicorn", "python", "openssl"))
