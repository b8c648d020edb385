"""An HTTP server of the product in a thread, and raw sockets to it."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from privacy.http.exchange import App, HttpLimits, read_body, respond
from privacy.http.http_listener import HttpListener, listen

LIMITS = HttpLimits(head_seconds=1.0, idle_seconds=0.3, body_seconds=1.0)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """GET / and POST /: 200 with the body; a path /error raises."""
    if scope["path"] == "/error":
        raise ValueError("SECRET")
    if scope["path"] == "/early":
        await respond(send, 401, b"no")
        return
    body = await read_body(scope, receive, 100_000, LIMITS)
    await respond(send, 200, scope["path"].encode() + b":" + body, b"text/plain")


@contextmanager
def http_server(app: App = echo, limits: HttpLimits = LIMITS) -> Iterator[int]:
    """The port of a server that ends with the block."""
    server = HttpListener(listen("127.0.0.1", 0), app, limits)
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve(stop)))
    thread.start()
    try:
        yield server.address[1]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def exchange(port: int, *parts: bytes, close: bool = False, seconds: float = 5) -> bytes:
    """Everything that comes back for these bytes, until the server closes or falls silent."""
    with socket.create_connection(("127.0.0.1", port), seconds) as sock:
        with contextlib.suppress(OSError):
            for part in parts:
                sock.sendall(part)
            if close:
                sock.shutdown(socket.SHUT_WR)
        return everything(sock)


def everything(sock: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(OSError):
        while part := sock.recv(65536):
            got += part
    return got
