"""A disk that fills up under a run, with real processes: what was there stands, and it goes on."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from privacy.ledger.ledger import verify
from server.rounds import checkpoint
from tests.support.patience import patience
from tests.support.processes import World, told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@contextmanager
def small_disk(where: Path, kilobytes: int) -> Iterator[None]:
    """A file system of so many kilobytes at `where`, or a skip that says why there can be none."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a small file system")
    where.mkdir(parents=True, mode=0o700, exist_ok=True)
    words = ("mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=700", "none", str(where))
    if subprocess.run(words, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(("umount", "-l", str(where)), check=True)


def fill(disk: Path) -> Path:
    """Take all the space that is left; the file that holds it."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1024))
    return path


def test_a_coordinator_whose_disk_is_full_ends_with_one_line_and_goes_on_when_there_is_space(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "coordinator" / "runs"
    args = ("--min-sites", 3, "--set", "rounds=20", "--set", "steps=300")
    world = World(tmp_path)
    with small_disk(disk, 2000), told(world):
        clients = [world.client(number) for number in range(3)]
        server = world.server(*args)
        world.until(lambda: len(world.history()) >= 2)
        filler = fill(disk)
        assert server.wait(patience(120)) == 1
        kept = world.history()
        found = checkpoint.numbers(disk / "one" / "checkpoints")
        for number in found:  # complete, each of them
            checkpoint.read(checkpoint.path_of(disk / "one" / "checkpoints", number))
        assert len(found) in (len(kept), len(kept) + 1)
        said = world.log("server")
        assert "Traceback" not in said
        last = said.rstrip().splitlines()[-1]
        assert last.startswith("tacit-server: ")
        assert "No space left on device" in last
        assert str(disk) in last
        assert all(client.poll() is None for client in clients)
        filler.unlink()
        assert world.server(*args, "--resume").wait(patience(240)) == 0
        history = world.history()
        assert [line["round"] for line in history] == list(range(1, 21))
        assert history[: len(kept)] == kept
        for number in range(3):
            assert world.paid(number) == list(range(1, 21)), "nothing was paid for twice"


def test_a_site_whose_disk_is_full_declines_with_a_code_and_takes_part_again(
    tmp_path: Path,
) -> None:
    disk, ledger = tmp_path / "north", tmp_path / "north" / "ledgers" / "builtin-0-3.jsonl"
    args = ("--min-sites", 2, "--set", "rounds=300", "--set", "sigma=60", "--set", "steps=30")
    with small_disk(disk, 2000):
        world = World(tmp_path)
        with told(world):
            north, *_ = [world.client(number) for number in range(3)]
            world.server(*args)
            world.until(lambda: world.statuses("north").count("trained") >= 2)
            filler = fill(disk)
            world.until(lambda: world.statuses("north").count("ledger-not-written") >= 3)
            before = ledger.read_bytes()
            rounds = len(world.history())
            world.until(lambda: len(world.history()) >= rounds + 2)
            assert ledger.read_bytes() == before, "the old one stands"
            whole = verify(ledger)
            assert len(whole.entries) == len(world.paid(0))
            said = world.said("north", "ledger_error")
            assert "could not be written" in said[-1]["message"]
            assert world.said("north", "declined", reason="ledger-not-written")
            assert "answer=ledger-not-written" in world.log("server")
            assert north.poll() is None
            filler.unlink()
            rounds = len(world.history())
            world.until(lambda: "trained" in world.statuses("north")[rounds:])
            answered = [n for n, s in enumerate(world.statuses("north"), 1) if s == "trained"]
            assert set(answered) <= set(world.paid(0))
            assert "Traceback" not in world.log("north") + world.log("server")
