"""A relay's connection to its coordinator: the client's own agent, under the relay's enrolment.

`client` is imported here lazily: what keeps a party connected is the same for a site and a relay.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flwr.clientapp import ClientApp


@dataclass(slots=True)
class Enrolment:
    """A relay as its coordinator knows it; `folder` is that of a party: `tacit-client enroll`."""

    folder: Path

    @property
    def name(self) -> str:
        """The relay's name; ValueError before it has joined."""
        from client.agent.credentials import Enrolled

        return Enrolled(self.folder).joined().name


@dataclass(slots=True)
class Upward:
    """A connection that is kept up in a thread; `refused` says why it ended for good."""

    over: threading.Event = field(default_factory=threading.Event)
    refused: str = ""


@contextmanager
def connected(
    folder: Path,
    app: ClientApp,
    *,
    log: Callable[..., None],
    server: str | None = None,
    proxy: str = "env",
) -> Iterator[Upward]:
    """Keep the connection while the block runs; a request in hand is answered first."""
    from client.agent.connection import Agent, Refused, quiet
    from client.agent.credentials import Enrolled
    from client.agent.route import route

    quiet()
    site = Enrolled(folder).joined()
    stop, upward = threading.Event(), Upward()
    agent = Agent(app, site, route(site.hosts, server, proxy), log=log, stop=stop)

    def serve() -> None:
        try:
            agent.run()
        except Refused as error:
            upward.refused = str(error)
        finally:
            upward.over.set()

    thread = threading.Thread(target=serve, name="upward", daemon=True)
    thread.start()
    try:
        yield upward
    finally:
        stop.set()
        agent.close()
        thread.join()
