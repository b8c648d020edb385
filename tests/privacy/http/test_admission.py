"""Few handshakes begin at a time, in the order in which they came; nobody is lost by waiting."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from privacy.http import admission
from privacy.http.admission import Admission


@contextlib.asynccontextmanager
async def pairs(count: int) -> AsyncIterator[list[tuple[socket.socket, socket.socket]]]:
    """Connections over TCP: the server's end and the client's."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        found = []
        for _ in range(count):
            there = stack.enter_context(socket.create_connection(listener.getsockname()))
            here = stack.enter_context(listener.accept()[0])
            here.setblocking(False)
            found.append((here, there))
        yield found


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


class Guests:
    """Connections that ask for a place, hold it until they are let go, and leave a record."""

    def __init__(self, doors: Admission) -> None:
        self.doors, self.inside, self.log = doors, set[int](), list[int]()
        self.ends = [asyncio.Event() for _ in range(9)]

    async def __call__(self, number: int, sock: socket.socket) -> None:
        async with self.doors.place(sock):
            self.inside.add(number)
            self.log.append(number)
            await self.ends[number].wait()
            self.inside.discard(number)


def test_so_many_begin_at_once_and_the_others_in_the_order_in_which_they_came() -> None:
    async def test() -> None:
        async with pairs(6) as all_pairs:
            guests = Guests(Admission(2, place_seconds=60))
            tasks = []
            for number, (here, there) in enumerate(all_pairs):
                there.sendall(b"hello")
                tasks.append(asyncio.create_task(guests(number, here)))
                await settled()
            assert guests.inside == {0, 1}
            for number in (1, 0, 2, 3, 4, 5):
                guests.ends[number].set()
                await settled()
                assert len(guests.inside) <= 2
            await asyncio.gather(*tasks)
            assert guests.log == list(range(6))

    run(test())


def test_who_says_nothing_takes_no_place_and_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_HELLO_SECONDS", 0.05)

    async def test() -> None:
        async with pairs(2) as ((silent, _), (here, there)):
            guests = Guests(Admission(1, place_seconds=60))
            first = asyncio.create_task(guests(0, silent))
            await settled()
            there.sendall(b"hello")
            second = asyncio.create_task(guests(1, here))
            await settled()
            assert guests.inside == {1}
            with pytest.raises(TimeoutError):
                await first
            guests.ends[1].set()
            await second

    run(test())


def test_a_handshake_that_rests_gives_its_place_away_and_may_still_end() -> None:
    async def test() -> None:
        async with pairs(2) as all_pairs:
            guests = Guests(Admission(1, place_seconds=0.05))
            tasks = []
            for number, (here, there) in enumerate(all_pairs):
                there.sendall(b"hello")
                tasks.append(asyncio.create_task(guests(number, here)))
            while guests.inside != {0, 1}:
                await asyncio.sleep(0.01)
            for end in guests.ends:
                end.set()
            await asyncio.gather(*tasks)
            assert guests.doors._free == 1

    run(test())


@pytest.mark.parametrize("how", ["leaves", "is cancelled", "is cancelled as its turn comes"])
def test_who_has_left_before_its_turn_costs_no_handshake_and_keeps_no_place(how: str) -> None:
    async def test() -> None:
        async with pairs(3) as all_pairs:
            guests = Guests(Admission(1, place_seconds=60))
            tasks = []
            for number, (here, there) in enumerate(all_pairs):
                there.sendall(b"hello")
                tasks.append(asyncio.create_task(guests(number, here)))
                await settled()
            if how == "leaves":
                all_pairs[1][1].close()
            elif how == "is cancelled":
                tasks[1].cancel()
                await settled()
            guests.ends[0].set()
            guests.ends[2].set()
            if how == "is cancelled as its turn comes":
                while not tasks[0].done():
                    await asyncio.sleep(0)
                tasks[1].cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(found[1], ConnectionAbortedError | asyncio.CancelledError)
            assert guests.log == [0, 2]
            assert guests.doors._free == 1

    run(test())


def test_above_their_number_the_oldest_silent_one_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "_SILENT_MOST", 2)

    async def test() -> None:
        async with pairs(3) as all_pairs:
            guests = Guests(Admission(1))
            tasks = [asyncio.create_task(guests(n, here)) for n, (here, _) in enumerate(all_pairs)]
            await settled()
            assert [task.cancelled() for task in tasks] == [True, False, False]
            assert guests.doors.make_room()
            await settled()
            assert [task.cancelled() for task in tasks] == [True, True, False]
            tasks[2].cancel()
            await settled()
            assert not guests.doors.make_room()

    run(test())
