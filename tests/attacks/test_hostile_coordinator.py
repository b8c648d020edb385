"""A coordinator that wants more than a site sells: it gets refusals, and costs the site nothing."""

import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from client.agent.bounded_http import UnboundedAnswer, bounded
from client.agent.received_plans import UNANSWERED_MAX, received, remember
from client.models import store
from client.round_request import weights_limit
from client.scoring.output_files import _without_formulas
from client.site import Site
from client.tasks.rows import TaskError
from client.tasks.table import task
from privacy.contract.plan import PlanError
from privacy.contract.plan_file import from_json
from privacy.contract.policy import Policy
from privacy.event_log import EventLog
from privacy.printable import printable
from tests.support.run_folders import make_plan

WIDE = (
    'label = "y"\nhidden = [%s]\n[columns.y]\ntype = "category"\nvalues = ["a", "b"]\n'
    '[columns.x]\ntype = "number"\nmin = 0\nmax = 1\n'
)


def answered(content: bytes, **headers: str) -> httpx.Response:
    """What a client of the site's settings makes of an answer."""

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=headers, stream=_Stream(content))

    transport = httpx.MockTransport(handle)
    with httpx.Client(transport=transport, event_hooks={"response": [bounded]}) as client:
        return client.get("http://coordinator/")


class _Stream(httpx.SyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._content), 65536):
            yield self._content[start : start + 65536]


def test_a_compressed_answer_is_refused_before_it_is_unpacked() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(UnboundedAnswer, match="compressed"):
        answered(bomb, **{"Content-Encoding": "gzip"})
    assert answered(b"x" * 1000).content == b"x" * 1000


@pytest.mark.parametrize("headers", [{}, {"Content-Length": "9000000"}])
def test_an_answer_without_end_is_cut_off(headers: dict[str, str]) -> None:
    with pytest.raises(UnboundedAnswer, match="large"):
        answered(bytes(9_000_000), **headers)


def test_a_schema_describes_no_more_than_a_site_builds() -> None:
    for hidden in (["4096"] * 30, ["4096"] * 8, ["1"] * 17):
        with pytest.raises(TaskError, match="hidden"):
            task(WIDE % ", ".join(hidden))
    assert task(WIDE % "64, 64").model(0) is not None


def site(policy: Policy, **values: Any) -> Site:
    def rows(learning: object) -> Any:
        raise AssertionError("no row is looked at")

    return Site("north", policy, None, rows=rows, check_head=lambda head: True, **values)


def asked(plan: Any) -> dict[str, Any]:
    return {"run": "r", "round": 1, "site": "north", "plan": plan.to_json()}


def test_what_is_declined_anyway_may_bring_no_weights() -> None:
    plan = make_plan(task="digits")
    open_policy = Policy(1.0, 1e-5, approve="within-limits", min_sigma=0.0, max_steps=100)
    closed = replace(open_policy, approve="list")
    limit = weights_limit(site(open_policy), asked(plan), "train")
    assert 0 < limit < 200_000, "the plan's own shapes"
    assert weights_limit(site(closed), asked(plan), "train") == 0
    assert weights_limit(site(open_policy, paused=lambda: True), asked(plan), "train") == 0
    assert weights_limit(site(open_policy), asked(plan), "evaluate") == 0, "of no run that it paid"
    assert weights_limit(site(open_policy), {"plan": "x"}, "train") == 0


def test_a_thousand_plans_leave_a_hundred(tmp_path: Path) -> None:
    approved = make_plan(purpose="approved")
    policy = Policy(1.0, 1e-5, plans=(approved.digest,))
    remember(tmp_path, approved, policy)
    for number in range(UNANSWERED_MAX + 50):
        remember(tmp_path, make_plan(purpose=f"number {number}"), policy)
    kept = {one.plan.purpose for one in received(tmp_path)}
    assert len(kept) == UNANSWERED_MAX + 1
    assert "approved" in kept and "number 0" not in kept


def test_models_of_a_coordinator_have_a_number_and_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MODELS_MAX", 5)
    monkeypatch.setattr(store, "BYTES_MAX", 3_000)
    for number in range(20):
        store.keep(tmp_path, bytes([number]) * 1000, b"sig", run="r", round=number)
    files = list((tmp_path / "models").glob("*.safetensors*"))
    assert len(files) == 2 * 3
    latest = store.latest(tmp_path)
    assert latest is not None and latest.read_bytes()[:1] == bytes([19])


@pytest.mark.parametrize(
    "purpose", ["x" * 501, "\x1b]0;owned\x07\x1b[2Jhello", "a\nb", "\u202egnp"]
)
def test_a_purpose_is_one_printable_line(purpose: str) -> None:
    values = json.loads(make_plan().to_json()) | {"purpose": purpose}
    with pytest.raises(PlanError, match="purpose"):
        from_json(json.dumps(values))


def test_no_line_of_a_log_can_be_forged(capsys: pytest.CaptureFixture[str]) -> None:
    forged = "r\n05:00:00 trained run=aaaa\x1b]0;owned\x07\x1b[2J\u202e" + "x" * 2000
    EventLog(as_json=False)("declined", run=forged)
    EventLog(as_json=True, stream=(stream := io.StringIO()))("declined", run=forged)
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and len(line) < 200
    assert not any(ord(character) < 0x20 for character in line.rstrip("\n"))
    assert "\u202e" not in line
    assert json.loads(stream.getvalue())["run"] == forged
    assert len(printable("\x00" * 1000)) <= 320


def test_a_prediction_is_no_formula_of_a_spreadsheet() -> None:
    names = ["=HYPERLINK(1)", "@SUM(1)", "-2.5", "+x", "plain", "-", "1e5", "a=b"]
    assert _without_formulas(pa.array(names)).to_pylist() == [
        *("'=HYPERLINK(1)", "'@SUM(1)", "-2.5", "'+x", "plain", "'-", "1e5", "a=b"),
    ]
    assert _without_formulas(pa.array(range(8))).to_pylist() == list(range(8))
