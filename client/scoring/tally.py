"""What went through on the way to predictions: rows, those left out and why, those to explain."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from client.data.input_files import Chunk, Fault
from client.tasks.rows import added

SHOWN: Final = 20
"""Faults that are told one by one; the others are counted."""
Progress = Callable[[float], None]


class PredictingError(ValueError):
    """Rows that do not fit, told one by one; nothing was written."""


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """What is counted of a chunk: its rows, those left out with the first faults, rows to explain.

    `unknown` counts, by column, values that are none of the public ones and stand as "other".
    """

    rows: int
    skipped: int
    faults: tuple[Fault, ...]
    unknown: tuple[tuple[str, int], ...]
    first: Any = None
    numbers: tuple[int, ...] = ()
    done: float = 0.0


def counts(chunk: Chunk, explain: int) -> Counts:
    """What is counted of a chunk, with its first `explain` rows."""
    first, numbers = None, list[int]()
    if explain > 0 and len(chunk.rows):
        from torch import Tensor

        from client.dpsgd.trees import cut, mapped

        shown = chunk.x if chunk.raw is None else chunk.raw
        first = mapped(Tensor.clone, cut(shown, slice(explain)))
        numbers = chunk.rows[:explain].tolist()
    return Counts(
        len(chunk.rows),
        len({fault.row for fault in chunk.faults}),
        chunk.faults[: SHOWN + 1],
        chunk.unknown,
        first,
        tuple(numbers),
        chunk.done,
    )


@dataclass(slots=True)
class Tally:
    """The counts of all chunks so far; `explain` is how many rows are wanted, `name` the source."""

    explain: int = 0
    name: str = ""
    rows: int = 0
    skipped: int = 0
    faults: list[Fault] = field(default_factory=list)
    first: list[Any] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    unknown: tuple[tuple[str, int], ...] = ()

    @property
    def wanted(self) -> int:
        """How many more rows are to be explained."""
        return max(0, self.explain - len(self.numbers))

    def add(self, one: Counts, skip_bad: bool) -> None:
        """Add a chunk's; PredictingError for rows that do not fit unless they are to be skipped."""
        self.rows += one.rows
        self.unknown = added(self.unknown, one.unknown)
        self.skipped += one.skipped
        self.faults += one.faults[: max(0, SHOWN + 1 - len(self.faults))]
        if one.faults and not skip_bad:
            raise PredictingError(f"{self.name}{refusal(self.faults)}")
        if self.wanted and one.numbers:
            from client.dpsgd.trees import cut

            self.first.append(cut(one.first, slice(self.wanted)))
            self.numbers += one.numbers[: self.wanted]

    def watch(self, source: Iterator[Chunk], skip_bad: bool, tell: Progress) -> Iterator[Chunk]:
        """Count what passes; stop at rows that do not fit unless they are to be skipped."""
        for chunk in source:
            self.add(counts(chunk, self.wanted), skip_bad)
            yield chunk
            tell(chunk.done)


def refusal(faults: list[Fault]) -> str:
    """Rows that do not fit, in one line: where each stands and what was expected, never a value."""
    shown = "; ".join(str(fault) for fault in faults[:SHOWN])
    more = "; and more" if len(faults) > SHOWN else ""
    return f"{shown}{more} (--skip-bad leaves such rows out)"
