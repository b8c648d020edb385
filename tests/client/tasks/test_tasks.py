"""Tasks: known answers, public encodings, and files that are missing, cut short or damaged."""

import gzip
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from client.tasks.features.scattering import WIDTH, oriented
from client.tasks.losses import (
    classification_metrics,
    cross_entropy,
    layered,
    regression_metrics,
    squared_error,
)
from client.tasks.preprocessing import Category, Columns, Number
from client.tasks.registry import AREAS, NAMES, READERS, task
from client.tasks.rows import Rows, TaskError, builtin, cap


def test_the_squared_error_of_2_and_4_for_3_and_2_is_2_5_and_its_gradient_follows_the_rows() -> (
    None
):
    x = torch.tensor([[1.0, 5.0], [7.0, 2.0]])
    w = torch.zeros(2, requires_grad=True)
    outputs = torch.tensor([[2.0], [4.0]]) + (x @ w)[:, None]
    loss = squared_error(outputs, torch.tensor([3.0, 2.0])).mean()
    loss.backward()
    assert loss.item() == pytest.approx(2.5)
    assert w.grad is not None
    assert w.grad.tolist() == pytest.approx((-x[0] + 2 * x[1]).tolist())


def test_the_cross_entropy_of_6_in_10_for_a_1_and_4_in_10_for_a_0_is_0_5108() -> None:
    outputs = torch.log(torch.tensor([[0.4, 0.6], [0.6, 0.4]]))
    losses = cross_entropy(outputs, torch.tensor([1, 0]))
    assert losses.tolist() == pytest.approx([0.5108, 0.5108], abs=1e-4)


def test_two_classes_score_class_1_and_more_classes_score_their_mean() -> None:
    two = torch.eye(2)[[1, 1, 0, 0]]
    found = classification_metrics(two, torch.tensor([1, 0, 1, 0]))
    assert found["accuracy"] == found["precision"] == found["recall"] == found["f1"] == 0.5
    three = classification_metrics(torch.eye(3)[[0, 0, 2]], torch.tensor([0, 1, 2]))
    assert three["accuracy"] == pytest.approx(2 / 3)
    assert three["precision"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert three["recall"] == pytest.approx((1 + 0 + 1) / 3)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_scores_are_those_of_scikit_learn(count: int, rows: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    outputs = torch.randn(rows, count, generator=draw)
    y = torch.randint(0, count, (rows,), generator=draw)
    found, guess = classification_metrics(outputs, y), outputs.argmax(1)
    how: dict[str, Any] = {"zero_division": 0.0}
    if count > 2:
        how |= {"average": "macro"}
    for name, score in (
        ("precision", metrics.precision_score),
        ("recall", metrics.recall_score),
        ("f1", metrics.f1_score),
    ):
        assert found[name] == pytest.approx(float(score(y, guess, **how)), abs=1e-6)
    assert found["accuracy"] == pytest.approx(float(metrics.accuracy_score(y, guess)), abs=1e-6)
    if rows > 2:
        labels = torch.randn(rows, generator=draw)
        told = regression_metrics(2.0)(outputs[:, :1], labels)
        expected = float(metrics.mean_squared_error(labels, outputs[:, 0])) * 4
        assert told["mse"] == pytest.approx(expected, rel=1e-5)
        assert told["r2"] == pytest.approx(
            float(metrics.r2_score(labels, outputs[:, 0])), rel=1e-3, abs=1e-3
        )


def test_a_regression_is_scored_in_the_labels_own_unit() -> None:
    found = regression_metrics(10.0)(torch.tensor([[0.2], [0.4]]), torch.tensor([0.3, 0.2]))
    assert found["mse"] == pytest.approx(2.5)
    assert found["loss"] == pytest.approx(0.025)
    assert found["r2"] == pytest.approx(1 - 0.05 / 0.005, rel=1e-4)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("table", *READERS, *AREAS)])
def test_a_model_is_its_seeds_alone_and_leaves_the_global_generator(name: str) -> None:
    learning = task(name)
    before = torch.get_rng_state()
    first, again = (learning.model(3).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert torch.equal(before, torch.get_rng_state())
    names = {type(layer).__name__ for layer in learning.model(0).modules()}
    assert not any("Norm" in layer for layer in names)
    outputs = learning.model(0)(torch.zeros(2, *learning.shape))
    assert outputs.shape == (2, len(learning.classes))


def test_hidden_layers_differ_by_seed_before_a_last_layer_of_zeros() -> None:
    assert [tuple(p.shape) for p in layered(3, (5, 4), 2).parameters()] == [
        *((5, 3), (5,), (4, 5), (4,)),
        *((2, 4), (2,)),
    ]


def test_digits_are_split_once_and_for_all() -> None:
    digits = task("digits")
    train, test, whole = (digits.load(None, part) for part in ("train", "test", "all"))
    assert (len(train), len(test), len(whole)) == (1437, 360, 1797)
    seen = {row.numpy().tobytes() for row in train.x}
    assert sum(row.numpy().tobytes() in seen for row in test.x) < 3
    assert (train.x * 8 + 5).unique().tolist() == list(range(17))
    pixels = {name: (train.x[:9, i] * 8 + 5).tolist() for i, name in enumerate(digits.inputs)}
    assert torch.equal(digits.encode(pa.table(pixels)).x, train.x[:9])


def test_the_parts_of_an_embedded_task_are_disjoint_and_whole() -> None:
    rows = Rows(torch.arange(23.0)[:, None], torch.arange(23))
    parts = [builtin(rows, k, 4).y.tolist() for k in range(4)]
    assert sorted(row for part in parts for row in part) == list(range(23))
    assert builtin(rows, 2, 4).y.tolist() == parts[2]
    for part, of in ((4, 4), (-1, 4), (0, 24), (0, 0)):
        with pytest.raises(TaskError):
            builtin(rows, part, of)


@given(st.lists(st.integers(0, 4), max_size=30), st.integers(1, 4))
def test_a_cap_keeps_the_first_rows_of_every_subject(subjects: list[int], most: int) -> None:
    count = len(subjects)
    rows = Rows(torch.zeros(count, 1), torch.arange(count), subject=torch.tensor(subjects).long())
    kept = cap(rows, most).y.tolist()
    for subject in set(subjects):
        own = [row for row, other in enumerate(subjects) if other == subject]
        assert [row for row in kept if subjects[row] == subject] == own[:most]
    assert kept == sorted(kept)


COLUMNS = Columns(
    (
        Number("age", 0, 100, missing="indicator", knots=(50,)),
        Number("dose", 0, 10, missing=5.0),
        Category("city", ("Rome", "Oslo"), other=True),
    ),
    Category("ill", ("no", "yes")),
)


def _table(**columns: list[object]) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def test_values_are_scaled_by_public_bounds_and_held_inside_them() -> None:
    table = _table(
        age=["0", "", "150", "75"],
        dose=[None, "10", "0", "?"],
        city=["Rome", "Atlantis", None, " Oslo "],
        ill=["no", "yes", "yes", "no"],
    )
    encoded = COLUMNS.encode(table)
    assert encoded.misfits == ()
    assert encoded.y is not None
    assert encoded.y.tolist() == [0, 1, 1, 0]
    assert encoded.x.tolist() == [
        [-1, 0, 0, 0, 1, 0, 0],
        [0, 1, 1, 1, 0, 0, 1],
        [1, 1, 0, -1, 0, 0, 1],
        [0.5, 1, 0, 0, 0, 1, 0],
    ]


def test_a_value_that_does_not_fit_is_named_by_row_and_column_and_never_shown() -> None:
    table = _table(
        age=["1", "secret", "inf"], dose=["1"] * 3, city=["Rome"] * 3, ill=["no", "no", "hush"]
    )
    encoded = COLUMNS.encode(table)
    assert [(m.row, m.column) for m in encoded.misfits] == [(1, "age"), (2, "age"), (2, "ill")]
    assert not re.search("secret|inf|hush", repr(encoded.misfits))
    assert encoded.index.tolist() == [0]
    assert len(encoded.x) == 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.data())
def test_a_row_is_encoded_by_itself(values: list[float], data: st.DataObject) -> None:
    count = len(values)
    table = _table(
        age=values, dose=values, city=[data.draw(st.sampled_from(["Rome", "x"]))] * count
    )
    whole = COLUMNS.encode(table).x
    at = data.draw(st.integers(0, count - 1))
    assert torch.equal(COLUMNS.encode(table.slice(at, 1)).x[0], whole[at])
    assert whole.abs().max() <= 1


def test_the_filters_see_each_image_by_itself_and_bound_its_length() -> None:
    images = torch.rand(5, 28, 28)
    images[3] = 0
    features = oriented(images)
    assert features.shape == (5, WIDTH)
    assert torch.allclose(features[2:3], oriented(images[2:3]), atol=1e-5)
    assert features.norm(dim=1).max() <= np.hypot(3, 1.5) + 1e-4
    assert features.isfinite().all()


def _idx(folder: Path, images: int = 3, labels: int = 3, cut: int = 0) -> Path:
    pixels = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (images, 28, 28))
    names = bytes([0, 0, 8, 1]) + labels.to_bytes(4, "big") + bytes(labels)
    body = pixels + bytes(images * 784)
    for part in ("train", "t10k"):
        packed = gzip.compress(body[: len(body) - cut])
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(packed)
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(names))
    return folder


def test_idx_files_are_read_packed_or_not(tmp_path: Path) -> None:
    _idx(tmp_path)
    packed = tmp_path / "train-images-idx3-ubyte.gz"
    (tmp_path / "train-images-idx3-ubyte").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    rows = task("fashion-mnist").load(tmp_path, "train")
    assert rows.x.shape == (3, WIDTH)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: _idx(f, cut=10), "expected 2352 bytes after its header, got 2342"),
        (lambda f: _idx(f, labels=2), "expected 3 labels, got 2"),
        (lambda f: (f / "train-labels-idx1-ubyte.gz").unlink(), "found none"),
        (lambda f: (f / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b!"), "damaged"),
        (
            lambda f: (f / "train-images-idx3-ubyte.gz").write_bytes(
                (f / "train-images-idx3-ubyte.gz").read_bytes()[:-9]
            ),
            "damaged",
        ),
        (lambda f: (f / "train-images-idx3-ubyte.gz").write_bytes(b""), "magic number 2051"),
    ],
)
def test_a_damaged_picture_file_is_named_in_one_line(
    tmp_path: Path, harm: object, said: str
) -> None:
    assert callable(harm)
    _idx(tmp_path)
    harm(tmp_path)
    with pytest.raises(TaskError, match=re.escape(said)) as refused:
        task("fashion-mnist").load(tmp_path, "train")
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


PATIENT = "63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0\n"
SICK = "67,1,4,160,286,0,2,108,1,1.5,2,3,3,2\n"


def test_one_hospitals_file_is_enough_and_two_are_a_mistake(tmp_path: Path) -> None:
    heart = task("heart-disease")
    file = tmp_path / "processed.va.data"
    file.write_text((PATIENT + SICK) * 6 + PATIENT.replace("145.0", "?"))
    alone, folder = heart.load(file, "all"), heart.load(tmp_path, "all")
    assert len(alone) == len(folder) == 12
    assert set(alone.site or ()) == {"va"}
    train, test = heart.load(file, "train"), heart.load(file, "test")
    assert len(train) + len(test) == 12
    (tmp_path / "processed.hungarian.data").write_text(PATIENT)
    with pytest.raises(TaskError, match=r"processed\.cleveland\.data"):
        heart.load(tmp_path, "all")


def test_a_patient_who_does_not_fit_is_left_out_and_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "processed.va.data"
    file.write_text(PATIENT + SICK.replace("67", "old"))
    rows = task("heart-disease").load(file, "all")
    assert len(rows) == 1
    assert str(rows.reading) == (
        "2 rows on 2 lines, 1 left out (line 2, column age: expected a number in 30..80)"
    )


def test_hospitals_have_the_rows_that_flamby_splits(real_data: Path) -> None:
    rows = task("heart-disease").load(real_data / "heart_disease", "all")
    names = ("cleveland", "hungarian", "switzerland", "va")
    published = [199 + 104, 172 + 89, 30 + 16, 85 + 45]  # its rows to train on and to test on
    assert [list(rows.site or ()).count(name) for name in names] == published


def test_census_rows_are_all_read(real_data: Path) -> None:
    adult = task("adult")
    train, test = (adult.load(real_data / "adult", part) for part in ("train", "test"))
    assert (len(train), len(test)) == (32561, 16281)
    assert int(train.y.sum()) == 7841
    assert int(test.y.sum()) == 3846


def test_census_files_are_read_plain_or_packed_with_their_comment(tmp_path: Path) -> None:
    row = "39, State-gov, 77516, Bachelors, 13, Never-married, ?, Husband, White, Male, 1, 0, 40, X"
    (tmp_path / "adult.data").write_text(f"{row}, <=50K\n{row}, >50K\n\n")
    (tmp_path / "adult.test.gz").write_bytes(
        gzip.compress(f"|1x3 Cross validator\n{row}, >50K.\n".encode())
    )
    adult = task("adult")
    assert adult.load(tmp_path, "train").y.tolist() == [0, 1]
    assert adult.load(tmp_path, "test").y.tolist() == [1]
    (tmp_path / "adult.data").write_text(f"{row}, <=50K\n{row[:40]}\n")
    with pytest.raises(TaskError, match="line 2: expected 15 values, got 6"):
        adult.load(tmp_path, "train")


@pytest.mark.parametrize("name", ["fashion-mnist", "heart-disease", "adult"])
def test_no_folder_is_one_clear_line(name: str, tmp_path: Path) -> None:
    for path in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(TaskError) as refused:
            task(name).load(path, "train")
        assert "\n" not in str(refused.value)


def test_an_unknown_task_and_an_unknown_part_are_refused() -> None:
    with pytest.raises(TaskError, match="expected one of digits"):
        task("cifar")
    with pytest.raises(TaskError, match="schema: expected none"):
        task("digits", "label = 1")
    with pytest.raises(TaskError, match="schema"):
        task("table")
    with pytest.raises(TaskError, match="part"):
        task("digits").load(None, "validation")


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=True, width=64) | st.none(),
            st.floats(-5, 5) | st.none(),
            st.sampled_from([0.5, math.inf, math.nan]),
        ),
        min_size=1,
    ),
    st.sampled_from([1, 2, 2**16]),
)
def test_columns_scaled_together_are_those_scaled_alone(
    rows: list[tuple[float | None, ...]], size: int
) -> None:
    numbers = (
        Number("a", -1, 3, missing=0.5),
        Category("c", ("no", "yes")),
        Number("b", -2, 2),
        Number("d", 0, 1, zero=0.25, missing=0.0),
    )
    columns = Columns(numbers, Category("y", ("no", "yes")))
    table = pa.table(
        {
            "a": pa.array([row[0] for row in rows], pa.float64()),
            "b": pa.array([row[1] for row in rows], pa.float64()),
            "c": pa.array(["yes"] * len(rows)),
            "d": pa.array([row[2] for row in rows], pa.float64()),
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("client.tasks.preprocessing.BLOCK", size)
        patch.setattr("client.tasks.preprocessing.ROWS", size)
        found = columns.encode(table)
    alone = [column.encode(table.column(column.name)) for column in numbers]
    fits = ~np.any([wrong | refused for _, wrong, refused in alone], axis=0)
    expected = np.concatenate([features for features, _, _ in alone], axis=1)[fits]
    assert found.x.numpy().tobytes() == np.ascontiguousarray(expected).tobytes()
    assert found.index.tolist() == np.flatnonzero(fits).tolist()
    assert [(one.row, one.column) for one in found.misfits] == [
        (row, column.name)
        for row in range(len(rows))
        for column, (_, wrong, refused) in zip(numbers, alone, strict=True)
        if wrong[row] or refused[row]
    ]
