"""Mutations tried in forked processes that have the large libraries loaded already.

Each worker has a copy of the tree. A mutation's tests run in the order given, up to the first
failure. That test alone runs once more without the mutation: a test that fails there too judges
nothing: the mutation is tried again without it.
"""

import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from privacy.runtime import prepare
from tests.mutants.mutant import ROOT, Mutant

PRODUCT = ("privacy", "client", "server", "simulations", "tests")
LIBRARIES = (
    "pytest", "hypothesis", "numpy", "scipy.stats", "torch", "opacus", "flwr.app", "safetensors",
    "pydantic", "cryptography.x509", "pyarrow", "sklearn.datasets", "typer", "dp_accounting",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a test noticed, which one or why none, and after how many seconds."""

    killed: bool
    reason: str
    seconds: float


@dataclass(slots=True)
class _Attempt:
    tree: Path
    tests: tuple[str, ...]
    report: Path
    mutant: Mutant | None = None
    before: str = ""
    began: float = field(default_factory=time.monotonic)

    def change(self) -> None:
        """Write the mutation into the tree."""
        if self.mutant is not None:
            path = self.tree / self.mutant.file
            self.before = path.read_text(encoding="utf-8")
            path.write_text(self.mutant.applied_to(self.before), encoding="utf-8")

    def restore(self) -> None:
        """Write what was there before."""
        if self.mutant is not None:
            (self.tree / self.mutant.file).write_text(self.before, encoding="utf-8")

    @property
    def log(self) -> Path:
        """What the tests print."""
        return self.report.with_suffix(".log")

    def said(self) -> dict[str, Any]:
        """What the tests' process reported: the test that failed, and how pytest ended."""
        if not self.report.exists():
            return {}
        found: dict[str, Any] = json.loads(self.report.read_text(encoding="utf-8"))
        return found


class Workers:
    """As many mutations at a time as there are trees; none is begun after `end` (monotonic)."""

    def __init__(self, trees: Sequence[Path], seconds: float, end: float) -> None:
        self._idle, self._seconds, self._end = list(trees), seconds, end
        self._running: dict[int, _Attempt] = {}
        self._sound, self._red = set[str](), set[str]()
        prepare()
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        for name in LIBRARIES:
            import_module(name)

    def verdicts(self, mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, Verdict]]:
        """Each mutation's verdict, as they come; a line is printed for each."""
        waiting, count = list(mutants), 0
        try:
            while self._running or (waiting and time.monotonic() < self._end):
                while waiting and self._idle and time.monotonic() < self._end:
                    mutant = waiting.pop(0)
                    self._start(self._idle.pop(), mutant.tests, mutant)
                attempt, status = self._ended(-1)
                mutant, verdict = attempt.mutant, self._judged(attempt, status)
                assert mutant is not None
                if verdict is None:
                    waiting.insert(0, mutant)
                    continue
                count += 1
                word = "killed" if verdict.killed else "SURVIVED"
                print(
                    f"{count}/{len(mutants)} {word} {mutant.name} "
                    f"({verdict.seconds:.0f} s) {verdict.reason}",
                    flush=True,
                )
                yield mutant, verdict
        finally:
            for pid in list(self._running):
                _end_group(pid)
                self._ended(pid)

    def _judged(self, attempt: _Attempt, status: int) -> Verdict | None:
        """None where a test failed that fails without the mutation too: it is left out now."""
        seconds, said = time.monotonic() - attempt.began, attempt.said()
        failed, code = said.get("failed"), said.get("code")
        if code == 5:
            raise RuntimeError(f"no test was run of {' '.join(attempt.tests)}")
        if failed is not None:
            test = str(failed).split("[")[0]
            if self._passes(attempt.tree, test):
                return Verdict(True, f"by {failed}", seconds)
            if test in self._red:
                return Verdict(False, f"{test} fails without the mutation too", seconds)
            print(f"left out, since it fails without any mutation: {test}", flush=True)
            self._red.add(test)
            return None
        if code == 0:
            return Verdict(False, "every test passed", seconds)
        ended = "took too long" if seconds >= self._seconds else f"ended with status {status}"
        lines = attempt.log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return Verdict(False, f"undecided: the tests {ended}: {last}", seconds)

    def _passes(self, tree: Path, test: str) -> bool:
        """Whether the test passes without a mutation."""
        if test not in self._sound:
            self._idle.remove(tree)
            attempt, _ = self._ended(self._start(tree, (test,)))
            if attempt.said().get("code") == 0:
                self._sound.add(test)
        return test in self._sound

    def _start(self, tree: Path, tests: tuple[str, ...], mutant: Mutant | None = None) -> int:
        report = tree.parent / f"{tree.name}.json"
        report.unlink(missing_ok=True)
        left_out = tuple(f"--deselect={test}" for test in sorted(self._red))
        attempt = _Attempt(tree, (*tests, *left_out), report, mutant)
        attempt.change()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _child(attempt, self._seconds)
        self._running[pid] = attempt
        return pid

    def _ended(self, child: int) -> tuple[_Attempt, int]:
        """Wait for one process, or for any with -1; its tree is as before, and idle."""
        pid, status = os.waitpid(child, 0)
        _end_group(pid)
        attempt = self._running.pop(pid)
        attempt.restore()
        self._idle.append(attempt.tree)
        return attempt, os.waitstatus_to_exitcode(status)


class _Recorder:
    """A pytest plugin: the first test that fails, or the first file that cannot be imported."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self.failed: str | None = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._note(report)

    def pytest_collectreport(self, report: Any) -> None:
        self._note(report)

    def _note(self, report: Any) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid
            self.write(1)

    def write(self, code: int) -> None:
        self._report.write_text(json.dumps({"failed": self.failed, "code": code}), encoding="utf-8")


def _child(attempt: _Attempt, seconds: float) -> NoReturn:
    """Run the tests in this forked process and end it."""
    code = 1
    try:
        os.setsid()
        with attempt.log.open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        faulthandler.dump_traceback_later(seconds, exit=True)
        code = _run(attempt)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run(attempt: _Attempt) -> int:
    import pytest

    tree = str(attempt.tree)
    sys.dont_write_bytecode = True
    sys.path[:] = [tree, *(path for path in sys.path if path not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.split(".")[0] in PRODUCT]:
        del sys.modules[name]
    os.environ.update(PYTHONPATH=tree, PYTHONDONTWRITEBYTECODE="1")
    os.chdir(tree)
    recorder = _Recorder(attempt.report)
    loaded = "ignore::pytest.PytestAssertRewriteWarning"  # the plugins are loaded already
    options = ["-q", "-x", "-p", "no:cacheprovider", "-W", loaded]
    code = int(pytest.main([*options, *attempt.tests], plugins=[recorder]))
    recorder.write(code)
    return code


def _end_group(pid: int) -> None:
    """End what the tests of a process that has ended may have left behind."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def copied(tree: Path) -> Path:
    """A copy of the files under version control, and of those that are to be added."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    return tree
