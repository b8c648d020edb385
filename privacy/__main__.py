"""tacit-privacy: what an auditor runs; it counts, checks and shows, and trains nothing."""

from typing import NoReturn

import typer

from privacy.accounting.events import EventError
from privacy.accounting.segments import AccountingError
from privacy.commands import epsilon, ledgers, plans, report, tasks
from privacy.commands.exit_codes import run
from privacy.contract.plan import PlanError
from privacy.contract.policy import PolicyError
from privacy.ledger.ledger import LedgerError, LedgerMissing
from privacy.report.sources import ReportError
from privacy.task_package.archive import PackageError

app = typer.Typer(
    help="Count, check and show what private training spends.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for commands in (epsilon, ledgers, plans, report, tasks):
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
            PackageError,
        ),
        unsound=(LedgerError,),
    )


if __name__ == "__main__":
    main()
