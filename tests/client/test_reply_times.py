"""Files that differ by one hostile row are answered as fast: a reply's time tells nothing of it.

At equal batch sizes, which are random and no secret's doing. CPU time of whole replies, both sides
in random order; a signed-rank test (Wilcoxon 1945) whose false alarms are one in 10,000.
"""

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from client.data.site_rows import SiteRows, Source
from client.tasks.registry import task
from privacy.arrays import encode
from privacy.mechanism import noise
from tests.client.test_hostile_rows import GOOD, HOSTILE, POLICY, SCHEMA
from tests.support.desk import Desk
from tests.support.models import plan_for

PLAN = plan_for("table", schema=SCHEMA, rows=80, sigma=9.0, steps=3)
PAIRS = 40
FALSE_ALARM = 1e-4


class Side:
    """A site over a file of its own, and how long its replies take."""

    def __init__(self, folder: Path, content: bytes) -> None:
        folder.mkdir()
        (folder / "d.csv").write_bytes(content)
        self.desk = Desk(folder, POLICY)
        rows = SiteRows(Source(folder / "d.csv"), SCHEMA, lambda: POLICY, lambda _, **__: None)
        self.desk.site.rows, self.desk.site.accepts = rows, rows.accepts
        model = task("table", SCHEMA).model(PLAN.seed)
        weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
        self.weights, self.asked = encode(weights), 0

    def seconds(self) -> float:
        """CPU seconds of the reply to one more run's first round."""
        self.asked += 1
        began = time.process_time()
        reply = self.desk.ask(PLAN, self.weights, run=f"r{self.asked}")
        taken = time.process_time() - began
        assert self.desk.said(reply) == ("trained", "")
        return taken


def told_apart(plain: Side, other: Side) -> float:
    """The p of a signed-rank test that one side is slower."""
    for side in (plain, other) * 3:
        side.seconds()
    differences = []
    for _ in range(PAIRS):
        order = [(plain, -1), (other, 1)]
        random.shuffle(order)
        differences.append(sum(sign * side.seconds() for side, sign in order))
    return float(stats.wilcoxon(differences).pvalue)


@pytest.fixture(autouse=True)
def equal_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def batches(n: int, rate: float, steps: int) -> Any:
        return (np.arange(30) for _ in range(steps))

    monkeypatch.setattr(noise, "batches", batches)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unknown label", "open quote", "bad encoding"])
def test_one_hostile_row_does_not_show_in_the_time_of_a_reply(tmp_path: Path, kind: str) -> None:
    body = ("\n".join(["who,age,ill", *GOOD]) + "\n").encode()
    plain, other = Side(tmp_path / "plain", body), Side(tmp_path / "other", body + HOSTILE[kind])
    assert told_apart(plain, other) > FALSE_ALARM


@pytest.mark.slow
def test_a_reply_that_takes_a_fifth_longer_is_told_apart(tmp_path: Path) -> None:
    body = ("\n".join(["who,age,ill", *GOOD]) + "\n").encode()
    plain, other = Side(tmp_path / "plain", body), Side(tmp_path / "other", body)
    rows, usual = other.desk.site.rows, np.median([plain.seconds() for _ in range(5)])

    def slower(learning: Any) -> Any:
        end = time.process_time() + usual / 5
        while time.process_time() < end:
            pass
        return rows(learning)

    other.desk.site.rows = slower
    assert told_apart(plain, other) < FALSE_ALARM
