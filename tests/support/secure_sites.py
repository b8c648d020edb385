"""Four sites behind the real ClientApp, in secure aggregation under the real coordinator's loop.

`tamper(site, stage, message)` sees each message before its site does, and may change it, or return
None: then nobody answers. `heard` holds what each site logged.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Error, Message

from client.app import make_app
from client.site import SecureState, Site
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from privacy.contract.policy import Policy
from privacy.identity.keys import new_signing_key, sign, signing_public
from privacy.ledger.ledger import Ledger
from server.evaluation import initial_weights
from server.rounds.job import Job, Model
from server.rounds.loop import Outcome, federate
from server.rounds.run_folder import RunFolder
from simulations.grid import LocalGrid, context

NAMES = ("east", "north", "south", "west")
SECURE = (
    *("sites=4", "rows=100", "rounds=2", "rate=1.0", "sigma=3.0", "delta=1e-3", "average=false"),
    *("aggregation=secure", "weights=rows", "secure.dropouts=1", "secure.colluding=1"),
)
POLICY = Policy(
    epsilon=100.0,
    delta=1e-3,
    min_sigma=0.0,
    approve="within-limits",
    epsilon_alone=1000.0,
    parties=("*",),
)
Tamper = Callable[[str, str, Message], Message | None]


class SecureSites:
    """The sites, their ledgers and a run folder; `run` plays what is left of the plan."""

    def __init__(self, folder: Path, *more: str, policy: Policy = POLICY) -> None:
        self.folder = folder
        self.keys = {name: new_signing_key() for name in NAMES}
        drafted = load_plan("digits", [*SECURE, *more])
        named = {
            name: replace(drafted.site_overrides(name), key=signing_public(key))
            for name, key in self.keys.items()
        }
        self.plan: Plan = replace(drafted, site=named)
        self.policy = policy
        self.heard: dict[str, list[tuple[str, dict[str, Any]]]] = {n: [] for n in NAMES}
        self.stages: list[tuple[str, str]] = []
        self.sites = {name: self.site(name) for name in NAMES}
        self.app = make_app(lambda flower, _: self.sites[str(flower.node_config["site"])])
        self.tamper: Tamper = lambda site, stage, message: message
        self.waiting: list[tuple[str, str, Message]] = []
        self.grid = LocalGrid(self, NAMES)
        self.run_folder = RunFolder.create(folder / "run", self.plan, kind="simulation")

    def site(self, name: str) -> Site:
        """A site as its process holds it after a start: nothing of an attempt is on its disk."""
        path = self.folder / f"{name}.jsonl"
        make = Ledger.open if path.exists() else Ledger.create
        more: dict[str, Any] = {} if path.exists() else {"population": name}
        heard = self.heard[name]
        return Site(
            name,
            self.policy,
            make(path, durable=False, **more),
            lambda learning: self.rows(learning, name),
            check_head=lambda head: True,
            on_event=lambda what, **facts: heard.append((what, facts)),
            sign=lambda payload: sign(self.keys[name], payload),
            secure=SecureState(),
        )

    def rows(self, learning: Task, name: str) -> Rows:
        at = NAMES.index(name) * 100
        return learning.load(None, "train").take(np.arange(at, at + 100))

    def submit(self, number: str, site: str, message: Message) -> None:
        self.waiting.append((number, site, message))

    def collect(self) -> tuple[str, Message] | None:
        if not self.waiting:
            return None
        number, site, message = self.waiting.pop(0)
        record = message.content["request"]
        stage = str(record.get("stage", "masked")) if isinstance(record, ConfigRecord) else ""
        self.stages.append((site, stage))
        changed = self.tamper(site, stage, message)
        if changed is None:
            return number, Message(Error(code=0, reason="away"), reply_to=message)
        return number, self.app(message=changed, context=context(changed, site))

    def close(self) -> None: ...

    def kill(self, name: str) -> None:
        """The site's process ends and starts again."""
        self.sites[name] = self.site(name)

    def run(self) -> Outcome:
        initial = initial_weights(self.plan)
        model = Model(lambda: initial)
        return federate(Job(self.plan, self.run_folder, self.grid, model))

    def codes(self, name: str) -> list[str]:
        """Why the site refused messages of the protocol."""
        return [facts["code"] for what, facts in self.heard[name] if what == "secure_refused"]

    def spends(self, name: str) -> int:
        return len(self.sites[name].ledger.entries())  # type: ignore[union-attr]
