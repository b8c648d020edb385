"""tacit-server: what a coordinator runs; it never sees a row, and needs no torch."""

import os
from typing import NoReturn

import typer

from privacy.commands.exit_codes import run
from privacy.runtime import prepare
from server.commands import backup, membership, queue, running, status, tasks, track
from server.dashboard import app as dashboard
from server.rounds.checkpoint import CheckpointError

app = typer.Typer(
    help="Coordinate a federation: enrol sites, run plans, show what happened.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (membership, running, queue, tasks, status, track, backup, dashboard):
    commands.register(app)


def main() -> NoReturn:
    """Run a command: bad input is one line and exit 2, a failure one line and exit 1."""
    os.umask(0o077)
    prepare()
    failed = (OSError, RuntimeError, CheckpointError)
    run(app, "tacit-server", bad_input=(ValueError,), failed=failed)


if __name__ == "__main__":
    main()
