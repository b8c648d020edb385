"""`tacit-privacy epsilon` and `sigma`: the accountant by itself."""

import json
from typing import Annotated

import typer

from privacy.accounting.epsilon import calibrate, json_number, spent
from privacy.accounting.events import Event
from privacy.accounting.rounding import spent_text
from privacy.accounting.segments import AccountingError, Budget
from privacy.commands.options import Json
from privacy.runtime import ACCOUNTANTS, load

Delta = Annotated[float, typer.Option(help="The delta of the guarantee, 0 < delta < 1.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(epsilon)
    app.command()(sigma)


def epsilon(
    delta: Delta,
    segment: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIGMA,RATE,STEPS",
            help="STEPS Gaussian releases of noise SIGMA, each over a Poisson(RATE) sample.",
        ),
    ] = None,
    accountant: Annotated[str, typer.Option(help="pld, or rdp as its upper bound.")] = "pld",
    as_json: Json = False,
) -> None:
    """Epsilon at DELTA of one or more segments of training together."""
    events = [_event(text) for text in segment or []]
    load(ACCOUNTANTS)
    value = spent(events, delta, accountant=accountant)
    if as_json:
        typer.echo(
            json.dumps({"epsilon": json_number(value), "delta": delta, "accountant": accountant})
        )
    else:
        typer.echo(f"epsilon {spent_text(value)} at delta {delta:g} ({accountant.upper()})")


def sigma(
    epsilon: Annotated[float, typer.Option(help="The epsilon not to pass.")],
    delta: Delta,
    rate: Annotated[float, typer.Option(help="The Poisson sampling rate of a step.")],
    steps: Annotated[int, typer.Option(help="The number of steps in all.")],
    as_json: Json = False,
) -> None:
    """The least noise multiplier that keeps STEPS steps inside EPSILON at DELTA."""
    load(ACCOUNTANTS)
    value = calibrate(Budget(epsilon, delta), rate=rate, steps=steps)
    if as_json:
        typer.echo(json.dumps({"sigma": value}))
    else:
        typer.echo(f"sigma {spent_text(value)} for {steps} steps at rate {rate:g}")


def _event(text: str) -> Event:
    try:
        noise, rate, steps = text.split(",")
        values = float(noise), float(rate), int(steps)
    except ValueError:
        raise AccountingError(
            f"--segment must be SIGMA,RATE,STEPS such as 1.0,0.01,1000, got {text!r}"
        ) from None
    return Event("record", *values)
