"""A survival from schema to sentence: the mean C-index of the sites, and what it cost."""

from pathlib import Path

import numpy as np
import pytest

from client.tasks.described.outcomes import concordance
from privacy.report.tables import utility
from simulations import load_plan, simulate
from simulations.display import sentence
from simulations.templates.cohort import write

SCHEMA = """
reader = "arrays"
kind = "survival"
label = "y"
site = "region"
times = [0, 1, 2, 4, 8]
test = 0.3
[x.values]
shape = [3]
range = [-3, 3]
"""
PLAN = """
task = "arrays"
split = "natural"
rounds = 20
rate = 1.0
rows = "actual"
lr = 2.0
clip = 1.0
epsilon = 8.0
delta = 1e-4
schema = '''{schema}'''
[model]
name = "linear"
hazard = "cox"
"""


def cohort(path: Path) -> Path:
    """Three regions of 200 patients whose first two numbers decide how long they live."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(600, 3))
    time = draw.exponential(2 * np.exp(-1.5 * x[:, 0] + x[:, 1]))
    seen = draw.uniform(1, 8, 600)
    y = np.stack([np.minimum(time, seen), time <= seen], 1)
    np.savez(path, values=x, y=y, region=np.array(["north", "east", "south"])[np.arange(600) % 3])
    return path


def test_a_survival_is_judged_by_its_mean_c_index(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(PLAN.format(schema=SCHEMA))
    result = simulate(load_plan(str(file), []), data=cohort(tmp_path / "rows.npz"))
    assert result.metrics["c_index"] > 0.7
    assert all("c_index" in line["metrics"] for line in result.history)
    text = sentence(result.summary)
    reached = (
        f"20 of 20 rounds of arrays reached C-index {result.metrics['c_index']:.4f} at epsilon"
    )
    assert reached in text
    assert utility(list(result.history))["lead"] == "c_index"
    useless = {**result.summary, "metrics": {"c_index": 0.5, "loss": 1.0}}
    assert "no better than chance" in sentence(useless)


def test_the_index_by_hand() -> None:
    risk, time = np.array([3.0, 2.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0, 2.0], np.float32)
    # known pairs: 0 before 1, 2, 3; 1 before 2, and before 3, which lived on: equal risks, one half
    assert concordance(risk, time, np.array([True, True, False, False])) == pytest.approx(4.5 / 5)


REGIONS = """
reader = "arrays"
kind = "survival"
label = "y"
site = "region"
times = [0, 1, 2, 4, 8]
test = 0.3
[x.values]
shape = [39]
range = [0, 1]
"""
OF_REGIONS = """
task = "arrays"
split = "natural"
rounds = 40
rate = 1.0
rows = "actual"
lr = 4.0
clip = 1.0
weights = "rows"
epsilon = 8.0
delta = 1e-4
schema = '''{schema}'''
"""


@pytest.mark.slow
def test_patients_of_six_regions_are_ranked_under_privacy(tmp_path: Path) -> None:
    file, data = tmp_path / "plan.toml", write(tmp_path / "cohort", seed=5)
    file.write_text(OF_REGIONS.format(schema=REGIONS))
    with np.load(data) as patients:
        assert patients["values"].shape == (1088, 39) and len(set(patients["region"])) == 6
        assert abs(patients["y"][:, 1].mean() - 1 / 7) < 0.01
    result = simulate(load_plan(str(file), []), data=data)
    assert result.plan.sites == 6 and result.epsilon <= 8.0
    assert result.metrics["c_index"] > 0.65  # 0.79 on average, and 0.5 by chance
    model = result.model
    assert {name for name, _ in model.named_parameters()} == {
        "risk.1.weight",
        "risk.1.bias",
        "baseline.bias",
    }
