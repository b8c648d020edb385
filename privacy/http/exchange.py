"""One request and its response: the limits, the refusals, and the body read within both."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
"""An ASGI 3 application; only the type "http" is asked of it."""

_CHUNKS_MAX: Final = 4096


class HttpError(Exception):
    """A request that is refused: its status, and one line that holds nothing of the request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one server accepts; times are in seconds, sizes in bytes.

    A head (request line and fields) has to be complete `head_seconds` after its connection opened
    or its first byte came; a connection without a request is closed after `idle_seconds`. A body
    has `body_seconds`, and one more for each `body_rate` bytes that came; the client has the same
    to read its answer. `chunked` is whether a body may come without a Content-Length.
    """

    head: int = 16 * 1024
    line: int = 8 * 1024
    fields: int = 100
    head_seconds: float = 10.0
    idle_seconds: float = 30.0
    body_seconds: float = 10.0
    body_rate: int = 16 * 1024
    connections: int = 1000
    chunked: bool = True


async def read_body(scope: Scope, receive: Receive, most: int, limits: HttpLimits) -> bytes:
    """The whole body; HttpError 413 above `most` bytes, 408 where it is slow, 400 where cut off."""
    too_large = HttpError(413, f"the body must be at most {most} bytes")
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if len(declared) > 20 or (declared.isdigit() and int(declared) > most):
        raise too_large
    content, chunks, more = bytearray(), 0, True
    loop = asyncio.get_running_loop()
    began = loop.time()
    while more:
        deadline = began + limits.body_seconds + len(content) / limits.body_rate
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise HttpError(408, "the body must arrive faster") from None
        if message["type"] == "http.disconnect":
            raise HttpError(400, "the body must be complete")
        content += message.get("body", b"")
        chunks += message.get("chunks", 0)
        if len(content) > most or chunks > _CHUNKS_MAX:
            raise too_large
        more = message.get("more_body", False)
    return bytes(content)


async def respond(
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes = b"",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    """A whole answer; after an error the connection is closed, whatever is left of the body."""
    fields = [(b"content-length", str(len(body)).encode()), *headers]
    if content_type:
        fields.append((b"content-type", content_type))
    if status >= 400:
        fields.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
