"""Rows that are the same in all company or not, and what mixes in some batches alone."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client.dpsgd.examination import apart, separation
from client.dpsgd.per_sample import ModelError
from tests.support.small_models import WIDTH, Forward, Made, data, head, trained


def before(run: Forward, **parts: Any) -> nn.Module:
    return nn.Sequential(Made(run, **parts), head())


class Back(torch.autograd.Function):
    """What it was given; its gradient goes through a function of the batch's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.f = f
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return ctx.f(g), None


def on_the_way_back(f: Callable[[Tensor], Tensor]) -> nn.Module:
    return before(lambda m, x: Back.apply(m.a(x), f), a=nn.Linear(WIDTH, WIDTH))


def where(batch: Callable[[Tensor], Any]) -> nn.Module:
    """Mixes in some batches alone."""
    return before(lambda m, x: x - x.mean(0) if batch(x) else x)


MIXING: dict[str, Callable[[], nn.Module]] = {
    "batches of 64 rows alone": lambda: where(lambda x: len(x) == 64),
    "batches of 5 to 8 rows alone": lambda: where(lambda x: 5 <= len(x) <= 8),
    "small batches alone": lambda: where(lambda x: len(x) < 8),
    "large batches of one scale": lambda: where(lambda x: len(x) > 30 and x.abs().max() < 10),
    "large batches with outliers": lambda: where(lambda x: len(x) > 30 and x.abs().max() > 100),
    "batches of small values": lambda: where(lambda x: x.abs().max() < 0.1),
    "batches of large values": lambda: where(lambda x: x.abs().mean() > 100),
    "batches of one scale": lambda: where(lambda x: 20 < x.std() < 50),
    "a monster in the batch": lambda: before(lambda m, x: x / 2 if x.abs().max() > 500 else x),
    "all into the last row": lambda: before(lambda m, x: torch.cat([x[:-1], x[-1:] + x.mean(0)])),
    "equal rows counted": lambda: before(
        lambda m, x: x * (x[:, None] == x[None]).all(2).sum(1, keepdim=True)
    ),
    "first weights alone": lambda: nn.Sequential(
        Made(lambda m, x: x if m.g else x - x.mean(0), g=nn.Parameter(torch.zeros(()))), head()
    ),
    "a gate that starts at zero, in large batches": lambda: nn.Sequential(
        Made(
            lambda m, x: x + m.g * x.mean(0) if len(x) > 30 else x + 0 * m.g,
            g=nn.Parameter(torch.zeros(())),
        ),
        head(),
    ),
    "gradients less their mean": lambda: on_the_way_back(lambda g: g - g.mean(0)),
    "gradients clipped together": lambda: on_the_way_back(
        lambda g: g * min(1.0, 1 / (float(g.norm()) + 1e-9))
    ),
    "gradients of large batches": lambda: on_the_way_back(
        lambda g: g / (g.norm() + 1e-9) if len(g) > 40 else g
    ),
    "gradients of small batches": lambda: on_the_way_back(
        lambda g: g - g.mean(0) if len(g) < 7 else g
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_model_that_mixes_in_some_batches_alone_is_refused(name: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=r"changes for an example|changes with the number"):
        trained(MIXING[name](), data())


def apart_of(model: nn.Module) -> tuple[int, str]:
    """How many rows went forward and back, and what was said; "" where nothing mixes."""
    rows: list[int] = []
    separation.forget()
    with pytest.MonkeyPatch.context() as patched:
        real = apart.Trace.of
        patched.setattr(apart.Trace, "of", lambda *a: (rows.append(len(a[1].y)), real(*a))[1])
        try:
            trained(model, data())
        except ModelError as error:
            return sum(rows), str(error)
    return sum(rows), ""


def test_a_model_whose_rows_are_the_same_in_all_company_is_not_gone_through_one_by_one() -> None:
    rows, said = apart_of(head())
    assert said == ""
    assert rows == 2 * (64 + 4 * 4 + 3) + 4 * 2


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: x * (torch.rand(len(x), 1) < 0.7),
        lambda m, x: x + torch.arange(len(x))[:, None],
    ],
    ids=["drop path", "position in the batch"],
)
def test_rows_that_differ_by_chance_or_place_are_gone_through_one_by_one(run: Forward) -> None:
    rows, said = apart_of(before(run))
    assert said == ""
    assert rows > 600


@pytest.mark.parametrize(
    "name", ["batches of one scale", "large batches of one scale", "small batches alone"]
)
def test_one_by_one_alone_comes_to_the_same_words(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = MIXING[name]()
    _, said = apart_of(copy.deepcopy(model))
    everything = apart._Seen(True, set(apart.SCALES), True)
    monkeypatch.setattr(apart, "_in_company", lambda *a, **k: everything)
    assert apart_of(model)[1] == said != ""
