"""What a coordinator takes from a relay: an honest sum, and nothing of one that lies."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from privacy.accounting.segments import Budget
from privacy.arrays import Arrays, encode
from privacy.contract.plan import Plan
from privacy.ledger.heads import GENESIS, Head
from privacy.ledger.ledger import Ledger
from server.registry.heads import HeadBook
from server.relay.message import SITES_MAX, Directions, Leaf, read_leaves, read_proposed
from server.relay.verdict import SumCheck, Verdict, relay_verdict
from server.rounds.messages import ReplyError, Request
from simulations.grid import identify
from tests.support.relays import WEIGHTS, plan_for

PLAN = plan_for(3)
SHAPES = {name: a.shape for name, a in WEIGHTS.items()}
NAMES = ("a", "b", "c")


def noise(plan: Plan = PLAN, seed: int = 0) -> Arrays:
    """What a site without rows would send."""
    draws = np.random.default_rng(seed)
    std = (plan.sigma or 0) * (plan.clip or 0) * plan.lr / plan.denominator("x")
    return {n: draws.normal(0, std, s).astype(np.float32) for n, s in sorted(SHAPES.items())}


def answering(content: RecordDict) -> Message:
    identify(1)
    return Message(content, reply_to=Message(RecordDict(), 1, "train"))


@dataclass
class Region:
    """A relay's sites with their ledgers, the coordinator's book, and an honest reply."""

    folder: Path
    plan: Plan = PLAN
    leaves: list[Leaf] = field(default_factory=list)
    updates: list[Arrays] = field(default_factory=list)
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    run: str = "r1"

    def __post_init__(self) -> None:
        self.book = HeadBook(
            self.folder / "heads", self.run, self.folder / "run", lambda data: b"signed"
        )
        for name in NAMES:
            path = self.folder / f"{name}.jsonl"
            self.ledgers[name] = Ledger.create(path, population=name, durable=False)
        self.round(1)

    def round(self, number: int) -> None:
        """Each site pays for a round, and says so."""
        self.number = number
        self.known = {n: self.last(n) for n in NAMES}
        self.leaves, self.updates = [], [noise(seed=100 * number + i) for i in range(len(NAMES))]
        for name, ledger in self.ledgers.items():
            events = self.plan.events_of_round(name)
            ledger.spend_all(
                *(events, Budget(100, 1e-4)), run=self.run, round=number, plan=self.plan.digest
            )
            proof = ledger.proof(self.known[name])
            assert proof is not None
            facts = tuple(e.to_dict() for e in ledger.merged(self.run))
            self.leaves.append(Leaf(name, number, "trained", "", facts, 2.0, None, proof.to_dict()))

    def last(self, name: str) -> Head:
        last = self.book.last(f"east:{name}")
        return Head(last["n"], last["digest"])

    @property
    def total(self) -> Arrays:
        return {n: np.sum([u[n] for u in self.updates], axis=0) for n in SHAPES}

    def verdict(
        self,
        *,
        listed: bytes | None = None,
        total: Arrays | bytes | None = None,
        fields: dict[str, Any] | None = None,
        more: dict[str, bytes] | None = None,
        names: tuple[str, ...] = NAMES,
    ) -> Verdict:
        """What the coordinator makes of the reply, changed as asked; `total` b"" leaves it out."""
        heads = {n: self.last(n).to_dict() for n in names if n in NAMES}
        heads |= {n: GENESIS.to_dict() for n in names if n not in NAMES}
        request = Request(self.run, self.number, "east", self.plan.to_json(), behind=heads)
        told = {"run": self.run, "round": self.number, "site": "east"}
        told |= {"status": "relayed", "reason": ""} | (fields or {})
        data = listed if listed is not None else json.dumps(list(map(asdict, self.leaves))).encode()
        arrays = {"sites": Array("uint8", (len(data),), "json", data)}
        blob = self.total if total is None else total
        blob = blob if isinstance(blob, bytes) else encode(blob)
        if blob:
            arrays["update"] = Array("uint8", (len(blob),), "safetensors", blob)
        for name, extra in (more or {}).items():
            arrays[name] = Array("uint8", (len(extra),), "safetensors", extra)
        content = RecordDict({"reply": ConfigRecord(told), "arrays": ArrayRecord(arrays)})
        reply = answering(content)
        check = SumCheck(0.0, 6)
        return relay_verdict(reply, request, self.plan, SHAPES, self.book, check)


@pytest.fixture
def region(tmp_path: Path) -> Region:
    return Region(tmp_path)


def code(verdict: Verdict) -> str:
    """Why the reply does not count, and that nothing of it does."""
    assert verdict.arrays is None and verdict.failure is not None
    assert (verdict.failure.site, verdict.failure.status) == ("east", "failed")
    return str(verdict.failure.reason)


def test_an_honest_sum_counts_with_each_sites_facts_and_its_head_is_counter_signed(
    region: Region,
) -> None:
    verdict = region.verdict()
    assert verdict.failure is None and verdict.arrays is not None
    assert verdict.weight == 3.0
    assert all(np.array_equal(verdict.arrays[n], a) for n, a in region.total.items())
    assert [(made, a.site, a.status) for made, a in verdict.answers] == [
        (1, f"east:{name}", "trained") for name in NAMES
    ]
    assert [len(region.book.lines(f"east:{n}")) for n in NAMES] == [1, 1, 1]
    region.round(2)
    assert region.verdict().failure is None, "the next round goes on from these heads"


def test_a_late_update_weighs_what_it_weighs_of_a_direct_site(region: Region) -> None:
    assert region.verdict().failure is None
    region.round(2)
    region.leaves[0] = replace(region.leaves[0], round=1)
    share = 1 / math.sqrt(2)
    scaled = {n: np.float32(share) * a for n, a in region.updates[0].items()}
    region.updates[0] = scaled
    verdict = region.verdict()
    assert verdict.failure is None
    assert verdict.weight == pytest.approx(2 + share)
    region.round(3)
    old = replace(region.leaves[0], round=1)
    region.plan = replace(PLAN, operation=replace(PLAN.operation, late_rounds=1))
    region.leaves[0] = old
    assert code(region.verdict()) == "bad-reply", "older than the coordinator counts"


Change = Callable[[Region], Verdict]


def leaf(number: int, **changes: Any) -> Change:
    """One site's facts changed."""

    def change(region: Region) -> Verdict:
        region.leaves[number] = replace(region.leaves[number], **changes)
        return region.verdict()

    return change


def event(**changes: Any) -> Change:
    """What one site says that it spent, changed."""

    def change(region: Region) -> Verdict:
        return leaf(1, events=({**region.leaves[1].events[0], **changes},))(region)

    return change


def proof(**changes: Any) -> Change:
    def change(region: Region) -> Verdict:
        return leaf(2, head={**(region.leaves[2].head or {}), **changes})(region)

    return change


def scaled(by: float) -> Change:
    return lambda region: region.verdict(total={n: by * a for n, a in region.total.items()})


def one_more(region: Region) -> Verdict:
    region.leaves.append(replace(region.leaves[0], site="d"))
    return region.verdict()


def doubled(region: Region) -> Verdict:
    region.leaves.append(region.leaves[0])
    return region.verdict()


def one_of_three(region: Region) -> Verdict:
    region.updates = region.updates[:1]
    return region.verdict()


def crowd(count: int) -> Change:
    names = tuple(f"s{i}" for i in range(count))

    def change(region: Region) -> Verdict:
        region.leaves = [replace(region.leaves[0], site=name) for name in names]
        return region.verdict(names=names)

    return change


def none_trained(region: Region) -> Verdict:
    region.leaves = [
        replace(one, status="declined", reason="paused", head=None) for one in region.leaves
    ]
    return region.verdict()


def huge(region: Region) -> Verdict:
    one = json.dumps(asdict(region.leaves[0]))
    return region.verdict(listed=b"[" + b",".join([one.encode()] * 20_000) + b"]")


LIES: dict[str, tuple[Change, str]] = {
    "a site that was not asked": (one_more, "bad-reply"),
    "a name twice": (doubled, "bad-reply"),
    "a site of a relay below": (leaf(0, site="north:a"), "bad-reply"),
    "a name that is not printable": (leaf(0, site="a\x1b[2J"), "bad-reply"),
    "more sites than a relay has": (crowd(2 * SITES_MAX + 1), "bad-reply"),
    "a list of many megabytes": (huge, "bad-reply"),
    "no JSON": (lambda r: r.verdict(listed=b"\xff\x00 garbage"), "bad-reply"),
    "another JSON": (lambda r: r.verdict(listed=b'{"a": [[[[1]]]]}'), "bad-reply"),
    "not a number": (
        lambda r: r.verdict(
            listed=json.dumps([asdict(r.leaves[0]) | {"sigma": math.nan}]).encode()
        ),
        "bad-reply",
    ),
    "a field too many": (
        lambda r: r.verdict(listed=json.dumps([asdict(r.leaves[0]) | {"x": 1}]).encode()),
        "bad-reply",
    ),
    "an array too many": (lambda r: r.verdict(more={"x": b"1234"}), "bad-reply"),
    "a reason for a trained site": (leaf(0, reason="paused"), "bad-reply"),
    "a reason of its own": (leaf(0, status="failed", reason="look here"), "bad-reply"),
    "a round to come": (leaf(0, round=2), "bad-reply"),
    "another round's reply": (lambda r: r.verdict(fields={"round": 2}), "old-reply"),
    "another run's reply": (lambda r: r.verdict(fields={"run": "r2"}), "old-reply"),
    "another relay's name": (lambda r: r.verdict(fields={"site": "west"}), "bad-reply"),
    "an update of its own": (lambda r: r.verdict(fields={"status": "trained"}), "bad-update"),
    "metrics that nobody asked for": (leaf(0, metrics={"loss": 1.0}), "bad-reply"),
    "no events": (leaf(1, events=()), "unpaid"),
    "less noise in an event": (event(noise=1.0), "bad-reply"),
    "another rate": (event(rate=0.9), "bad-reply"),
    "a million rounds": (event(count=10**6), "bad-reply"),
    "no event at all": (event(unit="dog"), "bad-reply"),
    "less noise than planned": (leaf(0, sigma=0.1), "bad-reply"),
    "no head": (leaf(0, head=None), "ledger-untrusted"),
    "a head that no leaves lead to": (proof(leaves=["ab" * 32]), "ledger-untrusted"),
    "a head of another start": (proof(base={"n": 7, "digest": "cd" * 32}), "ledger-untrusted"),
    "a head that is none": (proof(head={"n": -1, "digest": ""}), "ledger-untrusted"),
    "a head of more than a head": (proof(more=1), "ledger-untrusted"),
    "a sum and nobody trained": (none_trained, "bad-update"),
    "no sum": (lambda r: r.verdict(total=b""), "bad-update"),
    "a sum that is none": (lambda r: r.verdict(total=b"12345678"), "bad-update"),
    "a sum of another shape": (
        lambda r: r.verdict(total={"weight": np.zeros((1, 1), np.float32)}),
        "bad-update",
    ),
    "a sum that throws the model away": (scaled(1e6), "bad-update"),
    "a sum too quiet": (scaled(0.3), "too-quiet"),
    "a sum without noise": (scaled(0.0), "too-quiet"),
    "a sum of one, for three": (one_of_three, "too-quiet"),
    "a sum too loud": (scaled(8.0), "too-loud"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_relay_that_lies_is_named_and_nothing_of_its_reply_counts(
    region: Region, lie: str
) -> None:
    change, expected = LIES[lie]
    verdict = change(region)
    assert code(verdict) == expected
    written = [len(region.book.lines(f"east:{name}")) for name in NAMES]
    if expected in ("too-quiet", "too-loud"):
        assert written == [1, 1, 1], "what the sites have paid stays known"
        assert {a.status for _, a in verdict.answers} == {"failed"}
        assert all(a.events for _, a in verdict.answers)
    else:
        assert written == [0, 0, 0] and not verdict.answers


def test_a_rolled_back_ledger_behind_a_relay_does_not_extend_its_head(region: Region) -> None:
    assert region.verdict().failure is None
    kept = region.leaves
    region.round(2)
    region.leaves = [replace(kept[0], round=2), *region.leaves[1:]]
    assert code(region.verdict()) == "ledger-untrusted"


def test_a_relay_that_passes_nothing_on_says_why(region: Region) -> None:
    request = Request("r1", 1, "east", PLAN.to_json(), behind={})
    told = {"run": "r1", "round": 1, "site": "east", "status": "declined", "reason": "paused"}
    reply = answering(RecordDict({"reply": ConfigRecord(told)}))
    verdict = relay_verdict(reply, request, PLAN, SHAPES, region.book, None)
    assert verdict.failure is not None
    assert (verdict.failure.status, verdict.failure.reason) == ("declined", "paused")


@pytest.mark.parametrize(
    "text",
    [None, "", "[]", "{", '{"heads": {}}', '{"heads": {"a": 1}, "seconds": null}', "[" * 9000],
)
def test_directions_that_are_none_are_refused(text: object) -> None:
    with pytest.raises(ReplyError):
        Directions.from_text(text)
    with pytest.raises(ReplyError):
        read_leaves(b"[" if not isinstance(text, str) or text == "[]" else text.encode())


def test_directions_come_out_as_they_went_in() -> None:
    heads = {"a": {"n": 3, "digest": "ab" * 32}}
    directions = Directions(heads, 1.5, 2, True)
    assert Directions.from_text(directions.to_text()) == directions
    with pytest.raises(ReplyError):
        Directions.from_text(Directions({"a": {"n": 3, "digest": "x"}}, None, 2, True).to_text())


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "a:b"},
        {"rounds": -1},
        {"rounds": True},
        {"ledger": "zz"},
        {"reason": "x"},
        {"status": "approved", "reason": "paused"},
        {"more": 1},
    ],
)
def test_a_proposals_answers_are_typed_and_bounded(changes: dict[str, Any]) -> None:
    one = {"site": "a", "status": "approved", "reason": "", "rounds": 2, "ledger": "00ff"}
    assert read_proposed(json.dumps([one]))[0].rounds == 2
    with pytest.raises(ReplyError):
        read_proposed(json.dumps([one, one]))
    with pytest.raises(ReplyError):
        read_proposed(json.dumps([one | changes]))
