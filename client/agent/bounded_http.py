"""A coordinator's answers, counted while they come: none is unpacked, none is without end."""

from collections.abc import Iterator
from typing import Final

import httpx

_ANSWER_MAX: Final = 8 * 1024 * 1024


class UnboundedAnswer(Exception):
    """An answer that is compressed, or larger than any of the protocol."""


def bounded(response: httpx.Response) -> None:
    """Refuse an answer that is compressed, and count its bytes while they come."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise UnboundedAnswer("a compressed answer")
    length = response.headers.get("content-length", "0")
    if not length.isdigit() or len(length) > 12 or int(length) > _ANSWER_MAX:
        raise UnboundedAnswer("an answer too large")
    if isinstance(response.stream, httpx.SyncByteStream):
        response.stream = _Counted(response.stream)


class _Counted(httpx.SyncByteStream):
    """A response's bytes, up to a limit."""

    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self._stream:
            size += len(part)
            if size > _ANSWER_MAX:
                raise UnboundedAnswer("an answer too large")
            yield part

    def close(self) -> None:
        self._stream.close()
