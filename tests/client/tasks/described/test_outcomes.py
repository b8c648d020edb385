"""Each kind of label: the loss of a row by hand, by itself, and metrics that say what they mean."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from client.tasks.described.outcomes import IGNORED, concordance, outcome, survival_loss
from client.tasks.rows import TaskError

TIMES = (0.0, 1.0, 2.0, 4.0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("time", "event", "factors"),
    [
        (0.5, 1, [("dies", 0)]),
        (1.0, 1, [("dies", 0)]),
        (1.5, 1, [("lives", 0), ("dies", 1)]),
        (3.0, 1, [("lives", 0), ("lives", 1), ("dies", 2)]),
        (0.5, 0, []),
        (1.0, 0, [("lives", 0)]),
        (3.9, 0, [("lives", 0), ("lives", 1)]),
        (4.0, 0, [("lives", 0), ("lives", 1), ("lives", 2)]),
        (9.0, 1, [("lives", 0), ("lives", 1), ("lives", 2)]),
    ],
)
@pytest.mark.parametrize("hazard", ["logistic", "cox"])
def test_a_survival_counts_the_bins_that_a_row_came_through(
    time: float, event: int, factors: list[tuple[str, int]], hazard: str
) -> None:
    scores = [0.3, -0.7, 1.1]
    risks = [sigmoid(s) if hazard == "logistic" else 1 - math.exp(-math.exp(s)) for s in scores]
    expected = -sum(math.log(risks[k] if what == "dies" else 1 - risks[k]) for what, k in factors)
    found = survival_loss(
        torch.tensor([scores]), torch.tensor([[time, event]]), times=TIMES, hazard=hazard
    )
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_the_c_index_by_hand() -> None:
    time = np.array([1.0, 2.0, 3.0, 3.0], np.float32)
    event = np.array([True, True, False, True])
    risk = np.array([4.0, 3.0, 1.0, 2.0])
    assert concordance(risk, time, event) == 1.0
    assert concordance(-risk, time, event) == 0.0
    assert concordance(np.zeros(4), time, event) == 0.5
    # pairs: (1,2) (1,3) (1,3') (2,3) (2,3') and (3', 3): an event before a censoring at that time
    swapped = np.array([4.0, 1.5, 1.0, 2.0])
    assert concordance(swapped, time, event) == pytest.approx(5 / 6)
    assert concordance(risk, time, np.zeros(4, bool)) is None


@given(st.integers(0, 10_000))
def test_the_c_index_is_that_of_all_pairs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    count = int(draw.integers(2, 12))
    time = draw.integers(1, 6, count).astype(np.float32)
    event, risk = draw.random(count) < 0.6, draw.integers(0, 4, count).astype(float)
    known = agreeing = 0.0
    for i in range(count):
        for j in range(count):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                known += 1
                agreeing += 1.0 if risk[i] > risk[j] else 0.5 * (risk[i] == risk[j])
    found = concordance(risk, time, event)
    assert found is None if not known else found == pytest.approx(agreeing / known)


CASES = {
    "multi-label": (torch.randn(5, 3), (torch.rand(5, 3) > 0.5).float()),
    "ordinal": (torch.randn(5, 2), torch.randint(3, (5,))),
    "counts": (torch.randn(5, 1), torch.randint(9, (5,)).float()),
    "tokens": (torch.randn(5, 4, 7), torch.randint(7, (5, 4))),
    "survival": (torch.randn(5, 3), torch.tensor([[0.5, 1], [2, 0], [3, 1], [9, 0], [1, 1.0]])),
    "classification": (torch.randn(5, 3), torch.randint(3, (5,))),
    "regression": (torch.randn(5, 1), torch.rand(5)),
}


def made(kind: str) -> tuple[object, Tensor, Tensor]:
    outputs, y = CASES[kind]
    found = outcome(kind, classes=("a", "b", "c"), bounds=(0.0, 2.0), times=TIMES)
    return found, outputs, y


@pytest.mark.parametrize("kind", sorted(CASES))
def test_a_rows_loss_depends_on_that_row_alone(kind: str) -> None:
    found, outputs, y = made(kind)
    whole = found.loss(outputs, y)  # type: ignore[attr-defined]
    assert whole.shape == (5,) and bool(torch.isfinite(whole).all())
    for i in range(5):
        alone = found.loss(outputs[i : i + 1], y[i : i + 1])  # type: ignore[attr-defined]
        assert torch.allclose(alone[0], whole[i], atol=1e-6)
    metrics = found.metrics(outputs, y)  # type: ignore[attr-defined]
    assert metrics["loss"] > 0 and all(isinstance(v, float) for v in metrics.values())
    assert found.metrics(outputs[:0], y[:0]) in ({}, metrics)  # type: ignore[attr-defined]
    assert len(found.decode(outputs)) == 5  # type: ignore[attr-defined]


def test_losses_by_hand() -> None:
    ordinal = outcome("ordinal", classes=("low", "mid", "high"))
    logits = torch.tensor([[0.5, -1.0]])
    for label, terms in ((0, (-0.5, 1.0)), (1, (0.5, 1.0)), (2, (0.5, -1.0))):
        expected = -sum(math.log(sigmoid(t)) for t in terms)
        assert float(ordinal.loss(logits, torch.tensor([label]))) == pytest.approx(expected)
    chances = ordinal.decode(torch.tensor([[0.5, -1.0], [-1.0, 0.5]]))
    assert torch.allclose(chances.sum(1), torch.ones(2)) and bool((chances >= 0).all())
    counts = outcome("counts")
    found = float(counts.loss(torch.tensor([[math.log(2.0)]]), torch.tensor([3.0])))
    assert found == pytest.approx(-math.log(math.exp(-2) * 2**3 / 6), abs=1e-5)
    tokens = outcome("tokens")
    y = torch.tensor([[1, IGNORED, 0]])
    assert float(tokens.loss(torch.zeros(1, 3, 4), y)) == pytest.approx(2 * math.log(4))
    several = outcome("multi-label", classes=("a", "b"))
    exact = several.metrics(torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 0.0]]))
    assert exact["exact"] == exact["accuracy"] == 1.0
    with pytest.raises(TaskError, match="loss of its own"):
        outcome("values")
