"""The options that several commands of a site share, each declared once."""

from pathlib import Path
from typing import Annotated, Final

import typer

from privacy.commands.options import Json as Json
from privacy.commands.options import Metrics as Metrics
from privacy.commands.options import MetricsFile as MetricsFile

HERE: Final = Path()
Dir = Annotated[Path, typer.Option("--dir", help="This site's folder.")]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="The policy, if it is not DIR/policy.toml.")
]
PopulationName = Annotated[
    str | None, typer.Option("--population", help="Which population, where there are several.")
]
Expect = Annotated[
    str | None,
    typer.Option(
        "--expect", metavar="FINGERPRINT", help="The authority's, as the coordinator told it."
    ),
]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the audit log.")]
