"""HTTP/1.1 as RFC 9110 and RFC 9112 say, at the edges where servers differ, and its limits."""

import socket
import time
from collections.abc import Iterator

import pytest

from privacy.http.exchange import HttpLimits
from tests.support.http import LIMITS, echo, everything, exchange, http_server


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http_server() as found:
        yield found


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


H = b"Host: localhost\r\n"
CHECKS: dict[str, tuple[tuple[bytes, ...], set[int]]] = {
    "valid GET": ((b"GET / HTTP/1.1\r\n" + H + b"\r\n",), {200}),
    "valid POST": ((b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 2\r\n\r\nhi",), {200}),
    "chunked": (
        (b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",),
        {200},
    ),
    "chunked with extension and trailer": (
        (
            b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n"
            b"2;x=y\r\nhi\r\n0\r\nA: b\r\n\r\n",
        ),
        {200},
    ),
    "fragmented method": ((b"GE", b"T / HTTP/1.1\r\n" + H + b"\r\n"), {200}),
    "fragmented target": ((b"GET ", b"/ HTTP/1.1\r\n" + H + b"\r\n"), {200}),
    "fragmented version": ((b"GET / HT", b"TP/1.1\r\n" + H + b"\r\n"), {200}),
    "fragmented line end": ((b"GET / HTTP/1.1\r", b"\n" + H + b"\r\n"), {200}),
    "fragmented field name": ((b"GET / HTTP/1.1\r\nHo", b"st: localhost\r\n\r\n"), {200}),
    "fragmented field value": ((b"GET / HTTP/1.1\r\nHost: local", b"host\r\n\r\n"), {200}),
    "fragmented end": ((b"GET / HTTP/1.1\r\n" + H + b"\r", b"\n"), {200}),
    "empty field value": ((b"GET / HTTP/1.1\r\n" + H + b"X: \r\n\r\n",), {200}),
    "absolute form of this host": (
        (b"GET http://localhost/ HTTP/1.1\r\n" + H + b"\r\n",),
        {200},
    ),
    "leading empty line": ((b"\r\nGET / HTTP/1.1\r\n" + H + b"\r\n",), {200}),
    "no Host": ((b"GET / HTTP/1.1\r\n\r\n",), {400}),
    "two Hosts": ((b"GET / HTTP/1.1\r\nHost: evil\r\n" + H + b"\r\n",), {400}),
    "two equal Hosts": ((b"GET / HTTP/1.1\r\n" + H + H + b"\r\n",), {400}),
    "absolute form of another host": ((b"GET http://evil/ HTTP/1.1\r\n" + H + b"\r\n",), {400}),
    "authority form": ((b"CONNECT evil:443 HTTP/1.1\r\n" + H + b"\r\n",), {400}),
    "no version": ((b"GET /\r\n" + H + b"\r\n",), {400}),
    "another version": ((b"GET / HTTP/9.9\r\n" + H + b"\r\n",), {400, 505}),
    "HTTP/2 preface": ((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",), {400, 505}),
    "a prefix": ((b"Ext: a\r\nGET / HTTP/1.1\r\n" + H + b"\r\n",), {400}),
    "a space before the colon": ((b"GET / HTTP/1.1\r\n" + H + b"X : y\r\n\r\n",), {400}),
    "a control in a name": ((b"GET / HTTP/1.1\r\n" + H + b"X\x01: y\r\n\r\n",), {400}),
    "a control in a value": ((b"GET / HTTP/1.1\r\n" + H + b"X: \x00\r\n\r\n",), {400}),
    "a bare carriage return": ((b"GET / HTTP/1.1\r\n" + H + b"\rX: y\r\n\r\n",), {400}),
    "a folded field": ((b"GET / HTTP/1.1\r\n" + H + b" folded: x\r\n\r\n",), {200, 400}),
    "negative length": ((b"POST / HTTP/1.1\r\n" + H + b"Content-Length: -5\r\n\r\n",), {400}),
    "signed length": ((b"POST / HTTP/1.1\r\n" + H + b"Content-Length: +2\r\n\r\nhi",), {400}),
    "length that is no number": (
        (b"POST / HTTP/1.1\r\n" + H + b"Content-Length: abc\r\n\r\n",),
        {400},
    ),
    "overflowing length": (
        (b"POST / HTTP/1.1\r\n" + H + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",),
        {400, 413},
    ),
    "unequal lengths": (
        (b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi",),
        {400},
    ),
    "length and chunked": (
        (
            b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nhi\r\n0\r\n\r\n",
        ),
        {400},
    ),
    "another transfer coding": (
        (b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: gzip\r\n\r\n",),
        {400, 501},
    ),
    "a bad chunk": (
        (b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",),
        {400},
    ),
    "a long line": ((b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + H + b"\r\n",), {414}),
    "a long head": ((b"GET / HTTP/1.1\r\n" + H + b"X: " + b"a" * 70_000,), {431}),
    "many fields": ((b"GET / HTTP/1.1\r\n" + H + b"X: y\r\n" * 150 + b"\r\n",), {431}),
    "a body above the limit": (
        (b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 100001\r\n\r\n",),
        {413},
    ),
    "a million chunks": (
        (
            b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n",
            b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n",
        ),
        {413},
    ),
}


@pytest.mark.parametrize("check", CHECKS)
def test_each_request_has_the_status_that_the_rfc_gives_it(port: int, check: str) -> None:
    parts, expected = CHECKS[check]
    answer = exchange(port, *parts)
    assert status(answer) in expected, answer[:200]
    assert (answer.count(b"HTTP/1.1 ") == 1) or check == "a folded field"
    assert b"content-length:" in answer.lower()


def test_a_HEAD_is_the_head_of_a_GET(port: int) -> None:
    answer = exchange(port, b"HEAD / HTTP/1.1\r\n" + H + b"Connection: close\r\n\r\n")
    assert status(answer) == 200 and b"content-length: 2\r\n" in answer.lower()
    assert answer.endswith(b"\r\n\r\n")


def test_a_half_closed_client_is_answered(port: int) -> None:
    answer = exchange(port, b"GET / HTTP/1.1\r\n" + H + b"\r\n", close=True)
    assert status(answer) == 200 and answer.endswith(b"/:")


def test_http_1_0_closes_unless_the_client_asks_to_go_on(port: int) -> None:
    old = b"GET / HTTP/1.0\r\n" + H
    answer = exchange(port, old + b"\r\n")
    assert answer.count(b"HTTP/1.1 200") == 1 and b"connection: close" in answer.lower()
    kept = old + b"Connection: keep-alive\r\n\r\n"
    answer = exchange(port, kept, kept + kept, old + b"\r\n")
    assert answer.count(b"HTTP/1.1 200") == 4
    assert answer.lower().count(b"connection: keep-alive") == 3
    head = exchange(port, kept.replace(b"GET", b"HEAD"), old + b"\r\n")
    assert head.count(b"HTTP/1.1 200") == 2


def test_pipelined_requests_are_answered_in_order_until_a_bad_one(port: int) -> None:
    good = b"GET /%d HTTP/1.1\r\n" + H + b"\r\n"
    answer = exchange(port, b"".join(good % i for i in range(5)) + b"BAD\r\n\r\n" + good % 9)
    assert [answer.index(b"/%d:" % i) for i in range(5)] == sorted(
        answer.index(b"/%d:" % i) for i in range(5)
    )
    assert answer.count(b" 200 ") == 5 and answer.count(b" 400 ") == 1 and b"/9:" not in answer


def test_a_client_that_waits_for_100_continue_gets_it_or_the_refusal_at_once(port: int) -> None:
    head = b"POST / HTTP/1.1\r\n" + H + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(head % 2)
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"hi")
        assert b"/:hi" in everything(sock)
    assert status(exchange(port, head % 1_000_000)) == 413


def test_an_answer_that_needs_no_body_comes_before_it(port: int) -> None:
    head = b"POST /early HTTP/1.1\r\n" + H + b"Content-Length: 99999\r\n\r\n"
    answer = exchange(port, head)
    assert status(answer) == 401 and b"connection: close" in answer.lower()


def test_an_application_that_fails_is_500_and_tells_nothing(port: int) -> None:
    answer = exchange(port, b"GET /error HTTP/1.1\r\n" + H + b"\r\n")
    assert status(answer) == 500 and b"SECRET" not in answer


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", 0),
        (b"GET / HT", 408),
        (b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 5\r\n\r\nab", 408),
    ],
)
def test_who_is_silent_is_not_waited_for(port: int, sent: bytes, code: int) -> None:
    began = time.monotonic()
    assert status(exchange(port, sent, seconds=20)) == code
    assert time.monotonic() - began < 15


def test_a_head_that_trickles_has_one_deadline(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        try:
            for _ in range(200):
                sock.sendall(b"a")
                time.sleep(0.02)  # the trickle itself is what is tested
        except OSError:
            return
        assert b" 408 " in everything(sock)


def test_a_client_that_reads_slowly_holds_no_more_than_its_answer() -> None:
    from tests.support.http import respond

    async def large(scope: object, receive: object, send: object) -> None:
        await respond(send, 200, b"x" * 30_000_000)  # type: ignore[arg-type]

    quick = HttpLimits(body_seconds=0.5, body_rate=100_000_000)
    with http_server(large, quick) as port, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", port))
        sock.settimeout(20)
        sock.sendall(b"GET / HTTP/1.1\r\n" + H + b"\r\n")
        time.sleep(1.5)  # longer than the server waits for a reader
        assert len(everything(sock)) < 30_000_000


def test_above_the_limit_the_oldest_idle_connection_goes_first() -> None:
    limits = HttpLimits(connections=20, head_seconds=60, idle_seconds=60)
    with http_server(echo, limits) as port:
        idle = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(60)]
        try:
            answer = exchange(port, b"GET / HTTP/1.1\r\n" + H + b"Connection: close\r\n\r\n")
            assert status(answer) == 200
            assert everything(idle[0]) == b""
            idle[-1].sendall(b"GET / HTTP/1.1\r\n" + H + b"Connection: close\r\n\r\n")
            assert status(everything(idle[-1])) == 200
        finally:
            for sock in idle:
                sock.close()


def test_the_limits_of_the_test_are_below_the_products() -> None:
    assert LIMITS.head_seconds < HttpLimits().head_seconds
