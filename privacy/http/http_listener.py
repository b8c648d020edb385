"""A listening socket and its connections: how many there may be, and which one goes first."""

import asyncio
import contextlib
import json
import os
import resource
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from privacy.http.admission import Admission
from privacy.http.exchange import App, HttpError, HttpLimits
from privacy.http.http_connection import HttpConnection

_RESERVED_FILES: Final = 128
_HANDSHAKE_SECONDS: Final = 10.0
_ACCEPT_PAUSE: Final = 0.05


class ListenError(ValueError):
    """The address cannot be listened on."""


def listen(host: str, port: int, *, option: str = "--listen") -> socket.socket:
    """A listening TCP socket; ListenError where the address cannot be had.

    `::` is every address of this machine, of IPv6 and of IPv4, where the system can do both.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            (host, port), family=family, backlog=1024, dualstack_ipv6=both
        )
    except (OSError, OverflowError) as error:
        words = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise ListenError(
            f"{option}: must be a free address, got {host}:{port} ({words})"
        ) from None
    listener.setblocking(False)
    return listener


def connections_allowed(wanted: int) -> int:
    """Raise the limit of open files, and return how many connections fit below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(8, min(wanted, soft - _RESERVED_FILES))


class HttpListener:
    """Accepts connections on a socket and runs an ASGI application for their requests.

    Above the limit of connections, the one that has been without a request longest is closed
    first; where all are at work, the new one is refused. With `tls`, handshakes are bounded in
    number and time, and begin in their order (privacy/http/admission.py).
    """

    date = True

    def __init__(
        self,
        listener: socket.socket,
        app: App,
        limits: HttpLimits,
        *,
        tls: Callable[[], ssl.SSLContext] | None = None,
        failed: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.app, self.limits = app, limits
        self._listener, self._tls, self._failed = listener, tls, failed
        self._most = connections_allowed(limits.connections)
        self._all: set[HttpConnection] = set()
        self._idle: OrderedDict[HttpConnection, None] = OrderedDict()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._admission = Admission()
        self._loop: asyncio.AbstractEventLoop

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: the port as the system gave it."""
        name = self._listener.getsockname()
        return name[0], name[1]

    async def serve(self, stop: asyncio.Event, *, grace: float = 0.0) -> None:
        """Answer requests until `stop` is set; those at work then have `grace` seconds."""
        self._loop = asyncio.get_running_loop()
        accepting = self._loop.create_task(self._accept())
        try:
            await stop.wait()
        finally:
            accepting.cancel()
            self._listener.close()
            await self._end(accepting, grace)

    async def _end(self, accepting: "asyncio.Task[None]", grace: float) -> None:
        for connection in list(self._all):
            connection.stop()
        tasks = [task for c in self._all if (task := c.task) is not None]
        if tasks and grace:
            await asyncio.wait(tasks, timeout=grace)
        ending = [accepting, *self._handshakes, *tasks]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        for connection in list(self._all):
            connection.transport.abort()

    async def _accept(self) -> None:
        while True:
            try:
                sock, peer = await self._loop.sock_accept(self._listener)
            except OSError:  # no file left, or the client has gone
                self._make_room()
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            task = self._loop.create_task(self._handshake(sock, peer))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)
            await asyncio.sleep(0)  # it has begun, and owns its socket, before it can be evicted

    def _make_room(self) -> None:
        if not self._admission.make_room() and self._idle:
            self._evict_oldest_idle()

    def _evict_oldest_idle(self) -> None:
        connection, _ = self._idle.popitem(last=False)
        connection.transport.abort()

    async def _handshake(self, sock: socket.socket, peer: object) -> None:
        owned = False  # once it is made, the transport closes the socket
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is None:
                owned = True
                await self._loop.connect_accepted_socket(lambda: self.connection(self._loop), sock)
                return
            async with self._admission.place(sock):
                owned = True
                await self._loop.connect_accepted_socket(
                    lambda: self.connection(self._loop),
                    sock,
                    ssl=self._tls(),
                    ssl_handshake_timeout=_HANDSHAKE_SECONDS,
                    ssl_shutdown_timeout=2.0,
                )
        except ssl.SSLError as error:
            self.handshake_failed(error, peer)
        except OSError as error:
            self.handshake_failed(error, peer)
        except asyncio.CancelledError:
            self.handshake_failed(None, peer)
            raise
        finally:
            if not owned:
                sock.close()

    # what a subclass may say otherwise

    def connection(self, loop: asyncio.AbstractEventLoop) -> HttpConnection:
        """A connection's protocol, before its handshake."""
        return HttpConnection(self, loop)

    def handshake_failed(self, error: OSError | None, peer: object) -> None:
        """A TLS handshake failed; None: it was evicted."""

    def refusal(self, connection: HttpConnection, error: HttpError) -> bytes | None:
        """The body of the answer to a request that no application saw."""
        return json.dumps({"error": str(error)}).encode()

    # what connections tell

    def opened(self, connection: HttpConnection) -> None:
        """A connection was made."""
        self._all.add(connection)
        if len(self._all) > self._most:
            if not self._idle:
                self._all.discard(connection)
                connection.transport.abort()
                return
            self._evict_oldest_idle()
        self._idle[connection] = None

    def busy(self, connection: HttpConnection) -> None:
        """A connection's request is at work."""
        self._idle.pop(connection, None)

    def idle(self, connection: HttpConnection) -> None:
        """A connection waits for a request."""
        if connection in self._all:
            self._idle[connection] = None

    def closed(self, connection: HttpConnection) -> None:
        """A connection has ended."""
        self._all.discard(connection)
        self._idle.pop(connection, None)

    def failed(self, error: Exception) -> None:
        """The application raised."""
        self._failed(error)
