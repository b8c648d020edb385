"""How a generator of made-up data is called: `python -m simulations.templates.NAME FOLDER`."""

import sys
from collections.abc import Callable
from pathlib import Path


def run(name: str, write: Callable[[Path], Path], plan: str = "") -> None:
    """Write into the folder that is named, and say where, with the shipped plan that reads it."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise SystemExit(f"usage: python -m simulations.templates.{name} FOLDER")
    path = write(Path(sys.argv[1]))
    print(f"{path}: tacit-simulate {plan} --data {path.parent}" if plan else path)
