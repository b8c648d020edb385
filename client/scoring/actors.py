"""Workers on a running Ray cluster: parts travel by its object store, lost ones go elsewhere."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError

from client.data.input_files import Chunk
from client.data.reader import Part
from client.scoring.cluster import address_of, check_workers, cpus, join
from client.scoring.ordered import WorkersError
from client.scoring.work import Refused, Scored, Work

_DIED: Final = "every worker of the Ray cluster has died; nothing was written"


@dataclass(slots=True, eq=False)
class _Task:
    """A part and its place, who has it, and what its result will be."""

    arguments: tuple[Part | Chunk, int, int]
    actor: Any
    reference: Any


class Actors:
    """One actor a CPU, each with the model; the machines need no file of this one.

    What an actor had when it, or its machine, died is asked of another.
    """

    def __init__(self, work: Work, workers: int | None, address: str | None = None) -> None:
        where, key = address_of(address)
        self._joined = join(where, key)
        try:
            if workers is not None:
                check_workers(workers, "--workers")
            count = workers or max(1, cpus())
            shared = ray.put(work)
            actor = ray.remote(num_cpus=1)(_Actor)
            self._living = [actor.remote(shared) for _ in range(count)]
        except BaseException:
            self._leave()
            raise
        self.room = 2 * count
        self._busy: Counter[Any] = Counter()

    def submit(self, part: Part | Chunk, first: int, explain: int) -> _Task:
        """Give a part to the actor that has the fewest."""
        return self._asked((part, first, explain))

    def _asked(self, arguments: tuple[Part | Chunk, int, int]) -> _Task:
        if not self._living:
            raise WorkersError(_DIED)
        actor = min(self._living, key=lambda one: self._busy[one])
        self._busy[actor] += 1
        return _Task(arguments, actor, actor.done.remote(*arguments))

    def result(self, asked: _Task) -> Scored | Refused:
        """Wait for a result, from another actor where the first one was lost."""
        while True:
            try:
                result: Scored | Refused = ray.get(asked.reference)
            except (RayActorError, ObjectLostError) as error:
                if isinstance(error, RayActorError) and asked.actor in self._living:
                    self._living.remove(asked.actor)
                asked = self._asked(asked.arguments)
                continue
            except RayError as error:
                why = str(error).strip().splitlines()[-1:]
                raise WorkersError(f"the Ray cluster failed: {why}") from error
            self._busy[asked.actor] -= 1
            return result

    def close(self) -> None:
        """End the actors, and leave the cluster if it was joined for this."""
        for actor in self._living:
            ray.kill(actor)
        self._leave()

    def _leave(self) -> None:
        if self._joined:
            ray.shutdown()


class _Actor:
    """One worker."""

    def __init__(self, work: Work) -> None:
        import pyarrow as pa
        import torch

        torch.set_num_threads(1)
        pa.set_cpu_count(1)
        self._work = work

    def done(self, part: Part | Chunk, first: int, explain: int) -> Scored | Refused:
        """A part's predictions."""
        return self._work.done(part, first, explain)
