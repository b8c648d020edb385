"""What a window is like, in few numbers; pictures through named filters; models that use them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from client.dpsgd.training import model_refusal
from client.tasks.described.description import described
from client.tasks.features import scattering, wavelets
from client.tasks.features.public_layers import RandomFeatures
from client.tasks.features.summaries import summary, summary_width
from client.tasks.registry import task, task_of
from client.tasks.rows import TaskError
from privacy.contract.plan_file import load_plan
from simulations.templates import regions, windows

TIME = np.arange(64) / 20


def wave(pace: float, strength: float, level: float = 0.0) -> np.ndarray:
    return (level + strength * np.sin(2 * np.pi * pace * TIME)).astype(np.float32)


def test_a_window_is_told_by_level_strength_and_pace() -> None:
    slow, fast = (np.stack([wave(pace, 0.3, 0.2), -wave(pace, 0.3)]) for pace in (0.5, 6.0))
    one, other = summary(slow), summary(fast)
    each = (summary_width(2) - 1) // 2
    assert one.shape == (summary_width(2),) == (2 * each + 1,)
    assert one[0] == pytest.approx(slow[0].mean()) and one[4] == pytest.approx(slow[0].min())
    assert one[1] == pytest.approx(2 * np.log10(slow[0].std()) / 3 + 1, abs=1e-5)
    assert one[-1] == pytest.approx(-1, abs=1e-3)  # the columns move against each other
    bands = slice(each - 8, each)
    assert int(one[bands].argmax()) < int(other[bands].argmax())
    assert other[3] > one[3]  # crosses its middle more often


def test_no_window_has_numbers_beyond_the_bounds() -> None:
    draw = np.random.default_rng(0)
    for some in (draw.uniform(-1, 1, (3, 64)), np.zeros((3, 64)), np.ones((3, 1)), np.ones((9, 5))):
        numbers = summary(some.astype(np.float32))
        assert numbers.shape == (summary_width(len(some)),)
        assert np.isfinite(numbers).all() and np.abs(numbers).max() <= 1 + 1e-6


def test_the_activity_plan_reads_windows_of_people(tmp_path: Path) -> None:
    windows.write(tmp_path, people=2, windows=4)
    plan = load_plan("activity")
    learning = task_of(plan)
    rows = learning.load(tmp_path, "all")
    assert set(rows.site or ()) == {"person-0", "person-1"} and rows.reading is not None
    assert rows.reading.left_out == 0 and rows.x.shape[1:] == (summary_width(3),)
    assert any(isinstance(m, RandomFeatures) for m in learning.model(0).modules())
    assert model_refusal(learning, 0) == ""
    usual = task("series", plan.schema)
    assert any(isinstance(m, RandomFeatures) for m in usual.model(0).modules())


def test_the_survival_plan_reads_patients_of_regions(tmp_path: Path) -> None:
    regions.write(tmp_path, patients=100)
    rows = task_of(load_plan("survival")).load(tmp_path, "all")
    assert len(rows) == 100 and set(rows.site or ()) == {"north", "east", "south", "west"}


IMAGES = 'reader = "images"\nclasses = ["a", "b"]\nfilters = "{}"\n'


@pytest.mark.parametrize(
    ("filters", "width"), [("edges", scattering.WIDTH), ("wavelets", wavelets.WIDTH)]
)
def test_pictures_pass_filters_by_name(tmp_path: Path, filters: str, width: int) -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 255, (28, 28)).astype(np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png")
    learning = task("images", IMAGES.format(filters))
    rows = learning.load(tmp_path, "all")
    assert learning.costly and rows.x.shape == (1, width)
    see = {"edges": scattering.oriented, "wavelets": wavelets.features}[filters]
    assert torch.allclose(rows.x, see(torch.from_numpy(pixels[None]).float() / 255), atol=1e-4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (IMAGES.format("edges") + "size = [32, 32]", "filters are for images of channels = 1"),
        ('reader = "images"\nclasses = ["a", "b"]\nsummary = true', "unless reader is series"),
        (IMAGES.format("colours"), "filters must be"),
    ],
)
def test_what_has_no_filters_and_no_summary_says_so(text: str, expected: str) -> None:
    with pytest.raises(TaskError, match=expected):
        described(text)
