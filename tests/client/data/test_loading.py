"""One row more or less in a file is one row more or less in training, for every shipped task."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data import loading
from client.data.loading import Loaded, contents, held_out
from client.tasks.preprocessing import Category
from client.tasks.registry import AREAS, NAMES, READERS, task
from client.tasks.rows import Rows
from client.tasks.task import Task

COLUMNS = """
[columns.age]
type = "number"
min = 0
max = 100
[columns.ill]
type = "category"
values = ["no", "yes"]
"""
PLAIN = 'label = "ill"\n' + COLUMNS
ROLES = {
    "content": PLAIN,
    "person": PLAIN.replace('"ill"\n', '"ill"\nsubject = "who"\n', 1),
    "key": PLAIN.replace('"ill"\n', '"ill"\nkey = "who"\n', 1),
    "site": PLAIN.replace('"ill"\n', '"ill"\nsite = "who"\n', 1),
}
SHIPPED = [name for name in NAMES if name not in (*READERS, *AREAS)]


def shipped(name: str) -> Task:
    return task(name, ROLES["content"] if name == "table" else None)


def bag(rows: Rows) -> Counter[tuple[Any, ...]]:
    sites = rows.site or ("",) * len(rows)
    people = rows.subject.tolist() if rows.subject is not None else [0] * len(rows)
    return Counter(zip(map(tuple, rows.x.tolist()), rows.y.tolist(), sites, people, strict=True))


@pytest.mark.parametrize("role", ROLES)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_removing_any_line_changes_the_training_rows_by_that_line_alone(
    tmp_path_factory: pytest.TempPathFactory, role: str, data: st.DataObject
) -> None:
    """Equal lines, lines that do not fit and lines without a person among them."""
    line = st.tuples(
        st.sampled_from(["3", "40", "40.0", "hush", "", "77"]),
        st.sampled_from(["no", "yes", "maybe"]),
        st.sampled_from(["p", "q", "r", ""]),
    )
    lines = [",".join(one) for one in data.draw(st.lists(line, min_size=8, max_size=40))]
    lines += ["5,no,p", "6,yes,q"]
    at = data.draw(st.integers(0, len(lines) - 3))
    file = tmp_path_factory.mktemp("law") / "d.csv"
    learning = task("table", ROLES[role])
    parts = []
    for kept in (lines, lines[:at] + lines[at + 1 :]):
        file.write_text("\n".join(["age,ill,who", *kept]) + "\n")
        parts.append({part: bag(learning.load(file, part)) for part in ("train", "test", "all")})
    whole, less = parts
    assert whole["train"] + whole["test"] == whole["all"]
    gone = whole["all"] - less["all"]
    assert sum(gone.values()) <= 1
    assert not less["train"] - whole["train"]
    assert not less["test"] - whole["test"]
    lost = (whole["train"] - less["train"]) + (whole["test"] - less["test"])
    assert lost == gone


def test_hospitals_hold_patients_out_by_what_they_are(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    lines = [
        f"{age}.0,1,{cp},{draw.integers(90, 200)},233,1,2,{draw.integers(80, 200)},0,2.3,3,0,6,{y}"
        for age, cp, y in zip(
            draw.integers(30, 80, 300), draw.integers(1, 5, 300), draw.integers(0, 5, 300),
            strict=True,
        )
    ]  # fmt: skip
    heart, file = task("heart-disease"), tmp_path / "processed.va.data"
    file.write_text("\n".join(lines) + "\n")
    whole = bag(heart.load(file, "train"))
    for at in (0, 150, 299):
        file.write_text("\n".join(lines[:at] + lines[at + 1 :]) + "\n")
        less = bag(heart.load(file, "train"))
        assert not less - whole
        assert sum((whole - less).values()) <= 1


def test_rows_of_one_quick_digest_that_differ_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = Rows(torch.tensor([[1.0], [2.0], [1.0], [2.0], [3.0]]), torch.zeros(5).long())
    monkeypatch.setattr(loading, "_mixed", lambda units: np.zeros_like(units))
    digest, occurrence = contents(rows)
    assert occurrence.tolist() == [0, 0, 1, 1, 0]
    assert len(set(digest.tolist())) == 3
    monkeypatch.undo()
    quick, again = contents(rows)
    assert again.tolist() == [0, 0, 1, 1, 0]
    assert len(set(quick.tolist())) == 3


@given(st.integers(2, 400), st.floats(0.1, 0.9))
def test_about_the_fraction_is_held_out(count: int, fraction: float) -> None:
    x = torch.arange(count * 20, dtype=torch.float32)[:, None]
    held = held_out(Loaded(Rows(x, torch.zeros(len(x)).long())), fraction)
    spread = 5 * (fraction * (1 - fraction) / len(x)) ** 0.5
    assert abs(held.mean() - fraction) < spread + 1 / len(x)


def table_of(learning: Task, count: int, seed: int) -> pa.Table:
    """Made-up raw rows of a task's columns."""
    draw = np.random.default_rng(seed)
    columns = learning.columns
    assert columns is not None
    found: dict[str, Any] = {}
    for column in (*columns.inputs, columns.label):
        if isinstance(column, Category):
            found[column.name] = [
                column.values[i] for i in draw.integers(len(column.values), size=count)
            ]
        else:
            found[column.name] = draw.uniform(column.low, column.high, count)
    return pa.table(found)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_row_is_encoded_scored_and_judged_by_itself(name: str) -> None:
    """Permuted and in part, a table gives the same features, scores and losses row by row."""
    learning = shipped(name)
    table = table_of(learning, 24, 7)
    whole = learning.encode(table)
    model = learning.model(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            )

    def judged(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return learning.loss(model(x), y)

    assert whole.y is not None
    losses = judged(whole.x, whole.y)
    assert losses.shape == (24,)
    draw = np.random.default_rng(3)
    for at in (draw.permutation(24), draw.permutation(24)[:5], np.array([11])):
        part = learning.encode(table.take(at))
        assert part.y is not None
        assert torch.allclose(part.x, whole.x[at], atol=1e-6)
        assert part.y.equal(whole.y[at])
        assert torch.allclose(judged(part.x, part.y), losses[at], atol=1e-5)


def test_the_law_catches_an_encoding_that_looks_across_rows() -> None:
    learning = shipped("table")
    table = table_of(learning, 24, 7)
    across: Callable[[Any], torch.Tensor] = lambda t: (  # noqa: E731
        learning.encode(t).x - learning.encode(t).x.mean(0)
    )
    assert not torch.allclose(across(table.take([3])), across(table)[3:4], atol=1e-6)


def test_long_arrays_lie_in_a_file_that_is_gone_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "d.csv"
    lines = [f"{i % 100},{'yes' if i % 3 else 'no'},p{i}" for i in range(5000)]
    file.write_text("\n".join(["age,ill,who", *lines]) + "\n")
    learning = task("table", ROLES["content"])
    memory = {part: learning.load(file, part) for part in ("train", "test", "all")}
    monkeypatch.setattr(loading, "SPILL", 1000)
    for part, rows in memory.items():
        spilt = learning.load(file, part)
        assert spilt.x.equal(rows.x)
        assert spilt.y.equal(rows.y)
