"""tacit-client: what a data owner runs; a command's modules are loaded when it is called."""

import os
from typing import NoReturn

from privacy.commands.command_group import application
from privacy.commands.exit_codes import BAD_INPUT, FAILED, run
from privacy.runtime import defer, prepare

app = application(
    "Train and predict with the rows of this site, inside its own limits.",
    {
        "client.commands.enrolment": {
            "enroll": "Make this site's keys, which never leave it, and its request NAME.csr.",
            "join": "Take in the coordinator's answer: our certificate, its authority, its "
            "address, its key.",
            "pause": "Answer no round until `pause --off`; the client stays connected.",
            "leave": "Give up the certificate; the running client stops. Ledgers, keys and models "
            "stay.",
        },
        "client.commands.running": {
            "run": "Stay connected and take part in what the policy allows, until stopped.",
            "doctor": "Check everything that `run` needs, one by one, each with the next step; "
            "exit 1 on a fault.",
        },
        "client.commands.plans": {
            "plans": "The plans that were asked, what each would cost, and what was said to it.",
            "approve": "Allow a plan: how it differs from the last approved one, and what it asks "
            "of the balance.",
            "deny": "Refuse a plan for good, until it is approved.",
            "policy": "This site's own limits.",
        },
        "client.commands.tasks": {"task": "Task packages: read, examine, approve."},
        "client.commands.ledgers": {
            "budget": "What was spent of each population, what is left, how many more rounds of a "
            "plan fit.",
            "data": "The people in this site's data.",
            "ledger": "Repair what happened to a ledger.",
        },
        "client.commands.look": {
            "look": "Show the owner the exact figures of the site's own rows: they must stay at "
            "the site.",
            "drift": "Tell whether recent rows differ from a reference beyond noise and chance; "
            "exit 4 if they do.",
            "importance": "Tell which columns a model rests on over many rows, and which of them "
            "are mostly noise.",
        },
        "client.commands.backup": {
            "backup": "Write this site's folder (keys, policy, ledgers) into one private archive "
            "with a manifest.",
            "restore": "Unpack a whole backup into an empty folder.",
            "audit-log": "Who did what at this site, in order; a changed or removed line is found "
            "(exit 4).",
        },
        "client.commands.models": {
            "predict": "Predict every row of a file with a released model; nothing leaves this "
            "machine.",
            "evaluate": "Measure a released model on this site's own labelled rows; the figures "
            "stay here.",
            "export": "Write a released model in another form, its card inside, compared on the "
            "spot.",
            "serve": "Answer predictions over HTTP on this machine, always with the newest "
            "released model.",
            "adapt": "Fit a model to this site's own rows: a model for this site alone, "
            "never shared.",
        },
        "client.commands.audit": {
            "audit": "Check this installation's private training and attack it with canaries; "
            "costs no budget.",
        },
    },
)


def main() -> NoReturn:
    """Run a command: bad input is one line and exit 2, a file that fails one line and exit 1."""
    os.umask(0o077)
    prepare()
    defer("opacus")
    run(app, "tacit-client", lambda: {ValueError: BAD_INPUT, OSError: FAILED})


if __name__ == "__main__":
    main()
