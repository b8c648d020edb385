"""Sites that do everything but train: a ledger, its heads, stored replies, and made-up updates."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.agent.credentials import Enrolled
from privacy.accounting.segments import Budget
from privacy.arrays import Arrays, decode_any, digest, encode
from privacy.contract.plan import Plan
from privacy.contract.plan_file import from_json
from privacy.identity.keys import verify
from privacy.ledger.heads import Head, payload
from privacy.ledger.ledger import Ledger

LIMIT = Budget(100.0, 1e-4)
Update = Callable[["LightSite", Plan, int, Arrays], Arrays]


def noise_alone(site: "LightSite", plan: Plan, number: int, weights: Arrays) -> Arrays:
    """What a site without rows sends, on a grid so coarse that float32 adds it up exactly.

    The same for the same name and round, whoever asks.
    """
    seed = [number, *site.name.encode()]
    draws = np.random.default_rng(seed)
    std = (plan.sigma or 0.0) * (plan.clip or 0.0) * plan.lr / plan.denominator(site.name)
    made = {n: draws.normal(0, std, a.shape) for n, a in sorted(weights.items())}
    return {n: (np.round(a * 2**14) / 2**14).astype(np.float32) for n, a in made.items()}


@dataclass
class LightSite:
    """A site as its coordinator sees it; `paid` are the rounds that its ledger holds."""

    folder: Path
    name: str
    update: Update = noise_alone
    decline: str = ""
    durable: bool = False
    stored: dict[str, RecordDict] = field(default_factory=dict)
    released: list[Arrays] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    resent: int = 0

    def __post_init__(self) -> None:
        path = self.folder / "people.jsonl"
        self.ledger = (
            Ledger.open(path)
            if path.exists()
            else Ledger.create(path, population=self.name, durable=self.durable)
        )
        self.key = Enrolled(self.folder).verify
        self.hold.set()

    @property
    def paid(self) -> list[int]:
        return [entry.round for entry in self.ledger.entries()]

    def app(self) -> ClientApp:
        found = ClientApp()

        @found.train()
        def train(message: Message, context: Context) -> Message:
            return Message(self.trained(message.content), reply_to=message)

        @found.evaluate()
        def release(message: Message, context: Context) -> Message:
            self.released.append(self.weights(message.content))
            fields = self.request(message.content)
            return Message(self.said(fields, "received", ""), reply_to=message)

        @found.query("propose")
        def propose(message: Message, context: Context) -> Message:
            fields = self.request(message.content)
            left = from_json(str(fields["plan"])).rounds - int(fields["round"]) + 1
            status = "declined" if self.decline else "approved"
            more = {"rounds": left, "ledger": ""}
            reply = self.said(fields, status, self.decline, more, with_ledger=False)
            return Message(reply, reply_to=message)

        return found

    def request(self, content: RecordDict) -> dict[str, Any]:
        fields = content["request"]
        assert isinstance(fields, ConfigRecord) and fields["site"] == self.name
        return dict(fields)

    def weights(self, content: RecordDict) -> Arrays:
        arrays = content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        return decode_any(arrays["weights"].data)

    def trained(self, content: RecordDict) -> RecordDict:
        fields = self.request(content)
        plan, run, number = from_json(str(fields["plan"])), fields["run"], fields["round"]
        self.asked.set()
        self.hold.wait(60)
        if self.decline:
            return self.said(fields, "declined", self.decline)
        weights = self.weights(content)
        key = f"{run}/{number}/{digest(encode(weights))}"
        if key in self.stored:
            self.resent += 1
        else:
            events = plan.events_of_round(self.name)
            self.ledger.spend_all(
                *(events, LIMIT),
                run=run,
                round=number,
                plan=plan.digest,
                coordinator=self.key,
            )
            data = encode(self.update(self, plan, number, weights), plan.wire)
            array = Array("uint8", (len(data),), "safetensors", data)
            self.stored[key] = RecordDict({"arrays": ArrayRecord({"update": array})})
        sigma = plan.events_of_round(self.name)[0].sigma
        reply = self.said(fields, "trained", "", {"sigma": sigma})
        reply["arrays"] = self.stored[key]["arrays"]
        return reply

    def said(
        self,
        fields: dict[str, Any],
        status: str,
        reason: str,
        more: dict[str, Any] | None = None,
        *,
        with_ledger: bool = True,
    ) -> RecordDict:
        reply = {n: fields[n] for n in ("run", "round", "site")}
        reply |= {"status": status, "reason": reason, **(more or {})}
        if with_ledger and "head" in fields:
            claim = json.loads(fields["head"])
            head = Head(claim["n"], claim["digest"])
            assert verify(self.key, payload(self.name, head), bytes.fromhex(claim["signature"]))
            events = self.ledger.merged(fields["run"], coordinator=self.key)
            reply["events"] = json.dumps([event.to_dict() for event in events])
            proof = self.ledger.proof(head)
            assert proof is not None
            reply["head"] = json.dumps(proof.to_dict())
        return RecordDict({"reply": ConfigRecord(reply)})
