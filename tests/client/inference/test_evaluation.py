"""Figures on a site's own rows: right by hand, and small groups kept back."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from client.inference.evaluation import auroc, calibration_error, measure, reliability
from client.tasks.registry import task as find_task
from tests.support.models import command, digits_csv, own_key, release


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    release(folder, 5, key=own_key(folder))
    return folder


def scores_of(*confident: tuple[int, float]) -> np.ndarray:
    """Logits of ten classes, that give one class that probability."""
    rows = np.full((len(confident), 10), 0.0)
    for row, (label, p) in zip(rows, confident, strict=True):
        row[:] = np.log((1 - p) / 9)
        row[label] = np.log(p)
    return rows.astype(np.float32)


def test_calibration_error_by_hand() -> None:
    task = find_task("digits")
    scores = scores_of((0, 0.95), (0, 0.95), (1, 0.55), (2, 0.55))
    bins = reliability(task, scores, np.array([0, 1, 1, 2]))
    assert [(b.low, b.rows, b.accuracy) for b in bins] == [(0.5, 2, 1.0), (0.9, 2, 0.5)]
    assert calibration_error(bins) == pytest.approx((2 * 0.45 + 2 * 0.45) / 4, abs=1e-5)


def test_confusion_counts_true_classes_down_and_predicted_across() -> None:
    found = measure(
        find_task("digits"), scores_of((3, 0.9), (3, 0.9), (4, 0.9)), np.array([3, 5, 4])
    )
    assert (found.confusion[3][3], found.confusion[5][3], found.confusion[4][4]) == (1, 1, 1)
    assert sum(map(sum, found.confusion)) == 3
    assert found.metrics["accuracy"] == pytest.approx(2 / 3)


def test_small_groups_are_not_shown_nor_found_by_subtraction() -> None:
    labels = np.zeros(100, np.int64)
    scores = scores_of(*[(0, 0.9)] * 100)
    groups = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    found = measure(find_task("digits"), scores, labels, groups, smallest=20)
    assert [group.name for group in found.groups] == ["a"]
    assert found.suppressed == 2
    assert "c" not in found.to_dict()["groups"]


def test_a_group_that_the_model_fails_is_named() -> None:
    labels = np.zeros(200, np.int64)
    scores = scores_of(*[(0, 0.9)] * 150, *[(1, 0.9)] * 50)
    groups = ["well"] * 100 + ["badly"] * 100
    found = measure(find_task("digits"), scores, labels, groups)
    assert {group.name: group.behind for group in found.groups} == {"badly": True, "well": False}


def test_an_evaluation_is_told_and_drawn(run: Path, tmp_path: Path) -> None:
    data, page = digits_csv(tmp_path / "d.csv"), tmp_path / "e.html"
    answer = command("evaluate", "--model", run, "--data", data, "--out", page, "--json",
                     "--group", "target")  # fmt: skip
    assert answer.code == 0, answer.err
    assert answer.json["rows"] == 1797
    assert answer.json["metrics"]["accuracy"] > 0.95
    assert {"precision", "recall", "f1", "auc", "ece"} <= set(answer.json["metrics"])
    assert set(answer.json["groups"]) == set("0123456789")
    text = page.read_text()
    assert text.count("<svg") == 2
    assert "http" not in text.replace("http://www.w3.org", "")


def test_rows_without_labels_cannot_be_evaluated(run: Path, tmp_path: Path) -> None:
    data = digits_csv(tmp_path / "d.csv", 10, labels=False)
    answer = command("evaluate", "--model", run, "--data", data)
    assert (answer.code, "column of labels named 'target'" in answer.err) == (2, True)


def test_an_unknown_label_is_a_row_that_does_not_fit(run: Path, tmp_path: Path) -> None:
    data = digits_csv(tmp_path / "d.csv", 30)
    lines = data.read_text().splitlines()
    lines[4] = lines[4].rpartition(",")[0] + ",ten"
    data.write_text("\n".join(lines))
    answer = command("evaluate", "--model", run, "--data", data)
    assert (answer.code, "line 5, column target" in answer.err) == (2, True)
    answer = command("evaluate", "--model", run, "--data", data, "--skip-bad", "--json")
    assert (answer.json["rows"], answer.json["skipped"]) == (29, 1)


def test_a_group_column_that_is_not_there_is_bad_input(run: Path, tmp_path: Path) -> None:
    data = digits_csv(tmp_path / "d.csv", 10)
    answer = command("evaluate", "--model", run, "--data", data, "--group", "ward")
    assert (answer.code, "column named 'ward'" in answer.err) == (2, True)


@given(
    st.lists(
        st.tuples(st.integers(0, 6) | st.floats(0, 1, width=32), st.booleans()),
        min_size=2,
        max_size=60,
    ).filter(lambda rows: len({positive for _, positive in rows}) == 2)
)
def test_the_area_under_the_curve_is_scikit_learns(rows: list[tuple[float, bool]]) -> None:
    scores = np.array([score for score, _ in rows], np.float32)
    positive = np.array([hit for _, hit in rows])
    expected = roc_auc_score(positive, scores)
    assert auroc(scores, positive) == pytest.approx(float(expected), abs=1e-9)
