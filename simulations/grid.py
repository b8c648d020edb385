"""A Grid in one process: the shipped ServerApp and ClientApp, without sockets and without Ray."""

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

_FIRST_NODE = 1000


class LocalGrid(Grid):
    """Runs a message's client when its reply is pulled, so that one reply is in memory at a time.

    `drops(site, round)` says whether a site stays silent (it is never asked), `late(site, round)`
    whether its reply comes too late to count: then it has trained and spent.
    """

    def __init__(
        self,
        app: ClientApp,
        sites: Sequence[str],
        *,
        drops: Callable[[str, str], bool] = lambda site, number: False,
        late: Callable[[str, str], bool] = lambda site, number: False,
    ) -> None:
        self._app = app
        self._run = Run.create_empty(run_id=secrets.randbits(63))
        # Flower's messages take their run and their sender from this global of the process.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, self._run.run_id, 1
        self._names = {_FIRST_NODE + i: name for i, name in enumerate(sites)}
        self._waiting: dict[str, Message] = {}
        self._drops = drops
        self._late = late

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def names(self) -> Mapping[int, str]:
        """Which site each node is."""
        return self._names

    def get_node_ids(self) -> Iterable[int]:
        return list(self._names)

    def wait(self, seconds: float) -> None:
        """Nothing can arrive by itself: every reply is made when it is pulled."""
        time.sleep(0)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            number = secrets.token_hex(8)
            message.metadata.__dict__["_message_id"] = number
            self._waiting[number] = message
            ids.append(number)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for number in message_ids:
            message = self._waiting.pop(number, None)
            if message is not None:
                return [self._reply(message)]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return [m for number in self.push_messages(messages) for m in self.pull_messages([number])]

    def _reply(self, message: Message) -> Message:
        site = self._names[message.metadata.dst_node_id]
        number = message.metadata.group_id
        if self._drops(site, number):
            return Message(Error(code=0, reason="no answer"), reply_to=message)
        reply = self._app(message=message, context=self._context(message))
        if self._late(site, number):
            return Message(Error(code=0, reason="too late"), reply_to=message)
        return reply

    def _context(self, message: Message) -> Context:
        node = message.metadata.dst_node_id
        return Context(
            run_id=self._run.run_id,
            node_id=node,
            node_config={"site": self._names[node]},
            state=RecordDict({"site": ConfigRecord({})}),
            run_config={},
        )
