"""A round's request: what is none to this site is declined before anything is paid."""

from dataclasses import replace
from pathlib import Path

from tests.support.desk import PLAN, Desk


def test_a_learning_rate_that_no_rule_can_give_is_refused_before_anything_is_paid(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path)
    uncounted = replace(PLAN, lr="auto", split="natural", sites=None)
    assert desk.said(desk.ask(uncounted)) == ("declined", "bad-request")
    assert not desk.path.exists() or not desk.path.read_text()
    assert desk.said(desk.ask(replace(PLAN, lr="auto"))) == ("trained", "")
