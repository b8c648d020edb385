"""One site behind the real ClientApp, asked through an in-process Grid."""

from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import make_app
from client.site import KeptReplies, Site
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.arrays import Arrays, encode
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from privacy.contract.policy import Policy
from privacy.ledger.ledger import Ledger
from simulations.grid import LocalGrid, context

PLAN = load_plan("digits", ["sigma=2.0", "rate=0.2", "rows=300", "rounds=5"])
METERED = load_plan(
    "digits",
    ["sigma=2.0", "rate=0.2", "rows=300", "rounds=5", 'metrics=["loss"]', "metrics_sigma=5.0"],
)
WEIGHTS: Arrays = {
    "weight": np.zeros((10, 64), np.float32),
    "bias": np.zeros(10, np.float32),
}
SHAPES = {name: a.shape for name, a in WEIGHTS.items()}
PERMISSIVE = Policy(
    epsilon=50.0, delta=1e-4, approve="within-limits", min_sigma=0.0, outputs=("update", "loss")
)


class Direct:
    """An engine that runs one ClientApp, as it is, when its reply is collected."""

    def __init__(self, app: ClientApp) -> None:
        self.app = app
        self.waiting: list[tuple[str, str, Message]] = []

    def submit(self, number: str, site: str, message: Message) -> None:
        self.waiting.append((number, site, message))

    def collect(self) -> tuple[str, Message] | None:
        number, site, message = self.waiting.pop(0)
        return number, self.app(message=message, context=context(message, site))

    def close(self) -> None: ...


def unsigned(head: object) -> bool:
    """These requests' heads are not signed."""
    return True


class Desk:
    """One site behind the real ClientApp, and what it was asked and answered."""

    def __init__(self, folder: Path, policy: Policy = PERMISSIVE) -> None:
        self.path = folder / "people.jsonl"
        self.ledger = Ledger.create(self.path, population="people", durable=False)
        self.looked = 0
        self.heard: list[tuple[str, dict[str, Any]]] = []
        replies = KeptReplies(folder / "replies")
        self.site = Site(
            "north", policy, self.ledger, self.rows, check_head=unsigned, replies=replies
        )
        self.site.on_event = lambda what, **facts: self.heard.append((what, facts))
        self.grid = LocalGrid(Direct(make_app(lambda context, content: self.site)), ["north"])

    def rows(self, learning: Task) -> Rows:
        self.looked += 1
        return learning.load(None, "train").take(np.arange(300))

    def ask(
        self,
        under: Plan = PLAN,
        weights: bytes | None = None,
        stype: str = "safetensors",
        kind: str = "train",
        **asked: Any,
    ) -> Message:
        fields = {"run": "r1", "round": 1, "site": "north", "plan": under.to_json()} | asked
        blob = encode(WEIGHTS) if weights is None else weights
        array = Array("uint8", (len(blob),), stype, blob)
        content = RecordDict(
            {"arrays": ArrayRecord({"weights": array}), "request": ConfigRecord(fields)}
        )
        message = self.grid.create_message(content, kind, 1000, "1")
        (reply,) = self.grid.send_and_receive([message])
        return reply

    def said(self, reply: Message) -> tuple[str, str]:
        fields = reply.content.config_records["reply"]
        return str(fields["status"]), str(fields["reason"])
