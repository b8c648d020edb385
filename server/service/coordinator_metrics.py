"""What Prometheus is told of a coordinator: its runs, its sites, its certificates, its disk."""

import datetime
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from privacy.event_log import EventLog
from privacy.identity.certificates import Certificate
from privacy.metrics import Collector, Metric, counter, from_log, gauge
from server.registry.sites import Home
from server.rounds.history import last_line
from server.service.queue import STATES, Queue, Submission

RUNS_MAX: Final = 50
ENDED: Final = frozenset({"done", "budget", "failed", "stopped"})
Samples = dict[tuple[str, ...], float]


def recent(runs: Sequence[Submission]) -> list[Submission]:
    """The runs that have not ended, and the last `RUNS_MAX` of the others: no label grows for ever.

    Their histories are read at each look.
    """
    ended = [run for run in runs if run.state in ENDED]
    shown = {run.number for run in ended[-RUNS_MAX:]}
    return [run for run in runs if run.state not in ENDED or run.number in shown]


class CoordinatorMetrics(Collector):
    """Reads the queue, the histories and the list of sites whenever it is asked."""

    def __init__(
        self,
        home: Home,
        queue: Queue,
        snapshot: Callable[[], Mapping[str, Any]],
        log: EventLog,
    ) -> None:
        self._home, self._queue, self._snapshot, self._log = home, queue, snapshot, log
        self._lock = threading.Lock()
        self._rounds: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._answers: Counter[tuple[str, str]] = Counter()

    def on_round(self, line: Mapping[str, Any]) -> None:
        """Count a complete round, as its line in the history tells it."""
        with self._lock:
            self._rounds[""] += 1
            self._seconds[""] += line["seconds"]
            for site, answer in line["sites"].items():
                self._answers[site, answer["reason"] or answer["status"]] += 1

    def collect(self) -> Iterator[Metric]:
        yield gauge("tacit_info", "The version.", {(version("tacit"),): 1}, "version")
        yield from self._played()
        yield from self._runs()
        yield from self._sites()
        free = shutil.disk_usage(self._home.folder).free
        yield gauge("tacit_disk_free_bytes", "Free on the folder's disk.", {(): free})
        yield from from_log(self._log)

    def _played(self) -> Iterator[Metric]:
        with self._lock:
            rounds, seconds = self._rounds[""], self._seconds[""]
            answers: Samples = dict(self._answers.items())
        yield counter("tacit_rounds", "Complete rounds.", {(): rounds})
        yield counter("tacit_round_seconds", "Seconds of complete rounds.", {(): seconds})
        what = "Answers of sites to rounds: trained, or the reason why not."
        yield counter("tacit_site_answers", what, answers, "site", "answer")

    def _runs(self) -> Iterator[Metric]:
        states: Samples = {}
        done: Samples = {}
        planned: Samples = {}
        last: Samples = {}
        epsilon: Samples = {}
        for run in recent(self._queue.runs()):
            states |= {(run.name, state): float(state == run.state) for state in STATES}
            line = last_line(self._home.runs / run.name)
            done[run.name,] = line.get("round", 0)
            planned[run.name,] = run.plan.rounds
            if line:
                last[run.name,] = line["seconds"]
            for site, answer in line.get("sites", {}).items():
                if answer["epsilon"] is not None:
                    epsilon[run.name, site] = answer["epsilon"]
        yield gauge("tacit_run_state", "1 for the run's state.", states, "run", "state")
        yield gauge("tacit_run_rounds", "Complete rounds of a run.", done, "run")
        yield gauge("tacit_run_rounds_planned", "Rounds of its plan.", planned, "run")
        yield gauge("tacit_run_last_round_seconds", "Seconds of its last round.", last, "run")
        what = "Epsilon that the run has cost at a site, at the plan's delta."
        yield gauge("tacit_run_epsilon", what, epsilon, "run", "site")

    def _sites(self) -> Iterator[Metric]:
        now, here = datetime.datetime.now(datetime.UTC), self._snapshot()
        certificates = {
            "coordinator": Certificate.read(self._home.certificate.read_bytes()),
            "authority": Certificate.read(self._home.ca.read_bytes()),
        }
        connected: Samples = {}
        seen: Samples = {}
        for member in self._home.members().sites.values():
            if member.revoked is not None:
                continue
            certificates[f"site {member.name}"] = member.certificate
            presence = here["sites"].get(member.name, {"connected": False, "seen": None})
            connected[member.name,] = float(presence["connected"])
            if presence["seen"] is not None:
                seen[member.name,] = presence["seen"]
        left: Samples = {
            (whose,): (one.ends - now).total_seconds() for whose, one in certificates.items()
        }
        yield gauge("tacit_site_connected", "1 where a site is connected.", connected, "site")
        yield gauge("tacit_site_last_seen_seconds", "Since its last request.", seen, "site")
        yield gauge("tacit_certificate_remaining_seconds", "Until it ends.", left, "whose")
