"""Ray actors behind the Grid: a simulation over machines that share nothing; rows are sent once."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import ray
from flwr.app import Message
from ray.exceptions import ObjectLostError, RayActorError

from client.scoring.cluster import check_workers, join
from privacy import runtime
from simulations.dataset import FAULT, Place
from simulations.engines.errors import EngineError
from simulations.engines.ledger_copies import Additions, Sizes, add, additions, sizes
from simulations.engines.pool import Waiting, simulated_app
from simulations.grid import context, identify

_LEAVE_SECONDS: Final = 5.0


def connect(workers: int) -> bool:
    """Join the cluster at RAY_ADDRESS, or start Ray on loopback; whether this did either.

    ClusterError where nobody answers at that address, or the cluster has too few CPUs.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address or ray.is_initialized():
        joined = join(address)
        try:
            check_workers(workers, "simulation.workers")
        except ValueError:
            if joined:
                ray.shutdown()
            raise
        return joined
    runtime.prepare()  # who simulates from a program of their own has not
    ray.init(
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
    )
    return True


@dataclass(frozen=True, slots=True)
class Answer:
    """A site's reply, what it added to its ledger, and what failed in the researcher's own code."""

    reply: Message
    added: Additions
    fault: str


@dataclass(frozen=True, slots=True)
class _Request:
    number: str
    site: str
    message: Message
    actor: Any


class RayActors:
    """A fixed number of actors, each with the shipped ClientApp; started on loopback by default.

    Where Ray is already running (RAY_ADDRESS), its cluster is used. No file system is shared: rows
    travel once to each machine, by the object store, and ledgers as what was added to them
    (simulations/engines/ledger_copies.py). What an actor was doing when it died, or its machine, is
    asked of another: the site then trains again. What the lost one paid is in no ledger, and what
    it paid for was seen by nobody. `connected` is what `connect` said.
    """

    def __init__(self, place: Place, workers: int, *, connected: bool) -> None:
        self._connected, self._folder = connected, place.folder
        shared = ray.put(place)
        actor = ray.remote(num_cpus=1)(_Actor)
        self._idle = [actor.remote(shared) for _ in range(workers)]
        self._busy: dict[Any, _Request] = {}
        self._waiting: Waiting[Any] = Waiting()
        self._known: dict[tuple[Any, str], Sizes] = {}
        """What each actor has of each site's ledger."""

    def submit(self, number: str, site: str, message: Message) -> None:
        """Queue a message, and give it to an actor that has nothing to do."""
        self._waiting.put(number, site, message)
        self._feed()

    def collect(self) -> tuple[str, Message] | None:
        """The next reply of any actor."""
        if not self._busy:
            return None
        while True:
            (ready,), _ = ray.wait(list(self._busy), num_returns=1)
            request = self._busy.pop(ready)
            actor, site = request.actor, request.site
            try:
                answer: Answer = ray.get(ready)
            except (RayActorError, ObjectLostError) as error:
                if isinstance(error, ObjectLostError):
                    self._idle.append(actor)  # it lives, its reply was lost
                    self._known.pop((actor, site), None)
                else:
                    self._waiting.lost(actor)
                self._waiting.put(request.number, site, request.message)
                self._feed()
                if not self._busy:
                    raise EngineError("every worker of the Ray cluster has died") from None
                continue
            add(self._folder, site, answer.added)
            self._known[actor, site] = sizes(self._folder, site)
            if answer.fault:
                (self._folder / FAULT).write_text(answer.fault, encoding="utf-8")
            self._idle.append(actor)
            self._feed()
            return request.number, answer.reply

    def close(self) -> None:
        """End the actors, and leave Ray if it was joined or started for this run."""
        actors = (*self._idle, *(one.actor for one in self._busy.values()))
        left = [actor.leave.remote() for actor in self._idle]
        ray.wait(left, num_returns=max(1, len(left)), timeout=_LEAVE_SECONDS) if left else None
        for actor in actors:
            ray.kill(actor)
        if self._connected:
            ray.shutdown()

    def _feed(self) -> None:
        for actor in list(self._idle):
            request = self._waiting.take(actor)
            if request is not None:
                number, site, message = request
                known = self._known.get((actor, site), {})
                added = additions(self._folder, site, known)
                asked = actor.answer.remote(site, message, added)
                self._busy[asked] = _Request(number, site, message, actor)
                self._idle.remove(actor)


class _Actor:
    """One worker's ClientApp and sites, and its copies of their ledgers."""

    def __init__(self, place: Place) -> None:
        import torch

        torch.set_num_threads(1)
        self._own = TemporaryDirectory(prefix="tacit-")
        self._place = replace(place, folder=Path(self._own.name))
        self._app = simulated_app(self._place)

    def answer(self, site: str, message: Message, added: Additions) -> Answer:
        """One site's reply; `added` is what is new in its ledger since it was last here."""
        folder = self._place.folder
        add(folder, site, added)
        before = sizes(folder, site)
        identify(message.metadata.run_id)
        with self._place.draws(site, message.metadata.group_id):
            reply = self._app(message=message, context=context(message, site))
        fault = folder / FAULT
        text = fault.read_text(encoding="utf-8") if fault.exists() else ""
        return Answer(reply, additions(folder, site, before), text)

    def leave(self) -> None:
        """Nothing stays on this machine."""
        self._own.cleanup()
