"""A coordinator's and sites' folders for tests, and a small ClientApp that adds one."""

import datetime
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.agent.connection import Agent, Refused
from client.agent.credentials import Enrolled, enroll, join
from client.agent.route import Route
from server.fleet.grid import LinkGrid, serve
from server.registry import sites as members
from tests.support.patience import patience


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
            return self._more.wait_for(lambda: self.said(event, **facts), patience(seconds))


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
    events = log if log is not None else Events()
    direct = Route([f"127.0.0.1:{address[1]}"], "none")
    with run_agent(folder, direct, client if client is not None else app(), events):
        yield events


@contextmanager
def run_agent(folder: Path, route: Route, client: ClientApp, events: Events) -> Iterator[None]:
    """An agent that takes a route, in a thread."""
    stop = threading.Event()
    agent = Agent(client, Enrolled(folder).joined(), route, log=events, stop=stop)

    def run() -> None:
        try:
            agent.run()
        except Refused as error:
            events("refused", why=str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        agent.close()
        thread.join(10)


@contextmanager
def linked(home: Path, log: Events | None = None, **options: Any) -> Iterator[LinkGrid]:
    """The coordinator's link on a free port of 127.0.0.1."""
    with serve(home, ("127.0.0.1", 0), log=log if log is not None else Events(), **options) as grid:
        yield grid


def ask(grid: LinkGrid, weights: np.ndarray, *, ttl: float | None = None) -> dict[str, str]:
    """A message to every connected site; the sites by the messages' ids."""
    names = grid.names()
    messages = [grid.create_message(content(weights), "train", n, "1", ttl) for n in names]
    return dict(zip(grid.push_messages(messages), names.values(), strict=True))


def answers(grid: LinkGrid, asked: dict[str, str], seconds: float = 20) -> dict[str, Message]:
    """What came of it in time, by site."""
    found: dict[str, Message] = {}
    end = time.monotonic() + patience(seconds)
    while len(found) < len(asked) and time.monotonic() < end:
        for message in grid.pull_messages([i for i, s in asked.items() if s not in found]):
            found[asked[message.metadata.reply_to_message_id]] = message
        if len(found) < len(asked):
            grid.wait(0.1)
    return found


def weights_in(message: Message) -> np.ndarray:
    """The weights of an answer of `app`."""
    found: np.ndarray = message.content.array_records["arrays"]["w"].numpy()
    return found
