"""A Grid in one process: Flower's messages to the shipped ClientApp, without sockets."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from server.rounds.site_grid import LATE, SiteGrid

_FIRST_NODE = 1000


class Engine(Protocol):
    """What runs the clients: `submit` takes a message, `collect` gives one reply back."""

    def submit(self, number: str, site: str, message: Message) -> None: ...

    def collect(self) -> tuple[str, Message] | None: ...

    def close(self) -> None: ...


class LocalGrid(SiteGrid):
    """The Grid of a simulation: whatever the engine, one reply at a time is handed on.

    `drops(site, round)` says whether a site stays silent (it is never asked), `late(site, round)`
    whether its reply comes a round late: then it has trained and spent, and can be pulled later.
    """

    def __init__(
        self,
        engine: Engine,
        sites: Sequence[str],
        *,
        drops: Callable[[str, str], bool] = lambda site, number: False,
        late: Callable[[str, str], bool] = lambda site, number: False,
    ) -> None:
        self._engine = engine
        self._run = Run.create_empty(run_id=secrets.randbits(63))
        identify(self._run.run_id)
        self._names = {_FIRST_NODE + i: name for i, name in enumerate(sites)}
        self._requests: dict[str, Message] = {}
        self._silent: list[str] = []
        self._held: dict[str, tuple[int, Message]] = {}  # by message: the node, and its late reply
        self._drops = drops
        self._late = late

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def names(self) -> Mapping[int, str]:
        """Which site each node is."""
        return self._names

    def wait(self, seconds: float) -> None:
        """Nothing arrives by itself: `pull_messages` waits for the engine."""
        time.sleep(0)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids, posted = [], list(messages)
        nodes = {message.metadata.dst_node_id for message in posted}
        self._held = {n: h for n, h in self._held.items() if h[0] not in nodes}  # overtaken
        for message in posted:
            number = secrets.token_hex(8)
            message.metadata.__dict__["_message_id"] = number
            self._requests[number] = message
            site = self._names[message.metadata.dst_node_id]
            if self._drops(site, message.metadata.group_id):
                self._silent.append(number)
            else:
                self._engine.submit(number, site, message)
            ids.append(number)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """One reply, of whichever asked site answers next."""
        for number in message_ids:
            if number in self._held:
                return [self._held.pop(number)[1]]
        if self._silent:
            number = self._silent.pop()
            return [Message(Error(code=0, reason="no answer"), reply_to=self._requests.pop(number))]
        collected = self._engine.collect()
        if collected is None:
            return []
        number, reply = collected
        request = self._requests.pop(number)
        meta = request.metadata
        trained = meta.message_type == "train"  # other messages ask for nothing that takes long
        if trained and self._late(self._names[meta.dst_node_id], meta.group_id):
            self._held[number] = meta.dst_node_id, reply
            return [Message(Error(code=LATE, reason="late"), reply_to=request)]
        return [reply]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        ids = set(self.push_messages(messages))
        replies: list[Message] = []
        while ids:
            for reply in self.pull_messages(ids):
                ids.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies


def identify(run: int) -> None:
    """Flower's messages take their run and their sender from this global of the process."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, 1


def context(message: Message, site: str) -> Context:
    """The context of one site's client."""
    return Context(
        run_id=message.metadata.run_id,
        node_id=message.metadata.dst_node_id,
        node_config={"site": site},
        state=RecordDict({"site": ConfigRecord({})}),
        run_config={},
    )
