"""An exported model of a table predicts without torch what it predicts with it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from client.data.input_files import chunks
from client.inference.export import export
from client.inference.exported import exported, table_form
from client.inference.predictor import predictor
from client.models.loading import ModelError, find, load
from client.models.provenance import Trust
from client.models.trusted_keys import sign_beside
from client.tasks.registry import task_of
from privacy.contract.plan import Plan
from tests.support.models import own_key, plan_for, release, shaken

CLASSES = """
label = "ill"
hidden = [5]
[columns.age]
type = "number"
min = 0
max = 120
missing = "indicator"
[columns.city]
type = "category"
values = ["Oslo", "Bergen", "Voss"]
[columns.note]
type = "text"
hashed = 16
[columns.ill]
type = "category"
values = ["no", "mild", "yes"]
"""
NUMBER = """
kind = "regression"
label = "cost"
[columns.age]
type = "number"
min = 0
max = 120
log = true
[columns.seen]
type = "date"
min = 2020-01-01
max = 2026-01-01
[columns.cost]
type = "number"
min = 10
max = 5000
"""
ROWS = {
    "classification": "age,city,note,ill\n3,Oslo,cough,no\n,Voss,nothing,yes\n77,Bergen,no,mild\n",
    "regression": "age,seen,cost\n3,2021-05-06,17\n77.5,2025-12-31,\n200,2020-01-01,4000\n",
    "digits": None,
}
PROBE = """
import sys
from client.__main__ import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
heavy = ("torch", "opacus", "flwr", "scipy", "sklearn", "ray", "dp_accounting", "httpx")
loaded = {name.partition(".")[0] for name in sys.modules if "." in name}
print("heavy:", [name for name in heavy if name in loaded])
"""


def plan_of(kind: str) -> Plan:
    schemas = {"classification": CLASSES, "regression": NUMBER}
    return plan_for("digits") if kind == "digits" else plan_for("table", schema=schemas[kind])


@pytest.fixture(
    scope="module",
    params=["classification", "regression", pytest.param("digits", marks=pytest.mark.slow)],
)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A released model, its export, and rows for both."""
    folder, plan = tmp_path_factory.mktemp(request.param), plan_of(request.param)
    task = task_of(plan)
    key = own_key(folder)
    release(folder, 5, plan=plan, network=shaken(task), key=key)
    model = load(find(str(folder)), Trust())
    path, data = folder / "model.onnx", folder / "rows.csv"
    content = export(model, "onnx").content
    path.write_bytes(content)
    sign_beside(path, content, model.card.run, model.card.round, folder)
    text = ROWS[request.param]
    if text is None:
        numbers = np.random.default_rng(3).integers(0, 17, (40, 64))
        lines = [",".join(task.inputs), *(",".join(map(str, row)) for row in numbers)]
        text = "\n".join(lines) + "\n"
    data.write_text(text)
    return path, data, folder


def table(columns: dict[str, Any]) -> dict[str, Any]:
    return {
        n: v.dictionary_decode() if isinstance(v, pa.DictionaryArray) else v
        for n, v in columns.items()
    }


@pytest.mark.parametrize("labels", [False, True])
def test_it_predicts_what_the_whole_model_predicts(files: Any, labels: bool) -> None:
    path, data, _ = files
    whole, light = load(path, Trust()), exported(path, Trust())
    assert light is not None
    assert light.model.card == whole.card
    assert (light.model.digest, light.model.origin) == (whole.digest, whole.origin)
    form, task = light.model.task, whole.task
    for name in ("name", "kind", "classes", "inputs", "label", "shape", "wanted", "read"):
        assert getattr(form, name) == getattr(task, name), name
    one = list(light.predict(chunks(form, data, labels=labels and "target" not in form.label)))
    other = list(
        predictor(whole).predict(chunks(task, data, labels=labels and "target" not in task.label))
    )
    for mine, theirs in zip(one, other, strict=True):
        assert mine.rows.tolist() == theirs.rows.tolist()
        assert mine.faults == theirs.faults
        assert (mine.labels is None) == (theirs.labels is None)
        if mine.labels is not None:
            assert mine.labels.tolist() == theirs.labels.tolist()
        assert np.array_equal(mine.scores, theirs.scores.numpy()), "the same graph, the same bits"


def test_its_columns_are_those_of_the_whole_model(files: Any) -> None:
    path, data, _ = files
    whole, light = predictor(load(path, Trust())), exported(path, Trust())
    assert light is not None
    (mine,) = light.predict(chunks(light.model.task, data), every=True)
    (theirs,) = whole.predict(chunks(whole.model.task, data), every=True)
    one, other = table(mine.columns), table(theirs.columns)
    assert {n: v.type for n, v in one.items()} == {n: v.type for n, v in other.items()}
    for name, values in one.items():
        if pa.types.is_floating(values.type) and values.null_count == 0:
            assert np.allclose(values.to_numpy(), other[name].to_numpy(), rtol=1e-6, atol=1.1e-6)
        else:
            assert values.equals(other[name]), name


def test_a_part_without_rows_that_fit_has_empty_columns(files: Any, tmp_path: Path) -> None:
    path, data, _ = files
    header = data.read_text().splitlines()[0]
    none = tmp_path / "none.csv"
    none.write_text(header + "\n" + ",".join(["never"] * (header.count(",") + 1)) + "\n")
    light = exported(path, Trust())
    assert light is not None
    (mine,) = light.predict(chunks(light.model.task, none))
    assert (len(mine.rows), len(mine.columns["prediction"]), len(mine.faults) > 0) == (0, 0, True)


def test_the_command_loads_nothing_heavy(files: Any) -> None:
    path, data, _ = files
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, "predict", "--model", str(path), "--data", str(data)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[3],
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    *lines, heavy = ended.stdout.splitlines()
    assert heavy == "heavy: []"
    assert lines[0] == "row,prediction,probability"
    assert len(lines) == len(data.read_text().splitlines())
    assert "round 5" in ended.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "table", "schema": CLASSES.replace("hashed = 16", 'backbone = "x"')},
        {"task": "fashion-mnist"},
    ],
)
def test_what_needs_the_whole_task_is_left_to_it(changes: dict[str, Any]) -> None:
    if "backbone" in changes.get("schema", ""):
        changes["schema"] = changes["schema"].replace('backbone = "x"', BACKBONE)
    assert table_form(plan_for(changes.pop("task"), **changes)) is None


BACKBONE = f'backbone = "sentences"\nvector = 384\ndigest = "sha256:{"0" * 64}"'


def test_a_damaged_or_foreign_file_is_refused_in_one_line(files: Any, tmp_path: Path) -> None:
    path, _, _ = files
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        exported(bad, Trust())
    assert exported(path.with_suffix(".safetensors"), Trust()) is None
