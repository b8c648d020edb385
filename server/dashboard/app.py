"""A run in the browser, live: reads run folders and nothing else, on loopback, from here alone.

`/state` is one JSON object with what the page shows and does not know yet, which asks for it again
and again; nothing can be changed through it, and no script, style or picture comes from elsewhere.
"""

import asyncio
import json
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Annotated, Final
from urllib.parse import parse_qs

import typer

from privacy.http.exchange import App, Receive, Scope, Send, respond
from privacy.http.http_listener import ListenError, listen
from privacy.http.request_head import is_local
from privacy.http.served import Served, serve_in_thread
from server.dashboard.run_status import Runs

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
    return serve_in_thread(listener, make_app(folder), name="dashboard", grace=_GRACE_SECONDS)


def make_app(folder: Path) -> App:
    """The page at `/`, the runs at `/state`; every other path and method is refused."""
    pages = files("server").joinpath("dashboard", "pages")
    contents = {
        path: (pages.joinpath(name).read_bytes(), f"{kind}; charset=utf-8".encode())
        for path, (name, kind) in _FILES.items()
    }

    runs, lock = Runs(folder), Lock()

    def state(run: str, since: str) -> bytes:
        with lock:
            return json.dumps(runs.state(run, since), allow_nan=False).encode()

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
            query = parse_qs(scope["query_string"].decode("latin-1"))
            run, since = (query.get(name, [""])[0] for name in ("run", "since"))
            body, kind = await asyncio.to_thread(state, run, since), b"application/json"
        else:
            body, kind = contents[path]
        await respond(send, status, body, kind, headers)

    return app
