"""`tacit-privacy constants`: a schema's ranges from noisy statistics, and their origin."""

from pathlib import Path
from typing import Annotated

import typer

from privacy.files import write_atomic


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("constants")(constants)


def constants(
    results: Annotated[Path, typer.Argument(help="A run of statistics, or its statistics.json.")],
    schema: Annotated[Path, typer.Option(help="The schema whose ranges are narrowed.")],
    out: Annotated[Path, typer.Option(help="Where the new schema is written.")],
    tail: Annotated[
        float,
        typer.Option(help="The share of the values that may lie beyond each end of a range."),
    ] = 0.01,
) -> None:
    """Write a schema whose numbers' ranges end where the noisy quantiles of all sites do.

    That is post-processing of what was paid for and costs nothing. The line that is printed belongs
    into the plan that uses the schema: it says where its constants come from.
    """
    from privacy.statistics.constants import narrowed
    from privacy.statistics.results import digest_of, read_results

    digest = digest_of(results)
    text, changes = narrowed(schema, read_results(results), tail, digest)
    write_atomic(out, text.encode())
    for name, (low, high) in changes.items():
        typer.echo(f"{name}: {low:g} to {high:g}")
    typer.echo(f'constants_from = "sha256:{digest}"')
