"""Flower's own Grid, with a roll-call: under stock Flower each node is asked which site it is.

Nothing proves what a node says. Only names of the coordinator's own sites count, and of two nodes
that give the same name the first keeps it as long as it is connected.
"""

import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import httpx
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

_NO_REPLY: Final = 0
_POLL: Final = 0.5
_ASK_AGAIN: Final = 20.0


class RollCall(Grid):
    """Whatever Grid Flower gave the ServerApp, as far as the coordinator's loop needs one.

    `sites()` are the names that count now; `log` hears of nodes that are not asked to train.
    """

    def __init__(
        self,
        grid: Grid,
        sites: Callable[[], Collection[str]],
        log: Callable[..., None],
        *,
        patience: float = 120.0,
    ) -> None:
        self._grid, self._sites, self._log, self._patience = grid, sites, log, patience
        self._said: dict[int, str] = {}
        self._asked: dict[int, float] = {}
        self._told: set[tuple[int, str]] = set()
        self._sent: dict[str, Message] = {}
        self._unsent: set[str] = set()

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def wait(self, seconds: float) -> None:
        """Nothing tells of news here: the SuperLink is asked again, not too often."""
        time.sleep(max(seconds, _POLL))

    def names(self) -> Mapping[int, str]:
        """Which site each connected node says it is; a node that is silent is asked again later."""
        here = sorted(self._grid.get_node_ids())
        for gone in set(self._said) - set(here):
            del self._said[gone]
        now = time.monotonic()
        new = [
            node
            for node in here
            if node not in self._said and now - self._asked.get(node, -_ASK_AGAIN) >= _ASK_AGAIN
        ]
        if new:
            self._call(new)
            self._asked |= dict.fromkeys(new, time.monotonic())
        known, found = self._sites(), dict[int, str]()
        for node, site in self._said.items():  # in the order in which they were said
            if site not in known:
                self._tell(node, "not one of this coordinator's sites")
            elif site in found.values():
                self._tell(node, f"says that it is {site}, as another node does")
            else:
                found[node] = site
        return found

    def _call(self, nodes: list[int]) -> None:
        content = RecordDict({"request": ConfigRecord({"what": "site"})})
        asked = {
            self.push_messages([self.create_message(content, "query", node, "")])[0]: node
            for node in nodes
        }
        end = time.monotonic() + self._patience
        while asked and time.monotonic() < end:
            replies = self.pull_messages(list(asked))
            for reply in replies:
                node = asked.pop(reply.metadata.reply_to_message_id)
                name = _name(reply)
                if name is None:
                    self._tell(node, "does not say which site it is")
                else:
                    self._said[node] = name
            if asked and not replies:
                self.wait(_POLL)

    def _tell(self, node: int, why: str) -> None:
        if (node, why) not in self._told:
            self._told.add((node, why))
            self._log("not asked", node=node, why=why)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send each; one for a node that has gone meanwhile is answered with an error."""
        ids = []
        for message in messages:
            number = next(iter(self._grid.push_messages([message])), None)
            if not number:
                number = secrets.token_hex(16)
                message.metadata.__dict__["_message_id"] = number
                self._unsent.add(number)
            self._sent[number] = message
            ids.append(number)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The next reply, one at a time, so that one that cannot be read spoils no other."""
        waiting = list(message_ids)
        self._sent = {n: message for n, message in self._sent.items() if n in waiting}
        for number in waiting:
            if number in self._unsent:
                self._unsent.discard(number)
                return [Message(Error(_NO_REPLY, "away"), reply_to=self._sent[number])]
            try:
                found = list(self._grid.pull_messages([number]))
            except httpx.HTTPError:
                raise
            except Exception as error:  # noqa: BLE001 - hostile bytes: that site's reply failed, no more
                self._log("bad reply", why=type(error).__name__)
                return [Message(Error(_NO_REPLY, "unreadable"), reply_to=self._sent[number])]
            if found:
                return found
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)


def _name(reply: Message) -> str | None:
    """The site's name in a reply to the roll-call, if it is one."""
    if reply.has_error():
        return None
    fields = reply.content.config_records.get("reply")
    name = fields.get("site") if fields is not None else None
    return name if isinstance(name, str) and name else None
