"""tacit-client: what a data owner runs; torch and Flower are loaded only where they are needed."""

import os
import sys
from typing import Final, NoReturn

import typer

from client.commands import audit, enrolment, ledgers, plans, running
from privacy.command import run
from privacy.environment import prepare

app = typer.Typer(
    help="Train and predict with the rows of this site, inside its own limits.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (enrolment, running, plans, ledgers, audit):
    commands.register(app)

LIGHT: Final = frozenset(
    command.name or command.callback.__name__
    for command in app.registered_commands
    if command.callback
)
GROUPS: Final = frozenset(group.name for group in app.registered_groups)


def main() -> NoReturn:
    """Run a command: bad input is one line and exit 2, a ledger that is not sound exit 4."""
    os.umask(0o077)
    prepare()
    if not set(sys.argv[1:2]) & (LIGHT | GROUPS):
        from client.commands import models  # imports torch, which the others load when they run

        models.register(app)
    run(app, "tacit-client", bad_input=(ValueError,), failed=(OSError,))


if __name__ == "__main__":
    main()
