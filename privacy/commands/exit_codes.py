"""How every command ends: bad input is one line and exit 2, a failure one line and exit 1.

A terminal that cannot show a character gets another one in its place; a stream that takes nothing
more ends a command with exit 1, whatever was done before.
"""

import codecs
import errno
import io
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

import click
import typer

BAD_INPUT, FAILED, UNSOUND = 2, 1, 4
Codes = dict[type[Exception], int]
"""The exit code of each family of errors."""
_WORDS: Final = {
    "\u03b5": "epsilon",
    "\u03b4": "delta",
    "\u03c3": "sigma",
    "\u221e": "inf",
    "\u2013": "-",
    "\u2014": "-",
    "\u2018": "'",
    "\u2019": "'",
}
_ERRORS: Final = "tacit-plain"


class StartedError(Exception):
    """What failed once the work had begun, when something may have been paid: no bad input."""


@contextmanager
def started(begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """A ValueError in this block, once `begun`, is a failure and no bad input."""
    try:
        yield
    except ValueError as error:
        if not begun():
            raise
        raise StartedError(str(error)) from error


def run(app: typer.Typer, name: str, codes: Callable[[], Codes]) -> NoReturn:
    """Run a Typer app as the command `name` and exit; the families of errors become one line.

    UNSOUND is evidence that does not hold. Of a family in another the narrower counts. `codes` is
    asked once there is an error: what it imports costs nothing until then.
    """
    for stream in (sys.stdout, sys.stderr):
        _show_anything(stream)
    try:
        code = app(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except StartedError as error:
        _end(name, str(error), FAILED)
    except BrokenPipeError:  # the reader of our output went away
        _forget_stdout()
        sys.exit(FAILED)
    except click.ClickException as error:
        _end(name, error.format_message(), 2)
    except click.Abort:
        _end(name, "interrupted", 130)
    except tuple(known := codes()) as error:
        kind = next(kind for kind in type(error).__mro__ if kind in known)
        _end(name, _said(error), known[kind])
    except KeyboardInterrupt:
        _end(name, "interrupted", 130)
    except OSError as error:  # such as a full disk behind stdout
        _end(name, f"output: {error.strerror or error}", FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _said(error: Exception) -> str:
    """An error in words; of a place that cannot be used, its path and the next step."""
    if not isinstance(error, OSError) or error.filename is None or not error.strerror:
        return str(error)
    step = _STEPS.get(error.errno or 0, "")
    name = error.filename
    path = os.fsdecode(name) if isinstance(name, str | bytes) else str(name)
    return f"{path}: {error.strerror}{step}"


_ELSEWHERE: Final = " (name another place, or change who may write to this one)"
_STEPS: Final = {
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _ELSEWHERE),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), " (free some space, then run it again)"),
}


def _end(name: str, message: str, code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:
        _forget_stdout()
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _forget_stdout() -> None:
    """Let what is still to be written to stdout go nowhere: it would fail again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_anything(stream: object) -> None:
    """Replace what a stream's encoding does not have, where it would raise in mid-work."""
    if isinstance(stream, io.TextIOWrapper):
        codecs.register_error(_ERRORS, _replaced)
        stream.reconfigure(errors=_ERRORS)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(_in_ascii(one) for one in error.object[error.start : error.end])
    return text, error.end


def _in_ascii(character: str) -> str:
    """A character in ASCII: a word or a mark that stands for it, its letter, or `?`."""
    known = _WORDS.get(character)
    letters = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return known or letters or "?"
