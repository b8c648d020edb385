"""Whether a reply has paid metrics follows from its round's number: neither more nor fewer."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from privacy.arrays import encode
from privacy.contract.plan import Plan
from server.rounds.messages import ARRAYS, REPLY, STYPE, Answer, ReplyError, Request
from server.rounds.reply_check import read_reply
from tests.support.run_folders import make_plan

SHAPES = {"weight": (10, 4)}


def plan() -> Plan:
    return make_plan(rounds=6, metrics=("accuracy",), metrics_sigma=30.0, metrics_every=3)


def answer(number: int, metrics: dict[str, float] | None) -> Answer:
    one = plan()
    paid = [event.to_dict() for event in one.events_of_round("site", number)]
    fields: dict[str, Any] = {"run": "r", "round": number, "status": "trained", "reason": ""}
    fields |= {"events": json.dumps(paid)}
    if metrics is not None:
        fields["metrics"] = json.dumps(metrics)
    data = encode({"weight": np.zeros(SHAPES["weight"], np.float32)})
    update = ArrayRecord({"update": Array("uint8", (len(data),), STYPE, data)})
    content = RecordDict({REPLY: ConfigRecord(fields), ARRAYS: update})
    message: Any = SimpleNamespace(has_error=lambda: False, content=content)
    return read_reply(message, Request("r", number, "site", one.to_json()), one, SHAPES)


def test_a_round_that_has_metrics_brings_them_and_no_other_does() -> None:
    assert answer(2, None).metrics is None
    assert answer(3, {"accuracy": 12.0}).metrics == {"accuracy": 12.0}
    for number, metrics in ((2, {"accuracy": 12.0}), (3, None), (4, {"accuracy": 12.0})):
        with pytest.raises(ReplyError, match="bad-reply"):
            answer(number, metrics)
