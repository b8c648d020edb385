"""The options that several commands of a coordinator share, each declared once."""

from pathlib import Path
from typing import Annotated, Final

import typer

from privacy.commands.options import Json as Json
from privacy.commands.options import Metrics as Metrics
from privacy.commands.options import MetricsFile as MetricsFile

HERE: Final = Path()
Dir = Annotated[Path, typer.Option("--dir", help="The coordinator's folder.")]
Listen = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="The one open port; [::]:8443: IPv6 and IPv4.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the plan (repeatable)."),
]
AskEvery = Annotated[
    float,
    typer.Option(min=0.1, help="Seconds after which a site that waits is asked again."),
]
PlanArgument = Annotated[
    str, typer.Argument(help="A shipped plan's name, or the path of a TOML file.")
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's name (tacit-server runs).")]
RunName = Annotated[str | None, typer.Option("--name", help="The run's name.")]
MinSites = Annotated[int | None, typer.Option("--min-sites", help="Sites that a round needs.")]
PublicData = Annotated[Path | None, typer.Option("--data", help="PUBLIC test rows, for metrics.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the audit log.")]
