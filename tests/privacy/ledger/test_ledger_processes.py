"""The ledger between processes: at once, killed at any moment, and long."""

import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.ledger.ledger import Ledger, verify
from tests.support.patience import patience

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]
EVENT = Event("record", 8.0, 0.1, 1)
SPENDER = """
import sys
from privacy.accounting.segments import Budget
from privacy.accounting.events import Event
from privacy.ledger.ledger import Exhausted, Ledger

path, name, epsilon, most, durable = sys.argv[1:]
ledger = Ledger.open(path, durable=durable == "durable")
event = Event("record", 8.0, 0.1, 1)
print("ready", flush=True)
sys.stdin.readline()
for number in range(1, int(most) + 1):
    try:
        ledger.spend(event, Budget(float(epsilon), 1e-5), run=name, round=number, plan="p")
    except Exhausted:
        break
    print(number, flush=True)
"""


def spender(
    path: Path, name: str, epsilon: float, most: int, durable: str = "durable"
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SPENDER, str(path), name, repr(epsilon), str(most), durable],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def at_once(processes: list[subprocess.Popen[bytes]]) -> list[list[bytes]]:
    """Let all go when all are ready; the rounds that each one said it had spent."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    return [
        process.communicate(timeout=patience(120))[0].split(b"\n")[:-1] for process in processes
    ]


def test_eight_processes_at_once_lose_nothing_and_never_pass_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    ledger = Ledger.create(path, population="people")
    fits = 60
    limit = spent([Event("record", 8.0, 0.1, 1, fits)], 1e-5)
    processes = [spender(path, f"run-{i}", limit, 1000) for i in range(8)]
    said = at_once(processes)
    assert [process.returncode for process in processes] == [0] * 8
    entries = verify(path).entries
    assert len(entries) == sum(len(one) for one in said) == fits
    turns = sum(one.run != other.run for one, other in pairwise(entries))
    assert len({entry.run for entry in entries}) >= 2  # they overlapped:
    assert turns >= len({entry.run for entry in entries})  # some spent, waited, and spent again
    for i, one in enumerate(said):
        rounds = [entry.round for entry in entries if entry.run == f"run-{i}"]
        assert rounds == [int(number) for number in one]
    assert ledger.spent(1e-5) <= limit
    assert ledger.entries() == entries


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
    waiting = [spender(path, "run-0", 1e6, 10**6, "kill")]
    for number in range(1, times + 1):
        if number < times:  # the next one imports while this one spends
            waiting.append(spender(path, f"run-{number}", 1e6, 10**6, "kill"))
        process = waiting.pop(0)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"go\n")
        process.stdin.flush()
        time.sleep(draw.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.stdin.close()
        process.stdin = None
        out, _ = process.communicate(timeout=patience(60))
        said += out.count(b"\n")
        assert len(Ledger.open(path).entries()) >= said
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
