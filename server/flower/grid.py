"""Flower's own Grid, as far as its nodes are this coordinator's sites: told by their keys.

A SuperNode that shows a site's enrolled key is that site (`flower-supernode
--auth-supernode-private-key`). That it holds the key, the SuperLink has checked only where it runs
with `--enable-supernode-auth`; a node of any other key is not asked.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import httpx
from flwr.app import Error, Message
from flwr.serverapp import Grid

from server.rounds.site_grid import SiteGrid

_NO_REPLY: Final = 0
_POLL: Final = 0.5


class RegisteredGrid(SiteGrid):
    """The Grid that Flower gave the ServerApp, with what the coordinator's loop needs beside.

    `sites()` are the names of the sites by the PEM of their public keys, as they are now; `log`
    hears of nodes that are none of them, and of replies that cannot be read.
    """

    def __init__(
        self, grid: Grid, sites: Callable[[], Mapping[bytes, str]], log: Callable[..., None]
    ) -> None:
        self._grid, self._sites, self._log = grid, sites, log
        self._strangers: set[int] = set()
        self._sent: dict[str, Message] = {}
        self._unsent: set[str] = set()

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def names(self) -> Mapping[int, str]:
        """Which site each connected node is; a node that is none is told of once."""
        sites, names = self._sites(), dict[int, str]()
        for node in self._grid.get_nodes():
            site = sites.get(node.public_key)
            if site is not None:
                names[node.node_id] = site
            elif node.node_id not in self._strangers:
                self._strangers.add(node.node_id)
                self._log("node_not_asked", node=node.node_id, why="its key is not that of a site")
        return names

    def wait(self, seconds: float) -> None:
        """Nothing tells of news here: the SuperLink is asked again, not too often."""
        time.sleep(max(seconds, _POLL))

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
                messages = list(self._grid.pull_messages([number]))
            except httpx.HTTPError:  # the SuperLink's, no site's
                raise
            except Exception as error:  # noqa: BLE001 - hostile bytes: that site's reply failed, no more
                self._log("reply_malformed", why=type(error).__name__)
                return [Message(Error(_NO_REPLY, "unreadable"), reply_to=self._sent[number])]
            if messages:
                return messages
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout)
