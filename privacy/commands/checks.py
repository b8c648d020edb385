"""What a doctor finds, at a site or at the coordinator, and how a command shows it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Final

import typer

FLOWER: Final = "1.42.0"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: `state` is "fine", "warn" or "FAULT"; `finding` says what was seen."""

    what: str
    state: str
    finding: str
    next_step: str = ""


def flower() -> Check:
    """Whether the installed Flower is the one that this version was tested with."""
    installed = version("flwr")
    if installed == FLOWER:
        return Check("Flower", "fine", installed)
    return Check("Flower", "FAULT", f"{installed}, expected {FLOWER}", "install tacit again")


def show(checks: Sequence[Check], *, as_json: bool) -> None:
    """Print the checks; exit 1 where one is a fault."""
    if as_json:
        typer.echo(json.dumps({"checks": [asdict(one) for one in checks]}))
    else:
        for one in checks:
            typer.echo(f"{one.state:<5} {one.what}: {one.finding}")
            if one.next_step:
                typer.echo(f"      -> {one.next_step}")
    raise typer.Exit(int(any(one.state == "FAULT" for one in checks)))
