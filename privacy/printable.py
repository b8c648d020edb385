"""Text of others as people read it: one line, no control character, no hidden order, not long."""

import unicodedata
from collections.abc import Iterator
from typing import Final

LONGEST: Final = 80
LINE: Final = 79
"""The columns of a line that no terminal of 80 columns breaks."""
_MARK: Final = "    | "
_INVISIBLE: Final = frozenset(
    map(
        chr,
        (
            *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
            *(*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)),
        ),
    )
)
"""Printable to Unicode, and blank on a screen: fillers and selectors of variants."""
_MARKS_MAX: Final = 2


def printable(text: object, most: int = LONGEST) -> str:
    r"""A value for a terminal or a log: what is not printable as an escape, cut at `most` columns.

    Escapes of terminals, line ends, and characters that reorder, hide or overlay others cannot
    come out. A wide character takes two columns.

    >>> printable("a\x1b[2J\nb"), printable("x" * 90)[-3:]
    ('a\\x1b[2J\\nb', 'xx…')
    """
    raw = str(text)
    parts, columns = [], 0
    for part in _shown(raw[: most + 1]):
        width = _columns(part)
        if columns + width > most:
            break
        parts.append(part)
        columns += width
    else:
        if len(raw) <= most:
            return "".join(parts)
    while parts and columns > most - 1:
        columns -= _columns(parts.pop())
    return "".join(parts) + "…"


def folded(line: str, width: int = LINE) -> list[str]:
    """A line with others' text in it, as lines of at most `width` columns.

    What a terminal breaks by itself begins at its edge, where words of a stranger would look like a
    line of the program's own; here every further line begins with a mark.
    """
    lines, current, columns = [], "", 0
    for character in line:
        if columns + _columns(character) > width:
            lines.append(current)
            current, columns = _MARK, len(_MARK)
        current += character
        columns += _columns(character)
    return [*lines, current]


def _shown(text: str) -> Iterator[str]:
    """The characters, or their escapes."""
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        plain = character.isprintable() and character != "\\" and character not in _INVISIBLE
        if plain and marks <= _MARKS_MAX:
            yield character
        else:
            yield character.encode("unicode_escape").decode("ascii")


def _columns(text: str) -> int:
    """The most columns that a text takes: a mark that is put over a letter counts for one too."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in ("W", "F") else 1 for c in text)
