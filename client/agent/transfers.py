"""Requests and replies on lines as they are: chunk by chunk, resumed, and with their progress.

A message is a tree of chunks named by their hashes. A line's rate is measured on the first chunk
alone; a fast line takes several at a time, a slow one each by itself, so that every chunk is whole
before a time-out of the line can take it away.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any, Final

PARALLEL: Final = 3
_FAST: Final = 1_000_000.0
_SAY_SECONDS: Final = 30.0

Log = Callable[..., None]
Pair = tuple[str, bytes]


class TooLarge(Exception):
    """A message of more bytes than it may have."""


class Transfers:
    """Moves the chunks of one message at a time. What has arrived stays, if the line breaks."""

    def __init__(self, log: Log, *, say_every: float = _SAY_SECONDS) -> None:
        self._log, self._say_every = log, say_every
        self._message, self._have = "", dict[str, bytes]()

    def receive(
        self,
        message: str,
        names: Sequence[str],
        fetch: Callable[[str], bytes],
        pool: Executor,
        *,
        limit: int = 1 << 40,
        last: bool = True,
    ) -> dict[str, bytes]:
        """The contents of all chunks; those that came before a break are not fetched again.

        TooLarge where they have more than `limit` bytes: no more than a batch above is held. After
        the `last` of a message's chunks nothing of it is kept.
        """
        if message != self._message:
            self._message, self._have = message, {}
        wanted = [name for name in names if name not in self._have]

        def take(name: str) -> int:
            content = fetch(name)
            self._have[name] = content
            if sum(len(self._have.get(one, b"")) for one in names) > limit:
                self._message, self._have = "", {}
                raise TooLarge(f"a request of more than {limit} bytes")
            return len(content)

        self._move("receiving", len(names), len(names) - len(wanted), wanted, take, pool)
        contents = {name: self._have[name] for name in names}
        if last:
            self._message, self._have = "", {}
        return contents

    def send(self, pairs: Sequence[Pair], store: Callable[[Pair], None], pool: Executor) -> None:
        """Send the chunks that the coordinator does not have."""

        def give(pair: Pair) -> int:
            store(pair)
            return len(pair[1])

        total = sum(len(content) for _, content in pairs)
        self._move("sending", len(pairs), 0, pairs, give, pool, total=total)

    def _move(
        self,
        event: str,
        count: int,
        done: int,
        items: Iterable[Any],
        move: Callable[[Any], int],
        pool: Executor,
        *,
        total: int | None = None,
    ) -> None:
        waiting, began, moved = list(items), time.monotonic(), 0
        last_report = began
        width = 1
        while waiting:
            batch, waiting = waiting[:width], waiting[width:]
            moved += sum(pool.map(move, batch))
            done += len(batch)
            now = time.monotonic()
            rate = moved / max(now - began, 1e-6)
            width = 4 * PARALLEL if rate > _FAST else 1
            if now - last_report >= self._say_every and waiting:
                last_report = now
                self._say(event, done, count, moved, total, rate, now - began)

    def _say(
        self,
        event: str,
        done: int,
        count: int,
        moved: int,
        total: int | None,
        rate: float,
        seconds: float,
    ) -> None:
        if total is not None:
            share, left = moved / total, (total - moved) / max(rate, 1.0)
        else:
            share, left = done / count, seconds * (count - done) / max(done, 1)
        facts = {"percent": round(100 * share), "kB_per_s": round(rate / 1000)}
        minutes = round(left / 60, 1)
        if event == "sending":
            self._log("reply_sending", **facts, minutes_left=minutes)
        else:
            self._log("request_receiving", **facts, minutes_left=minutes)
