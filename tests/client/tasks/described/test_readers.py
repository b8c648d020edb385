"""Readers by name: each record by itself, what does not fit is told, whole runs without code."""

import csv
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.tasks.registry import task, task_of, task_of_schema
from client.tasks.rows import TaskError
from privacy.contract.plan import ModelPlan, Plan, PlanError
from privacy.contract.plan_file import from_json, load_plan
from simulations import simulate

DRAW = np.random.default_rng(0)
PICTURES = """reader = "images"
classes = ["dark", "light"]
folders = ["site", "label"]
size = [8, 8]
"""


def pictures(folder: Path, each: int = 12) -> Path:
    for site in ("a", "b"):
        for label, tone in (("dark", 60), ("light", 190)):
            place = folder / site / label
            place.mkdir(parents=True)
            for i in range(each):
                pixels = np.clip(DRAW.normal(tone, 30, (10, 9)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


def plan(name: str, schema: str, **changes: Any) -> Plan:
    keys: dict[str, Any] = {
        "task": name,
        "schema": schema,
        "rounds": 6,
        "rate": 1.0,
        "rows": "actual",
        "lr": 1.0,
        "sites": 2,
        "clip": 1.0,
        "epsilon": 20.0,
        "delta": 1e-3,
    }
    return Plan(**(keys | changes))


def test_pictures_in_folders_train_without_a_line_of_code(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data")
    (folder / "a" / "dark" / "broken.png").write_bytes(b"no picture")
    (folder / "a" / "grey").mkdir()
    Image.new("L", (4, 4)).save(folder / "a" / "grey" / "0.png")
    learning = task("images", PICTURES)
    rows = learning.load(folder, "all")
    assert len(rows) == 48 and rows.x.shape == (48, 1, 8, 8)
    assert float(rows.x.min()) >= -1 and float(rows.x.max()) <= 1
    told = {(one.column, one.expected) for one in rows.reading.omissions}  # type: ignore[union-attr]
    assert told == {("the record", "a picture that can be read"), ("label", "one of dark, light")}
    chosen = plan("images", PICTURES, split="natural", model=ModelPlan(name="cnn", width=4))
    result = simulate(chosen, data=folder)
    assert result.metrics["accuracy"] > 0.8
    assert {site for line in result.history for site in line["sites"]} == {"a", "b"}


def test_a_manifest_says_label_site_and_person_and_stays_in_its_folder(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data", 3)
    (tmp_path / "secret.png").write_bytes((folder / "a" / "dark" / "0.png").read_bytes())
    with (folder / "labels.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["file", "label", "hospital", "patient"])
        lines.writerow(["a/dark/0.png", "dark", "x", "p1"])
        lines.writerow(["a/light/0.png", "light", "x", "p1"])
        lines.writerow(["b/light/1.png", "light", "y", "p2"])
        lines.writerow(["../secret.png", "dark", "x", "p3"])
        lines.writerow(["a/dark/none.png", "dark", "x", "p3"])
    schema = (
        'reader = "images"\nclasses = ["dark", "light"]\nmanifest = "labels.csv"\n'
        'site = "hospital"\nsubject = "patient"\nsize = [6, 5]\nchannels = 3\n'
    )
    rows = task("images", schema).load(folder, "all")
    assert rows.x.shape == (3, 3, 6, 5) and rows.site == ("x", "x", "y")
    assert rows.subject is not None and len(set(rows.subject.tolist())) == 2
    assert rows.reading is not None and rows.reading.left_out == 2


def test_sounds_texts_arrays_and_series_are_read_by_name(tmp_path: Path) -> None:
    for label, tone in (("low", 200), ("high", 2000)):
        (tmp_path / "sounds" / label).mkdir(parents=True)
        for i in range(6):
            with wave.open(str(tmp_path / "sounds" / label / f"{i}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(8000)
                wavy = np.sin(2 * np.pi * tone * np.arange(3000 + 200 * i) / 8000)
                file.writeframes((20000 * wavy).astype("<i2").tobytes())
    schema = (
        'reader = "sounds"\nclasses = ["low", "high"]\nrate = 8000\nseconds = 0.5\nbands = 12\n'
    )
    rows = task("sounds", schema).load(tmp_path / "sounds", "all")
    assert rows.x.shape == (12, 1, 12, 32) and bool(torch.isfinite(rows.x).all())
    loudest = rows.x[:, 0].mean(2).argmax(1)
    assert loudest[rows.y == 0].max() < loudest[rows.y == 1].min()

    (tmp_path / "texts.csv").write_text(
        "text,label\nA good day,yes\na GOOD day!,yes\nbad,no\n,no\n", encoding="utf-8"
    )
    schema = 'reader = "texts"\nclasses = ["no", "yes"]\nlength = 5\nwords = 100\n'
    rows = task("texts", schema).load(tmp_path / "texts.csv", "all")
    assert torch.equal(rows.x[0], rows.x[1]) and rows.x.dtype == torch.int64
    assert rows.x[2, 1:].sum() == 0 and 0 < int(rows.x[2, 0]) < 100

    np.savez(
        tmp_path / "rows.npz",
        ids=DRAW.integers(0, 9, (30, 4)),
        numbers=DRAW.normal(size=(30, 2)),
        label=np.arange(30) % 2,
        who=np.repeat(np.arange(10), 3),
    )
    schema = (
        'reader = "arrays"\nclasses = ["0", "1"]\nsubject = "who"\n'
        "[x.ids]\nshape = [4]\nwords = 9\n[x.numbers]\nshape = [2]\nrange = [-2, 2]\n"
    )
    learning = task("arrays", schema)
    rows = learning.load(tmp_path / "rows.npz", "all")
    assert set(rows.x) == {"ids", "numbers"} and rows.x["numbers"].abs().max() <= 1
    assert simulate(plan("arrays", schema, rounds=2), data=tmp_path / "rows.npz").epsilon

    with (tmp_path / "steps.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["sensor", "v", "label"])
        for i in range(25):
            for sensor in ("s", "t"):
                lines.writerow([sensor, i, "on" if sensor == "s" else "off"])
    schema = (
        'reader = "series"\nclasses = ["off", "on"]\nseries = "sensor"\nlength = 10\n'
        "[columns]\nv = [0, 20]\n"
    )
    rows = task("series", schema).load(tmp_path / "steps.csv", "all")
    assert rows.x.shape == (4, 1, 10)  # two windows a sensor; five steps are left over
    assert rows.x[0, 0, 0] == -1 and rows.x[2, 0, 9] == pytest.approx(2 * 19 / 20 - 1)
    overlapping = schema.replace("length = 10", "length = 10\nstride = 5")
    assert len(task("series", overlapping).load(tmp_path / "steps.csv", "all")) == 8


def test_survival_is_learnt_with_its_c_index(tmp_path: Path) -> None:
    x = DRAW.normal(size=(300, 3)).astype(np.float32)
    dies = DRAW.exponential(np.exp(-1.2 * x[:, 0]) * 3)
    leaves = DRAW.uniform(0, 8, 300)
    y = np.stack([np.minimum(dies, leaves), dies <= leaves], 1).astype(np.float32)
    np.savez(tmp_path / "people.npz", x=x, outcome=y)
    schema = (
        'reader = "arrays"\nkind = "survival"\nlabel = "outcome"\ntimes = [0, 1, 2, 4, 8]\n'
        "[x.x]\nshape = [3]\nrange = [-3, 3]\n"
    )
    for hazard in ("logistic", "cox"):
        model = ModelPlan(name="linear", hazard=hazard)  # type: ignore[arg-type]
        chosen = plan("arrays", schema, model=model, lr=1.0, rounds=20)
        result = simulate(chosen, data=tmp_path / "people.npz")
        assert result.metrics["c_index"] > 0.65, (hazard, result.metrics)


def test_the_model_is_in_the_digest_and_the_schema_is_the_owners(tmp_path: Path) -> None:
    first = plan("images", PICTURES)
    second = plan("images", PICTURES, model=ModelPlan(name="linear"))
    third = plan("images", PICTURES, model=ModelPlan(layers=("flatten", "linear 2")))
    assert len({first.digest, second.digest, third.digest}) == 3
    assert "model" not in first.to_json()
    for one in (first, second, third):
        assert from_json(one.to_json()).digest == one.digest
    file = tmp_path / "plan.toml"
    (tmp_path / "schema.toml").write_text(PICTURES)
    file.write_text(third.to_toml())
    assert load_plan(file).digest == third.digest
    assert load_plan(file, ["model.layers=['flatten', 'linear 2']"]).digest == third.digest
    with pytest.raises(PlanError, match="model must be left out unless a schema"):
        replace(second, schema=None)
    with pytest.raises(TaskError, match="model must be left out where task = 'table'"):
        task_of(plan("table", "label = 'x'", model=ModelPlan(name="cnn")))
    with pytest.raises(TaskError, match="task must be images"):
        task("texts", PICTURES)
    assert task_of_schema(PICTURES).name == "images"


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('classes = ["dark", "light"]', 'classes = ["dark"]', "classes must be at least 2"),
        ("size = [8, 8]", "size = [8]", "size must be"),
        ("size = [8, 8]", "size = [8, 99999]", "size must be"),
        ("size = [8, 8]", "sise = [8, 8]", "unknown key schema: sise, did you mean schema: size"),
        ('reader = "images"', 'reader = "movies"', "reader must be one of"),
        ("size = [8, 8]", 'kind = "regression"', "bounds must be"),
        ("size = [8, 8]", 'kind = "values"', "needs a task package"),
    ],
)
def test_a_schema_that_is_wrong_is_named_by_its_key(old: str, new: str, text: str) -> None:
    assert old in PICTURES
    with pytest.raises(TaskError, match=text):
        task_of_schema(PICTURES.replace(old, new, 1))


TEXTS = 'reader = "texts"\nclasses = ["no", "yes"]\nlength = 5\nwords = 100\n'
BROKEN_LINES = {
    "text after a quote": b'"q"x,no\n',
    "an open quote": b'"q,no\n',
    "an open quote in the last value": b'q,"no\n',
    "bytes that are no text": b"q\xff,no\n",
    "a NUL": b"\0,maybe\n",
    "one value": b"q\n",
    "a very long value": b"q" * 200_000 + b",no\n",
}


@pytest.mark.parametrize("at", [1, 4, 9])
@pytest.mark.parametrize("kind", BROKEN_LINES)
def test_a_line_that_is_no_record_takes_no_other_with_it(
    tmp_path: Path, kind: str, at: int
) -> None:
    lines = [b"text,label\n", *(b'"day %d, and more",yes\n' % i for i in range(8))]
    lines[3] = b'"one ""word"" of\ntwo lines",no\n'
    file = tmp_path / "texts.csv"
    seen = []
    for extra in (b"", BROKEN_LINES[kind]):
        file.write_bytes(b"".join([*lines[:at], extra, *lines[at:]]))
        rows = task("texts", TEXTS).load(file, "all")
        seen.append((rows.x.tolist(), rows.y.tolist()))
    assert seen[0] == seen[1]


def test_names_of_files_that_no_system_has_are_records_that_do_not_fit(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data", 2)
    rows = [b"file,label", b"a/dark/0.png,dark", b"a\0b,dark", b"x" * 5000 + b",light"]
    (folder / "labels.csv").write_bytes(b"\n".join(rows))
    schema = (
        'reader = "images"\nclasses = ["dark", "light"]\nmanifest = "labels.csv"\nsize = [6, 5]\n'
    )
    read = task("images", schema).load(folder, "all")
    assert len(read) == 1 and read.reading is not None and read.reading.left_out == 2
