"""Options that commands of every role share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

from privacy.archive import ArchiveError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics", metavar="ADDRESS:PORT", help="Show metrics for Prometheus there, by HTTP."
    ),
]
Ask = Annotated[
    bool, typer.Option("--passphrase", help="Encrypt it (age); the passphrase is asked for.")
]
PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="The passphrase's file, to ask nobody.")
]
MetricsFile = Annotated[
    Path | None,
    typer.Option("--metrics-file", help="Write them to this file (*.prom) every 15 s."),
]


def passphrase_of(ask: bool, file: Path | None, *, confirm: bool) -> str:
    """The passphrase that the two options give; "" for none. ArchiveError for an empty one."""
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8").strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ArchiveError(f"--passphrase-file {file}: cannot be read ({error})") from None
    elif ask:
        text = str(typer.prompt("passphrase", hide_input=True, confirmation_prompt=confirm))
    else:
        return ""
    if not text:
        raise ArchiveError("--passphrase must not be empty")
    return text
