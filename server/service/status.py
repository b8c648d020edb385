"""What the coordinator is doing now, for `tacit-server status`, metrics and dashboards.

A thread of the coordinator writes `status.json` every two seconds, whatever the main thread does. A
lock that ends with the process tells a coordinator that runs from one that was killed.
"""

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from privacy.files import DocumentError, FileError, read_json, write_atomic

FILE: Final = "status.json"
LOCK: Final = ".coordinator"
_SECONDS: Final = 2.0


class StatusError(ValueError):
    """A coordinator's folder that another process holds."""


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the coordinator's folder: two coordinators would play each other's runs."""
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StatusError(
                f"--dir {folder}: its coordinator runs already (queue a run: tacit-server submit)"
            ) from None
        yield


def running(folder: Path) -> bool:
    """Whether a coordinator runs on this folder."""
    try:
        with (folder / LOCK).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def read(folder: Path) -> dict[str, Any]:
    """The last status that was written, with `state` "running", "stopped" or "killed"."""
    try:
        status: dict[str, Any] = read_json(folder / FILE)
    except (OSError, DocumentError):
        status = {}
    if not isinstance(status, dict):
        status = {}
    if running(folder):
        return status | {"state": "running"}
    if not status:
        return {"state": "never started"}
    return status | {"state": "stopped" if status.get("stopped") else "killed"}


class StatusBoard:
    """The facts of a coordinator that runs; `presence()` says of each site whether it
    is connected, and the seconds since its last request."""

    def __init__(
        self,
        folder: Path,
        *,
        listen: str,
        presence: Callable[[], Mapping[str, tuple[bool, float | None]]],
        on_write: Callable[[Mapping[str, Any]], None] = lambda status: None,
    ) -> None:
        self._path, self._presence, self._on_write = folder / FILE, presence, on_write
        self._facts: dict[str, Any] = {
            "pid": os.getpid(),
            "version": version("tacit"),
            "listen": listen,
            "started": time.time(),
        }
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="status", daemon=True)

    def __enter__(self) -> "StatusBoard":
        self.write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def set(self, **facts: Any) -> None:
        """Change facts; None removes one."""
        with self._lock:
            self._facts = {k: v for k, v in (self._facts | facts).items() if v is not None}

    def stop(self, why: str, run: str | None) -> None:
        """The coordinator ends: say by what, and which run goes on next time."""
        self._over.set()
        self._thread.join(10)
        self.set(stopped={"time": time.time(), "by": why, "run": run})
        self.write()

    def snapshot(self) -> dict[str, Any]:
        """The facts as they are now."""
        now = time.time()
        present = sorted(self._presence().items())
        sites = {site: {"connected": here, "seen": ago} for site, (here, ago) in present}
        with self._lock:
            status = self._facts | {"time": now, "sites": sites}
        status["connected"] = [site for site, one in sites.items() if one["connected"]]
        return status

    def write(self) -> None:
        """Replace the file; a full disk stops nothing."""
        status = self.snapshot()
        with suppress(FileError):
            write_atomic(self._path, json.dumps(status).encode() + b"\n", durable=False)
        self._on_write(status)

    def _keep_writing(self) -> None:
        while not self._over.wait(_SECONDS):
            self.write()
