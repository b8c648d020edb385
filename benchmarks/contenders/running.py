"""A contender from outside: its processes, their memory and time, and whose turn it is."""

import json
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

MARK = "TACIT_CONTENDER"
_TICKS = os.sysconf("SC_CLK_TCK")
_ROOT = Path(__file__).resolve().parent.parent.parent


class Missing(Exception):
    """A peer that cannot be had, or does not run here: it is skipped, with the reason."""


class Contender:
    """One run of a script of this folder, found by a mark in its processes' environment."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name, self._command = name, list(command)
        self._mark = secrets.token_hex(8)
        self._process: subprocess.Popen[str] | None = None
        self._log = _ROOT / "benchmarks" / "results" / f"{name.replace(' ', '-')}.log"
        self.began = self.first = self.megabytes = self.accuracy = 0.0
        self.seconds: list[float] = []

    def start(self) -> None:
        """Start it, and wait for the end of its first round."""
        self._log.parent.mkdir(exist_ok=True)
        environment = os.environ | {MARK: self._mark, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = str(_ROOT)
        began = time.monotonic()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        with self._watched():
            said = self._heard()
        self.began, self.first = said["began"] - began, said["at"] - began

    def turn(self) -> None:
        """One round; the first of them is watched for memory, the others are left alone."""
        if self._process is None or self._process.stdin is None:
            raise Missing("it is not running")
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        if self.seconds:
            self.seconds.append(self._heard()["took"])
            return
        with self._watched():
            self.seconds.append(self._heard()["took"])

    def cpu(self) -> float:
        """Seconds of processor time of all its processes so far."""
        spent = 0
        for process in self._own():
            try:
                fields = (process / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            spent += int(fields[11]) + int(fields[12])
        return spent / _TICKS

    def end(self) -> None:
        """End every process of it."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        for process in self._own():
            try:
                os.kill(int(process.name), 9)
            except ProcessLookupError:
                continue
        self._process.wait(10)

    def _heard(self) -> dict[str, float]:
        out = self._process.stdout if self._process is not None else None
        line = out.readline() if out is not None else ""
        if not line:
            raise SystemExit(f"{self.name}: has ended; see {self._log}")
        said: dict[str, float] = json.loads(line)
        self.accuracy = said["acc"] or 0.0
        return said

    def _watched(self) -> "_Watch":
        return _Watch(self)

    def _own(self) -> list[Path]:
        """Its processes: those whose environment holds the mark."""
        wanted, found = f"{MARK}={self._mark}".encode(), []
        for process in Path("/proc").iterdir():
            if process.name.isdecimal():
                try:
                    if wanted in (process / "environ").read_bytes():
                        found.append(process)
                except OSError:
                    continue
        return found

    def measure(self) -> None:
        """Note how much all its processes hold, shared pages counted once (PSS)."""
        total = 0
        for process in self._own():
            try:
                lines = (process / "smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += next((int(x.split()[1]) for x in lines if x.startswith("Pss:")), 0)
        self.megabytes = max(self.megabytes, total / 1024)


class _Watch:
    """Measures a contender's memory ten times a second while the block runs."""

    def __init__(self, contender: Contender) -> None:
        self._contender, self._done = contender, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.1):
            self._contender.measure()
