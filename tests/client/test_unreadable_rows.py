"""A paid round is answered whatever the rows look like: nothing of them shows in the answer."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import client.app
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.arrays import decode
from privacy.contract.plan import Plan
from tests.support.desk import METERED, PLAN, SHAPES, Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    yield Desk(tmp_path)


@pytest.mark.parametrize("plan", [PLAN, METERED], ids=["plain", "with paid metrics"])
def test_rows_that_cannot_be_read_are_answered_like_rows_that_can_and_the_site_hears_of_it(
    desk: Desk, plan: Plan
) -> None:
    faults: list[Exception] = []
    sound = desk.ask(plan)
    desk.site.on_fault = faults.append
    desk.site.rows = broken
    reply = desk.ask(plan, run="r2")
    assert desk.said(reply) == ("trained", "")
    fields, before = (dict(one.content.config_records["reply"]) for one in (reply, sound))
    assert set(fields) == set(before)
    assert len(desk.ledger.entries()) == 2 * len(plan.events_of_round("north"))
    update = decode(reply.content.array_records["arrays"]["update"].data, SHAPES)
    noise = plan.lr * 2.0 * (plan.clip or 0.0) / (0.2 * 300)
    assert np.std(update["weight"]) == pytest.approx(noise, rel=0.2)
    assert [type(error) for error in faults] == [ValueError] * len(plan.events_of_round("north"))
    assert "4711" not in str(reply.content) + str(desk.heard)


def broken(learning: Task) -> Rows:
    raise ValueError("patient 4711 has a secret value")


def test_training_that_fails_on_a_row_is_answered_with_the_noise_of_none(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = client.app.train

    def fails(model: Any, rows: Rows, *args: Any, **kwargs: Any) -> Any:
        if len(rows):
            raise RuntimeError("patient 4711")
        return honest(model, rows, *args, **kwargs)

    monkeypatch.setattr(client.app, "train", fails)
    faults: list[Exception] = []
    desk.site.on_fault = faults.append
    assert desk.said(desk.ask()) == ("trained", "")
    assert len(faults) == 1


@pytest.mark.parametrize("place", [0, 150, 300])
def test_a_row_that_training_fails_on_takes_no_other_row_with_it(desk: Desk, place: int) -> None:
    def rows(learning: Task) -> Rows:
        good = learning.load(None, "train").take(np.arange(300))
        x, y = (torch.cat([t[:place], t[:1], t[place:]]) for t in (good.x, good.y))
        y[place] = 4711  # no class: the loss has no such score
        return Rows(x, y)

    faults: list[Exception] = []
    desk.site.on_fault = faults.append
    loud = replace(METERED, sigma=0.05, rate=1.0, metrics_sigma=0.05, metrics=("rows", "loss"))
    replies = []
    for number, seen in enumerate((desk.rows, rows)):
        desk.site.rows = seen
        desk.site.policy = replace(
            desk.site.policy, epsilon=1e6, outputs=("update", "rows", "loss")
        )
        reply = desk.ask(loud, run=f"r{number}")
        assert desk.said(reply) == ("trained", "")
        update = decode(reply.content.array_records["arrays"]["update"].data, SHAPES)
        replies.append((update["weight"], reply.content.config_records["reply"]["metrics"]))
    (whole, metrics), (without, others) = replies
    assert np.abs(whole).max() > 20 * np.abs(whole - without).max()
    counts = [json.loads(str(one))["rows"] for one in (metrics, others)]
    assert counts == pytest.approx([300, 300], abs=1)
    assert [type(error) for error in faults] == [IndexError, IndexError]
    assert "4711" not in str(desk.heard)


def test_an_error_before_a_row_is_looked_at_leaves_as_a_code_and_never_as_its_text(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("patient 4711")

    monkeypatch.setattr(client.app, "train", fails)
    reply = desk.ask()
    assert desk.said(reply) == ("failed", "failed")
    assert "4711" not in str(reply.content) + str(desk.heard)


def test_a_plan_that_is_not_for_these_data_is_refused_before_anything_is_spent(desk: Desk) -> None:
    desk.site.accepts = lambda plan: False
    assert desk.said(desk.ask()) == ("declined", "schema-differs")
    assert (desk.ledger.entries(), desk.looked) == ((), 0)
