"""What a closed process sends: here its answers are made in this process, with the doors open.

tests/attacks/test_hostile_packages.py tries the doors; a process behind them can tell no coverage.
"""

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.tasks.packages import worker
from client.tasks.packages.source import load_source
from tests.support.task_packages import MODEL, READ, packed, rows


def frames(descriptor: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every frame of a pipe: its facts, and its arrays."""
    found = []
    with os.fdopen(descriptor, "rb") as file:
        while size := file.read(8):
            facts = json.loads(file.read(int.from_bytes(size, "little")))
            arrays = {}
            for name in facts.pop("arrays"):
                content = io.BytesIO(file.read(int.from_bytes(file.read(8), "little")))
                arrays[name] = np.load(content, allow_pickle=False)
            found.append((facts, arrays))
    return found


def served(source: str, data: Path, **request: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The frames of one request of a package with this source."""
    here, there = os.pipe()
    asked = {"mode": "rows", "options": {}, "labels": True, "inside": ".", **request}
    out = worker._Out(there)
    try:
        worker._serve(asked, packed(source).content, str(data), out, ["landlock"])
    finally:
        out._file.close()
    return frames(here)


def test_rows_are_sent_with_their_numbers_labels_and_sites(tmp_path: Path) -> None:
    data = rows(tmp_path / "rows.csv", 6)
    ((facts, arrays),) = served(READ + MODEL, data)
    assert (facts["rows"], facts["seen"], facts["faults"], facts["last"]) == (6, 6, [], True)
    assert facts["missing"] == ["landlock"]
    assert len(facts["site"]) == 6
    assert arrays["x/values"].shape == (6, 3) and arrays["x/values"].dtype == np.float32
    assert arrays["number"].tolist() == list(range(6))
    ((_, blind),) = served(READ + MODEL, data, labels=False)
    assert "y" not in blind


def test_rows_asked_for_again_come_in_another_order_and_without_the_others(tmp_path: Path) -> None:
    ((_, arrays),) = served(READ + MODEL, rows(tmp_path / "rows.csv", 6), only=[1, 4])
    assert arrays["number"].tolist() == [4, 1]


@pytest.mark.parametrize(
    ("row", "kind", "why"),
    [
        ("None", "ValueError", "left the row out"),
        ("{'x': {'other': [1.0] * 3}}", "ValueError", "x must hold values"),
        ("{'x': ['a'] * 3}", "TypeError", "values must be numbers"),
        ("{'x': [1.0] * 4}", "ValueError", r"must have the shape \(3,\)"),
        ("{'x': [float('nan')] * 3}", "ValueError", "must be finite"),
        ("{'x': [1.0] * 3}", "ValueError", "y must be there"),
        ("{'x': [1.0] * 3, 'y': 'perhaps'}", "KeyError", "perhaps"),
        ("{'x': [1.0] * 3, 'y': 2}", "ValueError", "one of the classes"),
        ("{'x': [1.0] * 3, 'y': [0, 1]}", "ValueError", "y must have the shape"),
    ],
)
def test_a_row_that_does_not_fit_is_left_out_by_its_line(
    row: str, kind: str, why: str, tmp_path: Path
) -> None:
    source = READ[: READ.index("def encode")] + (
        f"def encode(record, options):\n    return {row}\n" + MODEL
    )
    ((facts, arrays),) = served(source, rows(tmp_path / "rows.csv", 3), tell=True)
    assert (facts["rows"], arrays) == (0, {})
    assert [fault["row"] for fault in facts["faults"]] == [0, 1, 2]
    for fault in facts["faults"]:
        assert fault["kind"] == kind
        assert re.search(why, fault["text"])


def test_a_fault_is_told_by_its_line_and_its_text_for_the_owner_alone(tmp_path: Path) -> None:
    source = READ.replace("float(record[name])", "record[name].no") + MODEL
    line = next(i for i, text in enumerate(source.splitlines(), 1) if ".no " in text)
    ((facts, _),) = served(source, rows(tmp_path / "rows.csv", 1))
    assert facts["faults"] == [
        {"row": 0, "kind": "AttributeError", "file": "task.py", "line": line}
    ]


def test_many_rows_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_CHUNK_ROWS", 4)
    parts = served(READ + MODEL, rows(tmp_path / "rows.csv", 10))
    assert [facts["rows"] for facts, _ in parts] == [4, 4, 2]
    assert [facts["last"] for facts, _ in parts] == [False, False, True]


def test_a_message_has_its_length_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "wb") as told:
        told.write((3).to_bytes(8, "little") + b"abc" + b"cut")
    with os.fdopen(read) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert worker._next_message() == b"abc"
        assert worker._next_message() == b""


def test_what_is_large_is_loaded_once_before_the_doors_close() -> None:
    loaded: set[str] = set()
    for mode in ("rows", "examine", "audit", "audit"):
        worker._import_libraries({"mode": mode}, loaded)
    assert loaded == {"rows", "examine", "audit"}
    assert load_source(packed(READ + MODEL), "task.py", reading=True, backbones={}) is not None


@pytest.mark.parametrize("mode", ["examine", "audit"])
def test_reports_are_one_frame(mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from client.tasks.packages import audit, examine

    monkeypatch.setattr(examine, "report", lambda package, request: {"refused": package.code})
    monkeypatch.setattr(audit, "audited", lambda package, request: {"refused": package.code})
    ((facts, _),) = served(READ + MODEL, tmp_path, mode=mode)
    assert facts == {
        "report": {"refused": packed(READ + MODEL).code},
        "missing": ["landlock"],
        "last": True,
    }
