"""Ray actors behind the Grid, for a simulation over several machines; the rows are sent once."""

from typing import Any

import ray
from flwr.app import Message

from privacy import runtime
from simulations.dataset import Place
from simulations.engines.pool import Waiting, simulated_app
from simulations.grid import context, identify


class RayActors:
    """A fixed number of actors, each with the shipped ClientApp; started on loopback by default.

    Where Ray is already running (RAY_ADDRESS), its cluster is used; ledgers then need a file system
    that all machines share.
    """

    def __init__(self, place: Place, workers: int) -> None:
        runtime.prepare()  # who simulates from a program of their own has not
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            ray.init(
                num_cpus=workers,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                _node_ip_address="127.0.0.1",
            )
        shared = ray.put(place)
        actor = ray.remote(num_cpus=1)(_Actor)
        self._idle = [actor.remote(shared) for _ in range(workers)]
        self._busy: dict[Any, tuple[str, Any]] = {}
        self._waiting: Waiting[Any] = Waiting()

    def submit(self, number: str, site: str, message: Message) -> None:
        """Queue a message, and give it to an actor that has nothing to do."""
        self._waiting.put(number, site, message)
        self._feed()

    def collect(self) -> tuple[str, Message] | None:
        """The next reply of any actor."""
        if not self._busy:
            return None
        (ready,), _ = ray.wait(list(self._busy), num_returns=1)
        number, actor = self._busy.pop(ready)
        reply: Message = ray.get(ready)
        self._idle.append(actor)
        self._feed()
        return number, reply

    def close(self) -> None:
        """End the actors, and Ray if it was started here."""
        for actor in (*self._idle, *(actor for _, actor in self._busy.values())):
            ray.kill(actor)
        if self._started_ray:
            ray.shutdown()

    def _feed(self) -> None:
        for actor in list(self._idle):
            request = self._waiting.take(actor)
            if request is not None:
                number, site, message = request
                self._busy[actor.answer.remote(site, message)] = (number, actor)
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
