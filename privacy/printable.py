"""Text of others as people read it: one line, no control character, no hidden order, not long."""

from typing import Final

LONGEST: Final = 80


def printable(text: object, most: int = LONGEST) -> str:
    r"""A value for a terminal or a log: what is not printable as an escape, cut at `most`.

    Escapes of terminals, line ends, and characters that reorder or hide others cannot come out.

    >>> printable("a\x1b[2J\nb"), printable("x" * 90)[-3:]
    ('a\\x1b[2J\\nb', 'xx…')
    """
    raw = str(text)
    shown = "".join(_shown(character) for character in raw[: most + 1])
    return shown if len(raw) <= most and len(shown) <= 4 * most else shown[: most - 1] + "…"


def _shown(character: str) -> str:
    if character.isprintable() and character != "\\":
        return character
    return character.encode("unicode_escape").decode("ascii")
