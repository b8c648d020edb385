"""The one open port: TLS 1.3 with client certificates, and nothing for whoever has none.

It knows no Flower. Connections that do not finish their handshake are few and short-lived; of those
that do, the certificate must be on the list of sites, now and at every request. What is refused
gets an empty answer or a closed connection, and a line in the log.
"""

import asyncio
import contextlib
import datetime
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any, Final

from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from privacy.identity.certificates import Certificate
from privacy.identity.keys import IdentityError
from server.fleet.tls import Log, Refusals, handshake_failure, listen, server_context
from server.registry.sites import Home, Member, Members

PREFIX: Final = "/v1/fleet/"
MAX_BODY: Final = 8 * 1024 * 1024
_HANDSHAKES: Final = 256
_HANDSHAKE_SECONDS: Final = 5.0
_BODY_SECONDS: Final = 30.0
_CONNECTIONS_A_SITE: Final = 16
_KEEP_ALIVE: Final = 90
_WATCH_SECONDS: Final = 0.25
_DISCONNECT_GRACE: Final = 1.0

GONE: Final = 410
"""What a site's own, revoked key is told: enough for it to stop, nothing else."""

Headers = dict[bytes, bytes]
Answer = tuple[int, bytes]
Handle = Callable[[Member, str, Headers, bytes], Awaitable[Answer]]


class _Connection(H11Protocol):
    """One TLS connection: it carries its certificate, and answers no garbage."""

    owner: "TlsServer"
    key = ""
    site = ""
    refused_since = 0.0
    ends = datetime.datetime.max.replace(tzinfo=datetime.UTC)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.owner.connection_opened(self)
        self.app_state = {"connection": self}

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.owner.connection_closed(self)

    def send_400_response(self, msg: str) -> None:
        self.owner.refused("garbage", self.client, self.site)
        self.transport.close()

    def _should_upgrade(self) -> bool:
        return False


class TlsServer:
    """Listens in a thread of its own and hands whole requests of known sites to `handle`.

    `seen(site)` hears of every request, `gone(site)` when the last connection of a site closed,
    `changed(members)` when the list of sites is another.
    """

    def __init__(
        self,
        home: Home,
        where: tuple[str, int],
        handle: Handle,
        *,
        log: Log,
        seen: Callable[[str], None] = lambda site: None,
        gone: Callable[[str], None] = lambda site: None,
        changed: Callable[[Members], None] = lambda members: None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._home, self._handle, self._log = home, handle, log
        self._seen, self._gone, self._changed, self._tick = seen, gone, changed, tick
        self.refused = Refusals(log)
        self._members = home.members()
        self._stamp = self._file_stamp()
        self._tls = server_context(home)
        self._listener = listen(*where)
        self._open: dict[str, OrderedDict[_Connection, None]] = {}
        self._handshakes: OrderedDict[asyncio.Task[None], None] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="tls-server", daemon=True)
        self._stop = asyncio.Event()
        self.loop = asyncio.new_event_loop()
        config = Config(
            self._app,
            http=_Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            h11_max_incomplete_event_size=16 * 1024,
        )
        config.load()
        self._config, self._state = config, ServerState()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: the port as the system gave it."""
        name = self._listener.getsockname()
        return name[0], name[1]

    def open(self) -> None:
        """Start to listen."""
        self._thread.start()

    def close(self) -> None:
        """Drop every connection and stop."""
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def connected(self, site: str) -> bool:
        """Whether a site has an open connection."""
        return bool(self._open.get(site))

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._serve())
        finally:
            self._listener.close()
            self.loop.close()

    async def _serve(self) -> None:
        tasks = [self.loop.create_task(self._accept()), self.loop.create_task(self._watch())]
        await self._stop.wait()
        for connections in list(self._open.values()):
            for connection in list(connections):
                connection.transport.abort()
        tasks += [*self._handshakes, *self._state.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self) -> None:
        while True:
            try:
                sock, peer = await self.loop.sock_accept(self._listener)
            except OSError:
                self._evict_oldest_handshake()
                await asyncio.sleep(0.05)
                continue
            if len(self._handshakes) >= _HANDSHAKES:
                self._evict_oldest_handshake()
            task = self.loop.create_task(self._handshake(sock, peer))
            self._handshakes[task] = None
            task.add_done_callback(lambda done: self._handshakes.pop(done, None))
            await asyncio.sleep(0)  # it has begun, and owns its socket, before it can be pushed out

    def _evict_oldest_handshake(self) -> None:
        """Make room: the handshake that has waited longest is the least likely to be a site's."""
        if self._handshakes:
            oldest, _ = self._handshakes.popitem(last=False)
            oldest.cancel()

    async def _handshake(self, sock: socket.socket, peer: object) -> None:
        owned = False  # once it is made, the transport closes the socket
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            owned = True
            await self.loop.connect_accepted_socket(
                self._protocol,
                sock,
                ssl=self._tls,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=2.0,
            )
        except ssl.SSLError as error:
            self.refused(handshake_failure(error), peer)
        except OSError:
            self.refused("handshake not finished", peer)
        except asyncio.CancelledError:
            self.refused("too many handshakes", peer)
            raise
        finally:
            if not owned:
                sock.close()

    def _protocol(self) -> _Connection:
        connection = _Connection(self._config, self._state, {})
        connection.owner = self
        return connection

    def connection_opened(self, connection: _Connection) -> None:
        """A finished handshake: note whose it is; too many of one site push out the oldest."""
        tls = connection.transport.get_extra_info("ssl_object")
        try:
            certificate = Certificate.read(tls.getpeercert(binary_form=True) or b"")
        except IdentityError:
            connection.transport.abort()
            return
        connection.key, connection.ends = certificate.fingerprint, certificate.ends
        member = self._members.find(connection.key)
        connection.site = member.name if member is not None else ""
        mine = self._open.setdefault(connection.site, OrderedDict())
        mine[connection] = None
        if len(mine) > _CONNECTIONS_A_SITE:
            oldest, _ = mine.popitem(last=False)
            oldest.transport.abort()

    def connection_closed(self, connection: _Connection) -> None:
        """A closed connection."""
        mine = self._open.get(connection.site)
        if mine is not None:
            mine.pop(connection, None)
            if not mine:
                del self._open[connection.site]
                if connection.site:
                    self._gone(connection.site)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            self.refused.flush()
            self._tick()
            stamp = self._file_stamp()
            if stamp != self._stamp:
                self._stamp = stamp
                with contextlib.suppress(OSError, ValueError, KeyError):
                    self._members = self._home.members()
                    self._tls = server_context(self._home)
                    self._changed(self._members)
            now = datetime.datetime.now(datetime.UTC)
            for connections in list(self._open.values()):
                for connection in list(connections):
                    member = self._members.find(connection.key)
                    if member is None or member.revoked is not None or now >= connection.ends:
                        self._disconnect(connection, member)

    def _disconnect(self, connection: _Connection, member: Member | None) -> None:
        """End a connection that is no longer welcome; a revoked site first hears why."""
        waiting = connection.cycle is not None and not connection.cycle.response_complete
        revoked = member is not None and member.revoked is not None
        connection.refused_since = connection.refused_since or time.monotonic()
        if revoked and waiting and time.monotonic() < connection.refused_since + _DISCONNECT_GRACE:
            return  # its request ends with 410: `handle` is told through `changed`
        if member is None or member.revoked is None:
            self.refused("unknown or expired", connection.client, connection.site)
        connection.transport.abort()

    def _file_stamp(self) -> tuple[int, ...]:
        found: list[int] = []
        for path in (self._home.sites, self._home.certificate):
            with contextlib.suppress(OSError):
                stat = path.stat()
                found += [stat.st_ino, stat.st_mtime_ns]
        return tuple(found)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        connection: _Connection = scope["state"]["connection"]
        try:
            status, body = await self._answer(connection, scope, receive)
        except asyncio.CancelledError:  # the server closes
            connection.transport.abort()
            return
        if connection.transport.is_closing():
            return
        headers = [(b"content-length", str(len(body)).encode())]
        if status == 200:
            headers.append((b"content-type", b"application/x-protobuf"))
        else:
            headers.append((b"connection", b"close"))
        if self._members.find(connection.key) is not None:
            headers.append((b"date", formatdate(usegmt=True).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, connection: _Connection, scope: Any, receive: Any) -> Answer:
        member = self._members.find(connection.key)
        if member is None:
            self.refused("unknown certificate", connection.client)
            return 404, b""
        if member.revoked is not None:
            self.refused("revoked", connection.client, member.name)
            return GONE, b""
        path = scope["path"]
        if not path.startswith(PREFIX) or scope["method"] != "POST":
            self.refused("path", connection.client, member.name)
            return 404, b""
        self._seen(member.name)
        try:
            body = await _body(receive)
        except OverflowError:
            self.refused("body too large", connection.client, member.name)
            return 413, b""
        except TimeoutError:
            self.refused("body too slow", connection.client, member.name)
            return 408, b""
        if body is None:
            return 400, b""
        status, content = await self._handle(member, path, dict(scope["headers"]), body)
        if status != 200 and status != GONE:
            self.refused(f"{path.removeprefix(PREFIX)}: {status}", connection.client, member.name)
        now = self._members.find(connection.key)
        if now is None or now.revoked is not None:
            self.refused("revoked", connection.client, member.name)
            return GONE, b""
        self._seen(member.name)
        return status, content


async def _body(receive: Any) -> bytes | None:
    """The whole body, up to a limit, within a time; None where the peer left."""
    parts, size = [], 0
    async with asyncio.timeout(_BODY_SECONDS):
        while True:
            event = await receive()
            if event["type"] != "http.request":
                return None
            size += len(event["body"])
            if size > MAX_BODY:
                raise OverflowError
            parts.append(event["body"])
            if not event.get("more_body"):
                return b"".join(parts)
