"""tacit-privacy: what an auditor runs; it counts, checks and shows, and trains nothing."""

import sys
from typing import NoReturn

import click
import typer

from privacy.accounting import AccountingError
from privacy.commands import accounts, ledgers, plans
from privacy.events import EventError
from privacy.ledger import LedgerError, LedgerMissing
from privacy.plan import PlanError
from privacy.policy import PolicyError

app = typer.Typer(
    help="Count, check and show what private training spends.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (accounts, ledgers, plans):
    commands.register(app)


def main() -> NoReturn:
    """Run a command: bad input is one line and exit 2, a ledger that is not sound exit 4."""
    try:
        code = app(prog_name="tacit-privacy", standalone_mode=False)
    except click.ClickException as error:
        _leave(error.format_message(), 2)
    except click.Abort:
        _leave("interrupted", 130)
    except (AccountingError, EventError, PlanError, PolicyError, LedgerMissing) as error:
        _leave(str(error), 2)
    except LedgerError as error:
        _leave(str(error), 4)
    sys.exit(code if isinstance(code, int) else 0)


def _leave(message: str, code: int) -> NoReturn:
    print("tacit-privacy: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
