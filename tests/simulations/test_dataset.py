"""A simulation's rows: read once, and judged with skewed labels by more than accuracy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data.reader import read
from client.inference.evaluation import auroc
from client.tasks.registry import task_of
from client.tasks.rows import TaskError
from simulations.display import sentence
from simulations.run import simulate
from tests.support.models import plan_for

SCHEMA = (
    'label = "ill"\n[columns.age]\ntype = "number"\nmin = 0\nmax = 100\n'
    '[columns.ill]\ntype = "category"\nvalues = ["no", "yes"]\n'
)


def test_a_table_is_read_once_for_both_of_its_parts_and_skewed_labels_have_their_auc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def counted(path: Path, *more: Any, **options: Any) -> Any:
        opened.append(path)
        return read(path, *more, **options)

    file = tmp_path / "d.csv"
    lines = [f"{i % 100 + i / 1000},{'yes' if i % 100 > 90 else 'no'}" for i in range(400)]
    file.write_text("\n".join(["age,ill", *lines]) + "\n")
    plan = plan_for("table", schema=SCHEMA, sites=2, rounds=2, rows=150, rate=0.2, split="iid")
    learning = task_of(plan)
    train, test = (learning.load(file, part) for part in ("train", "test"))
    monkeypatch.setattr("client.data.loading.read", counted)
    result = simulate(plan, tmp_path / "run", data=file)
    assert opened == [file]
    assert len(train) + len(test) == 400
    assert learning.load_both is not None
    both = learning.load_both(file)
    assert both[0].x.equal(train.x)
    assert both[1].y.equal(test.y)
    rising = auroc(test.x[:, 0].numpy(), test.y.numpy() == 1)  # one input: its order or the reverse
    assert result.summary["auc"] in (pytest.approx(rising), pytest.approx(1 - rising))
    assert np.isfinite(result.summary["metrics"]["loss"])
    assert f"AUC {result.summary['auc']:.4f}, F1" in sentence(result.summary)


def test_rows_of_which_none_is_held_out_are_refused_before_there_is_a_folder(
    tmp_path: Path,
) -> None:
    file = tmp_path / "d.csv"
    file.write_text("\n".join(["age,ill", *(f"{i},no" for i in range(20))]) + "\n")
    plan = plan_for("table", schema=f"test = 1e-9\n{SCHEMA}", sites=2, rows=10, split="iid")
    with pytest.raises(TaskError, match="table: no row is held out to evaluate on"):
        simulate(plan, tmp_path / "run", data=file)
    assert not (tmp_path / "run").exists()
