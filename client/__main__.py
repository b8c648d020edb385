"""tacit-client: what a data owner runs; torch and Flower are loaded only where they are needed."""

import os
from typing import NoReturn

import typer

from client.commands import audit, backup, enrolment, ledgers, models, plans, running, tasks
from privacy.commands.exit_codes import run
from privacy.runtime import defer, prepare

app = typer.Typer(
    help="Train and predict with the rows of this site, inside its own limits.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (enrolment, running, plans, tasks, ledgers, backup, models, audit):
    commands.register(app)


def main() -> NoReturn:
    """Run a command: bad input is one line and exit 2, a ledger that is not sound exit 4."""
    os.umask(0o077)
    prepare()
    defer("opacus")
    run(app, "tacit-client", bad_input=(ValueError,), failed=(OSError,))


if __name__ == "__main__":
    main()
