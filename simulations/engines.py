"""Engines behind the Grid: in this process one by one, or in a persistent pool of processes."""

import gc
import sys
from collections import deque
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.multiprocessing as processes
from flwr.app import Message
from flwr.clientapp import ClientApp

from client.app import make_app
from simulations.grid import context, identify
from simulations.world import Place, sites


class EngineError(RuntimeError):
    """An engine that cannot go on: a worker has died."""


class Serial:
    """Runs a client when its reply is collected: one update is in memory at a time."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._app = simulated_app(place)
        self._waiting: deque[tuple[str, str, Message]] = deque()

    def submit(self, number: str, site: str, message: Message) -> None:
        """Queue a message."""
        self._waiting.append((number, site, message))

    def collect(self) -> tuple[str, Message] | None:
        """Run the next client."""
        if not self._waiting:
            return None
        number, site, message = self._waiting.popleft()
        with self._place.draws(site, message.metadata.group_id):
            return number, self._app(message=message, context=context(message, site))

    def close(self) -> None:
        """Nothing is held."""


class Processes:
    """A pool of processes that keep torch warm and share the rows' memory.

    On Linux they are forks, there at once with everything loaded, as torch's own data loaders are:
    each computes in one thread. Noise is drawn under a fresh key each time, so that no two share
    any (privacy/noise.py); the audit tries it.
    """

    def __init__(self, place: Place, workers: int) -> None:
        forks = sys.platform == "linux"
        for tensor in (place.train.x, place.train.y, place.train.subject):
            if tensor is not None and not forks:
                tensor.share_memory_()
        self._waiting: deque[tuple[str, str, Message]] = deque()
        self._idle: list[Connection] = []
        self._busy: dict[Connection, str] = {}
        self._workers = []
        starting: Any = processes.get_context("fork" if forks else "spawn")
        gc.collect()
        gc.freeze()  # a collection in a worker would copy every page that it looks at
        for _ in range(workers):
            here, there = starting.Pipe()
            others = (*self._idle, here) if forks else ()
            worker = starting.Process(target=_work, args=(there, place, others), daemon=True)
            worker.start()
            there.close()
            self._workers.append(worker)
            self._idle.append(here)
        gc.unfreeze()

    def submit(self, number: str, site: str, message: Message) -> None:
        """Queue a message, and give it to a worker that has nothing to do."""
        self._waiting.append((number, site, message))
        self._feed()

    def collect(self) -> tuple[str, Message] | None:
        """The next reply of any worker."""
        if not self._busy:
            return None
        for ready in wait(list(self._busy)):
            if not isinstance(ready, Connection):
                continue
            number = self._busy.pop(ready)
            try:
                reply: Message = ready.recv()
            except (EOFError, OSError):
                raise EngineError("a worker process has died") from None
            self._idle.append(ready)
            self._feed()
            return number, reply
        return None

    def close(self) -> None:
        """End the pool."""
        for pipe in (*self._idle, *self._busy):
            pipe.close()
        for worker in self._workers:
            worker.join(5)
            if worker.is_alive():
                worker.kill()
                worker.join()

    def _feed(self) -> None:
        while self._idle and self._waiting:
            number, site, message = self._waiting.popleft()
            pipe = self._idle.pop()
            pipe.send((site, message))
            self._busy[pipe] = number


def simulated_app(place: Place) -> ClientApp:
    """The shipped ClientApp over simulated sites, each made when it is first asked."""
    site = sites(place)
    return make_app(lambda asked: site(str(asked.node_config["site"])))


def _work(pipe: Connection, place: Place, others: Iterable[Connection]) -> None:
    """A worker's loop: a site and a message in, its reply out, until the pipe closes.

    `others` are ends of pipes that a fork inherits: open here, they would outlive their owner.
    """
    for end in others:
        end.close()
    torch.set_num_threads(1)
    app = simulated_app(place)
    while True:
        try:
            site, message = pipe.recv()
        except (EOFError, OSError):
            return
        identify(message.metadata.run_id)
        with place.draws(site, message.metadata.group_id):
            reply = app(message=message, context=context(message, site))
        pipe.send(reply)
