"""Parts that workers share, and their results in the order of the parts; memory holds a few."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from client.data.input_files import Chunk
from client.data.reader import Part
from client.scoring.tally import PredictingError
from client.scoring.work import Refused, Scored
from privacy.commands.exit_codes import StartedError


class WorkersError(StartedError):
    """Workers that are gone, in mid-work: a failure, and no bad input."""


class Engine(Protocol):
    """Workers; at most `room` parts are with them at once."""

    room: int

    def submit(self, part: Part | Chunk, first: int, explain: int) -> Any:
        """Give a part to a worker; what is returned asks for its result."""

    def result(self, asked: Any) -> Scored | Refused:
        """Wait for a result; WorkersError where no worker is left to give it."""

    def close(self) -> None:
        """End the workers."""


@dataclass(frozen=True, slots=True)
class _Asked:
    part: Part | Chunk
    first: int
    handle: Any

    @property
    def following(self) -> int:
        """The row after the part's last, as far as is known without parsing it."""
        return self.first + (0 if isinstance(self.part, Chunk) else self.part.rows)


def ordered(
    engine: Engine, parts: Iterator[Part | Chunk], wanted: Callable[[], int]
) -> Iterator[Scored]:
    """The results of all parts in their order; `wanted()` more rows are to come along encoded.

    Where reading fails, the results before it come first: a row that does not fit among them is
    told as if the file had been read by one process.
    """
    waiting = deque[_Asked]()
    first, failure, more = 1, None, True
    while True:
        while more and len(waiting) < engine.room:
            try:
                part = next(parts, None)
            except (ValueError, OSError) as error:
                part, failure = None, error
            if part is None:
                more = False
                break
            start = waiting[-1].following if waiting else first
            waiting.append(_Asked(part, start, engine.submit(part, start, wanted())))
        if not waiting:
            break
        one = waiting.popleft()
        result = engine.result(one.handle)
        if isinstance(one.part, Part) and one.first != first:
            # More or fewer records before it than were counted: its rows have other numbers.
            result = engine.result(engine.submit(one.part, first, wanted()))
        if isinstance(result, Refused):
            raise PredictingError(result.why)
        first += result.counts.rows + result.counts.skipped
        yield result
    if failure is not None:
        raise failure
