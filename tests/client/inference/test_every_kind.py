"""Models of every kind of task: predicted, measured, explained, adapted, exported, served."""

import asyncio
import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from client.inference.decoded_columns import best, columns
from client.models.loading import find, load
from client.models.provenance import Trust
from client.serving.address import Limits, listening
from client.serving.service import Service
from client.tasks.described.outcomes import outcome
from client.tasks.registry import task_of
from client.tasks.task import Task
from privacy.contract.plan import Plan
from tests.support.models import command, own_key, plan_for, release, shaken

ROWS = 60
ARRAYS = """reader = "arrays"
kind = "{kind}"
label = "y"
{more}
[x.values]
shape = [3]
range = [-1, 1]
"""
KINDS = {
    "classification": 'classes = ["low", "mid", "high"]',
    "ordinal": 'classes = ["low", "mid", "high"]',
    "multi-label": 'classes = ["a", "b", "c"]',
    "counts": "",
    "regression": "bounds = [0, 10]",
    "survival": "times = [0, 1, 3, 6]",
}


def arrays(path: Path, kind: str, more: dict[str, Any] | None = None) -> Path:
    """An npz file of that kind of label, decided by the first number of a row."""
    draw = np.random.default_rng(0)
    x = draw.uniform(-1, 1, (ROWS, 3))
    place = np.digitize(x[:, 0], [-0.3, 0.3])
    labels: dict[str, Any] = {
        "classification": np.array(["low", "mid", "high"])[place],
        "ordinal": np.array(["low", "mid", "high"])[place],
        "multi-label": np.array(["a", "a;b", "c"])[place],
        "counts": place * 3,
        "regression": 5 + 4 * x[:, 0],
        "survival": np.stack([1 + 2.0 * place, draw.integers(0, 2, ROWS)], 1),
    }
    np.savez(path, values=x, y=labels[kind], **(more or {}))
    return path


def released(folder: Path, plan: Plan) -> Task:
    """A run folder with random weights of a plan's model."""
    task = task_of(plan)
    release(folder, plan=plan, network=shaken(task), key=own_key(folder))
    return task


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_predicted_measured_explained_and_adapted(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.inference.personalisation.STEPS", 40)
    plan = plan_for("arrays", schema=ARRAYS.format(kind=kind, more=KINDS[kind]))
    task, run = released(tmp_path / "run", plan), tmp_path / "run"
    data = arrays(tmp_path / "rows.npz", kind)
    answer = command("predict", "--model", run, "--data", data, "--json", "--probabilities",
                     "--explain", 2)  # fmt: skip
    assert answer.code == 0, answer.err
    rows = task.load(data, "all")
    network = load(find(str(run)), Trust()).network
    assert network is not None
    with torch.inference_mode():
        expected = columns(task, network(rows.x), every=True)
    found = answer.json["predictions"]
    assert len(found) == ROWS and [one["row"] for one in found] == list(range(1, ROWS + 1))
    for name, column in expected.items():
        assert [one[name] for one in found] == column.to_pylist(), name
    assert found[0]["id"] == "row 1"
    assert len(answer.json["explanations"][0]["contributions"]) == 3
    measured = command("evaluate", "--model", run, "--data", data, "--json").json
    with torch.inference_mode():
        metrics = task.metrics(network(rows.x), rows.y)
    assert metrics.items() <= measured["metrics"].items()
    assert bool(measured["confusion"]) is (kind in ("classification", "ordinal"))
    out = tmp_path / "own.safetensors"
    adapted = command("adapt", "--model", run, "--data", data, "--out", out, "--json")
    assert adapted.code == 0, adapted.err
    assert adapted.json["after"]["loss"] <= adapted.json["before"]["loss"] + 0.1
    whole = command("adapt", "--towards", run, "--data", data, "--out", out, "--json")
    assert whole.code == 0, whole.err
    assert whole.json["after"]["loss"] <= whole.json["before"]["loss"] + 0.1
    assert command("predict", "--model", out, "--data", data, "--json").code == 0


def test_what_a_prediction_says_by_hand() -> None:
    def task(kind: str, **more: Any) -> Any:
        about = outcome(kind, **more)
        shown = {"classes": (), "times": ()} | more
        return type("T", (), {"kind": kind, "decode": staticmethod(about.decode), **shown})

    four = task("ordinal", classes=("0", "1", "2", "3"))
    # P(more than 0, 1, 2) = 0.9, 0.6, 0.4: more than half reaches class 2
    scores = torch.logit(torch.tensor([[0.9, 0.6, 0.4], [0.2, 0.1, 0.05]]))
    assert best(four, four.decode(scores)).tolist() == [2, 0]
    assert columns(four, scores)["probability"].to_pylist() == [0.2, 0.8]
    some = columns(task("multi-label", classes=("a", "b")), torch.tensor([[2.0, -1], [1, 1]]))
    assert some["prediction"].to_pylist() == ["a", "a;b"]
    assert columns(task("counts"), torch.tensor([[np.log(7.0)]]))["prediction"].to_pylist() == (
        pytest.approx([7.0])
    )
    # half die in each of two bins of width 2 and 4: 1, .5, .25 -> 2 * .75 + 4 * .375
    lived = columns(task("survival", times=(0.0, 2.0, 6.0)), torch.zeros(1, 2), every=True)
    assert lived["prediction"].to_pylist() == pytest.approx([3.0])
    assert (lived["beyond_2"].to_pylist(), lived["beyond_6"].to_pylist()) == ([0.5], [0.25])
    tokens = columns(task("tokens"), torch.tensor([[[0.0, 1, 0], [3, 1, 0]]]))
    assert tokens["prediction"].to_pylist() == ["1 0"]
    heads = type("T", (), {"kind": "values", "decode": staticmethod(lambda outputs: outputs)})
    several = columns(heads, {"age": torch.tensor([[3.0]]), "at": torch.tensor([[1.0, 2]])})  # type: ignore[arg-type]
    assert {name: c.to_pylist() for name, c in several.items()} == {
        "age": [3.0], "at_0": [1.0], "at_1": [2.0]
    }  # fmt: skip


def mixed_plan() -> Plan:
    """Ids and numbers in one row."""
    schema = ARRAYS.format(kind="classification", more=KINDS["classification"])
    schema += "[x.words]\nshape = [4]\nwords = 9\n"
    return plan_for("arrays", schema=schema, model={"name": "mixed", "width": 4})


def test_rows_of_several_arrays_are_explained_by_each_of_their_numbers(tmp_path: Path) -> None:
    words = np.random.default_rng(1).integers(1, 9, (ROWS, 4))
    data = arrays(tmp_path / "rows.npz", "classification", {"words": words})
    released(tmp_path / "run", mixed_plan())
    out = tmp_path / "p.csv"
    answer = command("predict", "--model", tmp_path / "run", "--data", data, "--out", out,
                     "--explain", 3, "--json")  # fmt: skip
    assert answer.code == 0, answer.err
    names = set(answer.json["explanations"][0]["contributions"])
    assert names == {*(f"values_{i}" for i in range(3)), *(f"words_{i}" for i in range(4))}
    assert "<svg" in (tmp_path / "p.csv.explained.html").read_text()
    with out.open() as file:
        assert {row["prediction"] for row in csv.DictReader(file)} <= {"low", "mid", "high"}


@pytest.mark.parametrize("form", ["onnx", pytest.param("onnx-int8", marks=pytest.mark.slow)])
def test_several_arrays_and_any_kind_are_exported_and_run_anywhere(
    tmp_path: Path, form: str
) -> None:
    from onnx import load_model
    from onnx.reference import ReferenceEvaluator

    words = np.random.default_rng(1).integers(1, 9, (ROWS, 4))
    data = arrays(tmp_path / "rows.npz", "classification", {"words": words})
    released(tmp_path / "run", mixed_plan())
    out = tmp_path / "m.onnx"
    made = command("export", "--model", tmp_path / "run", "--format", form, "--out", out,
                   "--data", data, "--json")  # fmt: skip
    assert made.code == 0, made.err
    assert [one["rows"] for one in made.json["agreement"]] == [512, ROWS]
    content = out.read_bytes()
    assert b"/work" not in content and b"site-packages" not in content
    answers = [
        command("predict", "--model", one, "--data", data, "--json").json["predictions"]
        for one in (tmp_path / "run", out)
    ]
    assert [a["prediction"] for a in answers[0]][:50] == [a["prediction"] for a in answers[1]][:50]
    if form == "onnx":
        rows = task_of(mixed_plan()).load(data, "all")
        inputs = {name: value.numpy() for name, value in rows.x.items()}
        scores = ReferenceEvaluator(load_model(out)).run(None, inputs)[0]
        network = load(find(str(tmp_path / "run")), Trust()).network
        assert network is not None
        assert np.abs(scores - network(rows.x).detach().numpy()).max() < 1e-5


def post(service: Service, name: str, body: bytes) -> httpx.Response:
    """One request to the service in this process."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=service)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post(f"/predict?name={name}", content=body)

    return asyncio.run(ask())


def test_a_reader_of_files_is_served_by_file_and_by_zip(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    schema = 'reader = "images"\nclasses = ["no", "yes"]\nsize = [8, 8]\nfolders = ["label"]\n'
    plan = plan_for("images", schema=schema, model={"name": "linear"})
    task = released(tmp_path / "run", plan)
    service = Service(
        load(find(str(tmp_path / "run")), Trust()), listening("127.0.0.1:0", None), Limits(65536, 3)
    )
    pictures = []
    for i in range(4):
        file = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8)).astype(np.uint8)
        image.fromarray(pixels).save(file, "PNG")
        pictures.append(file.getvalue())
    folder = tmp_path / "pictures"
    folder.mkdir()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for i, content in enumerate(pictures[:3]):
            (folder / f"{i}.png").write_bytes(content)
            archive.writestr(f"{i}.png", content)
    expected = command("predict", "--model", tmp_path / "run", "--data", folder, "--json").json
    try:
        answer = post(service, "all.zip", packed.getvalue())
        assert answer.status_code == 200, answer.text
        same = [{k: v for k, v in one.items() if k != "row"} for one in expected["predictions"]]
        assert answer.json()["predictions"] == same
        assert post(service, "0.png", pictures[0]).json()["predictions"] == same[:1]
        for name, body, status in (
            ("", pictures[0], 400),
            ("../a.png", pictures[0], 400),
            ("a.png", b"SECRET", 422),
            ("a.txt", b"SECRET", 422),
            ("a.zip", b"SECRET", 400),
            ("a.zip", packed.getvalue()[:-30], 400),
        ):
            refused = post(service, name, body)
            assert refused.status_code == status, (name, refused.text)
            assert "SECRET" not in refused.text and str(tmp_path) not in refused.text
        assert post(service, "0.png", pictures[0]).status_code == 200
        several = io.BytesIO()
        with zipfile.ZipFile(several, "w") as archive:
            for i, content in enumerate(pictures):
                archive.writestr(f"{i}.png", content)
        assert post(service, "all.zip", several.getvalue()).status_code == 413
    finally:
        service.thread.shutdown()
        service.current.close()
    assert task.read is not None


@pytest.mark.slow
def test_a_packages_model_is_used_as_any_other(tmp_path: Path) -> None:
    from tests.support.task_packages import package, rows

    place, data = tmp_path / "task", rows(tmp_path / "rows.csv", ROWS)
    code = package(place).code
    plan = plan_for("mine", code=code)
    from client.commands.shared import tasks_of

    tasks = tasks_of(None, place)
    run = tmp_path / "run"
    release(run, plan=plan, network=shaken(tasks(plan)), key=own_key(run), task=tasks(plan))
    answers = {}
    for words in (
        ("predict", "--model", run, "--data", data, "--explain", 1),
        ("evaluate", "--model", run, "--data", data, "--group", "site"),
        ("export", "--model", run, "--format", "onnx", "--out", tmp_path / "m.onnx"),
        ("predict", "--model", tmp_path / "m.onnx", "--data", data),
        ("adapt", "--model", run, "--data", data, "--out", tmp_path / "own.safetensors"),
    ):
        answer = command(*words, "--task", place, "--json")
        assert answer.code == 0, (words, answer.err)
        answers[words[:3]] = answer.json
    found = answers["predict", "--model", run]["predictions"]
    assert found == answers["predict", "--model", tmp_path / "m.onnx"]["predictions"]
    assert set(answers["evaluate", "--model", run]["groups"]) == {"north", "south"}
    assert command("predict", "--model", run, "--data", data).code == 2  # the site approved nothing
    service = Service(
        load(find(str(run)), Trust(), tasks), listening("127.0.0.1:0", None), Limits(65536, 99)
    )
    try:
        same = [{k: v for k, v in one.items() if k != "row"} for one in found]
        for _ in range(2):  # the second by the same closed process
            assert post(service, "rows.csv", data.read_bytes()).json()["predictions"] == same
        wrong = post(service, "rows.csv", b"site,a,b,c\nnorth,1,SECRET,2\n")
        assert wrong.status_code == 422 and "SECRET" not in wrong.text
    finally:
        service.thread.shutdown()
        service.current.close()
