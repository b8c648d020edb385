"""One HTTP/1.1 connection over h11: a request at a time, each within the limits.

h11 parses and frames; this file keeps the time and the memory. Nothing is read that nobody waits
for: while an application works, or has not taken what came, the socket is not read.
"""

import asyncio
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final, Protocol

import h11

from privacy.http.exchange import App, HttpError, HttpLimits
from privacy.http.request_head import field_values, scope_of

_HIGH_WATER: Final = 64 * 1024
_LINGER_SECONDS: Final = 1.0
_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}

Headers = list[tuple[bytes, bytes]]


class Owner(Protocol):
    """The listener that a connection belongs to."""

    app: App
    limits: HttpLimits
    date: bool

    def opened(self, connection: "HttpConnection") -> None: ...

    def busy(self, connection: "HttpConnection") -> None: ...

    def idle(self, connection: "HttpConnection") -> None: ...

    def closed(self, connection: "HttpConnection") -> None: ...

    def refusal(self, connection: "HttpConnection", error: HttpError) -> bytes | None:
        """The body of an answer to a malformed request; None: close without an answer."""

    def failed(self, error: Exception) -> None:
        """The application raised; the client hears 500 and no more."""


class HttpConnection(asyncio.Protocol):
    """A connection's state: h11's, the request in progress, and one timer."""

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self.owner, self._loop = owner, loop
        self.transport: asyncio.Transport
        self.peer: Any = None
        self.working = False  # an application answers a request
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=owner.limits.head)
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._body: list[bytes] = []
        self._buffered = self._chunks = 0
        self._whole = self._gone = self._eof = self._lingering = False
        self._news, self._drained = asyncio.Event(), asyncio.Event()
        self._drained.set()
        self._request: h11.Request | None = None
        self._keep_old = False  # HTTP/1.0 with Connection: keep-alive
        self._head_begun = True  # the timer of a request's head runs; the first is a connection's
        self._answering = False  # an answer's head was written
        self._start: tuple[int, Headers] | None = None

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.peer = transport.get_extra_info("peername")
        self.owner.opened(self)
        self._wait(self.owner.limits.head_seconds)

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if not self.working and not self._head_begun:
            self._head_begun = True
            self._wait(self.owner.limits.head_seconds)
        if not self.working and not self._h11.trailing_data[0]:
            data = data.lstrip(b"\r\n")  # empty lines before a request are none (RFC 9112, 2.2)
        if data:
            self._feed(data)

    def eof_received(self) -> bool:
        self._eof = True
        if self._lingering or not self.working:
            return False
        self._feed(b"")
        return self.transport.can_write_eof()  # a half-closed client still reads its answer

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._stop_timer()
        self._news.set()
        self._drained.set()
        self.owner.closed(self)

    def pause_writing(self) -> None:
        self._drained.clear()

    def resume_writing(self) -> None:
        self._drained.set()

    # reading

    def _feed(self, data: bytes | None) -> None:
        """Give h11 what came (None: nothing more), and take what it makes of it."""
        try:
            if data is not None:
                self._h11.receive_data(data)
            self._advance()
        except h11.RemoteProtocolError as error:
            self._refuse(_malformed(error))
        except HttpError as error:
            self._refuse(error)

    def _advance(self) -> None:
        """Take events from h11 until it wants more bytes, or somebody else has to act first."""
        while not self._gone:
            if self._buffered >= _HIGH_WATER:
                self.transport.pause_reading()
                return
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                return
            if event is h11.PAUSED:  # a further request: not before this one is answered
                self.transport.pause_reading()
                return
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                self._body.append(bytes(event.data))
                self._buffered += len(event.data)
                self._chunks += event.chunk_start
                self._news.set()
            elif isinstance(event, h11.EndOfMessage):
                self._whole = True
                self._news.set()
            elif isinstance(event, h11.ConnectionClosed):
                self._news.set()
                if not self.working:
                    self.transport.close()
                return

    def _begin(self, request: h11.Request) -> None:
        self._stop_timer()
        scope = scope_of(request, self.owner.limits)
        scope["client"] = self.peer[:2] if isinstance(self.peer, tuple) else None
        scope["state"] = {"connection": self}
        self._request, self._whole, self._start = request, False, None
        self._answering = False
        self._body, self._buffered, self._chunks = [], 0, 0
        options = {o.strip().lower() for o in field_values(request, b"connection").split(b",")}
        self._keep_old = request.http_version == b"1.0" and b"keep-alive" in options
        self.working = True
        self.owner.busy(self)
        self._task = self._loop.create_task(self._run(scope))

    # the application's side

    async def _run(self, scope: dict[str, Any]) -> None:
        try:
            await self.owner.app(scope, self._receive, self._send)
            if self._request is not None and self._start is not None:
                raise RuntimeError("the application did not end its answer")
        except HttpError as error:
            self._answer_error(error)
        except asyncio.CancelledError:
            self.transport.abort()
            raise
        except Exception as error:  # noqa: BLE001 - the client hears 500, the owner which error
            self.owner.failed(error)
            self._answer_error(HttpError(500, "the server failed"))
        finally:
            self.working = False
        if not self._gone:
            await self._finish()

    async def _receive(self) -> dict[str, Any]:
        if self._h11.they_are_waiting_for_100_continue:
            head = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self._h11.send(head) or b"")
        while not self._body and not self._whole:
            if self._gone or self._eof or self._h11.their_state is h11.ERROR:
                return {"type": "http.disconnect"}
            self._news.clear()
            self.transport.resume_reading()
            await self._news.wait()
        content, chunks = b"".join(self._body), self._chunks
        self._body, self._buffered, self._chunks = [], 0, 0
        if not self._whole:
            self._feed_more()
        more = not self._whole or bool(self._body)
        return {"type": "http.request", "body": content, "more_body": more, "chunks": chunks}

    def _feed_more(self) -> None:
        """What h11 holds already, then the socket's next bytes."""
        try:
            self._advance()
        except h11.RemoteProtocolError:
            raise HttpError(400, "malformed body") from None
        if not self._gone and self._buffered < _HIGH_WATER:
            self.transport.resume_reading()

    async def _send(self, message: Any) -> None:
        if self._gone:
            return
        if message["type"] == "http.response.start":
            self._start = message["status"], list(message["headers"])
            return
        more = message.get("more_body", False)
        if self._start is not None:
            status, headers = self._start
            self._start = None
            self._write_head(status, headers)
        body = message.get("body", b"")
        if self._request is not None and self._request.method != b"HEAD" and body:
            self._write(h11.Data(data=body))
        if not more:
            self._write(h11.EndOfMessage())
        await self._drain(len(body))

    def _write_head(self, status: int, headers: Headers) -> None:
        self._answering = True
        if self.owner.date and not any(name == b"date" for name, _ in headers):
            headers.append((b"date", formatdate(usegmt=True).encode()))
        if not self._whole:  # an unread body would be taken for the next request
            headers.append((b"connection", b"close"))
        reason = _PHRASES.get(status, "")
        closing = any(name == b"connection" for name, _ in headers)
        if self._keep_old and not closing and any(name == b"content-length" for name, _ in headers):
            # h11 closes after every HTTP/1.0 request; here the client asked to go on.
            fields = [*headers, (b"connection", b"keep-alive")]
            lines = b"".join(b"%s: %s\r\n" % field for field in fields)
            self.transport.write(b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, reason.encode(), lines))
            return
        self._keep_old = False
        self._write(h11.Response(status_code=status, headers=headers, reason=reason))

    def _write(self, event: Any) -> None:
        if self._keep_old:
            self.transport.write(event.data if isinstance(event, h11.Data) else b"")
        else:
            self.transport.write(self._h11.send(event) or b"")

    async def _drain(self, size: int) -> None:
        """Wait until the client has read; one that does not in its time is cut off."""
        if self._drained.is_set():
            return
        limits = self.owner.limits
        try:
            async with asyncio.timeout(limits.body_seconds + size / limits.body_rate):
                await self._drained.wait()
        except TimeoutError:
            self.transport.abort()

    def _answer_error(self, error: HttpError) -> None:
        if not self._gone:
            self._refuse(error, known=True)

    # between requests

    async def _finish(self) -> None:
        """After an answer: the next request, or the end of the connection."""
        if self._keep_old and self._whole:
            rest, _ = self._h11.trailing_data
            size = self.owner.limits.head
            self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=size)
            self._ready(rest)
        elif self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            self._ready(b"")
        else:
            self._linger()

    def _ready(self, rest: bytes) -> None:
        self._request, self._head_begun, self._answering = None, False, False
        self.owner.idle(self)
        self._wait(self.owner.limits.idle_seconds)
        self.transport.resume_reading()
        self._feed(rest or None)
        if self._eof and not self.working:
            self.transport.close()

    def _refuse(self, error: HttpError, *, known: bool = False) -> None:
        """Answer with an error, if no answer has begun, and close."""
        if self.working and not known:  # the body went wrong: the application hears so
            self._news.set()
            return
        body = self.owner.refusal(self, error)
        if self._answering:
            self.transport.abort()
            return
        if body is None:
            self.transport.close()
            return
        headers: Headers = [
            (b"content-length", str(len(body)).encode()),
            (b"content-type", b"application/json"),
            (b"connection", b"close"),
        ]
        self._whole = True
        self._write_head(error.status, headers)
        if self._request is None or self._request.method != b"HEAD":
            self._write(h11.Data(data=body))
        self._write(h11.EndOfMessage())
        self._linger()

    def _linger(self) -> None:
        """Close so that the answer is not lost: unread bytes would make the system reset it."""
        if self._lingering or self._gone:
            return
        if not self.transport.can_write_eof() or self._eof:
            self.transport.close()
            return
        self._lingering = True
        self.transport.write_eof()
        self.transport.resume_reading()
        self._wait(_LINGER_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self._loop.call_later(seconds, self._expired)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        if self._lingering:
            self.transport.abort()
        elif self._h11.trailing_data[0]:
            self._refuse(HttpError(408, "the head must arrive faster"))
        else:
            self.transport.close()

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._gone

    def stop(self) -> None:
        """Close at once, unless an answer is under way: `task` is then what to wait for."""
        if not self.working:
            self.transport.abort()

    @property
    def task(self) -> "asyncio.Task[None] | None":
        """The application at work on this connection's request."""
        return self._task if self.working else None


def _malformed(error: h11.RemoteProtocolError) -> HttpError:
    status = error.error_status_hint or 400
    return HttpError(status, _PHRASES.get(status, "malformed request"))
