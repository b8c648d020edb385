"""Small messages travel in one body: two exchanges a round; older versions still understand."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.proto import message_pb2
from hypothesis import given
from hypothesis import strategies as st

from client.agent import link
from privacy.message_objects import MalformedMessage, from_whole, whole
from server.fleet.grid import LinkGrid
from server.fleet.superlink import Fleet
from tests.support.federation import (
    Events,
    answers,
    ask,
    coordinator,
    linked,
    running,
    weights_in,
)

SMALL, LARGE = np.ones(100), np.ones(100_000)
NAMES = st.text(st.characters(codec="ascii"), max_size=80)


@given(st.binary(max_size=300), st.dictionaries(NAMES, st.binary(max_size=300), max_size=8))
def test_a_body_comes_apart_as_it_was_put_together(head: bytes, objects: dict[str, bytes]) -> None:
    assert from_whole(whole(head, objects)) == (head, objects)


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused_or_are_a_body(body: bytes) -> None:
    try:
        head, objects = from_whole(body)
    except MalformedMessage:
        return
    assert len(whole(head, objects)) <= len(body)


@pytest.mark.parametrize(
    "body",
    [b"", b"\0", b"\0\0\0\5abc", whole(b"a", {}) * 2, whole(b"a", {"n": b"b"})[:-1]],
)
def test_a_body_that_is_cut_off_or_has_a_part_too_many_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        from_whole(body)


@contextmanager
def federation(folder: Path) -> Iterator[tuple[LinkGrid, Events]]:
    home, sites = coordinator(folder, "a")
    log = Events()
    with linked(home, log) as grid, running(sites["a"], grid.address):
        assert log.wait("connected", site="a")
        yield grid, log


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often sites asked for what."""
    found, handle = Counter[str](), Fleet.handle

    async def counted(self: Fleet, member: Any, path: str, headers: Any, body: bytes) -> Any:
        found[path.rpartition("/")[2]] += 1
        return await handle(self, member, path, headers, body)

    monkeypatch.setattr(Fleet, "handle", counted)
    return found


def played(grid: LinkGrid, weights: np.ndarray) -> None:
    got = answers(grid, ask(grid, weights))
    assert np.array_equal(weights_in(got["a"]), weights + 1)


def test_a_round_of_a_small_model_is_two_exchanges(calls: Counter[str], tmp_path: Path) -> None:
    with federation(tmp_path) as (grid, log):
        for _ in range(5):
            played(grid, SMALL)
        assert set(calls) <= {"activate-node", "pull-whole", "push-whole", "send-node-heartbeat"}
        assert calls["push-whole"] == 5
        assert 5 <= calls["pull-whole"] <= 6
        calls.clear()
        played(grid, LARGE)
        assert calls["pull-object"] > 1
        assert calls["push-object"] > 1
        assert not log.said("request_denied")


@pytest.mark.parametrize("weights", [SMALL, LARGE])
def test_a_coordinator_of_an_earlier_version_is_understood(
    weights: np.ndarray, calls: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.fleet.superlink._POLLS", {"pull-messages": False})
    make = Fleet.__init__

    def earlier(self: Fleet, log: Any) -> None:
        make(self, log)
        del self._routes["push-whole"]

    monkeypatch.setattr(Fleet, "__init__", earlier)
    with federation(tmp_path) as (grid, _):
        played(grid, weights)
        played(grid, weights)
        assert (calls["pull-whole"], calls["push-whole"]) == (1, 0), "asked once a connection"


def test_a_site_of_an_earlier_version_is_understood(
    calls: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link.Link, "_whole", lambda *words: None)
    with federation(tmp_path) as (grid, _):
        played(grid, SMALL)
        assert (calls["pull-whole"], calls["push-whole"]) == (0, 0)


def changed(change: Callable[[bytes, dict[str, bytes]], bytes]) -> Callable[..., Any]:
    """A site's call whose body is another one, the first time."""
    call, bodies = link.Link._whole, list[bytes]()

    def other(self: Any, name: str, request: Any, kind: Any) -> Any:
        if name == "push-whole" and not bodies:
            body = change(*from_whole(request.object_content))
            bodies.append(body)
            request = message_pb2.PushObjectRequest(node=self.node, object_content=body)
        return call(self, name, request, kind)

    return other


def test_objects_that_are_left_out_are_sent_one_by_one(
    calls: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = changed(lambda head, objects: whole(head, dict(list(objects.items())[::2])))
    monkeypatch.setattr(link.Link, "_whole", half)
    with federation(tmp_path) as (grid, _):
        played(grid, SMALL)
        assert calls["push-object"] > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda head, objects: b"garbage",
        lambda head, objects: whole(b"\xff\xff", objects),
        lambda head, objects: whole(b"", objects),
        lambda head, objects: whole(head, dict.fromkeys(objects, b"other bytes")),
    ],
)
def test_what_is_no_reply_does_not_count_and_the_site_comes_again(
    change: Any, calls: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link.Link, "_whole", changed(change))
    with federation(tmp_path) as (grid, _):
        played(grid, SMALL)
        assert calls["push-whole"] + calls["push-object"] > 1
