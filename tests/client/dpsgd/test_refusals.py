"""Layers and code that would move a record's gradient out of sight are refused by name."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.audit.probes import Probe, clipped_sum, flat, release
from client.audit.settings import Setting
from client.dpsgd.clipping import BookKeeping
from client.dpsgd.per_sample import ModelError
from client.tasks.losses import seeded
from client.tasks.rows import Rows


def summed(model: nn.Module, x: Tensor) -> None:
    book = BookKeeping(model, clip=1.0)
    try:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        book.accumulate(x, torch.zeros(len(x)), lambda out, y: out.flatten(1).sum(1))
    finally:
        book.to_standard_module()


@pytest.mark.parametrize("words", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_an_embedding_that_looks_at_the_whole_batch_is_refused(words) -> None:
    model = nn.Sequential(nn.Embedding(5, 3, **words), nn.Flatten(), nn.Linear(6, 1))
    with pytest.raises(ModelError, match="max_norm"):
        summed(model, torch.randint(5, (4, 2)))


class Doubling(nn.Module):
    """Its own code writes over what a layer has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h.mul_(2)
        out: Tensor = self.last(h)
        return out


def test_writing_over_a_layers_output_is_refused_or_gives_the_right_sum() -> None:
    rows = Rows(torch.randn(4, 3), torch.linspace(0.1, 2, 4))
    probe = Probe("doubling", seeded(Doubling), rows)
    try:
        released = release(probe, Setting(sigma=1e-5))
    except ModelError as error:
        assert "first" in str(error)
        return
    rest = flat(released) - flat(clipped_sum(probe))
    assert np.abs(rest).max() < 1e-2


class OwnWeight(nn.Module):
    """A parameter of its own beside a Dropout: one example's draw could not be told apart."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.weight, self.drop = nn.Parameter(torch.ones(3)), nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(x * self.weight)
        return out


@pytest.mark.parametrize("p", [1e-6, 0.5, 1.0])
def test_dropout_beside_a_modules_own_parameters_is_refused_unless_it_drops_nothing(p) -> None:
    with pytest.raises(ModelError, match="Dropout"):
        summed(nn.Sequential(OwnWeight(p), nn.Linear(3, 1)), torch.randn(4, 3))
    summed(nn.Sequential(OwnWeight(0.0), nn.Linear(3, 1)), torch.randn(4, 3))


class Unseen(Doubling):
    """Writes over it where autograd does not look."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        with torch.no_grad():
            h.mul_(2)
        out: Tensor = self.last(h)
        return out


def test_writing_over_a_layers_output_unseen_is_refused() -> None:
    with pytest.raises(ModelError, match=r"first.*in-place"):
        summed(Unseen(), torch.randn(4, 3))
