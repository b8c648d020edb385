"""A coordinator, its relays and all their sites in one process, over TLS on loopback."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.clientapp import ClientApp

from client.agent.credentials import enroll, join
from privacy.accounting.epsilon import spent
from privacy.arrays import Arrays
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from privacy.identity.keys import sign
from server.fleet.grid import LinkGrid
from server.registry import sites as members
from server.registry.heads import HeadBook, last_head
from server.registry.relays import UPWARD, relays_of
from server.registry.sites import Home
from server.relay.relay import Relay
from server.rounds.job import Attempts, Job, Model
from server.rounds.loop import Outcome, federate
from server.rounds.run_folder import RunFolder
from server.service.attendance import turnout
from server.service.follower import Follower
from server.service.proposals import Proposals
from server.service.queue import Queue
from server.service.status import StatusBoard
from tests.support.federation import Events, coordinator, linked, member, now, running
from tests.support.light_sites import LightSite
from tests.support.patience import patience

WEIGHTS: Arrays = {"weight": np.zeros((10, 64), np.float32), "bias": np.zeros(10, np.float32)}


def plan_for(sites: int, *more: str, rounds: int = 2) -> Plan:
    """A small plan of one step a round, which `sites` sites must train."""
    plan = load_plan(
        "digits",
        [
            *(
                "delta=1e-4",
                "sigma=2.0",
                "rate=0.2",
                "rows=300",
                f"rounds={rounds}",
                f"sites={sites}",
            ),
            *("steps=1", "lr=1.0", "l2=0.0", "average=false", "server_momentum=0.0"),
            *(f"operation.min_sites={sites}", *more),
        ],
    )
    for number in range(1, min(rounds, 3) + 1):  # known before many threads ask for it at once
        spent(plan.events_of_round("any") * number, 1e-4)
    return plan


def relay_member(home: Path, folder: Path, name: str) -> Path:
    """A relay's folder, enrolled as a relay and joined."""
    place, _ = coordinator(folder)
    csr, key = enroll(place / UPWARD, name)
    _, bundle = members.sign(home, csr, now(), expect=key, relay=True)
    join(place / UPWARD, bundle, now())
    return place


class Tree:
    """`relays` names the sites of each relay, `direct` those of the coordinator itself.

    `sites` are all of them, by the name that the coordinator has for them. `apps` are what answers
    the coordinator in place of a relay's own.
    """

    def __init__(
        self, folder: Path, relays: Mapping[str, Sequence[str]], direct: Sequence[str] = ()
    ) -> None:
        self.folder, self.relays = folder, dict(relays)
        self.home, places = coordinator(folder / "top", *direct)
        self.sites = {name: LightSite(place, name) for name, place in places.items()}
        self.homes: dict[str, Path] = {}
        for relay, names in self.relays.items():
            where = folder / relay
            self.homes[relay] = relay_member(self.home, where, relay)
            for name in names:
                place = member(where, self.homes[relay], name)
                self.sites[f"{relay}:{name}"] = LightSite(place, name)
        self.log = Events()
        self.logs = {relay: Events() for relay in self.relays}
        self.queue = Queue(self.home)
        self.grid: LinkGrid
        self.open: dict[str, ExitStack] = {}
        self.interval = 0.2
        self.apps: dict[str, Callable[[Relay], ClientApp]] = {}

    @contextmanager
    def running(self) -> Iterator["Tree"]:
        """Everything is up while the block runs."""
        with ExitStack() as stack:
            self.grid = stack.enter_context(linked(self.home, self.log))
            for name, site in self.sites.items():
                if ":" not in name:
                    app = site.app()
                    stack.enter_context(running(site.folder, self.grid.address, app))
            stack.callback(lambda: [self.stop(relay) for relay in list(self.open)])
            for relay in self.relays:
                self.start(relay)
            for name in (n for n in self.sites if ":" not in n):
                assert self.log.wait("connected", site=name), name
            yield self

    def start(self, relay: str) -> None:
        """A relay's process begins, its sites with it."""
        self.log.lines[:] = [e for e in self.log.lines if e.get("site") != relay]
        self.logs[relay].lines.clear()
        with ExitStack() as stack:
            grid = stack.enter_context(linked(self.homes[relay], self.logs[relay]))
            held = self.relay(relay, grid)
            names = self.relays[relay]
            for name in names:
                site = self.sites[f"{relay}:{name}"]
                stack.enter_context(running(site.folder, grid.address, site.app()))
            for name in names:
                assert self.logs[relay].wait("connected", site=name), name
            place = self.homes[relay] / UPWARD
            log = self.logs[relay]
            stack.enter_context(
                running(place, self.grid.address, self.apps.get(relay, Relay.app)(held), log)
            )
            assert self.log.wait("connected", site=relay), relay
            self.open[relay] = stack.pop_all()

    def relay(self, name: str, grid: LinkGrid) -> Relay:
        """A relay over its folder."""
        home = self.homes[name]
        board = StatusBoard(home, listen="", presence=grid.presence)
        return Relay.over(Home(home), name, grid, board, self.logs[name], self.interval, 10.0)

    def stop(self, relay: str) -> None:
        """A relay and its connections end."""
        self.open.pop(relay).close()

    def play(
        self,
        plan: Plan,
        label: str = "run",
        *,
        on_line: Callable[[Mapping[str, Any]], None] = lambda line: None,
        **attempts: Any,
    ) -> Outcome:
        """Play a plan with whoever is there, or go on with it."""
        home, path = Home(self.home), self.home / "runs" / label
        path.parent.mkdir(exist_ok=True)
        exists = path.exists()
        folder = (
            RunFolder.open(path, plan)
            if exists
            else RunFolder.create(path, plan, kind="federation")
        )
        row = self.queue.take(label, plan, exists=exists, resume=exists)
        heads = self.home / "heads"

        def relays() -> frozenset[str]:
            return relays_of(home.members())

        proposals = Proposals(
            *(self.queue, self.log, self.interval, patience(20)),
            lambda site, ledger: last_head(heads, site, ledger),
            relays,
        )
        follower = Follower(
            *(self.queue, row, proposals),
            StatusBoard(self.home, listen="", presence=dict),
            self.log,
            threading.Event(),
            partial(turnout, home, self.grid, self.queue, plan),
            folder.id,
            on_line=on_line,
        )
        book = HeadBook(
            *(heads, folder.id, path / "heads"), lambda data: sign(home.signing_key, data)
        )
        options: dict[str, Any] = {"most": 3, "round_timeout": patience(60), "hand_out": 10.0}
        model = Model(lambda: WEIGHTS)
        job = Job(
            *(plan, folder, self.grid, model, book, follower),
            attempts=Attempts(**options | attempts),
            relays=relays,
        )
        return federate(job)

    @contextmanager
    def playing(self, plan: Plan) -> Iterator[Callable[[], Outcome]]:
        """Play in a thread; the value waits for the end."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self.play, plan)
            yield lambda: future.result(patience(120))

    def model(self, label: str = "run") -> Arrays:
        """The run's model by now."""
        last = RunFolder.open(self.home / "runs" / label).resume()
        assert last is not None
        return {name: a for name, a in last[0].items() if not name.startswith("server/")}
