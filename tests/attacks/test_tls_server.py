"""The one open port under attack: whoever has no good certificate gets nothing, a run goes on."""

import contextlib
import datetime
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.agent.credentials import Enrolled
from privacy.identity.certificates import Authority, read_request
from server.fleet.grid import LinkGrid, serve
from server.registry import sites as members
from tests.support.federation import Events, content, coordinator, now, running


class Live:
    """A coordinator with one idle, honest site."""

    def __init__(self, home: Path, sites: dict[str, Path], grid: LinkGrid, log: Events) -> None:
        self.home, self.sites, self.grid, self.log = home, sites, grid, log
        self.port = grid.address[1]

    def round(self) -> float:
        """One round with the honest site; its weights plus one."""
        node = next(n for n, site in self.grid.names().items() if site == "honest")
        message = self.grid.create_message(content(np.zeros(3, np.float32)), "train", node, "1")
        (reply,) = self.grid.send_and_receive([message], timeout=30)
        return float(reply.content.array_records["arrays"]["w"].numpy()[0])


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("door")
    home, sites = coordinator(folder, "honest", "other", "leaver")
    log = Events()
    with serve(home, ("127.0.0.1", 0), log=log) as grid, running(sites["honest"], grid.address):
        assert log.wait("connected", site="honest")
        found = Live(home, sites, grid, log)
        assert found.round() == 1
        yield found
        assert found.round() == 1, "the run did not survive the attacks"


def context(folder: Path) -> ssl.SSLContext:
    return Enrolled(folder).tls()


def ask(port: int, tls: ssl.SSLContext | None, request: bytes) -> bytes:
    """What comes back for raw bytes, until the peer closes; nothing if it refuses."""
    found = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as plain:
        sock = tls.wrap_socket(plain, server_hostname="127.0.0.1") if tls else plain
        with contextlib.closing(sock):
            sock.sendall(request)
            while part := sock.recv(65536):
                found += part
                if tls is not None and found.endswith(b"\r\n\r\n"):
                    break
    return found


def post(path: str, body: bytes = b"", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


def strange(folder: Path, tmp: Path, **change: object) -> ssl.SSLContext:
    """A site's TLS context with a certificate of our own making."""
    copy = tmp / "strange"
    shutil.copytree(folder, copy)
    here = Enrolled(copy)
    wish = read_request(next(copy.glob("*.csr")).read_bytes())
    authority, when = change.get("authority"), change.get("when", now())
    assert isinstance(authority, Authority)
    assert isinstance(when, datetime.datetime)
    here.certificate.write_bytes(authority.issue(wish, when, 10))
    return here.tls()


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("sent", [GET, b"\0" * 300, b"\x16\x03\x01garbage", b"SSH-2.0-x\r\n"])
def test_plain_http_and_garbage_get_nothing(live: Live, sent: bytes) -> None:
    answer = ask(live.port, None, sent)
    assert b"HTTP" not in answer
    assert b"lower" not in answer.lower()
    assert live.log.wait("connection_refused")


def test_without_a_client_certificate_there_is_no_answer(live: Live) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.load_verify_locations(Enrolled(live.sites["honest"]).ca)
    assert ask(live.port, tls, GET) == b""
    assert live.log.wait("connection_refused", why="tls: peer did not return a certificate")


def test_tls_below_one_point_three_is_refused(live: Live) -> None:
    tls = context(live.sites["other"])
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    assert ask(live.port, tls, post("/v1/fleet/activate-node")) == b""
    assert live.log.wait("connection_refused", why="tls: unsupported protocol")


def test_another_authoritys_certificate_is_refused(live: Live, tmp_path: Path) -> None:
    tls = strange(live.sites["other"], tmp_path, authority=Authority.create("other", now()))
    assert ask(live.port, tls, post("/v1/fleet/activate-node")) == b""


def test_an_expired_certificate_is_refused(live: Live, tmp_path: Path) -> None:
    home = members.Home(live.home)
    authority = Authority(home.ca.read_bytes(), home.ca_key.read_bytes())
    old = now() - datetime.timedelta(days=20)
    tls = strange(live.sites["other"], tmp_path, authority=authority, when=old)
    assert ask(live.port, tls, post("/v1/fleet/activate-node")) == b""


@pytest.mark.parametrize(
    "path", ["/", "/health", "/docs", "/openapi.json", "/v1/control/x", "/v1/runtime/x"]
)
def test_a_sites_certificate_opens_no_other_path(live: Live, path: str) -> None:
    answer = ask(live.port, context(live.sites["other"]), post(path))
    assert answer.startswith(b"HTTP/1.1 404")
    assert answer.lower().count(b"server:") == 0


def test_a_certificate_alone_is_no_node(live: Live) -> None:
    answer = ask(live.port, context(live.sites["other"]), post("/v1/fleet/pull-messages"))
    assert answer.startswith(b"HTTP/1.1 401")


def test_an_oversized_body_is_refused_before_it_is_read(live: Live) -> None:
    body = b"x" * (9 * 1024 * 1024)
    answer = ask(live.port, context(live.sites["other"]), post("/v1/fleet/push-object", body))
    assert b"200" not in answer[:20]
    assert live.log.wait("connection_refused", why="the body must be at most 8388608 bytes")


def test_half_open_connections_do_not_keep_a_site_out(live: Live) -> None:
    flood = []
    try:
        for _ in range(600):
            flood.append(socket.create_connection(("127.0.0.1", live.port), 5))
        assert live.round() == 1
    finally:
        for one in flood:
            one.close()


def test_a_revoked_site_is_told_so_at_once_and_stops(live: Live) -> None:
    with running(live.sites["leaver"], live.grid.address) as events:
        assert live.log.wait("connected", site="leaver")
        members.revoke(live.home, "leaver", now())
        assert events.wait("refused", why="revoked", seconds=10)
    assert "leaver" not in live.grid.names().values()
    answer = ask(live.port, context(live.sites["leaver"]), post("/v1/fleet/activate-node"))
    assert answer.startswith(b"HTTP/1.1 410")
