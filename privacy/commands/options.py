"""Options that commands of every role share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics", metavar="ADDRESS:PORT", help="Show metrics for Prometheus there, by HTTP."
    ),
]
MetricsFile = Annotated[
    Path | None,
    typer.Option("--metrics-file", help="Write them to this file (*.prom) every 15 s."),
]
