"""Chunks on a line: one at a time where it is slow, resumed where it broke, with their progress."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from flwr.supercore.corestate import in_memory_corestate

from client.agent import transfers
from client.agent.link import Link
from client.agent.transfers import Transfers
from tests.support.federation import (
    Events,
    answers,
    app,
    ask,
    coordinator,
    linked,
    running,
    weights_in,
)
from tests.support.patience import patience, wait_for

NAMES = [f"chunk-{number}" for number in range(8)]


class Line:
    """A line of so many bytes a second, on a clock of its own; it can break once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
        self.now, self.rate, self.moved = 0.0, rate, list[str]()
        self.at_once = self.most_at_once = 0
        self.breaks_before = ""
        monkeypatch.setattr(transfers.time, "monotonic", lambda: self.now)

    def fetch(self, name: str) -> bytes:
        if name == self.breaks_before:
            self.breaks_before = ""
            raise ConnectionError
        self.moved.append(name)
        self.now += 1000 / self.rate
        return name.encode().ljust(1000, b".")


@pytest.fixture
def pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1)


def test_all_chunks_arrive_under_their_names(
    monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    line = Line(monkeypatch, 1e9)
    found = Transfers(Events()).receive("m", NAMES, line.fetch, pool)
    assert {name: content[: len(name)].decode() for name, content in found.items()} == {
        name: name for name in NAMES
    }


def test_after_a_break_only_what_is_missing_is_fetched(
    monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    line = Line(monkeypatch, 32_000)
    line.breaks_before = "chunk-4"
    moving = Transfers(Events())
    with pytest.raises(ConnectionError):
        moving.receive("m", NAMES, line.fetch, pool)
    assert line.moved == NAMES[:4]
    assert list(moving.receive("m", NAMES, line.fetch, pool)) == NAMES
    assert line.moved == NAMES, "no chunk came twice"
    moving.receive("another", NAMES[:1], line.fetch, pool)
    assert line.moved == [*NAMES, "chunk-0"], "another message shares nothing"


class Pool(ThreadPoolExecutor):
    """Counts how many chunks are given to it at once."""

    def __init__(self) -> None:
        super().__init__(1)
        self.batches: list[int] = []

    def map(self, fn: Callable[..., int], *items: object, **options: object) -> list[int]:  # type: ignore[override]
        batch = list(items[0])  # type: ignore[call-overload]
        self.batches.append(len(batch))
        return [fn(one) for one in batch]


@pytest.mark.parametrize(
    ("rate", "batches"), [(32_000, [1] * 8), (100_000_000, [1, 7])], ids=["slow", "fast"]
)
def test_a_slow_line_takes_one_chunk_at_a_time(
    monkeypatch: pytest.MonkeyPatch, rate: float, batches: list[int]
) -> None:
    line, pool = Line(monkeypatch, rate), Pool()
    pairs = [(name, bytes(1000)) for name in NAMES]
    Transfers(Events()).send(pairs, lambda pair: void(line.fetch(pair[0])), pool)
    assert pool.batches == batches


def test_a_reply_whose_line_broke_goes_on_with_the_chunks_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over real TLS: the connection is lost after three chunks, and every chunk is sent once."""
    store, stored = Link._store, list[str]()

    def breaking(link: object, run: int, session: str, name: str, content: bytes) -> None:
        if len(stored) == 3 and "broken" not in stored:
            stored.append("broken")
            raise ConnectionError("the line is cut")
        store(link, run, session, name, content)  # type: ignore[arg-type]
        stored.append(name)

    monkeypatch.setattr(Link, "_store", breaking)
    home, sites = coordinator(tmp_path, "north")
    sent = np.random.default_rng(0).standard_normal(6_000_000).astype(np.float32)
    log = Events()
    with linked(home) as grid, running(sites["north"], grid.address, app(lambda w: sent), log):
        assert wait_for(lambda: grid.names())
        grid.reply_limit = 100_000_000
        found = answers(grid, ask(grid, np.zeros(2, np.float32)), patience(30))
        assert np.array_equal(weights_in(found["north"]), sent)
    assert "broken" in stored
    chunks = [name for name in stored if name != "broken"]
    assert len(chunks) == len(set(chunks)) >= 5
    assert log.said("disconnected")


def test_an_upload_outlasts_flowers_patience_with_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower drops an upload whose chunk takes over 180 s; here that time is over at once."""
    monkeypatch.setattr(transfers, "_FAST", float("inf"))
    store, stored = Link._store, list[str]()

    def counting(link: object, run: int, session: str, name: str, content: bytes) -> None:
        stored.append(name)
        store(link, run, session, name, content)  # type: ignore[arg-type]

    monkeypatch.setattr(Link, "_store", counting)
    home, sites = coordinator(tmp_path, "north")
    sent = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    log = Events()

    def trained(weights: np.ndarray) -> np.ndarray:
        monkeypatch.setattr(in_memory_corestate, "OBJECT_PUSH_SESSION_TTL_SECONDS", -1)
        return sent

    with linked(home) as grid, running(sites["north"], grid.address, app(trained), log):
        assert wait_for(lambda: grid.names())
        found = answers(grid, ask(grid, np.zeros(2, np.float32)), 5)
        assert np.array_equal(weights_in(found["north"]), sent)
        assert not grid._fleet.state._object_push_sessions, "no upload is left behind"
    assert len(stored) == len(set(stored)) >= 4, "no chunk was sent twice"
    assert not log.said("disconnected")


def void(value: object) -> None:
    return None


def test_a_slow_line_says_how_far_it_is_and_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    line, log = Line(monkeypatch, 50.0), Events()
    pairs = [(name, bytes(1000)) for name in NAMES]
    Transfers(log).send(pairs, lambda pair: void(line.fetch(pair[0])), pool)
    told = [(one["percent"], one["minutes_left"]) for one in log.lines]
    assert told == [(25, 2.0), (50, 1.3), (75, 0.7)], "20 s a chunk, a line every 30 s at least"
    assert {one["event"] for one in log.lines} == {"reply_sending"}
