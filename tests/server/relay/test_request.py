"""What is no round's request to this relay is refused by a code before a site hears of it."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from privacy.arrays import encode
from privacy.contract.plan_file import load_plan
from server.relay.request import Refusal, read_request, read_weights

PLAN = load_plan("digits", ["sigma=2.0", "rate=0.2", "rows=300", "rounds=5"])
MEDIAN = load_plan("digits", ["sigma=2.0", "rate=0.2", "rows=300", "rounds=5", "combine=median"])


def content(**changes: Any) -> RecordDict:
    fields = {"run": "r1", "round": 2, "site": "east", "plan": PLAN.to_json(), "base": "ab"}
    left = {name: value for name, value in (fields | changes).items() if value is not None}
    return RecordDict({"request": ConfigRecord(left)})


def test_a_request_comes_out_as_it_was_put() -> None:
    request = read_request(content(), "east")
    assert (request.run, request.round, request.plan, request.base) == ("r1", 2, PLAN, "ab")
    assert read_request(content(run=""), "east", proposal=True).run == ""


@pytest.mark.parametrize(
    "changes",
    [
        *({"run": run} for run in (None, "", "../x", "a b", "x" * 65, 7)),
        *({"round": number} for number in (None, 0, 6, -1, True, "1")),
        *({"plan": text} for text in (None, "{", "[]", 3)),
        *({"site": site} for site in (None, "west", 3)),
        {"base": 3},
    ],
)
def test_a_malformed_request_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as refusal:
        read_request(content(**changes), "east")
    assert (refusal.value.code, refusal.value.status) == ("bad-request", "failed")


def test_a_plan_that_needs_single_replies_is_refused_for_good() -> None:
    with pytest.raises(Refusal, match="output-not-allowed"):
        read_request(content(plan=MEDIAN.to_json()), "east")
    with pytest.raises(Refusal, match="bad-request"):
        read_request(RecordDict(), "east")


def weights(data: bytes, stype: str = "safetensors") -> RecordDict:
    array = Array("uint8", (len(data),), stype, data)
    return RecordDict({"arrays": ArrayRecord({"weights": array})})


def test_weights_of_any_names_and_shapes_are_taken_and_passed_down_bit_for_bit() -> None:
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a.x": np.ones(1, np.float32)}
    data = encode(arrays)
    assert encode(read_weights(weights(data))) == data


@pytest.mark.parametrize(
    "bad",
    [
        RecordDict(),
        weights(b"garbage"),
        weights(encode({"a": np.ones(1, np.float32)}), "pickle"),
        weights(encode({"a": np.array([np.nan], np.float32)})),
        weights(encode({"a": np.ones(2, np.float32)}, "bfloat16")),
    ],
)
def test_weights_that_are_none_are_refused(bad: RecordDict) -> None:
    with pytest.raises(Refusal, match="bad-weights"):
        read_weights(bad)
