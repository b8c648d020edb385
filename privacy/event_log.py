"""One line for each event, as JSON or for people; and the names of all events.

A line never holds a record's value: what is logged is a code, a count, a name or a time. A log that
cannot be written, such as on a full disk, stops nothing.
"""

import json
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from privacy.printable import LONGEST, printable

CLIENT_EVENTS: Final[Mapping[str, str]] = {
    "audit_not_written": "The audit log could not be written, or is not sound; `why` says which.",
    "builtin_policy": "No policy of the site's own: the built-in one serves public example data.",
    "certificate_expires_soon": "The site's certificate ends within 30 days; once a day.",
    "certificate_not_renewed": "The site's certificate is due, but `why`; it is tried again.",
    "certificate_renewed": "The site took in a new certificate over its connection.",
    "connected": "The connection to the coordinator is open, and this site is activated.",
    "data_fault": "Rows could not be read or trained on; the round was answered with noise alone.",
    "declined": "A round was declined; `reason` is the code that the coordinator was told.",
    "disconnected": "The connection is lost; it is dialled again after `retry_in` seconds.",
    "failed": "A round ended with an error; its type and its place in the code, never its text.",
    "folder_left": "The owner called `tacit-client leave`: the client stops.",
    "ledger_error": "The ledger could not be read or written; nothing was spent.",
    "metrics_shown": "Metrics for Prometheus are shown at `where`.",
    "model_refused": "The task's model or loss mixes examples; `message` says where.",
    "package_not_kept": "A package that came with a plan could not be written to the folder.",
    "package_shown": "A package came with a plan, to be read: none of its code has run.",
    "plan_not_kept": "A received plan could not be written to the site's folder.",
    "plan_refused": "The policy refuses the plan; `code` is what the coordinator is told.",
    "policy_read": "The policy was read again, with its budget.",
    "policy_unreadable": "The policy cannot be read; the last one that could be holds.",
    "refused": "The coordinator refused this site: it does not dial again.",
    "reply_dropped": "A reply was thrown away; `reason` says why nobody waits for it.",
    "reply_sending": "A reply is on its way over a slow line: percent, rate, minutes left.",
    "request_receiving": "A request is arriving over a slow line: percent, rate, minutes left.",
    "reply_not_kept": "A reply could not be stored; it leaves, and asked again it is paid again.",
    "reply_resent": "A stored reply was sent again; nothing was spent.",
    "revoked": "The coordinator has revoked this site's key.",
    "rows_read": "The rows were read: how many train, and how many of the file fit.",
    "task_refused": "A task package is not approved, not here, or not what it was.",
    "schema_differs": "A plan has another schema than the data were registered with.",
    "secure_refused": "A message of secure aggregation was refused: `code`, and `message` why.",
    "starting": "The client has opened its ledger and its policy, and begins to dial.",
    "stock_flower": "Under stock Flower: whose code this is, and where what is lost is described.",
    "stopped": "The process ends.",
    "trained": "A round was paid for, trained and answered.",
}
SERVER_EVENTS: Final[Mapping[str, str]] = {
    "audit_not_written": "The audit log could not be written, or is not sound; `why` says which.",
    "authority_taken": "A site showed a certificate of the authority that takes over.",
    "certificate_expires_soon": "A certificate ends within 30 days; once a day for each.",
    "certificate_not_renewed": "A certificate is due, but `why`; it is tried again.",
    "certificate_renewed": "A certificate was renewed: a site's, or the coordinator's own.",
    "connected": "A site's client is activated.",
    "connection_refused": "A connection was ended; `why` is the reason, `more` counts others.",
    "disconnected": "A site's client said goodbye.",
    "failed": "Answering a request ended with an error; its type, never its text.",
    "listening": "The port is open.",
    "node_not_asked": "Under stock Flower: a node whose key is not that of an enrolled site.",
    "reply_duplicate": "A second reply to the same request; the first one counts.",
    "reply_late": "A reply that nobody waits for any more; it does not count.",
    "reply_malformed": "A reply that is not what was asked for; it does not count.",
    "reply_missing": "A request ends without a reply; `why` is the reason.",
    "request_denied": "A request of a connected site was denied; `why` is the reason.",
    "package_shown": "A site that has not approved a plan's package was sent it, to be read.",
    "refused": "The coordinator refused this relay: it does not dial again.",
    "relay_left_out": "A relay takes no part in a plan that needs single replies: `why` says it.",
    "relay_not_heard": "A relay's answer to a proposal is not what was asked for; `why` says why.",
    "request_declined": "A relay passed a request on to nobody; `reason` is what it answered.",
    "round_passed_on": "A relay answered a round with its sites' sum.",
    "run_refused": "A relay cannot keep the run's folder; `why` says the reason.",
    "proposal_answered": "A site's answer to a plan before it runs, where it is another one.",
    "round_complete": "A round's checkpoint is on disk.",
    "run_ended": "A run ended: done, budget, failed or stopped.",
    "run_failed": "Playing a run failed on this machine; it is tried again after `retry_in` s.",
    "run_interrupted": "The coordinator ends; the run goes on at the next start.",
    "run_left": "A run is not played for now: paused, or others are played while it waits.",
    "run_started": "A run is being played.",
    "run_waiting": "Too few sites can take part; one line for every change of who can.",
    "site_answer": "A site's answer that is no update and not its last one: a status or a code.",
    "stock_flower": "Under stock Flower: whose code this is, and where what is lost is described.",
    "stopped": "The process ends, or its run is interrupted.",
}

_SENTENCES: Final = frozenset({"problem", "message", "detail"})
"""Facts that this program words itself, with a path or a reason at their end."""
_LONG: Final = 400
_REASONS: Final = ("reason", "code", "why")
_MOST_COUNTED: Final = 500


class EventLog:
    """A log: `log(event, **facts)` writes one line.

    For people a line goes to stderr; as JSON to `stream` (stdout unless given), with `time` (UTC,
    ISO 8601) and `event` before the facts.
    """

    def __init__(self, *, as_json: bool, stream: TextIO | None = None) -> None:
        self._json, self._stream, self._lock = as_json, stream, threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def __call__(self, event: str, **facts: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._count(event, facts)
        if self._json:
            line = json.dumps({"time": now, "event": event, **facts}, default=str)
            target = self._stream or sys.stdout
        else:
            described = " ".join(
                f"{name}={printable(value, _LONG if name in _SENTENCES else LONGEST)}"
                for name, value in facts.items()
            )
            line, target = f"{now[11:19]} {event} {described}".rstrip(), sys.stderr
        with self._lock, suppress(OSError):
            target.write(line + "\n")
            target.flush()

    def counted(self) -> dict[tuple[str, str], int]:
        """How many lines there were of each event and reason; "" where it has none."""
        with self._lock:
            return dict(self._counts)

    def _count(self, event: str, facts: Mapping[str, Any]) -> None:
        reason = printable(next((facts[key] for key in _REASONS if facts.get(key)), ""))
        with self._lock:
            if (event, reason) not in self._counts and len(self._counts) >= _MOST_COUNTED:
                reason = "other"
            self._counts[event, reason] += 1
