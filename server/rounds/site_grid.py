"""Flower's Grid as the coordinator's loop needs it: each node has the name of an enrolled site."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping

from flwr.serverapp import Grid


class SiteGrid(Grid):
    """A Grid that knows which site each connected node is, and can wait for a reply."""

    @abstractmethod
    def names(self) -> Mapping[int, str]:
        """The site's name of each connected node, as the transport vouches for it."""

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Block until a reply may have arrived, for at most `seconds`."""

    def get_node_ids(self) -> Iterable[int]:
        return list(self.names())
