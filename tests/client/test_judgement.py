"""The verdict on a round needs a ledger to rely on and a trainer that did what was paid."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import client.app
from tests.support.desk import Desk


def test_a_ledger_that_was_changed_is_told_by_its_code_and_no_row_is_looked_at(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path)
    assert desk.said(desk.ask()) == ("trained", "")
    looked, content = desk.looked, desk.path.read_bytes()
    desk.path.write_bytes(content.replace(b'"sigma": 2.0', b'"sigma": 9.0'))
    reply = desk.ask(round=2)
    assert desk.said(reply) == ("declined", "ledger-untrusted")
    assert desk.looked == looked
    assert desk.heard[-1][1]["reason"] == "ledger-untrusted"
    assert "events" not in reply.content.config_records["reply"]


def test_a_trainer_that_took_other_steps_than_were_paid_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, honest = Desk(tmp_path), client.app.train

    def twice(*words: Any, **options: Any) -> Any:
        trained = honest(*words, **options)
        return replace(trained, steps=2 * trained.steps)

    monkeypatch.setattr(client.app, "train", twice)
    assert desk.said(desk.ask()) == ("failed", "failed")
