"""A personal model: all layers fitted to a site's rows, held near the released weights."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from client.dpsgd.weights import trained_of
from client.inference import personalisation
from client.inference.personalisation import fit_whole
from client.tasks.rows import Rows
from tests.support.models import command


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    return model


def rows(count: int = 200, *, noise: bool = False) -> Rows:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(count, 4, generator=draw)
    y = torch.randint(0, 2, (count,), generator=draw) if noise else (x[:, 0] > 0).long()
    return Rows(x, y)


def loss(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs, y, reduction="none")


def mean_loss(model: nn.Module, data: Rows) -> float:
    with torch.inference_mode():
        return float(loss(model(data.x), data.y).mean())


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return sum(float(((a - b).detach() ** 2).sum()) for a, b in pairs)


def fitted(model: nn.Module, data: Rows) -> nn.Module:
    copied = copy.deepcopy(model)
    fit_whole(copied, data, loss)
    return copied


def test_what_was_trained_moves_and_what_is_frozen_stays() -> None:
    released = network()
    personal = fitted(released, rows())
    assert mean_loss(personal, rows()) < mean_loss(released, rows())
    assert torch.equal(personal[0].weight, released[0].weight)  # type: ignore[index]
    assert set(trained_of(personal)) == {"2.weight", "2.bias"}


def test_a_strong_pull_holds_the_model_at_the_released_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = network()
    moved = {}
    for pull in (1e4, 1e-3):
        monkeypatch.setattr(personalisation, "PULLS", (pull,))
        moved[pull] = distance(fitted(released, rows()), released)
    assert moved[1e4] < 0.01 * moved[1e-3]


def test_where_nothing_is_learnt_the_released_weights_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released = network()
    with torch.no_grad():
        for parameter in trained_of(released).values():
            parameter.zero_()  # says one half to everything: right for labels by chance
    monkeypatch.setattr(personalisation, "PULLS", (1e-3,))
    monkeypatch.setattr(personalisation, "EPOCHS", 2)
    data = rows(noise=True)
    personal = fitted(released, data)
    held = data.take(range(50))
    assert mean_loss(personal, held) <= mean_loss(released, held)


def test_exactly_one_model_is_named(tmp_path: Path) -> None:
    for more in ((), ("--model", "a", "--towards", "b")):
        answer = command("adapt", "--data", tmp_path / "d.csv", *more)
        assert answer.code == 2
        assert "exactly one of --model and --towards" in answer.err
        assert json.dumps(answer.err).count("Traceback") == 0
