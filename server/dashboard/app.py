"""A run in the browser, live: reads run folders and nothing else, on loopback, from here alone.

`/state` is one JSON object with everything the page shows, which asks for it again and again;
nothing can be changed through it, and no script, style or picture comes from elsewhere.
"""

import socket
import threading
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from server.dashboard.run_status import state

LOOPBACK: Final = "127.0.0.1"
_NAMES: Final = (LOOPBACK, "localhost")
_FILES: Final = {
    "/": ("dashboard.html", "text/html"),
    "/dashboard.css": ("dashboard.css", "text/css"),
    "/dashboard.js": ("dashboard.js", "text/javascript"),
}
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class DashboardError(ValueError):
    """A folder that holds no run, or a port that cannot be served: one line."""


@dataclass(frozen=True, slots=True)
class Served:
    """A dashboard that runs in a thread until it is closed."""

    url: str
    server: uvicorn.Server
    thread: threading.Thread

    def close(self) -> None:
        """End it and wait for its thread."""
        self.server.should_exit = True
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
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except OSError as error:
        listener.close()
        raise DashboardError(
            f"--port {port}: expected a free port of this machine ({error.strerror})"
        ) from None
    config = uvicorn.Config(
        make_app(folder),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)

    def run() -> None:
        with listener:
            server.run([listener])

    thread = threading.Thread(target=run, name="dashboard", daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    return Served(f"http://{LOOPBACK}:{listener.getsockname()[1]}/", server, thread)


def make_app(folder: Path) -> FastAPI:
    """The page at `/`, the runs at `/state`; every other path and method is refused."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    pages = files("server").joinpath("dashboard", "pages")

    @app.middleware("http")
    async def local_only(request: Request, call_next: Any) -> Response:
        # A page elsewhere may point its own name at loopback (DNS rebinding): hold it to ours.
        if not is_local(request.headers.getlist("host")):
            return Response("expected this machine's own name as host", 421, _HEADERS)
        answer: Response = await call_next(request)
        answer.headers.update(_HEADERS)
        return answer

    for path, (name, kind) in _FILES.items():
        app.add_api_route(path, _page(pages.joinpath(name).read_bytes(), kind), methods=["GET"])

    @app.get("/state")
    def now(run: str = "") -> JSONResponse:
        return JSONResponse(state(folder, run))

    return app


def _page(content: bytes, kind: str) -> Any:
    def page() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8")

    return page


def is_local(hosts: list[str]) -> bool:
    """Whether a request names this machine, once, by its address or as localhost.

    >>> is_local(["localhost:8800"]), is_local(["evil.example"]), is_local([])
    (True, False, False)
    """
    if len(hosts) != 1:
        return False
    name, colon, port = hosts[0].lower().partition(":")
    return name in _NAMES and (not colon or (port.isascii() and port.isdigit()))
