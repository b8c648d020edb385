"""The coordinator's Grid over the link: who is there, messages out, replies in, one at a time."""

import contextlib
import ctypes
import datetime
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from flwr.app import Error, Message, RecordDict

from server.fleet.pending_message import PendingMessage
from server.fleet.superlink import Fleet
from server.fleet.tls import Log
from server.fleet.tls_server import Answer, TlsServer
from server.registry.authority import take
from server.registry.sites import Home, Member, bundle_now
from server.registry.upkeep import CertificateUpkeep, note_renewal
from server.rounds.site_grid import SiteGrid

_M_MMAP_THRESHOLD: Final = -3
_LOOK_SECONDS: Final = 0.25
"""How often every site that owes a reply is looked at: whether it will come any more."""
_NO_REPLY: Final = 4  # Flower's code for a reply that cannot be had


class LinkGrid(SiteGrid):
    """Flower's Grid over the fleet; replies come one at a time, as soon as each is whole.

    A message that cannot be answered any more (its time to live is over, its site is revoked or
    has been away for `patience` seconds, its reply was too large) is answered with an error.
    """

    def __init__(self, fleet: "Fleet", tls_server: TlsServer, patience: float) -> None:
        self._fleet, self._tls_server, self._patience = fleet, tls_server, patience
        self.reply_limit: int | None = None
        self._heard = -1
        self._next_look = 0.0

    @property
    def address(self) -> tuple[str, int]:
        """Where sites connect."""
        return self._tls_server.address

    def set_run(self, run: Any) -> None:
        raise NotImplementedError("a link has one run")

    @property
    def run(self) -> Any:
        return self._fleet.flower.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        message = Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)
        self._fleet.flower.sign_as_sender(message)
        return message

    def names(self) -> Mapping[int, str]:
        """Which site each connected node is: the name in the certificate that holds its key."""
        fleet = self._fleet
        with fleet.news:
            return {fleet.nodes[s]: s for s in sorted(fleet.active) if not fleet.silent(s)}

    def presence(self) -> Mapping[str, tuple[bool, float | None]]:
        """Of every site: whether it is connected, and the seconds since its last request."""
        fleet, connected = self._fleet, set(self.names().values())
        return {s: (s in connected, fleet.liveness.since(s)) for s in list(fleet.nodes)}

    def wait(self, seconds: float) -> None:
        """Until something may have arrived, but no longer than so many seconds."""
        with self._fleet.news:
            if self._heard == self._fleet.arrivals:
                self._fleet.news.wait(seconds)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        posted = list(messages)
        self._fleet.overtake({message.metadata.dst_node_id for message in posted})
        return self._fleet.post_all(posted, self.reply_limit)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        fleet = self._fleet
        wanted = message_ids if isinstance(message_ids, Set) else set(message_ids)
        with fleet.news:
            arrivals, now = fleet.arrivals, time.monotonic()
            if wanted.isdisjoint(fleet.pending.settled) and now >= self._next_look:
                self._next_look = now + _LOOK_SECONDS
                self._give_up(wanted)
            number = next((one for one in fleet.pending.settled if one in wanted), "")
            item = fleet.pending.get(number)
        if item is not None:
            reply = self._read(item)
            fleet.forget(number)
            self._heard = -1  # there may be more: `wait` does not wait
            return [reply]
        self._heard = arrivals
        return []

    def _give_up(self, numbers: Iterable[str]) -> None:
        """End the wait for those that are too late, or whose sites have been away for too long."""
        fleet = self._fleet
        for number in numbers:
            item = fleet.pending.get(number)
            if item is not None and item.expired:
                fleet.fail(item, "too late")
            elif item is not None and fleet.silent(item.site) > self._patience:
                fleet.fail(item, "away")

    def _read(self, item: PendingMessage) -> Message:
        if not item.failure:
            try:
                return self._fleet.flower.open(item)
            except Exception as error:  # noqa: BLE001 - hostile bytes: that site's reply failed, no more
                self._fleet.log("reply_malformed", site=item.site, why=type(error).__name__)
        why = item.failure or "unreadable"
        return Message(Error(_NO_REPLY, why), reply_to=item.message)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        pending = set(self.push_messages(messages))
        end = time.monotonic() + timeout if timeout is not None else None
        replies = []
        while pending and (end is None or time.monotonic() < end):
            for reply in self.pull_messages(list(pending)):
                pending.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            self.wait(0.2)
        for number in pending:
            self._fleet.forget(number)
        return replies


@contextmanager
def serve(
    folder: Path, listen: tuple[str, int], *, log: Log, patience: float = 90.0
) -> Iterator[LinkGrid]:
    """The coordinator's link, open while the block runs: its only port, and a Grid over it."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # `log` says what there is to say
    _give_memory_back()
    home = Home(folder).check()
    fleet = Fleet(log)
    upkeep = CertificateUpkeep(home, log)

    def tick() -> None:
        fleet.flower.tick()
        upkeep()

    def bundle(member: Member, certificate: bytes) -> Answer:
        try:
            content, renewed = bundle_now(folder, member.name, datetime.datetime.now(datetime.UTC))
            if take(home, member.name, certificate):
                log("authority_taken", site=member.name)
        except (OSError, ValueError) as error:
            log("certificate_not_renewed", whose=f"site {member.name}", why=str(error))
            return 503, b""
        if renewed:
            log("certificate_renewed", whose=f"site {member.name}")
            note_renewal(home, log, f"site {member.name}", member.fingerprint)
        return 200, content

    tls_server = TlsServer(
        home,
        listen,
        fleet.handle,
        log=log,
        seen=fleet.liveness.seen,
        gone=fleet.site_closed,
        changed=fleet.register,
        tick=tick,
        bundle=bundle,
    )
    fleet.waiters.loop = tls_server.loop
    fleet.register(home.members())
    tls_server.open()
    try:
        yield LinkGrid(fleet, tls_server, patience)
    finally:
        tls_server.close()
        fleet.close()


def _give_memory_back() -> None:
    """Have glibc return the parts of a freed model at once: it would keep them in its heaps."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)
