"""What an enrolled site answers in a round: whatever it is, the others' round stands."""

import json
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from privacy.arrays import encode
from privacy.contract.plan import Operation, Plan
from server.fleet.grid import LinkGrid
from server.rounds import checkpoint
from server.rounds.job import Attempts, Job, Model
from server.rounds.loop import federate
from server.rounds.run_folder import RunFolder
from tests.support.federation import Events, coordinator, linked, running
from tests.support.patience import wait_for
from tests.support.run_folders import make_plan

SHAPE = (10, 4)
WEIGHTS = {"weight": np.zeros(SHAPE, np.float32)}
GOOD = encode({"weight": np.ones(SHAPE, np.float32)})


def update(values: object, name: str = "weight") -> bytes:
    return encode({name: np.asarray(values, np.float32)})


def events(plan: Plan, **change: Any) -> str:
    (event,) = plan.events_of_round("hostile")
    return json.dumps([event.to_dict() | change])


@dataclass
class Live:
    """A coordinator, an honest site, and a hostile one that answers with `answer`."""

    plan: Plan
    grid: LinkGrid
    log: Events
    answer: Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes | Array]] = field(
        default=lambda fields, data: (fields, data)
    )

    def app(self, site: str) -> ClientApp:
        found = ClientApp()

        @found.train()
        def train(message: Message, context: Context) -> Message:
            asked = message.content.config_records["request"]
            fields: dict[str, Any] = {
                **{name: asked[name] for name in ("run", "round", "site")},
                "status": "trained",
                "reason": "",
                "events": events(self.plan),
            }
            data: bytes | Array = GOOD
            if site == "hostile":
                fields, data = self.answer(fields, GOOD)
            if isinstance(data, bytes):
                data = Array(dtype="uint8", shape=(len(data),), stype="safetensors", data=data)
            records = {"arrays": ArrayRecord({"update": data}), "reply": ConfigRecord(fields)}
            return Message(RecordDict(records), reply_to=message)  # type: ignore[arg-type]

        return found


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    home, sites = coordinator(tmp_path_factory.mktemp("replies"), "honest", "hostile")
    log = Events()
    with linked(home, log) as grid, ExitStack() as stack:
        plan = make_plan(rounds=1, sites=2, min_sites=1, optimizer="adam")  # no law of its noise
        found = Live(plan, grid, log)
        for site, folder in sites.items():
            stack.enter_context(running(folder, grid.address, found.app(site)))
        assert wait_for(lambda: len(grid.names()) == 2)
        yield found


def job(live: Live, folder: RunFolder) -> Job:
    """One run of the live federation, tried once."""
    model = Model(lambda: WEIGHTS)
    return Job(live.plan, folder, live.grid, model, attempts=Attempts(round_timeout=30))


PICKLE = Array(dtype="uint8", shape=(9,), stype="pickle", data=pickle.dumps([1, 2]))
MANY_SIGMAS = json.dumps(
    [
        {"unit": "record", "sigma": 8 + i / 100, "rate": 0.5, "steps": 2, "count": 1}
        for i in range(80)
    ]
)
MANY_LEAVES = json.dumps(
    {
        "base": {"n": 0, "digest": "0" * 64},
        "leaves": ["0" * 64] * 75_000,
        "head": {"n": 75_000, "digest": "0" * 64},
        "acknowledged": False,
    }
)
CASES: dict[str, tuple[dict[str, Any], bytes | Array, str]] = {
    "not a number": ({}, update(np.full(SHAPE, np.nan)), "bad-update"),
    "infinite": ({}, update(np.full(SHAPE, np.inf)), "bad-update"),
    "another shape": ({}, update(np.ones((4, 10))), "bad-update"),
    "another name": ({}, update(np.ones(SHAPE), "bias"), "bad-update"),
    "a pickle for an update": ({}, pickle.dumps([1, 2]), "bad-update"),
    "a pickle that says so": ({}, PICKLE, "bad-update"),
    "nothing": ({}, b"", "bad-update"),
    "far too many bytes": ({}, bytes(1_000_000), "bad-update"),
    "more than may be sent": ({}, np.random.default_rng(0).bytes(20_000_000), "no-answer"),
    "an old round": ({"round": 0}, GOOD, "old-reply"),
    "another run": ({"run": "0" * 16}, GOOD, "old-reply"),
    "unpaid": ({"events": "[]"}, GOOD, "unpaid"),
    "another unit": ({"events": {"unit": "client"}}, GOOD, "bad-reply"),
    "without noise": ({"events": {"sigma": 0.0}}, GOOD, "bad-reply"),
    "less noise than was asked": ({"events": {"sigma": 7.9}}, GOOD, "bad-reply"),
    "a sum that is moved further": ({"events": {"sensitivity": 1.5}}, GOOD, "bad-reply"),
    "records of nobody": ({"events": {"records": 0}}, GOOD, "bad-reply"),
    "drawn otherwise": ({"events": {"sampling": "shuffled"}}, GOOD, "bad-reply"),
    "endless steps": ({"events": {"steps": 10**15}}, GOOD, "bad-reply"),
    "noise without end": ({"events": {"sigma": 1e200}}, GOOD, "bad-reply"),
    "noise without end, sampled": ({"events": {"sigma": 1e200, "rate": 0.5}}, GOOD, "bad-reply"),
    "a rate next to nothing": ({"events": {"rate": 5e-324}}, GOOD, "bad-reply"),
    "another rate": ({"events": {"rate": 0.25}}, GOOD, "bad-reply"),
    "other steps": ({"events": {"steps": 1}}, GOOD, "bad-reply"),
    "a count without end": ({"events": {"count": 10**15}}, GOOD, "bad-reply"),
    "a count of nothing": ({"events": {"count": 0}}, GOOD, "bad-reply"),
    "declined with another's events": (
        {"status": "declined", "reason": "paused", "events": {"sigma": 1e200}},
        GOOD,
        "bad-reply",
    ),
    "more distinct events than a handful": ({"events": MANY_SIGMAS}, GOOD, "bad-reply"),
    "a reason of megabytes": (
        {"status": "declined", "reason": "\x01" * 7_500_000},
        GOOD,
        "bad-reply",
    ),
    "a reason that forges a line": (
        {"status": "declined", "reason": "ok\n05:00:00 answer site=honest said=FORGED\x1b[2J"},
        GOOD,
        "bad-reply",
    ),
    "a reason that is no failure's": ({"reason": "paused"}, GOOD, "bad-reply"),
    "metrics that nobody asked for": ({"metrics": '{"accuracy": 299.7}'}, GOOD, "bad-reply"),
    "a field that nobody asked for": ({"site_says": "hello"}, GOOD, "bad-reply"),
    "a clip bit that nobody asked for": ({"below": 0.5}, GOOD, "bad-reply"),
    "more noise than ten times": ({"sigma": 1e9}, GOOD, "bad-reply"),
    "a head of hundreds of thousands": ({"head": MANY_LEAVES}, GOOD, "bad-reply"),
    "an update of any size": ({}, update(np.full(SHAPE, 1e30)), "bad-update"),
    "deep events": ({"events": "[" * 100_000}, GOOD, "bad-reply"),
    "a noise that is no number": ({"sigma": float("nan")}, GOOD, "bad-reply"),
    "metrics that are none": ({"metrics": '{"loss": NaN}'}, GOOD, "bad-reply"),
    "metrics without end": ({"metrics": '{"loss": 1' + "0" * 400 + "}"}, GOOD, "bad-reply"),
    "another status": ({"status": "won"}, GOOD, "bad-reply"),
    "a number for a reason": ({"reason": 7}, GOOD, "bad-reply"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_answer_is_named_and_the_others_round_stands(
    live: Live, tmp_path: Path, case: str
) -> None:
    change, data, reason = CASES[case]
    if isinstance(change.get("events"), dict):
        change = {"events": events(live.plan, **change["events"])}
    live.answer = lambda fields, good: (fields | change, data)
    folder = RunFolder.create(tmp_path / "run", live.plan)
    outcome = federate(job(live, folder))
    assert outcome.reason == "done", outcome.detail
    (line,) = folder.history()
    assert line["sites"]["hostile"]["status"] == "failed"
    assert line["sites"]["hostile"]["reason"] == reason
    assert line["sites"]["honest"]["status"] == "trained"
    arrays, _ = checkpoint.read(checkpoint.path_of(folder.checkpoints, 1))
    assert np.array_equal(arrays["weight"], np.ones(SHAPE)), "the honest update, and no other"
    assert (reason != "no-answer") or live.log.said(
        "reply_missing", site="hostile", why="oversized"
    )


def without(text: str, *keys: str) -> str:
    return json.dumps([{k: v for k, v in e.items() if k not in keys} for e in json.loads(text)])


GOOD_EVENTS: dict[str, Callable[[Plan], str]] = {
    "the plan's": lambda plan: events(plan),
    "of a site whose people have more records": lambda plan: events(plan, records=4),
    "whose arithmetic is paid for": lambda plan: events(plan, sigma=16.0, sensitivity=2.0),
    "of 0.1.0": lambda plan: without(events(plan), "records", "sensitivity", "sampling"),
}


@pytest.mark.parametrize("case", GOOD_EVENTS)
def test_a_good_answer_counts(live: Live, tmp_path: Path, case: str) -> None:
    change = {"events": GOOD_EVENTS[case](live.plan)}
    live.answer = lambda fields, good: (fields | change, update(np.full(SHAPE, 3.0)))
    folder = RunFolder.create(tmp_path / "run", live.plan)
    assert federate(job(live, folder)).reason == "done"
    arrays, _ = checkpoint.read(checkpoint.path_of(folder.checkpoints, 1))
    assert np.array_equal(arrays["weight"], np.full(SHAPE, 2.0))


def test_a_round_that_too_few_sites_trained_is_tried_again_after_a_pause(
    live: Live, tmp_path: Path
) -> None:
    asked: list[float] = []

    def mended(fields: dict[str, Any], good: bytes) -> tuple[dict[str, Any], bytes]:
        asked.append(time.monotonic())
        return (fields, good if len(asked) > 2 else b"")

    live.answer = mended
    plan = replace(live.plan, operation=Operation(min_sites=2))
    patient = Attempts(most=3, pause=0.2, round_timeout=30)
    once = replace(job(live, RunFolder.create(tmp_path / "run", plan)), plan=plan)
    assert federate(replace(once, attempts=patient)).reason == "done"
    pauses = np.diff(asked)
    assert len(pauses) == 2
    assert pauses[0] >= 0.2
    assert pauses[1] >= 0.4
