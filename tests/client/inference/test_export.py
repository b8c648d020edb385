"""Exports agree with their model, carry its card, and leave no figure of a private row behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from client.inference.export import MOST_LOST, points_lost
from client.models.loading import find, load
from client.models.provenance import Trust
from client.tasks.registry import task as find_task
from tests.support.models import command, digits_csv, own_key, plan_for, release, shaken

Exported = dict[str, tuple[Path, Any]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    release(folder, 5, key=own_key(folder))
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The file of each form, and what its export said: the exporter costs seconds."""
    folder = tmp_path_factory.mktemp("exports")
    files: Exported = {}
    for form in ("safetensors", "onnx", "onnx-int8", "onnx-fp16"):
        out = folder / f"{form}{'.safetensors' if form == 'safetensors' else '.onnx'}"
        more = ["--data", digits_csv(folder / "d.csv", 123)] if form == "onnx" else []
        made = command("export", "--model", run, "--format", form, "--out", out, "--json", *more)
        assert made.code == 0, made.err
        files[form] = out, made.json
    return files


@pytest.mark.parametrize("form", ["safetensors", "onnx", "onnx-int8", "onnx-fp16"])
def test_an_export_predicts_as_its_model_and_carries_its_card(
    run: Path, exported: Exported, tmp_path: Path, form: str
) -> None:
    (out, made), data = exported[form], digits_csv(tmp_path / "d.csv", 200)
    found = [
        command("predict", "--model", model, "--data", data, "--json").json for model in (run, out)
    ]
    pairs = list(zip(*(one["predictions"] for one in found), strict=True))
    same = sum(a["prediction"] == b["prediction"] for a, b in pairs)
    apart = max(abs(a["probability"] - b["probability"]) for a, b in pairs)
    assert same >= 199
    assert apart < {"onnx-int8": 0.1, "onnx-fp16": 1e-2}.get(form, 1e-4)
    card = found[1]["card"]
    assert card["format"] == form
    assert card["model"] == load(find(str(run)), Trust()).digest
    assert (card["epsilon"], card["unit"]) == (1.25, "record")
    if form != "safetensors":
        assert any("costs no privacy" in change for change in card["changes"])
        assert made["agreement"][0]["source"] == "embedded test rows"


def test_half_precision_is_half_as_long_and_its_card_says_it(exported: Exported) -> None:
    out = exported["onnx-fp16"][0]
    kinds = {t.data_type for t in onnx.load(out).graph.initializer if t.dims}
    assert onnx.TensorProto.FLOAT16 in kinds and onnx.TensorProto.FLOAT not in kinds
    changes = load(out, Trust()).card.changes
    assert any("half precision; post-processing" in change for change in changes)


def test_pruning_zeroes_the_smallest_weights_and_says_how_many(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.safetensors"
    made = command(
        *("export", "--model", run, "--format", "safetensors", "--prune", 0.3, "--out", out),
        "--json",
    )
    assert made.code == 0, made.err
    before, after = (load(find(str(path)), Trust()) for path in (run, out))
    assert before.network is not None and after.network is not None
    old, new = (m.network.state_dict() for m in (before, after) if m.network)
    weight, small = old["weight"], new["weight"]
    gone = small == 0
    assert int(gone.sum()) == 192 and torch.equal(small[~gone], weight[~gone])
    assert float(weight[gone].abs().max()) <= float(weight[~gone].abs().min())
    assert torch.equal(old["bias"], new["bias"])
    assert any("smallest 192 of 640 weights" in change for change in after.card.changes)
    (agreement,) = made.json["agreement"]
    assert agreement["rows"] == 360 and agreement["lost_surely"] <= MOST_LOST


@pytest.mark.parametrize(("share", "expected"), [(0.98, "prune less"), (1.0, "below 1")])
def test_a_model_that_is_pruned_too_much_is_refused(
    run: Path, tmp_path: Path, share: float, expected: str
) -> None:
    out = tmp_path / "small.safetensors"
    more = ("--format", "safetensors", "--prune", share, "--out", out)
    made = command("export", "--model", run, *more)
    assert made.code == 2 and expected in made.err and not out.exists()


def test_int8_loses_at_most_half_a_point(exported: Exported) -> None:
    found = exported["onnx-int8"][1]["agreement"][0]
    assert found["lost_surely"] <= 0.5
    assert found["same"] >= 1 - 3 / found["rows"]


def test_int8_weights_leave_room_for_sixteen_bit_sums_of_two_products(exported: Exported) -> None:
    out = exported["onnx-int8"][0]
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(out).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8
    ]
    assert max(int(np.abs(w.astype(int)).max()) for w in weights if w.size > 1) <= 64


def test_onnx_own_evaluator_reads_int8_too(exported: Exported) -> None:
    graph, rows = onnx.load(exported["onnx-int8"][0]), find_task("digits").load(None, "test")
    x = rows.x[:50].numpy()
    names = {node.op_type for node in graph.graph.node}
    assert not any(
        t.data_type == onnx.TensorProto.INT32 and t.dims for t in graph.graph.initializer
    )
    assert {"QuantizeLinear", "DequantizeLinear"} <= names
    (found,) = ReferenceEvaluator(graph).run(None, {"x": x})
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (expected,) = session.run(["scores"], {"x": x})
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("worse", "better", "rows", "refused"),
    [
        (2, 0, 360, False),  # 0.56 points, on two rows: nothing is shown
        (6, 0, 360, True),
        (3, 0, 360, False),
        (50, 44, 1000, False),
        (200, 100, 10_000, True),
        (60, 0, 10_000, False),
        (70, 0, 10_000, True),
        (0, 9, 360, False),
    ],
)
def test_the_int8_limit_is_fair_to_the_size_of_the_sample(
    worse: int, better: int, rows: int, refused: bool
) -> None:
    lost, surely = points_lost(worse, better, rows)
    assert lost == pytest.approx(100 * (worse - better) / rows)
    assert (surely > MOST_LOST) is refused


def test_figures_of_private_rows_stay_out_of_the_export(exported: Exported) -> None:
    out, made = exported["onnx"]
    assert [one["rows"] for one in made["agreement"]] == [360, 123]
    assert b"123" not in json.dumps(load(out, Trust()).card.changes).encode()


def test_an_onnx_file_runs_without_tacit(run: Path, exported: Exported) -> None:
    out = exported["onnx"][0]
    rows = find_task("digits").load(None, "test")
    scores = onnxruntime.InferenceSession(str(out)).run(["scores"], {"x": rows.x.numpy()})[0]
    network = load(find(str(run)), Trust()).network
    assert network is not None
    with torch.inference_mode():
        assert np.abs(scores - network(rows.x).numpy()).max() < 1e-4
    assert {p.key for p in onnx.load(out).metadata_props} >= {"card", "plan_json", "run"}


@pytest.mark.parametrize("form", ["onnx", pytest.param("onnx-int8", marks=pytest.mark.slow)])
def test_tasks_without_embedded_rows_are_compared_on_made_up_ones(
    tmp_path: Path, form: str
) -> None:
    task = find_task("heart-disease")
    release(tmp_path / "run", plan=plan_for("heart-disease"), network=shaken(task))
    made = command("export", "--model", tmp_path / "run", "--format", form, "--json")
    assert made.code == 0, made.err
    assert made.json["agreement"][0]["source"].startswith("synthetic")
    assert made.json["agreement"][0]["lost"] is None


def test_an_unknown_form_and_a_wrong_name_are_bad_input(run: Path) -> None:
    for further in (["--format", "pickle"], ["--format", "onnx", "--out", "m.bin"]):
        answer = command("export", "--model", run, *further)
        assert (answer.code, "expected" in answer.err) == (2, True)


def test_an_onnx_file_is_not_taken_for_another_models(exported: Exported, tmp_path: Path) -> None:
    source, out = exported["onnx"][0], tmp_path / "m.onnx"
    for end in ("", ".sig"):
        Path(f"{out}{end}").write_bytes(Path(f"{source}{end}").read_bytes())
    graph = onnx.load(out)
    card = next(p for p in graph.metadata_props if p.key == "card")
    card.value = card.value.replace('"round": 5', '"round": 4')
    out.write_bytes(graph.SerializeToString())
    data = digits_csv(tmp_path / "d.csv", 3)
    assert "changed one" in command("predict", "--model", out, "--data", data).err
    from client.models.trusted_keys import sign_beside

    sign_beside(out, out.read_bytes(), "00aa11bb22cc33dd", 5, None)
    assert "another one's" in command("predict", "--model", out, "--data", data).err
