"""Replies as they arrive: those in time, those of earlier rounds, and those that do not come."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from flwr.app import Error, Message, RecordDict

from server.rounds.collection import replies
from server.rounds.messages import Request
from server.rounds.site_grid import LATE, SiteGrid
from simulations.grid import identify


class Inbox(SiteGrid):
    """A grid whose replies are put in by the test; it counts the waits."""

    def __init__(self) -> None:
        identify(1)
        self.ready: dict[str, Message] = {}
        self.waits = 0

    def arrive(self, number: str, error: int | None = None) -> None:
        request = Message(RecordDict(), 7, "train")
        request.metadata.__dict__["_message_id"] = number
        content: Any = RecordDict() if error is None else Error(code=error, reason="late")
        self.ready[number] = Message(content, reply_to=request)

    def names(self) -> Mapping[int, str]:
        return {}

    def wait(self, seconds: float) -> None:
        self.waits += 1

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.ready.pop(number) for number in list(message_ids) if number in self.ready]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError


def request(site: str, number: int = 2) -> Request:
    return Request("run", number, site, "{}")


def sites(found: Iterable[tuple[Request, Message]]) -> list[tuple[str, int]]:
    return [(one.site, one.round) for one, _ in found]


def test_a_round_ends_when_its_own_requests_are_answered() -> None:
    grid, overdue = Inbox(), {"old": request("c", 1)}
    pending = {"a": request("a"), "b": request("b")}
    grid.arrive("a")
    grid.arrive("b")
    assert sites(replies(grid, pending, None, overdue=overdue)) == [("a", 2), ("b", 2)]
    assert list(overdue) == ["old"]  # nobody waited for it
    assert grid.waits == 0


def test_an_overdue_reply_that_comes_meanwhile_counts_with_its_own_round() -> None:
    grid, overdue = Inbox(), {"old": request("c", 1)}
    grid.arrive("a")
    grid.arrive("old")
    found = sites(replies(grid, {"a": request("a")}, None, overdue=overdue))
    assert found == [("a", 2), ("c", 1)]
    assert not overdue


def test_what_is_not_answered_in_time_is_left_pending() -> None:
    grid, pending = Inbox(), {"a": request("a"), "b": request("b")}
    grid.arrive("b")
    assert sites(replies(grid, pending, 0.0, overdue={})) == [("b", 2)]
    assert list(pending) == ["a"]


def test_what_has_arrived_by_the_end_comes_one_by_one() -> None:
    class OneByOne(Inbox):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            first = [number for number in message_ids if number in self.ready][:1]
            return [self.ready.pop(number) for number in first]

    grid, pending = OneByOne(), {name: request(name) for name in "abc"}
    for name in "ab":
        grid.arrive(name)
    assert sites(replies(grid, pending, 0.0)) == [("a", 2), ("b", 2)]
    assert list(pending) == ["c"]


def test_overdue_requests_are_waited_for_where_there_are_no_others() -> None:
    grid, overdue = Inbox(), {"old": request("c", 1)}

    def waiting() -> None:
        if grid.waits == 3:
            grid.arrive("old")

    assert sites(replies(grid, {}, None, waiting, overdue)) == [("c", 1)]
    assert grid.waits == 4


def test_a_reply_that_its_grid_calls_late_is_overdue_from_the_next_round_on() -> None:
    grid, overdue = Inbox(), dict[str, Request]()
    grid.arrive("a", LATE)
    assert sites(replies(grid, {"a": request("a")}, None, overdue=overdue)) == []
    assert list(overdue) == ["a"]
    assert sites(replies(grid, {}, 0.0, overdue=overdue)) == []
    grid.arrive("a")
    assert sites(replies(grid, {}, 0.0, overdue=overdue)) == [("a", 2)]
    assert not overdue


def test_without_late_rounds_a_late_reply_is_no_answer() -> None:
    grid = Inbox()
    grid.arrive("a", LATE)
    ((_, message),) = replies(grid, {"a": request("a")}, None)
    assert message.has_error()


@pytest.mark.parametrize("ready", [True, False])
def test_what_is_there_is_taken_without_waiting(ready: bool) -> None:
    grid, overdue = Inbox(), {"x": request("x", 1), "y": request("y", 1)}
    if ready:
        grid.arrive("y")
    assert sites(replies(grid, {}, 0.0, overdue=overdue)) == ([("y", 1)] if ready else [])
    assert list(overdue) == (["x"] if ready else ["x", "y"])
    assert grid.waits == 0
