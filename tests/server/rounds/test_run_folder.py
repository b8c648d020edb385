"""What a kill or a full disk leaves between two of the coordinator's files is made whole."""

import os
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from privacy.files import FileError
from privacy.identity.keys import new_signing_key
from privacy.ledger.heads import Head
from privacy.ledger.ledger import Ledger
from server.registry.head_files import read_lines
from server.registry.heads import HeadBook
from server.registry.signing import signer
from server.rounds import checkpoint
from server.rounds.job import Job, Model
from server.rounds.loop import federate
from server.rounds.messages import Answer
from server.rounds.run_folder import FolderError, RunFolder, resumed_plan
from simulations.engines.pool import Serial
from simulations.grid import LocalGrid
from simulations.run import simulate
from tests.support.run_folders import make_plan

RUN = "0123456789abcdef"


class Desk:
    """A site's ledger, and the coordinator's book of its heads."""

    def __init__(self, folder: Path) -> None:
        self.main, self.copy = folder / "heads", folder / "run" / "heads"
        self.ledger = Ledger.create(folder / "site.jsonl", population="people", durable=False)
        self.plan = make_plan()
        self.round = 0

    def book(self) -> HeadBook:
        return HeadBook(self.main, RUN, self.copy, lambda payload: payload[:8])

    def pay(self) -> None:
        """The site pays for one more round."""
        self.round += 1
        events = self.plan.events_of_round("site")
        self.ledger.spend_all(events, None, run=RUN, round=self.round, plan=self.plan.digest)

    def accept(self, book: HeadBook) -> None:
        """The coordinator hears of it."""
        last = book.last("site")
        proof = self.ledger.proof(Head(last["n"], last["digest"])).to_dict()
        events = self.ledger.events(RUN)
        book.accept("site", self.round, Answer("site", "trained", None, events, proof=proof))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_heads_go_to_disk_together_and_before_anybody_is_told_of_them(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    book, both = desk.book(), ["site.jsonl", "site.jsonl"]
    book.last("site")
    for flush in (book.flush, lambda: book.last("site")):
        for _ in range(3):
            desk.pay()
            proof = desk.ledger.proof(Head(book._last["site"]["n"], book._last["site"]["digest"]))
            answer = Answer("site", "trained", None, desk.ledger.events(RUN), proof=proof.to_dict())
            monkeypatch.setattr(os, "fsync", sync)
            book.accept("site", desk.round, answer)
            monkeypatch.setattr(os, "fsync", real)
        assert not synced
        monkeypatch.setattr(os, "fsync", sync)
        flush()
        flush()
        monkeypatch.setattr(os, "fsync", real)
        assert synced == both
        synced.clear()
    assert [line["n"] for line in read_lines(desk.main / "site.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert (desk.copy / "site.jsonl").read_bytes() == (desk.main / "site.jsonl").read_bytes()


def test_what_a_crash_left_of_a_line_is_dropped_by_the_next_one(desk: Desk) -> None:
    book = desk.book()
    for _ in range(2):
        desk.pay()
        desk.accept(book)
    for path in (desk.main / "site.jsonl", desk.copy / "site.jsonl"):
        path.write_bytes(path.read_bytes() + b'{"v": 1, "si')
    desk.pay()
    desk.accept(desk.book())
    lines = read_lines(desk.main / "site.jsonl")
    assert [line["n"] for line in lines] == [1, 2, 3]
    assert read_lines(desk.copy / "site.jsonl") == lines


def test_the_runs_copy_of_the_heads_follows_the_book(desk: Desk) -> None:
    book = desk.book()
    for _ in range(3):
        desk.pay()
        desk.accept(book)
    whole = (desk.copy / "site.jsonl").read_bytes()
    assert whole == (desk.main / "site.jsonl").read_bytes()
    for left in (whole[: whole[:-1].rfind(b"\n") + 1], whole[:-7], b""):
        (desk.copy / "site.jsonl").write_bytes(left)
        desk.book().last("site")
        assert (desk.copy / "site.jsonl").read_bytes() == whole


def test_a_head_that_does_not_fit_on_the_disk_is_not_counter_signed(desk: Desk) -> None:
    book = desk.book()
    desk.pay()
    desk.accept(book)
    desk.pay()
    path = desk.main / "site.jsonl"
    before, last = path.read_bytes(), book.last("site")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for room in (0, 100):
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, hard))
            with pytest.raises(
                FileError, match=r"site\.jsonl: cannot be written \(.*(space|large)"
            ):
                desk.accept(book)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert book.last("site") == last
    desk.accept(book)
    assert [line["n"] for line in read_lines(path)] == [1, 2]


def test_a_resumed_run_signs_what_a_kill_left_unsigned_and_clears_what_it_left_behind(
    tmp_path: Path,
) -> None:
    plan = make_plan(rounds=2, sites=2)
    simulate(plan, tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run", plan)
    last = checkpoint.latest(folder.checkpoints)
    assert last is not None
    signature = last.with_name(f"{last.name}.sig")
    signature.unlink(missing_ok=True)
    (folder.checkpoints / ".000003.safetensors.1.tmp").write_bytes(b"half")
    again = replace(RunFolder.open(tmp_path / "run", plan), sign=signer(new_signing_key()))
    nobody = LocalGrid(Serial, [])  # type: ignore[arg-type] - no site is asked
    model = Model(lambda: {"w": np.zeros(1, np.float32)})
    assert federate(Job(plan, again, nobody, model)).reason == "done"
    assert signature.exists()
    assert not list(folder.checkpoints.glob(".*"))


def test_a_run_keeps_so_many_checkpoints_and_its_whole_history(tmp_path: Path) -> None:
    plan = make_plan(rounds=5, sites=2, operation={"keep": 2, "stop_after": 4})
    first = simulate(plan, tmp_path / "run")
    assert first.outcome.reason == "stopped"
    assert checkpoint.numbers(tmp_path / "run" / "checkpoints") == [3, 4]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) in (2, 4)  # with signatures
    going_on = resumed_plan(tmp_path / "run", None, ["operation.stop_after=5"])
    second = simulate(going_on, tmp_path / "run", resume=True)
    assert second.outcome.reason == "done"
    assert checkpoint.numbers(tmp_path / "run" / "checkpoints") == [4, 5]
    rounds = [line["round"] for line in RunFolder.open(tmp_path / "run").history()]
    assert rounds == [1, 2, 3, 4, 5]
    for site in ("site-0", "site-1"):
        ledger = Ledger.open(tmp_path / "run" / "ledgers" / f"{site}.jsonl")
        assert sum(event.count for event in ledger.events()) == 5


def test_a_history_that_has_lost_rounds_is_refused(tmp_path: Path) -> None:
    simulate(make_plan(rounds=4, sites=1, operation={"keep": 1}), tmp_path / "run")
    file = tmp_path / "run" / "history.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(FolderError, match="must hold the rounds 1 to 3"):
        RunFolder.open(tmp_path / "run").history()


def test_a_run_goes_on_with_the_plan_of_its_folder(tmp_path: Path) -> None:
    plan = make_plan(rounds=2, sites=2, rate=0.5, operation={"min_sites": 2})
    RunFolder.create(tmp_path / "run", plan)
    path = tmp_path / "run"
    assert resumed_plan(path, None) == plan
    assert resumed_plan(path, "digits") == plan
    assert resumed_plan(path, "digits", ["rounds=2", "rate=0.5", "rows=actual"]) == plan
    changed = resumed_plan(path, "digits", ["min_sites=1", "simulation.workers=3"])
    assert (changed.digest, changed.operation.min_sites) == (plan.digest, 1)
    with pytest.raises(FolderError, match="this run has rounds = 2, got 9"):
        resumed_plan(path, None, ["rounds=9"])
    with pytest.raises(FolderError, match="of task digits, got a plan of adult"):
        resumed_plan(path, "adult")
