"""The ledger between processes: at once, killed at any moment, and long."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.ledger.entries import Entry
from privacy.ledger.ledger import Ledger, verify
from tests.support.patience import patience, wait_for

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]
EVENT = Event("record", 8.0, 1.0, 1)
SPENDERS = """
import os, sys
import privacy.accounting.accountants  # before any fork, so that it is loaded once
from privacy.accounting.segments import Budget
from privacy.accounting.events import Event
from privacy.ledger.ledger import Exhausted, Ledger

path, epsilon, most, durable = sys.argv[1:]
event = Event("record", 8.0, 1.0, 1)

def spend(name, said):
    ledger = Ledger.open(path, durable=durable == "durable")
    os.write(ready, b".")
    os.read(gate, 1)  # its end: all go at once
    for number in range(1, int(most) + 1):
        try:
            ledger.spend(event, Budget(float(epsilon), 1e-5), run=name, round=number, plan="p")
        except Exhausted:
            break
        os.write(said, b"%d\\n" % number)

for line in sys.stdin:
    gate, go = os.pipe()
    come, ready = os.pipe()
    pids = []
    for name in line.split():
        said = os.open(f"{path}.{name}", os.O_CREAT | os.O_WRONLY, 0o600)
        pids.append(os.fork())
        if pids[-1] == 0:
            os.close(go)
            spend(name, said)
            os._exit(0)
        os.close(said)
    for pid in pids:
        os.read(come, 1)
    print(*pids, flush=True)
    sys.stdin.readline()
    for end in (go, gate, come, ready):
        os.close(end)
    print(*[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids], flush=True)
"""


class Spenders:
    """Processes that each spend from one ledger until it refuses, forked from one that is ready."""

    def __init__(self, path: Path, epsilon: float, most: int, durable: str = "durable") -> None:
        self.path = path
        self.parent = subprocess.Popen(
            [sys.executable, "-c", SPENDERS, str(path), repr(epsilon), str(most), durable],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> "Spenders":
        return self

    def __exit__(self, *error: object) -> None:
        self.parent.communicate(timeout=patience(120))

    def _write(self, line: str) -> None:
        assert self.parent.stdin is not None
        self.parent.stdin.write(f"{line}\n")
        self.parent.stdin.flush()

    def _numbers(self) -> list[int]:
        assert self.parent.stdout is not None
        return [int(word) for word in self.parent.stdout.readline().split()]

    def ready(self, *names: str) -> list[int]:
        """The process ids of one spender a name; each waits."""
        self._write(" ".join(names))
        return self._numbers()

    def go(self, kill: Callable[[], object] = lambda: None) -> list[int]:
        """Let all go at once; how each of them ended."""
        self._write("go")
        kill()
        return self._numbers()

    def said(self, name: str) -> list[int]:
        """The rounds that a spender said it had spent."""
        return [int(line) for line in Path(f"{self.path}.{name}").read_text().split()]


def test_eight_processes_at_once_lose_nothing_and_never_pass_the_limit(tmp_path: Path) -> None:
    """On a busy machine one may be done before another begins: they begin until they overlap."""
    for number in range(5):
        entries = eight_at_once(tmp_path / f"people-{number}.jsonl")
        turns = sum(one.run != other.run for one, other in pairwise(entries))
        runs = {entry.run for entry in entries}
        if len(runs) >= 2 and turns >= len(runs):  # some spent, waited, and spent again
            return
    pytest.fail("the processes never overlapped")


def eight_at_once(path: Path) -> tuple[Entry, ...]:
    ledger = Ledger.create(path, population="people")
    fits = 60
    limit = spent([Event("record", 8.0, 1.0, 1, fits)], 1e-5)
    names = [f"run-{i}" for i in range(8)]
    with Spenders(path, limit, 1000) as spenders:
        assert len(set(spenders.ready(*names))) == 8
        assert spenders.go() == [0] * 8
        said = [spenders.said(name) for name in names]
    entries = verify(path).entries
    assert len(entries) == sum(len(one) for one in said) == fits
    for i, one in enumerate(said):
        rounds = [entry.round for entry in entries if entry.run == f"run-{i}"]
        assert rounds == one
    assert ledger.spent(1e-5) <= limit
    assert ledger.entries() == entries
    return tuple(entries)


def test_killed_at_random_moments_the_ledger_is_never_below_what_was_said(tmp_path: Path) -> None:
    kill_and_count(tmp_path, 6)


@pytest.mark.slow
def test_killed_two_hundred_times_the_ledger_is_never_below_what_was_said(tmp_path: Path) -> None:
    kill_and_count(tmp_path, 200)


def kill_and_count(tmp_path: Path, times: int) -> None:
    path = tmp_path / "people.jsonl"
    Ledger.create(path, population="people")
    said = 0
    draw = random.Random(7)
    with Spenders(path, 1e6, 10**6, "kill") as spenders:
        for number in range(times):
            (pid,) = spenders.ready(name := f"run-{number}")

            def kill(pid: int = pid, name: str = name, late: int = number % 2) -> None:
                if late:  # while it spends; else even before it may have begun
                    wait_for(lambda: spenders.said(name))
                time.sleep(draw.random() * 0.05)
                os.kill(pid, signal.SIGKILL)

            assert spenders.go(kill) == [-signal.SIGKILL]
            said += len(spenders.said(name))
            assert len(Ledger.open(path).entries()) >= said
    assert said > 0
    ledger = Ledger.open(path)
    ledger.spend(EVENT, Budget(1e6, 1e-5), run="after", round=1, plan="p")
    assert len(verify(path).entries) >= said + 1


def test_ten_thousand_entries_load_and_account_in_two_seconds(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    ledger = Ledger.create(path, population="people", durable=False)
    for number in range(100):
        event = Event("record", 4.0 + number % 3, 0.01, 1)
        ledger.spend_all([event] * 100, None, run="run", round=number, plan="p")
    start = time.process_time()
    again = Ledger.open(path, durable=False)
    epsilon = again.spent(1e-5)
    seconds = time.process_time() - start
    assert len(again.entries()) == 10_000
    assert 0 < epsilon < 2
    assert seconds < patience(2)


def test_a_spend_costs_the_same_however_long_the_ledger_is(tmp_path: Path) -> None:
    def seconds(entries: int) -> float:
        ledger = Ledger.create(tmp_path / f"{entries}.jsonl", population="people", durable=False)
        ledger.spend_all([EVENT] * entries, None, run="run", round=0, plan="p")
        best = float("inf")
        for number in range(5):
            start = time.process_time()
            for turn in range(20):
                ledger.spend(EVENT, None, run="run", round=20 * number + turn, plan="p")
            best = min(best, time.process_time() - start)
        return best

    assert seconds(10_000) < 5 * seconds(100)
