"""A coordinator's and sites' folders for tests, and a small ClientApp that adds one."""

import datetime
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.agent import Agent, Refused
from client.enrolled import Enrolled, enroll, join
from server import members


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def coordinator(folder: Path, *sites: str) -> tuple[Path, dict[str, Path]]:
    """A coordinator for 127.0.0.1, and enrolled, joined folders of so many sites."""
    home = folder / "coordinator"
    members.create(home, ["127.0.0.1", "localhost"], now())
    return home, {site: member(folder, home, site) for site in sites}


def member(folder: Path, home: Path, site: str) -> Path:
    """One more site, enrolled and joined."""
    where = folder / site
    csr, key = enroll(where, site)
    _, bundle = members.sign(home, csr, now(), expect=key)
    join(where, bundle, now())
    return where


class Events:
    """A log that can be asked."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self._more = threading.Condition()

    def __call__(self, event: str, **facts: Any) -> None:
        with self._more:
            self.lines.append({"event": event, **facts})
            self._more.notify_all()

    def said(self, event: str, **facts: Any) -> bool:
        want = {"event": event, **facts}.items()
        return any(all(line.get(k) == v for k, v in want) for line in self.lines)

    def wait(self, event: str, seconds: float = 20, **facts: Any) -> bool:
        with self._more:
            return self._more.wait_for(lambda: self.said(event, **facts), seconds)


def app(change: Callable[[np.ndarray], np.ndarray] = lambda w: w + 1) -> ClientApp:
    """A ClientApp that changes the weights."""
    found = ClientApp()

    @found.train()
    def train(message: Message, context: Context) -> Message:
        weights = message.content.array_records["arrays"]["w"].numpy()
        return Message(content(change(weights)), reply_to=message)

    return found


def content(weights: np.ndarray) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"w": Array(weights)})})


@contextmanager
def running(
    folder: Path,
    address: tuple[str, int],
    client: ClientApp | None = None,
    log: Events | None = None,
) -> Iterator[Events]:
    """An agent in a thread; it ends with the block."""
    stop, events = threading.Event(), log if log is not None else Events()
    agent = Agent(
        client if client is not None else app(),
        Enrolled(folder).joined(),
        f"127.0.0.1:{address[1]}",
        log=events,
        stop=stop,
    )

    def run() -> None:
        try:
            agent.run()
        except Refused as error:
            events("refused", why=str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield events
    finally:
        stop.set()
        agent.close()
        thread.join(10)
