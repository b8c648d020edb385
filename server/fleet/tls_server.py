"""The one open port: TLS 1.3 with client certificates, and nothing for whoever has none.

It knows no Flower. Connections that do not finish their handshake are few and short-lived; of those
that do, the certificate must be on the list of sites, now and at every request. What is refused
gets an empty answer or a closed connection, and a line in the log.
"""

import asyncio
import contextlib
import datetime
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Final

from privacy.http.exchange import HttpError, HttpLimits, Receive, Scope, Send, read_body, respond
from privacy.http.http_connection import HttpConnection
from privacy.http.http_listener import HttpListener, listen
from privacy.identity.certificates import Certificate, issued_by
from privacy.identity.keys import IdentityError
from server.fleet.tls import Log, Refusals, handshake_failure, server_context
from server.registry.sites import Home, Member, Members

PREFIX: Final = "/v1/fleet/"
BUNDLE: Final = "/v1/site/bundle"
"""Where a connected site asks for its bundle: its certificate, and the coordinator's addresses."""
MAX_BODY: Final = 8 * 1024 * 1024
_MAX_SMALL_BODY: Final = 512 * 1024
_LARGE: Final = PREFIX + "push-object"
_CONNECTIONS_A_SITE: Final = 16
_WATCH_SECONDS: Final = 0.25
_DISCONNECT_GRACE: Final = 1.0
_HANDSHAKE_SECONDS: Final = 0.02
SPREAD: Final = b"retry-after"
"""What every answer says to more than a few sites: how long to spread out coming back."""
_LIMITS: Final = HttpLimits(
    idle_seconds=90.0, body_seconds=30.0, connections=20_000, chunked=False, fields=50
)

GONE: Final = 410
"""What a site's own, revoked key is told: enough for it to stop, nothing else."""

Headers = dict[bytes, bytes]
Answer = tuple[int, bytes]
Handle = Callable[[Member, str, Headers, bytes], Awaitable[Answer]]


class FleetConnection(HttpConnection):
    """A connection whose handshake is done: whose certificate it shows, and until when."""

    key = ""
    site = ""
    shown = b""
    refused_since = 0.0
    ends = datetime.datetime.max.replace(tzinfo=datetime.UTC)


class TlsServer(HttpListener):
    """Listens in a thread of its own and hands whole requests of known sites to `handle`.

    `seen(site)` hears of every request, `gone(site)` when the last connection of a site closed,
    `changed(members)` when the list of sites is another; `bundle(member, certificate)` answers a
    site that asks for its bundle and showed this certificate (DER).
    """

    date = False  # of software that answers strangers, not even its clock is told

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
        bundle: Callable[[Member, bytes], Answer] = lambda member, certificate: (404, b""),
    ) -> None:
        self._home, self._handle, self._log = home, handle, log
        self._seen, self._gone, self._changed, self._tick = seen, gone, changed, tick
        self._bundle = bundle
        self.refused = Refusals(log)
        self._members = home.members()
        self._stamp = self._file_stamp()
        self._context = server_context(home)
        self._authorities = home.authorities()
        super().__init__(listen(*where), self._app, _LIMITS, tls=lambda: self._context)
        self._sites: dict[str, OrderedDict[FleetConnection, None]] = {}
        self._thread = threading.Thread(target=self._run, name="tls-server", daemon=True)
        self._stop = asyncio.Event()
        self.loop = asyncio.new_event_loop()

    def open(self) -> None:
        """Start to listen."""
        self._thread.start()

    def close(self) -> None:
        """Drop every connection and stop."""
        with contextlib.suppress(RuntimeError):  # it never opened, or has ended
            self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def connected(self, site: str) -> bool:
        """Whether a site has an open connection."""
        return bool(self._sites.get(site))

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self._until_stopped())
        finally:
            self.loop.close()

    async def _until_stopped(self) -> None:
        watching = self.loop.create_task(self._watch())
        await self.serve(self._stop)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    # connections

    def connection(self, loop: asyncio.AbstractEventLoop) -> FleetConnection:
        return FleetConnection(self, loop)

    def handshake_failed(self, error: OSError | None, peer: object) -> None:
        if error is None:
            self.refused("too many handshakes", peer)
        elif isinstance(error, ssl.SSLError):
            self.refused(handshake_failure(error), peer)
        else:
            self.refused("handshake not finished", peer)

    def refusal(self, connection: HttpConnection, error: HttpError) -> bytes | None:
        """Garbage gets no answer; a refused request of a known site an empty one."""
        site = connection.site if isinstance(connection, FleetConnection) else ""
        self.refused(f"garbage ({error.status})", connection.peer, site)
        return b"" if site and error.status == 411 else None

    def failed(self, error: Exception) -> None:
        self._log("failed", error=type(error).__name__)

    def opened(self, connection: HttpConnection) -> None:
        """A finished handshake: note whose it is; too many of one site push out the oldest."""
        super().opened(connection)
        if not isinstance(connection, FleetConnection):
            return
        tls = connection.transport.get_extra_info("ssl_object")
        try:
            connection.shown = tls.getpeercert(binary_form=True) or b""
            certificate = Certificate.read(connection.shown)
        except IdentityError:
            connection.transport.abort()
            return
        connection.key, connection.ends = certificate.fingerprint, certificate.ends
        member = self._members.find(connection.key)
        connection.site = member.name if member is not None else ""
        mine = self._sites.setdefault(connection.site, OrderedDict())
        mine[connection] = None
        if len(mine) > _CONNECTIONS_A_SITE:
            oldest, _ = mine.popitem(last=False)
            oldest.transport.abort()
        if not issued_by(connection.shown, self._authorities):  # its handshake began before
            self._refuse_former(connection)

    def closed(self, connection: HttpConnection) -> None:
        super().closed(connection)
        if not isinstance(connection, FleetConnection):
            return
        mine = self._sites.get(connection.site)
        if mine is not None:
            mine.pop(connection, None)
            if not mine:
                del self._sites[connection.site]
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
                    self._context = server_context(self._home)
                    self._authorities = self._home.authorities()
                    self._changed(self._members)
                    self._disconnect_former()
            now = datetime.datetime.now(datetime.UTC)
            for connections in list(self._sites.values()):
                for connection in list(connections):
                    member = self._members.find(connection.key)
                    if member is None or member.revoked is not None or now >= connection.ends:
                        self._disconnect(connection, member)

    def _disconnect_former(self) -> None:
        """End the connections of whose certificate the authority is one no more."""
        for connections in list(self._sites.values()):
            for connection in list(connections):
                if not issued_by(connection.shown, self._authorities):
                    self._refuse_former(connection)

    def _refuse_former(self, connection: FleetConnection) -> None:
        self.refused("of a former authority", connection.peer, connection.site)
        connection.transport.abort()

    def _disconnect(self, connection: FleetConnection, member: Member | None) -> None:
        """End a connection that is no longer allowed; a revoked site first hears why."""
        revoked = connection.key in self._members.revoked_keys
        connection.refused_since = connection.refused_since or time.monotonic()
        since = time.monotonic() - connection.refused_since
        if revoked and since < _DISCONNECT_GRACE:
            return  # its next request, or the one at work, ends with 410
        if member is None or member.revoked is None:
            self.refused("unknown or expired", connection.peer, connection.site)
        connection.transport.abort()

    def _file_stamp(self) -> tuple[int, ...]:
        stamp: list[int] = []
        home = self._home
        for path in (home.sites, home.certificate, home.ca, home.next_ca):
            with contextlib.suppress(OSError):
                stat = path.stat()
                stamp += [stat.st_ino, stat.st_mtime_ns]
        return tuple(stamp)

    # requests

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: FleetConnection = scope["state"]["connection"]
        status, body = await self._answer(connection, scope, receive)
        known = self._members.find(connection.key) is not None
        fields: tuple[tuple[bytes, bytes], ...] = ()
        if known:
            fields = ((b"date", formatdate(usegmt=True).encode()), *self._spread())
        kind = b"application/json" if scope["path"] == BUNDLE else b"application/x-protobuf"
        kind = kind if status == 200 else b""
        await respond(send, status, body, kind, fields)

    def _spread(self) -> tuple[tuple[bytes, bytes], ...]:
        """Over how many seconds sites that are cut off shall come back: their handshakes' time."""
        seconds = int(len(self._sites) * _HANDSHAKE_SECONDS)
        return ((SPREAD, str(seconds).encode()),) if seconds else ()

    async def _answer(self, connection: FleetConnection, scope: Scope, receive: Receive) -> Answer:
        member = self._members.find(connection.key)
        if member is None and connection.key in self._members.revoked_keys:
            self.refused("revoked", connection.peer)
            return GONE, b""
        if member is None:
            self.refused("unknown certificate", connection.peer)
            return 404, b""
        if member.revoked is not None:
            self.refused("revoked", connection.peer, member.name)
            return GONE, b""
        path = scope["path"]
        if path == BUNDLE and scope["method"] == "POST":
            self._seen(member.name)
            return self._bundle(member, connection.shown)
        if not path.startswith(PREFIX) or scope["method"] != "POST":
            self.refused("path", connection.peer, member.name)
            return 404, b""
        self._seen(member.name)
        most = MAX_BODY if path == _LARGE else _MAX_SMALL_BODY
        try:
            body = await read_body(scope, receive, most, _LIMITS)
        except HttpError as error:
            self.refused(str(error), connection.peer, member.name)
            return error.status, b""
        status, content = await self._handle(member, path, dict(scope["headers"]), body)
        if status != 200 and status != GONE:
            self.refused(f"{path.removeprefix(PREFIX)}: {status}", connection.peer, member.name)
        now = self._members.find(connection.key)
        if now is None or now.revoked is not None:
            self.refused("revoked", connection.peer, member.name)
            return GONE, b""
        if not connection.closed:  # a poll outlives its connection, and must not bring it back
            self._seen(member.name)
        return status, content
