"""What Prometheus is told of a site: budgets of its populations, presence, rounds, disk."""

import datetime
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from client.agent.credentials import Enrolled
from client.agent.received_plans import received
from client.site import Site
from privacy.accounting.epsilon import spent
from privacy.event_log import EventLog
from privacy.ledger.ledger import LedgerError
from privacy.metrics import Collector, Metric, counter, from_log, gauge

Samples = dict[tuple[str, ...], float]


class CountedEvents(EventLog):
    """The client's log, which also keeps what a counter of lines cannot: presence and seconds."""

    connected = False
    rounds = 0
    seconds = 0.0

    def __call__(self, event: str, **facts: Any) -> None:
        super().__call__(event, **facts)
        if event in ("connected", "disconnected", "stopped"):
            self.connected = event == "connected"
        if event == "trained":
            self.rounds += 1
            self.seconds += float(facts["seconds"])


class SiteMetrics(Collector):
    """Reads ledgers, plans and the policy whenever it is asked; epsilon only when it changed."""

    def __init__(
        self, enrolled: Enrolled, sites: Callable[[], Sequence[Site]], log: CountedEvents
    ) -> None:
        self._enrolled, self._sites, self._log = enrolled, sites, log
        self._lock = threading.Lock()
        self._known: dict[tuple[object, ...], float] = {}

    def collect(self) -> Iterator[Metric]:
        here, log = self._enrolled, self._log
        facts: Samples = {(version("tacit"), here.name): 1.0}
        yield gauge("tacit_info", "The version, and the site.", facts, "version", "site")
        yield gauge("tacit_connected", "1 while connected.", {(): float(log.connected)})
        yield gauge("tacit_paused", "1 while paused.", {(): float(here.paused.exists())})
        yield counter("tacit_rounds", "Rounds trained since the start.", {(): log.rounds})
        yield counter("tacit_round_seconds", "Seconds of these rounds.", {(): log.seconds})
        yield from self._budgets()
        yield from self._plans()
        ends = here.read_certificate().ends if here.certificate.is_file() else None
        if ends is not None:
            seconds = (ends - datetime.datetime.now(datetime.UTC)).total_seconds()
            left: Samples = {(f"site {here.name}",): seconds}
            yield gauge("tacit_certificate_remaining_seconds", "Until it ends.", left, "whose")
        free = shutil.disk_usage(here.folder).free
        yield gauge("tacit_disk_free_bytes", "Free on the folder's disk.", {(): free})
        yield from from_log(log)

    def _budgets(self) -> Iterator[Metric]:
        used: Samples = {}
        left: Samples = {}
        limit: Samples = {}
        entries: Samples = {}
        sound: Samples = {}
        for site in self._sites():
            if site.ledger is None:
                continue
            name = (site.ledger.population,)
            try:
                sound[name] = float(site.ledger.trusted())
                entries[name] = site.ledger.head.n
                used[name] = self._spent(site)
            except LedgerError:
                sound[name] = 0.0
                continue
            limit[name] = site.policy.epsilon
            left[name] = max(0.0, site.policy.epsilon - used[name])
        yield gauge("tacit_epsilon_spent", "Epsilon spent for life.", used, "population")
        yield gauge("tacit_epsilon_left", "Epsilon left of the policy's.", left, "population")
        yield gauge("tacit_epsilon_limit", "The policy's epsilon.", limit, "population")
        yield gauge("tacit_ledger_entries", "Entries of the ledger.", entries, "population")
        yield gauge("tacit_ledger_sound", "1 where the ledger can be trusted.", sound, "population")

    def _spent(self, site: Site) -> float:
        """Epsilon of everything past; computed once for each state of ledger and policy."""
        if site.ledger is None:
            return 0.0
        policy = site.policy
        key = (
            site.ledger.population,
            site.ledger.head,
            policy.delta,
            policy.records_per_subject,
        )
        with self._lock:
            if key not in self._known:
                past = site.ledger.merged()
                if len(self._known) > 100:
                    self._known.clear()
                self._known[key] = spent(past, policy.delta, records=policy.records_per_subject)
            return self._known[key]

    def _plans(self) -> Iterator[Metric]:
        sites = self._sites()
        if not sites:
            return
        policy, states = sites[0].policy, Counter[str]()
        for one in received(self._enrolled.folder):
            digest = one.plan.digest
            if digest in policy.denied:
                states["denied"] += 1
            elif digest in policy.plans or policy.approve == "within-limits":
                states["approved"] += 1
            else:
                states["waiting"] += 1
        every: Mapping[tuple[str, ...], float] = {
            (state,): states[state] for state in ("approved", "denied", "waiting")
        }
        what = "Plans that coordinators asked, by the owner's answer."
        yield gauge("tacit_plans", what, every, "answer")
