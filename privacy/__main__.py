"""tacit-privacy: what an auditor runs; it counts, checks and shows, and trains nothing."""

from typing import NoReturn

import typer

from privacy.accounting import AccountingError
from privacy.command import run
from privacy.commands import accounts, filing, ledgers, plans
from privacy.events import EventError
from privacy.ledger import LedgerError, LedgerMissing
from privacy.plan import PlanError
from privacy.policy import PolicyError
from privacy.reading import ReportError

app = typer.Typer(
    help="Count, check and show what private training spends.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (accounts, ledgers, plans, filing):
    commands.register(app)


def main() -> NoReturn:
    """Run a command: bad input is one line and exit 2, a ledger that is not sound exit 4."""
    run(
        app,
        "tacit-privacy",
        bad_input=(
            AccountingError,
            EventError,
            PlanError,
            PolicyError,
            LedgerMissing,
            ReportError,
        ),
        unsound=(LedgerError,),
    )


if __name__ == "__main__":
    main()
