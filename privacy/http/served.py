"""An HTTP server in a thread of this process, until it is closed."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from privacy.http.exchange import App, HttpLimits
from privacy.http.http_listener import HttpListener


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs in a thread until it is closed."""

    url: str
    stop: Callable[[], None]
    thread: threading.Thread

    def close(self) -> None:
        """End it and wait for its thread."""
        self.stop()
        self.thread.join(timeout=5)


def serve_in_thread(listener: socket.socket, app: App, *, name: str, grace: float = 1.0) -> Served:
    """Answer requests on a listening socket from a thread of that name."""
    server = HttpListener(listener, app, HttpLimits())
    host, port = server.address
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        with contextlib.closing(loop):
            loop.run_until_complete(server.serve(stop, grace=grace))

    def end() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(stop.set)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return Served(f"http://{f'[{host}]' if ':' in host else host}:{port}/", end, thread)
