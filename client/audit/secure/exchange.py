"""A made-up coordinator and four made-up parties, whose messages go through `client.app`.

The auditor is all parties at once, so that it can take off what any of them knows.
"""

import math
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from client.app import answer
from client.dpsgd.weights import shapes
from client.reply import REPLY, carried
from client.round_request import ARRAYS, REQUEST, STYPE
from client.secure_round import answer_step
from client.site import Site
from client.tasks.registry import task_of
from client.tasks.rows import Rows
from privacy.arrays import encode
from privacy.contract.plan import Plan, SecurePlan, SitePlan
from privacy.contract.policy import ANY, Policy
from privacy.identity.keys import new_signing_key, sign, signing_public
from privacy.ledger.ledger import Ledger
from privacy.secagg import coordinator
from privacy.secagg.masks import Words
from privacy.secagg.messages import (
    list_text,
    map_text,
    names_text,
    read_keys,
    read_revealed,
    read_shares,
)
from privacy.secagg.parties import PartyList, party_list
from privacy.secagg.party import Revealed, Shared

WIDTH: Final = 24  # records of each party, and columns
CLIP: Final = 0.01
NAMES: Final = ("a", "b", "c", "d")
_SCHEMA: Final = "\n".join(
    [
        'label = "y"',
        "[columns.y]",
        'type = "category"',
        'values = ["a", "b"]',
        *(f'[columns.c{i}]\ntype = "number"\nmin = -1\nmax = 1' for i in range(WIDTH)),
    ]
)


class RefusedStep(Exception):
    """A party declined a message; the reason is its code."""


@dataclass
class Seen:
    """What one attempt showed: the list, each party's secrets and masked reply, what was revealed.

    `total` is the sum with the masks off, by the coordinator's own code.
    """

    parties: PartyList
    secrets: Mapping[str, Shared]
    masked: dict[str, Words] = field(default_factory=dict)
    revealed: list[Revealed] = field(default_factory=list)
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


@dataclass
class Exchange:
    """Four parties in one plan; `lie(stage, fields)` may change what all of them are sent."""

    plan: Plan
    sites: dict[str, Site]
    number: int = 0

    def keys(self, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an attempt: the fields that its messages share, and every party's keys."""
        self.number += 1
        common = {"attempt": secrets.token_hex(16)}
        return common, {
            name: read_keys(self.step(name, common | {"stage": "keys"})) for name in NAMES
        }

    def attempt(self, lie: Callable[[str, dict[str, str]], dict[str, str]] | None = None) -> Seen:
        """A whole attempt; RefusedStep where a party declines."""
        change = lie or (lambda stage, fields: fields)
        common, keys = self.keys()
        sites, plan = self.sites, self.plan
        first = next(iter(sites.values()))
        current = first.secure.attempt
        if current is None:
            raise RefusedStep("no attempt has begun")
        parties = party_list(keys.values(), current, plan.terms, plan.roster)
        fields = change(
            "shares", common | {"stage": "shares", "keys": list_text(tuple(keys.values()))}
        )
        shares = {name: read_shares(self.step(name, fields)) for name in NAMES}
        states = {
            name: site.secure.state
            for name, site in sites.items()
            if isinstance(site.secure.state, Shared)
        }
        seen = Seen(parties, states)
        agreements = map_text({name: one.agreement for name, one in shares.items()})
        for name in NAMES:
            sealed = map_text({n: one.sealed[name] for n, one in shares.items() if n != name})
            request = change("masked", common | {"agreements": agreements, "sealed": sealed})
            seen.masked[name] = self.train(name, request)
        fields = change(
            "survivors", common | {"stage": "survivors", "survivors": names_text(NAMES)}
        )
        signatures = {name: bytes.fromhex(self.step(name, fields)) for name in NAMES}
        fields = change("reveal", common | {"stage": "reveal", "signatures": map_text(signatures)})
        seen.revealed = [read_revealed(self.step(name, fields)) for name in NAMES]
        return seen

    def step(self, name: str, fields: Mapping[str, str]) -> str:
        """A party's answer to a message without weights."""
        reply = answer_step(self.sites[name], RecordDict({REQUEST: self._request(name, fields)}))
        record = reply.config_records[REPLY]
        if record["status"] != "ready":
            raise RefusedStep(str(record["reason"]))
        return str(record["message"])

    def train(self, name: str, fields: Mapping[str, str]) -> Words:
        """A party's masked reply."""
        expected = shapes(task_of(self.plan), self.plan.seed)
        blob = encode({n: np.zeros(shape, np.float32) for n, shape in expected.items()})
        content = RecordDict(
            {ARRAYS: carried("weights", blob, STYPE), REQUEST: self._request(name, fields)}
        )
        reply = answer(self.sites[name], content)
        record = reply.config_records[REPLY]
        if record["status"] != "trained":
            raise RefusedStep(str(record["reason"]))
        data = reply.array_records[ARRAYS]["update"].data
        count = sum(math.prod(shape) for shape in expected.values())
        words: Words = np.frombuffer(data, "<u4" if len(data) == 4 * count else "<u8").copy()
        return words

    def unmask(self, seen: Seen) -> Words:
        """The sum, by the coordinator's own code."""
        total = np.zeros_like(seen.masked[NAMES[0]])
        for words in seen.masked.values():
            total += words
        coordinator.unmask(total, seen.parties, self.plan.terms, NAMES, seen.revealed)
        return total

    def _request(self, name: str, fields: Mapping[str, str]) -> ConfigRecord:
        about: dict[str, Any] = {"run": "audit", "round": self.number, "site": name}
        return ConfigRecord(about | {"plan": self.plan.to_json()} | dict(fields))


def plan_of(*, sigma: float, rate: float, keys: Mapping[str, str]) -> Plan:
    """A plan of four parties, of whom one may drop out and one collude."""
    return Plan(
        task="table",
        schema=_SCHEMA,
        sites=len(NAMES),
        rounds=1000,
        rate=rate,
        rows=WIDTH,
        lr=1.0,
        clip=CLIP,
        sigma=sigma,
        delta=1e-5,
        aggregation="secure",
        weights="rows",
        secure=SecurePlan(dropouts=1, colluding=1),
        site={name: SitePlan(key=key) for name, key in keys.items()},
    )


@contextmanager
def exchange(device: str, *, sigma: float, rate: float) -> Iterator[Exchange]:
    """Four parties with made-up rows and throw-away ledgers."""
    signing = {name: new_signing_key() for name in NAMES}
    keys = {name: signing_public(key) for name, key in signing.items()}
    policy = Policy(
        epsilon=math.inf,
        delta=1e-5,
        min_sigma=0.0,
        approve="within-limits",
        epsilon_alone=math.inf,
        parties=(ANY,),
    )
    x, y = torch.eye(WIDTH), torch.arange(WIDTH) % 2

    def site(name: str, folder: Path) -> Site:
        return Site(
            name,
            replace(policy),
            Ledger.create(folder / f"{name}.jsonl", population="audit", durable=False),
            lambda task: Rows(x, y),
            check_head=lambda head: False,
            device=torch.device(device),
            sign=lambda payload: sign(signing[name], payload),
        )

    with tempfile.TemporaryDirectory() as folder:
        sites = {name: site(name, Path(folder)) for name in NAMES}
        yield Exchange(plan_of(sigma=sigma, rate=rate, keys=keys), sites)
