"""How every command ends: bad input is one line and exit 2, a failure one line and exit 1."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

import click
import typer

BAD_INPUT, FAILED, UNSOUND = 2, 1, 4
Codes = dict[type[Exception], int]
"""The exit code of each family of errors."""


def run(app: typer.Typer, name: str, codes: Callable[[], Codes]) -> NoReturn:
    """Run a Typer app as the command `name` and exit; the families of errors become one line.

    UNSOUND is evidence that does not hold. Of a family in another the narrower counts. `codes` is
    asked once there is an error: what it imports costs nothing until then.
    """
    try:
        code = app(prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        _end(name, error.format_message(), 2)
    except click.Abort:
        _end(name, "interrupted", 130)
    except tuple(known := codes()) as error:
        kind = next(kind for kind in type(error).__mro__ if kind in known)
        _end(name, str(error), known[kind])
    except KeyboardInterrupt:
        _end(name, "interrupted", 130)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _end(name: str, message: str, code: int) -> NoReturn:
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
