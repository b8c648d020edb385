"""A run in the browser, live: reads run folders and nothing else, on loopback, from here alone.

`/state` is one JSON object with everything the page shows, which asks for it again and again;
nothing can be changed through it, and no script, style or picture comes from elsewhere.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import parse_qs

import typer

from privacy.http.exchange import App, HttpLimits, Receive, Scope, Send, respond
from privacy.http.http_listener import HttpListener, ListenError, listen
from privacy.http.request_head import is_local
from server.dashboard.run_status import state

LOOPBACK: Final = "127.0.0.1"
_FILES: Final = {
    "/": ("dashboard.html", "text/html"),
    "/dashboard.css": ("dashboard.css", "text/css"),
    "/dashboard.js": ("dashboard.js", "text/javascript"),
}
_HEADERS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
        b"img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_GRACE_SECONDS: Final = 1.0


class DashboardError(ValueError):
    """A folder that holds no run, or a port that cannot be served: one line."""


@dataclass(frozen=True, slots=True)
class Served:
    """A dashboard that runs in a thread until it is closed."""

    url: str
    stop: Callable[[], None]
    thread: threading.Thread

    def close(self) -> None:
        """End it and wait for its thread."""
        self.stop()
        self.thread.join(timeout=5)


def register(app: typer.Typer) -> None:
    """Add the command to the coordinator's."""
    app.command("dashboard")(dashboard)


def dashboard(
    directory: Annotated[
        Path, typer.Option("--dir", help="A coordinator's folder, a folder of runs, or one run.")
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="A port of this machine; 0: a free one.")
    ] = 0,
) -> None:
    """Show a run while it goes on, in the browser of this machine."""
    if not directory.is_dir():
        raise DashboardError(f"--dir {directory}: expected a folder with runs, found none")
    served = serve(directory, port=port)
    typer.echo(f"the dashboard of {directory} is at {served.url} (Ctrl-C ends it)")
    try:
        while served.thread.is_alive():
            served.thread.join(timeout=0.5)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    finally:
        served.close()


def serve(folder: Path, *, port: int = 0) -> Served:
    """Serve the runs in `folder`, now or once it is there, from a thread; port 0: a free one."""
    try:
        listener = listen(LOOPBACK, port, option=f"--port {port}")
    except ListenError as error:
        raise DashboardError(str(error)) from None
    server = HttpListener(listener, make_app(folder), HttpLimits())
    url = f"http://{LOOPBACK}:{server.address[1]}/"
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def run() -> None:
        with contextlib.closing(loop):
            loop.run_until_complete(server.serve(stop, grace=_GRACE_SECONDS))

    def end() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(stop.set)

    thread = threading.Thread(target=run, name="dashboard", daemon=True)
    thread.start()
    return Served(url, end, thread)


def make_app(folder: Path) -> App:
    """The page at `/`, the runs at `/state`; every other path and method is refused."""
    pages = files("server").joinpath("dashboard", "pages")
    contents = {
        path: (pages.joinpath(name).read_bytes(), f"{kind}; charset=utf-8".encode())
        for path, (name, kind) in _FILES.items()
    }

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        status, body, kind = 200, b"", b"text/plain; charset=utf-8"
        path, headers = scope["path"], _HEADERS
        if not is_local(scope):
            # A page elsewhere may point its own name at loopback (DNS rebinding).
            status, body = 421, b"the Host field must be this machine's own name"
        elif path not in (*contents, "/state"):
            status, body = 404, b"no such path"
        elif scope["method"] != "GET":
            status, body, headers = 405, b"must be GET", (*_HEADERS, (b"allow", b"GET, HEAD"))
        elif path == "/state":
            run = parse_qs(scope["query_string"].decode("latin-1")).get("run", [""])[0]
            now = await asyncio.to_thread(state, folder, run)
            body, kind = json.dumps(now, allow_nan=False).encode(), b"application/json"
        else:
            body, kind = contents[path]
        await respond(send, status, body, kind, headers)

    return app
