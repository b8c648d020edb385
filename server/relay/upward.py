"""A relay's connection to its coordinator: the client's own agent, under the relay's enrolment.

`client` is imported here lazily: what keeps a party connected is the same for a site and a relay.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.clientapp import ClientApp

if TYPE_CHECKING:
    from client.agent.connection import Agent


@dataclass(slots=True)
class Enrolment:
    """A relay as its coordinator knows it; `folder` is that of a party: `tacit-client enroll`."""

    folder: Path

    @property
    def name(self) -> str:
        """The relay's name; ValueError before it has joined."""
        from client.agent.credentials import Enrolled

        return Enrolled(self.folder).joined().name


@contextmanager
def connected(
    folder: Path,
    app: ClientApp,
    *,
    log: Callable[..., None],
    server: str | None = None,
    proxy: str = "env",
) -> Iterator["Agent"]:
    """Keep the connection while the block runs; a request in hand is answered first."""
    from client.agent.connection import Agent
    from client.agent.credentials import Enrolled
    from client.agent.route import route

    site = Enrolled(folder).joined()
    agent = Agent(app, site, route(site.hosts, server, proxy), log=log, stop=threading.Event())
    with agent.in_thread():
        yield agent
