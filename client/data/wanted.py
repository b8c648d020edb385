"""What a reader is asked for: the columns of a schema, and what each of them is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Wanted:
    """The columns that a file must have, those that it may have, and which hold numbers or dates.

    `names` are the columns of the task's own files that come without a header line, whose first
    line may be a `comment`; `delimiter` and `quote` are what the schema says where the site says
    nothing (`quote` "" is none, None the usual one).
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    numbers: frozenset[str] = field(default_factory=frozenset)
    dates: frozenset[str] = field(default_factory=frozenset)
    names: tuple[str, ...] = ()
    comment: str = ""
    delimiter: str = ""
    quote: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys((*self.required, *self.optional)))


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some rows of one file: `bad` are those of the wrong form, by their position among all.

    `place(position)` says where a row stands, counted from 0 with the bad ones.
    """

    table: Any
    bad: tuple[tuple[int, str], ...]
    place: Callable[[int], str]
    done: float
    lines: int
