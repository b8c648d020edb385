"""An engine for tiny models: many clients' rounds are begun, then trained in one computation."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import cache, partial
from typing import Final, ParamSpec, TypeVar

from flwr.app import Message

from client.app import Begun, begin, finish, make_app
from client.dpsgd.per_sample import ModelError
from client.dpsgd.training import Trained
from client.tasks.registry import task_of
from privacy.contract.plan import Plan, PlanError
from privacy.mechanism.sensitivity import noise_std, slack
from simulations.dataset import Place, sites
from simulations.engines.stacked_models import Stack
from simulations.engines.stacked_training import Member, train_together
from simulations.grid import context

_MOST: Final = 2_000_000
"""Numbers held for the clients of one computation, in rows, weights, batches and updates: few
enough for a core's cache to help."""
_STATES: Final = 8  # held for each weight: old and new, a sum, noise, the optimizer's two, a reply

Asked = tuple[str, str, Message]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Ready:
    """A client whose round is accepted and paid for, and the context of its reproducible draws."""

    number: str
    message: Message
    begun: Begun
    room: Context | None


def stack_of(plan: Plan) -> Stack:
    """The plan's model for many sites at once; PlanError where this engine cannot train it."""
    learning = task_of(plan)
    try:
        return Stack(learning.model(plan.seed), learning.shape)
    except ModelError as error:
        raise PlanError(
            'simulation.engine: "vector" trains Linear layers and activations only, '
            f'use "serial" ({error})'
        ) from None


class Vector:
    """Begins clients one by one, trains those that accepted together, finishes them one by one.

    What a client checks, spends and releases is `client.app`'s own; its steps alone are shared. As
    many train together as a bound on memory allows.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._stack, self._device = stack_of(place.plan), place.device
        self._stack.to(self._device)
        self._site = sites(place)
        self._app = make_app(
            lambda flower_context, content: self._site(str(flower_context.node_config["site"]))
        )
        self._waiting: deque[Asked] = deque()
        self._replies = self._answers(())

    def submit(self, number: str, site: str, message: Message) -> None:
        """Queue a message."""
        self._waiting.append((number, site, message))

    def collect(self) -> tuple[str, Message] | None:
        """The next reply; where none is ready, the next clients are run."""
        while True:
            reply = next(self._replies, None)
            if reply is not None or not self._waiting:
                return reply
            self._replies = self._answers(self._taken())

    def close(self) -> None:
        """Drop what is not answered."""
        self._replies.close()

    def _taken(self) -> list[Asked]:
        taken: list[Asked] = []
        largest = 0.0
        while self._waiting:
            largest = max(largest, self._size(self._waiting[0][1]))
            if taken and largest * (len(taken) + 1) > _MOST:
                break
            taken.append(self._waiting.popleft())
        return taken

    def _size(self, site: str) -> float:
        """Numbers that one client adds, if none that trains beside it has more rows."""
        rows = len(self._place.parts[site])
        return (
            _STATES * self._stack.numbers + (1 + self._place.plan.rate) * rows * self._stack.width
        )

    def _answers(self, taken: Sequence[Asked]) -> Generator[tuple[str, Message]]:
        with ExitStack() as rooms:
            ready: list[_Ready] = []
            for number, site, message in taken:
                room = self._room(site, message, rooms)
                if message.metadata.message_type != "train":
                    yield number, _in(room, self._app, message, context(message, site))
                    continue
                begun = _in(room, begin, self._site(site), message.content)
                if isinstance(begun, Begun):
                    ready.append(_Ready(number, message, begun, room))
                else:
                    yield number, Message(begun, reply_to=message)
            for group in _alike(ready):
                yield from self._finished(group)

    def _finished(self, group: Sequence[_Ready]) -> Iterator[tuple[str, Message]]:
        together = cache(lambda: self._trained(group))  # within `finish`, since it may fail

        def training(i: int) -> Trained:
            return together()[i]

        for i, one in enumerate(group):
            content = _in(one.room, finish, one.begun, partial(training, i))
            yield one.number, Message(content, reply_to=one.message)

    def _room(self, site: str, message: Message, rooms: ExitStack) -> Context | None:
        """A context with the site's reproducible draws of this round; None where they are real."""
        if not self._place.insecure:
            return None
        room, draws = copy_context(), self._place.draws(site, message.metadata.group_id)
        room.run(draws.__enter__)
        rooms.callback(room.run, draws.__exit__, None, None, None)
        return room

    def _trained(self, group: Sequence[_Ready]) -> list[Trained]:
        """Look at the rows of all: exactly the steps that each has paid for."""
        first = group[0].begun
        rate, steps = _paid(first)
        members = []
        for one in group:
            begun, event = one.begun, one.begun.event
            sigma, clip = 0.0 if event is None else event.sigma, begun.plan.clip or 0.0
            rows = begun.site.rows(begun.task)
            denominator = rate * begun.plan.units_of(begun.site.name)
            std = noise_std(sigma, clip, self._stack.numbers, slack(denominator))
            members.append(Member(rows, begun.weights, denominator, std, one.room))
        return train_together(
            self._stack,
            members,
            first.task,
            first.plan,
            rate=rate,
            steps=steps,
            round=first.stage_round,
            private=first.event is not None,
            device=self._device,
        )


def _paid(begun: Begun) -> tuple[float, int]:
    """The rate and the steps that were paid for, which count, not the plan's."""
    if begun.event is None:
        return begun.plan.rate, begun.plan.steps
    return begun.event.rate, begun.event.steps * begun.event.count


def _alike(ready: Sequence[_Ready]) -> list[list[_Ready]]:
    """Clients that take the same steps of the same plan."""
    groups: dict[object, list[_Ready]] = {}
    for one in ready:
        begun = one.begun
        key = (begun.plan.digest, begun.number, begun.event is None, *_paid(begun))
        groups.setdefault(key, []).append(one)
    return list(groups.values())


def _in(room: Context | None, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    if room is None:
        return call(*args, **kwargs)
    # A copy, since rooms are entered within rooms; the count of draws is one in all of them.
    return room.copy().run(call, *args, **kwargs)
