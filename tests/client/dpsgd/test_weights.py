"""A request's weights: read once, whatever holds them, and put into a model of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from client.dpsgd.weights import WeightsError, base_of, filled, read, shapes
from client.tasks.digits import task as digits
from client.tasks.task import Task
from privacy.arrays import encode, memory


class Half(nn.Module):
    """Two megabytes that are trained, twice under one name, and a number that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(1024, 1024)
        self.again = self.wide
        self.still = nn.Parameter(torch.full((3,), 5.0), requires_grad=False)


def a_task() -> Task:
    return replace(digits(), model=lambda seed: Half())


def test_the_weights_of_a_buffer_are_views_and_are_checked_once() -> None:
    task = a_task()
    large = {n: np.full(shape, 2, np.float32) for n, shape in shapes(task, 0).items()}
    buffer = encode(large)
    assert isinstance(buffer, np.ndarray)
    plain, known = read(task, 0, memory(buffer).tobytes())
    for _ in range(2):
        weights, digest = read(task, 0, buffer)
        assert digest == known
        assert list(weights) == list(plain) == list(large)
        assert all(np.shares_memory(array, buffer) for array in weights.values())
        assert all(np.array_equal(weights[name], plain[name]) for name in plain)
    other = buffer.copy()
    other[-4:].view(np.float32)[0] = np.nan
    with pytest.raises(WeightsError):
        read(task, 0, other)
    with pytest.raises(WeightsError):
        read(task, 0, other)
    other[-4:].view(np.float32)[0] = 3.0
    assert read(task, 0, other)[1] != known


def test_a_model_is_filled_without_the_template_keeping_weights() -> None:
    task = a_task()
    base = base_of(task, 0)
    weights = {n: np.full(shape, 2, np.float32) for n, shape in shapes(task, 0).items()}
    for array in weights.values():
        array.flags.writeable = False
    one, two = filled(task, 0, weights), filled(task, 0, weights)
    with torch.no_grad():
        one.wide.weight.add_(1)
    assert two.wide.weight.unique().tolist() == [2.0]
    assert two.again is two.wide
    assert two.still.tolist() == [5.0] * 3
    assert base_of(task, 0) == base
