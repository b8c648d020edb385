"""Files that differ by one hostile row, or by the number of rows, give the same reply."""

from pathlib import Path
from typing import Any

import pytest

from client.data.formats import records, text
from client.data.site_rows import SiteRows, Source
from client.tasks.registry import task
from client.tasks.rows import TaskError
from privacy.arrays import decode, encode
from privacy.contract.policy import Policy
from tests.support.desk import Desk
from tests.support.models import plan_for

SCHEMA = """
label = "ill"
subject = "who"
[columns.age]
type = "number"
min = 0
max = 120
[columns.ill]
type = "category"
values = ["no", "yes"]
"""
PLAN = plan_for("table", schema=SCHEMA, metrics=["loss"], metrics_sigma=5.0, rows=80, sigma=2.0)
POLICY = Policy(
    epsilon=50.0, delta=1e-4, approve="within-limits", min_sigma=0.0, min_rows=80,
    outputs=("update", "loss"),
)  # fmt: skip
GOOD = [f"p{i},{20 + i},{'yes' if i % 3 else 'no'}" for i in range(100)]
HOSTILE: dict[str, bytes] = {
    "none": b"",
    "missing": b"q,,no\n",
    "unknown label": b"q,40,perhaps\n",
    "text in a number": b"q,forty,no\n",
    "NaN": b"q,NaN,no\n",
    "infinity": b"q,1e999,no\n",
    "NUL": b"q,4\x000,no\n",
    "over-long line": b"q," + b"4" * 5_000_000 + b",no\n",
    "bad encoding": b"q\xff\xfe,40,no\n",
    "no subject": b",40,no\n",
    "open quote": b'"q,40,no\n',
    "ragged": b"q,40\n",
    "too many": b"q,40,no,1,2,3\n",
}


BROKEN_LINES = HOSTILE | {
    "a carriage return alone": b"q,4\r0,no\n",
    "text after a quote": b'"q"x,40,no\n',
    "blanks before a quote": b'q, "40",no\n',
    "an open quote at the end": b'q,40,"no\n',
    "two open quotes": b'"q,40,no\n"r,4,no\n',
}


@pytest.fixture(autouse=True)
def _short_records(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of at most 4 MiB, for the tests that are not slow: the real limit takes seconds."""
    if request.node.get_closest_marker("slow") is None:
        for module in (records, text):
            monkeypatch.setattr(module, "LONGEST", 4 << 20)


def read(folder: Path, content: bytes) -> tuple[list[Any], list[str]]:
    """What a round trains on of this file, and what the owner is told of it."""
    (folder / "d.csv").write_bytes(content)
    told: list[str] = []
    tell = lambda event, **fields: told.append(fields["file"])  # noqa: E731
    rows = SiteRows(Source(folder / "d.csv"), SCHEMA, lambda: POLICY, tell)(task("table", SCHEMA))
    people = [] if rows.subject is None else rows.subject.tolist()
    return [rows.x.tolist(), rows.y.tolist(), people], told


@pytest.mark.parametrize("at", [1, 50, 101], ids=["first", "middle", "last"])
@pytest.mark.parametrize("kind", BROKEN_LINES)
def test_a_line_that_is_no_row_takes_no_other_row_with_it(
    tmp_path: Path, kind: str, at: int
) -> None:
    lines = ["who,age,ill\n", *(f"{line}\n" for line in GOOD)]
    plain, _ = read(tmp_path, "".join(lines).encode())
    before, after = ("".join(part).encode() for part in (lines[:at], lines[at:]))
    rows, told = read(tmp_path, before + BROKEN_LINES[kind] + after)
    assert rows == plain
    assert kind == "none" or "left out" in told[-1]


def test_no_row_that_fits_is_a_number_of_rows_like_any_other(tmp_path: Path) -> None:
    for content in (b"who,age,ill\n", b"who,age,ill\np,50,perhaps\np,1\n"):
        rows, told = read(tmp_path, content)
        assert rows == [[], [], []]
        assert len(told) == 1
        assert "found none" in told[0] or "got none" in told[0]


def test_where_the_owner_starts_the_client_such_a_line_is_refused_with_its_place(
    tmp_path: Path,
) -> None:
    (tmp_path / "d.csv").write_text("\n".join(["who,age,ill", *GOOD, "q,40"]) + "\n")
    rows = SiteRows(Source(tmp_path / "d.csv"), SCHEMA, lambda: POLICY, lambda _, **__: None)
    with pytest.raises(TaskError, match="line 102: expected 3 values, got 2"):
        rows.check()


def replied(folder: Path, content: bytes, policy: Policy = POLICY) -> tuple[dict[str, Any], Desk]:
    """The reply of a site whose file has changed to this since it began, and the site."""
    folder.mkdir()
    file = folder / "d.csv"
    file.write_bytes(content)
    desk = Desk(folder, policy)
    told: list[str] = []
    rows = SiteRows(Source(file), SCHEMA, lambda: policy, lambda event, **_: told.append(event))
    desk.site.rows, desk.site.accepts = rows, rows.accepts
    desk.site.on_fault = lambda error: told.append(type(error).__name__)
    desk.heard.append(("told", {"events": told}))
    model = task("table", SCHEMA).model(PLAN.seed)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    shapes = {name: a.shape for name, a in weights.items()}
    reply = desk.ask(PLAN, encode(weights))
    fields = dict(reply.content.config_records["reply"])
    assert desk.said(reply) == ("trained", "")
    update = decode(reply.content.array_records["arrays"]["update"].data, shapes)
    assert {name: a.shape for name, a in update.items()} == shapes
    return fields, desk


def shape(fields: dict[str, Any]) -> dict[str, Any]:
    """Every field but the noise: the metric's value is a release, paid for."""
    return {name: value if name != "metrics" else sorted(value) for name, value in fields.items()}


@pytest.mark.slow
def test_a_line_over_the_real_limit_takes_no_other_row_with_it(tmp_path: Path) -> None:
    lines = "".join(f"{line}\n" for line in ["who,age,ill", *GOOD]).encode()
    plain, _ = read(tmp_path, lines)
    rows, told = read(tmp_path, lines + b"q," + b"4" * 70_000_000 + b",no\n")
    assert rows == plain
    assert "left out" in told[-1]


@pytest.mark.parametrize("kind", HOSTILE)
def test_one_hostile_row_changes_no_field_and_no_code(tmp_path: Path, kind: str) -> None:
    body = ("\n".join(["who,age,ill", *GOOD]) + "\n").encode()
    plain, _ = replied(tmp_path / "plain", body)
    hostile, desk = replied(tmp_path / "hostile", body + HOSTILE[kind])
    keys = {name: value for name, value in shape(plain).items() if name != "metrics"}
    assert keys == {name: value for name, value in shape(hostile).items() if name != "metrics"}
    assert set(plain) == set(hostile)
    text = str(hostile) + str(desk.heard)
    assert not any(word in text for word in ("perhaps", "forty"))


@pytest.mark.parametrize("count", [0, 1, 79, 80, 81])
def test_the_number_of_rows_changes_no_field_and_no_code(tmp_path: Path, count: int) -> None:
    body = ("\n".join(["who,age,ill", *GOOD[:count]]) + "\n").encode()
    plain, _ = replied(tmp_path / "plain", ("\n".join(["who,age,ill", *GOOD]) + "\n").encode())
    other, desk = replied(tmp_path / "other", body)
    assert set(plain) == set(other)
    assert plain["events"] == other["events"]
    assert len(desk.ledger.entries()) == 2


def test_a_file_that_is_gone_is_answered_too_and_the_owner_hears_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    _, desk = replied(folder, b"\x00")
    assert desk.heard[0][1]["events"] == ["TaskError", "TaskError"]
