"""Flower's Grid as the coordinator's loop needs it: each node has the name of an enrolled site."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

LATE: Final = 1000
"""The code of an error that says: the reply is not there yet, and may still be pulled later."""


class SiteGrid(Grid):
    """A Grid that knows which site each connected node is, and can wait for a reply."""

    @abstractmethod
    def names(self) -> Mapping[int, str]:
        """The site's name of each connected node, as the transport vouches for it."""

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Block until a reply may have arrived, for at most `seconds`."""

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
        return list(self.names())
