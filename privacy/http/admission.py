"""Which new connections may go through their TLS handshake now.

A handshake costs a server milliseconds, and its client more. Where all that come begin at once,
each waits for all others; whoever is not done in time is dropped, with the work that was done for
it, and comes again: an overload that keeps itself up. So only a few begin at a time. The others
wait in the order in which they came, unanswered, which costs nobody anything, and no limit of time
runs for them. Who says nothing is not in that order, and a handshake that its client lets rest
gives its place away.
"""

import asyncio
import contextlib
import socket
import sys
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

AT_ONCE: Final = 32
"""Handshakes that begin together."""
_PLACE_SECONDS: Final = 1.0
_HELLO_SECONDS: Final = 5.0
_SILENT_MOST: Final = 1024
_WAITING_MOST: Final = 4096
_BEGUN_MOST: Final = 256
_ESTABLISHED: Final = 1

_Tasks = OrderedDict[asyncio.Task[Any], None]


class Admission:
    """Lets handshakes begin, `at_once` of them together, in the order in which they came.

    A handshake holds its place until it ends, for `place_seconds` at most. Of those that have said
    nothing, and of those that have begun, there are so many; above that the oldest is cancelled.
    """

    def __init__(self, at_once: int = AT_ONCE, *, place_seconds: float = _PLACE_SECONDS) -> None:
        self._free, self._place_seconds = at_once, place_seconds
        self._silent: _Tasks = OrderedDict()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._begun: _Tasks = OrderedDict()

    @contextlib.asynccontextmanager
    async def place(self, sock: socket.socket) -> AsyncIterator[None]:
        """In this block a connection's handshake may go on.

        TimeoutError where its client says nothing, ConnectionError where it has left before its
        turn came or where too many wait.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise RuntimeError("expected a task")
        with _among(self._silent, task, _SILENT_MOST):
            async with asyncio.timeout(_HELLO_SECONDS):
                await _readable(loop, sock)
        await self._turn(loop)
        given = False

        def give() -> None:
            nonlocal given
            if not given:
                given = True
                self._give()

        timer = loop.call_later(self._place_seconds, give)
        try:
            if _has_left(sock):
                raise ConnectionAbortedError("it has left")
            with _among(self._begun, task, _BEGUN_MOST):
                yield
        finally:
            timer.cancel()
            give()

    def make_room(self) -> bool:
        """Cancel who is least likely to be missed; False where nobody is here."""
        for tasks in (self._silent, self._begun):
            if tasks:
                tasks.popitem(last=False)[0].cancel()
                return True
        return False

    async def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._free:
            self._free -= 1
            return
        if len(self._waiting) >= _WAITING_MOST:
            raise ConnectionRefusedError("too many wait")
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give()  # its turn had just come
            raise

    def _give(self) -> None:
        """Pass a place to whoever has waited longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


@contextlib.contextmanager
def _among(tasks: _Tasks, task: asyncio.Task[Any], most: int) -> Iterator[None]:
    if len(tasks) >= most:
        tasks.popitem(last=False)[0].cancel()
    tasks[task] = None
    try:
        yield
    finally:
        tasks.pop(task, None)


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Until the client has sent something, or has left."""
    told: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not told.done():
            told.set_result(None)

    loop.add_reader(sock, tell)
    try:
        await told
    finally:
        loop.remove_reader(sock)


def _has_left(sock: socket.socket) -> bool:
    """Whether the client has closed the connection, which its unread hello would hide."""
    if sys.platform != "linux":
        return False
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED
