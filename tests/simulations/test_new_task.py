"""What `tacit-simulate new` writes is a task that reads its own rows and learns from them."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from client.tasks.rows import TaskError
from privacy.contract.plan_file import load_plan
from privacy.task_package.archive import pack
from privacy.task_package.manifest import manifest_of
from simulations import new_task
from simulations.new_task import KINDS, new
from simulations.templates import cohort


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_new_tasks_rows_fit_its_manifest_and_its_model_learns_them(
    kind: str, tmp_path: Path
) -> None:
    task, plan, data = new(tmp_path / "mine", kind)
    manifest = manifest_of(pack(task))
    options = manifest.resolved({})
    assert (manifest.name, load_plan(str(plan), []).task) == ("mine", "mine")
    written = importlib.import_module(f"simulations.templates.{kind}")
    rows = [written.encode(record, options) for record in written.read(data, options)]
    assert len(rows) == 180
    assert {row["site"] for row in rows} == {"north", "east", "south"}
    ((_, shape),) = manifest.shapes(options).items()
    x = torch.from_numpy(np.stack([np.asarray(row["x"]) for row in rows]))
    assert tuple(x.shape[1:]) == shape
    x = x.to(torch.int64) if x.dtype == torch.int64 else x.float()
    y = torch.tensor([manifest.classes.index(row["y"]) for row in rows])
    torch.manual_seed(0)
    model = written.model(options)
    weights = tuple(model.parameters())
    for _ in range(60):
        slopes = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), weights)
        with torch.no_grad():
            for weight, slope in zip(weights, slopes, strict=True):
                weight -= 0.5 * slope / slope.norm().clamp(min=1e-6)
    assert (model(x).argmax(1) == y).float().mean() > 0.75


def test_a_table_may_have_a_hidden_layer(tmp_path: Path) -> None:
    from simulations.templates import table

    assert [type(m) for m in table.model({"hidden": 3})] == [nn.Linear, nn.Tanh, nn.Linear]


def test_a_new_task_is_refused_in_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    for folder, kind, data, why in (
        (tmp_path / "a b", "table", None, "NAME must be"),
        (tmp_path, "table", None, "exists already"),
        (tmp_path / "mine", "video", None, "--kind must be one of image, text"),
        (tmp_path / "mine", "table", tmp_path / "none", "--data must be"),
    ):
        with pytest.raises(TaskError, match=why):
            new(folder, kind, data)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_no_half_of_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, draw: np.random.Generator) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(new_task.KINDS, "table", full)
    with pytest.raises(OSError, match="No space left"):
        new(tmp_path / "mine", "table")
    assert list(tmp_path.iterdir()) == []


def test_own_rows_are_named_in_the_plan_and_none_are_made_up(tmp_path: Path) -> None:
    own = tmp_path / "people.csv"
    own.write_text("site\n")
    paths = new(tmp_path / "mine", "table", own)
    assert paths[-1] == own
    assert str(own) in (tmp_path / "mine" / "plan.toml").read_text()
    assert not (tmp_path / "mine" / "data").exists()


def test_made_up_patients_have_the_shape_of_a_registry_and_their_command_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from simulations.templates.command import run

    monkeypatch.setattr("sys.argv", ["cohort", str(tmp_path / "cohort")])
    run("cohort", cohort.write)
    path = tmp_path / "cohort" / "patients.npz"
    assert capsys.readouterr().out == f"{path}\n"
    with np.load(path) as patients:
        values, y, region = patients["values"], patients["y"], patients["region"]
    assert values.shape == (1088, 39) and values.min() >= 0 and values.max() <= 1
    assert {str(name): int((region == name).sum()) for name in set(region)} == cohort.REGIONS
    assert abs(y[:, 1].mean() - 1 / 7) < 0.01 and y[:, 0].min() > 0
    monkeypatch.setattr("sys.argv", ["cohort", "--help"])
    with pytest.raises(SystemExit, match=r"usage: python -m simulations\.templates\.cohort FOLDER"):
        run("cohort", cohort.write)
