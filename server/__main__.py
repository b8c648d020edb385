"""tacit-server: what a coordinator runs; it never sees a row, and needs no torch."""

import os
from typing import NoReturn

from privacy.commands.command_group import application
from privacy.commands.exit_codes import BAD_INPUT, FAILED, Codes, run
from privacy.runtime import prepare

app = application(
    "Coordinate a federation: enrol sites, run plans, show what happened.",
    {
        "server.commands.membership": {
            "init": "Make the authority, the coordinator's certificate and its signing key; once.",
            "sign": "Enrol sites: shows who asks with which key, writes NAME.bundle beside each "
            "request.",
            "sites": "The enrolled sites, their keys, and how long their certificates hold.",
            "revoke": "Strike a site's key off for good: open connections end at once.",
            "renew": "New certificates for the same keys: of the sites named, or of the "
            "coordinator itself.",
        },
        "server.commands.authority": {
            "authority": "The authority that signs all certificates, and its successor.",
        },
        "server.commands.running": {
            "serve": "Stay open for the sites and play the queue's runs, one after another, until "
            "stopped.",
            "run": "Play one run in the foreground; exit 0 done, 1 failed, 3 budgets spent.",
            "doctor": "Check everything that `serve` needs, each with its next step; exit 1 on a "
            "fault.",
        },
        "server.commands.relay": {
            "relay": "Stay open for this relay's sites, and pass their sums to its coordinator, "
            "until stopped.",
        },
        "server.commands.queue": {
            "propose": "Show a plan to the sites before it runs; their answers: tacit-server show "
            "NAME.",
            "submit": "Queue a run: it starts by itself when it is due and enough sites can take "
            "part.",
            "runs": "Every run and proposal: its state, its rounds, and what it waits for.",
            "show": "One run: its state, each site's answer, and how many rounds each can pay for.",
            "pause": "Stop playing a run after its present round; nothing is lost.",
            "resume": "Queue a run again that was paused or stopped, or that failed: it goes on "
            "where it was.",
            "stop": "End a run at once, or take it from the queue; what is complete stays.",
            "log": "What happened in a run.",
        },
        "server.commands.tasks": {"task": "Task packages that plans may name."},
        "server.commands.status": {
            "status": "The coordinator (running, stopped or killed), the sites, and the runs.",
        },
        "server.commands.track": {
            "track": "Write a run's history to TensorBoard or MLflow: metrics, epsilon, seconds, a "
            "step a round.",
        },
        "server.commands.backup": {
            "backup": "Write everything (keys, sites, heads, runs, queue) into one private "
            "archive.",
            "restore": "Unpack a whole backup into an empty folder; sites need no new bundle.",
            "repair": "Make a missing ca.pem or server.pem again from its key; nothing that is "
            "there changes.",
            "audit-log": "Who did what at this coordinator, in order; a changed or removed line is "
            "found (exit 4).",
        },
        "server.dashboard.app": {
            "dashboard": "Show a run while it goes on, in the browser of this machine.",
        },
    },
)


def main() -> NoReturn:
    """Run a command: bad input is one line and exit 2, a failure one line and exit 1."""
    os.umask(0o077)
    prepare()
    run(app, "tacit-server", _codes)


def _codes() -> Codes:
    from server.rounds.checkpoint import CheckpointError

    return {
        ValueError: BAD_INPUT,
        **dict.fromkeys((OSError, RuntimeError, CheckpointError), FAILED),
    }


if __name__ == "__main__":
    main()
