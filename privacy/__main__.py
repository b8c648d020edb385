"""tacit-privacy: what an auditor runs; it counts, checks and shows, and trains nothing."""

from typing import NoReturn

from privacy.commands.command_group import application
from privacy.commands.exit_codes import BAD_INPUT, UNSOUND, Codes, run

app = application(
    "Count, check and show what private training spends.",
    {
        "privacy.commands.epsilon": {
            "epsilon": "Epsilon at DELTA of one or more segments of training together.",
            "sigma": "The least noise multiplier that keeps STEPS steps inside EPSILON at DELTA.",
        },
        "privacy.commands.plans": {
            "plan": "Epsilon after each round at each site, the round that would be refused, and "
            "what leaves.",
        },
        "privacy.commands.constants": {
            "constants": "Write a schema whose numbers' ranges end where the noisy quantiles of "
            "all sites do.",
        },
        "privacy.commands.report": {
            "report": "Compute what was spent on whom and file it; exit 4 if it does not fit "
            "together.",
            "verify": "Check signature, digests, chains, and compute every figure again; exit 4 "
            "if any differs.",
        },
        "privacy.commands.ledgers": {"ledger": "Read and check a ledger."},
        "privacy.commands.tasks": {"task": "Read and pack a task package."},
    },
)


def main() -> NoReturn:
    """Run a command: bad input is one line and exit 2, a ledger that is not sound exit 4."""
    run(app, "tacit-privacy", _codes)


def _codes() -> Codes:
    from privacy.accounting.events import EventError
    from privacy.accounting.segments import AccountingError
    from privacy.contract.plan import PlanError
    from privacy.contract.policy import PolicyError
    from privacy.ledger.ledger import LedgerError, LedgerMissing
    from privacy.report.sources import ReportError
    from privacy.statistics.columns import StatisticsError
    from privacy.task_package.archive import PackageError

    bad = (AccountingError, EventError, PlanError, PolicyError, LedgerMissing, ReportError)
    return dict.fromkeys((*bad, PackageError, StatisticsError), BAD_INPUT) | {LedgerError: UNSOUND}


if __name__ == "__main__":
    main()
