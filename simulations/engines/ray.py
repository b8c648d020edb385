"""Ray actors behind the Grid, for a simulation over several machines; the rows are sent once."""

import os
from typing import Any

import ray
from flwr.app import Message
from ray.exceptions import RayActorError

from client.scoring.cluster import check_workers, join
from privacy import runtime
from simulations.dataset import Place
from simulations.engines.errors import EngineError
from simulations.engines.pool import Waiting, simulated_app
from simulations.grid import context, identify


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


class RayActors:
    """A fixed number of actors, each with the shipped ClientApp; started on loopback by default.

    Where Ray is already running (RAY_ADDRESS), its cluster is used; ledgers then need a file system
    that all machines share. What an actor was doing when it died, or its machine, is asked of
    another: the site then trains, and pays, again. `connected` is what `connect` said.
    """

    def __init__(self, place: Place, workers: int, *, connected: bool) -> None:
        self._connected = connected
        shared = ray.put(place)
        actor = ray.remote(num_cpus=1)(_Actor)
        self._idle = [actor.remote(shared) for _ in range(workers)]
        self._busy: dict[Any, tuple[str, str, Message, Any]] = {}
        self._waiting: Waiting[Any] = Waiting()

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
            number, site, message, actor = self._busy.pop(ready)
            try:
                reply: Message = ray.get(ready)
            except RayActorError:
                self._waiting.lost(actor)
                self._waiting.put(number, site, message)
                self._feed()
                if not self._busy:
                    raise EngineError("every worker of the Ray cluster has died") from None
                continue
            self._idle.append(actor)
            self._feed()
            return number, reply

    def close(self) -> None:
        """End the actors, and leave Ray if it was joined or started for this run."""
        for actor in (*self._idle, *(busy[-1] for busy in self._busy.values())):
            ray.kill(actor)
        if self._connected:
            ray.shutdown()

    def _feed(self) -> None:
        for actor in list(self._idle):
            request = self._waiting.take(actor)
            if request is not None:
                _, site, message = request
                self._busy[actor.answer.remote(site, message)] = (*request, actor)
                self._idle.remove(actor)


class _Actor:
    """One worker's ClientApp and sites."""

    def __init__(self, place: Place) -> None:
        import torch

        torch.set_num_threads(1)
        self._place = place
        self._app = simulated_app(place)

    def answer(self, site: str, message: Message) -> Message:
        """One site's reply."""
        identify(message.metadata.run_id)
        with self._place.draws(site, message.metadata.group_id):
            return self._app(message=message, context=context(message, site))
