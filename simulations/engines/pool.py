"""Engines behind the Grid: in this process one by one, or in a persistent pool of processes."""

import sys
from collections import deque
from collections.abc import Hashable, Iterable
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from typing import Any, Final, Generic, TypeVar

import torch
import torch.multiprocessing as processes
from flwr.app import Message
from flwr.clientapp import ClientApp

from client.app import make_app
from client.dpsgd.trees import tensors
from client.dpsgd.weights import shapes
from client.tasks.registry import task_of
from privacy.arrays import most
from privacy.contract.plan import Plan
from privacy.runtime import begin_worker
from simulations.dataset import Place, sites
from simulations.engines.errors import EngineError
from simulations.engines.pipes import Get, Shared, receive, send
from simulations.grid import context, identify

_MOST_SHARED: Final = 1 << 24  # bytes; what a larger model adds in memory is not worth the time
Asked = tuple[str, str, Message]
_DIED: Final = "a worker process has died"
W = TypeVar("W", bound=Hashable)


class Serial:
    """Runs a client when its reply is collected: one update is in memory at a time."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._app = simulated_app(place)
        self._waiting: deque[Asked] = deque()

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


class Waiting(Generic[W]):
    """Messages that no worker has yet.

    A site that is asked again in a round goes to the worker that had it: there its reply is kept,
    anywhere else it would train and pay again.
    """

    def __init__(self) -> None:
        self._new: deque[Asked] = deque()
        self._again: dict[W, deque[Asked]] = {}
        self._had: dict[str, W] = {}
        self._round = ""

    def put(self, number: str, site: str, message: Message) -> None:
        """Queue a message."""
        if message.metadata.group_id != self._round:
            self._round = message.metadata.group_id
            self._had.clear()
        had = self._had.get(site)
        queue = self._new if had is None else self._again.setdefault(had, deque())
        queue.append((number, site, message))

    def lost(self, worker: W) -> None:
        """A worker is gone: what waits for it goes to anybody."""
        self._new.extend(self._again.pop(worker, ()))
        self._had = {site: had for site, had in self._had.items() if had != worker}

    def take(self, worker: W) -> Asked | None:
        """The next message for a worker that has nothing to do."""
        queue = self._again.get(worker) or self._new
        if not queue:
            return None
        request = queue.popleft()
        self._had[request[1]] = worker
        return request


class Processes:
    """A pool of processes that keep torch warm and share the rows' memory.

    On Linux they are forks, there at once with everything loaded, as torch's own data loaders are:
    each computes in one thread. Noise is drawn under a fresh key each time, so that no two share
    any (privacy/mechanism/noise.py); the audit tries it.
    """

    def __init__(self, place: Place, workers: int) -> None:
        forks = sys.platform == "linux"
        for tensor in (*tensors(place.train.x), place.train.y, place.train.subject):
            if tensor is not None and not forks:
                tensor.share_memory_()
        self._waiting: Waiting[Connection] = Waiting()
        self._idle: list[Connection] = []
        self._busy: dict[Connection, str] = {}
        self._replies: dict[Connection, Get | None] = {}
        self._workers = []
        starting: Any = processes.get_context("fork" if forks else "spawn")
        room = _room(place.plan) if forks else 0
        self._requests = Shared(room) if room else None
        for _ in range(workers):
            here, there = starting.Pipe()
            others = (*self._idle, here) if forks else ()
            replies = Shared(room) if room else None
            args = (there, place, others, self._requests, replies)
            worker = starting.Process(target=_work, args=args, daemon=True)
            worker.start()
            there.close()
            self._workers.append(worker)
            self._idle.append(here)
            self._replies[here] = None if replies is None else replies.get

    def submit(self, number: str, site: str, message: Message) -> None:
        """Queue a message, and give it to a worker that has nothing to do."""
        self._waiting.put(number, site, message)
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
                reply: Message = receive(ready, self._replies[ready])
            except (EOFError, OSError):
                raise EngineError(_DIED) from None
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
        for pipe in reversed(self._idle):
            request = self._waiting.take(pipe)
            if request is not None:
                number, *what = request
                try:
                    send(pipe, what, self._requests, over=not self._busy)
                except OSError:
                    raise EngineError(_DIED) from None
                self._busy[pipe] = number
        self._idle = [pipe for pipe in self._idle if pipe not in self._busy]


def simulated_app(place: Place) -> ClientApp:
    """The shipped ClientApp over simulated sites, each made when it is first asked."""
    site = sites(place)
    return make_app(lambda flower_context, content: site(str(flower_context.node_config["site"])))


def _room(plan: Plan) -> int:
    """Shared bytes for the weights of the plan's model, or an update of them; 0 if it is large."""
    room = most(shapes(task_of(plan), plan.seed))
    return room if room <= _MOST_SHARED else 0


def _work(
    pipe: Connection,
    place: Place,
    others: Iterable[Connection],
    requests: Shared | None,
    replies: Shared | None,
) -> None:
    """A worker's loop: a site and a message in, its reply out, until the pipe closes.

    `others` are ends of pipes that a fork inherits: open here, they would outlive their owner.
    """
    for end in others:
        end.close()
    begin_worker()
    torch.set_num_threads(1)
    app = simulated_app(place)
    get = None if requests is None else lru_cache(maxsize=1)(requests.get)  # once a round
    while True:
        try:
            site, message = receive(pipe, get)
        except (EOFError, OSError):
            return
        identify(message.metadata.run_id)
        with place.draws(site, message.metadata.group_id):
            reply = app(message=message, context=context(message, site))
        send(pipe, reply, replies)
