"""What a model rests on over many rows, and whether that stays from round to round."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from client.inference.attribution import explain
from client.inference.importance import earlier, importance
from client.models.loading import ModelError, find, load, of_same_run
from client.models.provenance import Trust
from client.models.store import keep
from client.tasks.registry import task as find_task
from tests.support.models import command, digits_csv, own_key, plan_for, release

ROUNDS = (1, 2, 3, 4, 5, 6)
TASK = find_task("digits")


def rounds_of(folder: Path) -> Path:
    """Six rounds: pixel 20's weights stay, pixel 21's are noise, no other pixel counts."""
    key, source = own_key(folder), np.random.default_rng(3)
    for number in ROUNDS:
        network = TASK.model(0)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
            weight = network.state_dict()["weight"]
            weight[:, 20] = torch.linspace(-1, 1, 10)
            weight[:, 21] = torch.tensor(source.normal(0, 0.05, 10), dtype=torch.float32)
        release(folder, number, network=network, plan=plan_for("digits", rounds=6), key=key)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rounds_of(tmp_path_factory.mktemp("runs") / "digits")


def test_importance_is_the_mean_size_of_contributions_by_hand(run: Path) -> None:
    model = load(find(str(run)), Trust())
    x = TASK.load(None, "test").x[:30]
    found = importance([model], x, 30)
    by_hand = np.mean([abs(one.columns[TASK.inputs[20]]) for one in explain(model, x, range(30))])
    assert found.columns[0].column == TASK.inputs[20]
    assert found.columns[0].importance == pytest.approx(by_hand)
    assert sum(one.share for one in found.columns) == pytest.approx(1)
    assert found.columns[0].change is None and not found.columns[0].changes


def test_what_rests_on_noise_changes_from_round_to_round_and_the_rest_stays(run: Path) -> None:
    models = [load(path, Trust()) for _, path in of_same_run(find(str(run)))]
    found = importance(models, TASK.load(None, "test").x[:60], 60)
    assert found.rounds == ROUNDS
    first, second, *others = found.columns
    assert (first.column, second.column) == (TASK.inputs[20], TASK.inputs[21])
    assert first.change == pytest.approx(0, abs=1e-5) and not first.changes
    assert second.change is not None and second.changes
    assert all(one.change is None and one.importance == 0 for one in others)


def test_rounds_are_taken_evenly_from_the_second_half_of_a_run() -> None:
    files = [(number, Path(str(number))) for number in range(1, 31)]
    assert [int(one.name) for one in earlier(files, 30, 4)] == [15, 20, 25, 30]
    assert [int(one.name) for one in earlier(files, 20, 3)] == [10, 15, 20]
    assert [int(one.name) for one in earlier(files, 30, 1)] == [30]
    assert [int(one.name) for one in earlier(files[:2], 2, 5)] == [1, 2]
    assert earlier([], 3, 5) == []


def test_a_sites_own_models_are_those_of_the_same_run(run: Path, tmp_path: Path) -> None:
    for number, file in of_same_run(find(str(run))):
        name = "first" if number < 4 else "second"
        path = keep(tmp_path, file.read_bytes(), None, run=name, round=number)
    assert [number for number, _ in of_same_run(path, tmp_path)] == [4, 5, 6]
    assert of_same_run(tmp_path / "models" / "other.safetensors", tmp_path) == []


def test_models_of_two_runs_are_not_compared(run: Path, tmp_path: Path) -> None:
    one = load(find(str(run)), Trust())
    release(tmp_path, 6, extra={"run": "ffffffffffffffff"})
    with pytest.raises(ModelError, match="must be of models of one run"):
        importance([load(find(str(tmp_path)), Trust()), one], TASK.load(None, "test").x[:2], 2)


def test_the_command_shows_columns_and_writes_a_page_for_the_owner(
    run: Path, tmp_path: Path
) -> None:
    data, page = digits_csv(tmp_path / "d.csv", 40), tmp_path / "p.html"
    more = ("--model", run, "--dir", tmp_path, "--rows", 25, "--rounds", 3)
    answer = command("importance", data, *more, "--out", page)
    assert answer.code == 0, answer.err
    assert "25 rows, rounds 3, 4, 6" in answer.out
    assert f"  {TASK.inputs[20]} " in answer.out and "mostly noise" in answer.out
    assert max(map(len, answer.out.splitlines()[:-1])) <= 80  # the last has a path
    text = page.read_text()
    assert text.count('<th scope="row">') == 64 and "for the site alone" in text
    assert page.stat().st_mode & 0o077 == 0
    found = json.loads(command("importance", data, *more, "--json").out)
    assert found["rows"] == 25 and found["rounds"] == [3, 4, 6] and len(found["columns"]) == 64


def test_bad_input_is_one_line(run: Path, tmp_path: Path) -> None:
    data, more = digits_csv(tmp_path / "d.csv", 3), ("--model", run, "--dir", tmp_path)
    assert command("importance", data, *more, "--rounds", 0).code == 2
    wrong = command("importance", data, *more, "--out", tmp_path / "p.txt")
    assert wrong.code != 0 and "expected a name that ends with .html" in wrong.err
    empty = tmp_path / "empty.csv"
    empty.write_text(data.read_text().splitlines()[0] + "\n")
    none = command("importance", empty, *more)
    assert none.code != 0 and len(none.err.strip().splitlines()) <= 2
