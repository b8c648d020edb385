"""Why a prediction, and a model for one site alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from client.inference.attribution import explain
from client.models.loading import find, load
from client.models.provenance import Trust
from client.tasks.registry import task as find_task
from tests.support.models import command, digits_csv, own_key, plan_for, release, shaken


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    release(folder, 5, key=own_key(folder))
    return folder


def test_contributions_add_up_to_the_score_less_the_baselines(run: Path) -> None:
    model = load(find(str(run)), Trust())
    x = find_task("digits").load(None, "test").x[:5]
    assert model.network is not None
    with torch.inference_mode():
        scores, base = model.network(x), model.network(-torch.ones_like(x))
    for i, one in enumerate(explain(model, x, range(1, 6))):
        best = int(scores[i].argmax())
        expected = float(scores[i, best] - base[i, best])
        assert float(one.contributions.sum()) == pytest.approx(expected, abs=1e-3)
        # A linear model's integrated gradients are weight times input, exactly.
        exact = model.network.state_dict()["weight"][best] * (x[i] + 1)
        assert np.abs(one.contributions - exact.numpy()).max() < 1e-4


def test_explanations_come_as_numbers_and_as_pictures(run: Path, tmp_path: Path) -> None:
    data, out = digits_csv(tmp_path / "d.csv", 9), tmp_path / "p.csv"
    answer = command(
        "predict", "--model", run, "--data", data, "--out", out, "--explain", 2, "--json"
    )
    assert answer.code == 0, answer.err
    lines = (tmp_path / "p.csv.explained.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [1, 2]
    assert len(json.loads(lines[0])["contributions"]) == 64
    page = (tmp_path / "p.csv.explained.html").read_text()
    assert page.count("<svg") == 4


def test_a_tables_explanation_speaks_of_its_columns(tmp_path: Path) -> None:
    task = find_task("heart-disease")
    release(tmp_path / "run", plan=plan_for("heart-disease"), network=shaken(task))
    model = load(find(str(tmp_path / "run")), Trust())
    found = explain(model, torch.rand(3, *task.shape), [1, 2, 3])
    assert set(found[0].columns) == set(task.inputs)
    assert "nan" not in json.dumps(found[0].to_dict()).lower()


def test_an_exported_graph_has_no_gradients_to_explain_by(run: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "m.onnx", digits_csv(tmp_path / "d.csv", 3)
    command("export", "--model", run, "--format", "onnx", "--out", out)
    answer = command("predict", "--model", out, "--data", data, "--explain", 1)
    assert (answer.code, "need gradients" in answer.err) == (2, True)


@pytest.mark.parametrize("option", ["--model", "--towards"])
def test_an_adapted_model_is_better_at_home_and_stays_there(option: str, tmp_path: Path) -> None:
    site, data = tmp_path / "clinic", digits_csv(tmp_path / "d.csv", 900)
    site.mkdir()
    weak = release(
        tmp_path / "weak", network=find_task("digits").model(0), key=own_key(tmp_path / "weak")
    )
    own = tmp_path / "own.safetensors"
    answer = command("adapt", option, weak, "--data", data, "--dir", site, "--out", own, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["private_to"] == "clinic"
    assert answer.json["after"]["accuracy"] > answer.json["before"]["accuracy"] + 0.5
    predicted = command("predict", "--model", own, "--data", data, "--dir", site, "--json")
    assert predicted.json["card"]["private_to"] == "clinic"
    assert "private to clinic" in predicted.json["card"]["privacy"]
    assert "epsilon" not in predicted.json["card"]["privacy"]
    assert any("without privacy" in change for change in predicted.json["card"]["changes"])
    for form in ("safetensors", "onnx", "onnx-int8"):
        refused = command("export", "--model", own, "--dir", site, "--format", form)
        assert (refused.code, "private to clinic" in refused.err) == (2, True)
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    shared = command("serve", "--model", own, "--dir", site, "--listen", "0.0.0.0:0",
                     "--token-file", token)  # fmt: skip
    assert (shared.code, "private to clinic" in shared.err) == (2, True)


def test_the_mark_cannot_be_taken_off(run: Path, tmp_path: Path) -> None:
    site, data = tmp_path / "clinic", digits_csv(tmp_path / "d.csv", 100)
    site.mkdir()
    own = tmp_path / "own.safetensors"
    command("adapt", "--model", run, "--data", data, "--dir", site, "--out", own)
    content = own.read_bytes()
    own.write_bytes(content.replace(b'"private_to"', b'"private_no"'))
    answer = command("export", "--model", own, "--dir", site, "--format", "onnx")
    assert (answer.code, "changed one" in answer.err) == (2, True)


def test_too_few_rows_are_not_adapted_to(run: Path, tmp_path: Path) -> None:
    answer = command("adapt", "--model", run, "--data", digits_csv(tmp_path / "d.csv", 5))
    assert (answer.code, "at least 40" in answer.err) == (2, True)


def test_a_picture_is_explained_through_its_tasks_own_filters(tmp_path: Path) -> None:
    task = find_task("fashion-mnist")
    release(tmp_path / "run", plan=plan_for("fashion-mnist"), network=shaken(task))
    model = load(find(str(tmp_path / "run")), Trust())
    pixels = torch.rand(2, 784, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert model.network is not None
    assert task.front is not None
    with torch.inference_mode():
        scores = model.network(task.front(pixels))
        base = model.network(task.front(-torch.ones_like(pixels)))
    for i, one in enumerate(explain(model, pixels, [1, 2])):
        best = int(scores[i].argmax())
        expected = float(scores[i, best] - base[i, best])
        assert float(one.contributions.sum()) == pytest.approx(expected, abs=1e-3)
        assert len(one.columns) == 784


def test_real_pictures_with_their_labels_beside_are_evaluated(
    real_data: Path, tmp_path: Path
) -> None:
    plan = plan_for("fashion-mnist")
    release(tmp_path / "run", plan=plan, network=shaken(find_task("fashion-mnist")))
    data = real_data / "fashion_mnist" / "t10k-images-idx3-ubyte.gz"
    answer = command("evaluate", "--model", tmp_path / "run", "--data", data, "--json")
    assert (answer.code, answer.json["rows"]) == (0, 10_000)
    assert sum(map(sum, answer.json["confusion"])) == 10_000
