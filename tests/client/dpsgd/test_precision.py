"""In bfloat16 a record's part of the sum is bounded as it is in float32."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from client.dpsgd.clipping import BookKeeping
from client.dpsgd.examination.made_up_rows import Domain
from client.dpsgd.examination.separation import examine
from privacy.contract.plan import PlanError
from privacy.contract.plan_file import parse

PLAN = {
    "task": "digits", "rounds": 1, "rate": 1.0, "rows": 4, "lr": 0.1, "sites": 2,
    "clip": 1.0, "sigma": 1.0, "delta": 1e-5, "precision": "bfloat16",
}  # fmt: skip


def row_loss(out: Tensor, y: Tensor) -> Tensor:
    assert out.dtype == torch.float32
    return functional.mse_loss(out.flatten(1), y.expand(-1, out[:1].numel()), reduction="none").sum(
        1
    )


def sums(
    model: nn.Module, x: Tensor, y: Tensor, clip: float, precision: str = "bfloat16"
) -> list[Tensor]:
    book = BookKeeping(model, clip=clip, precision=precision)
    model.zero_grad()
    examine(book, Domain.of(x, y), row_loss)
    book.accumulate(x, y, row_loss)
    book.to_standard_module()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def norm(values: list[Tensor]) -> float:
    return float(torch.cat([v.flatten() for v in values]).double().norm())


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x.abs().nan_to_num(0).clamp(max=6).long()).mean(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), (4,)),
    "sequence": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)), (3, 4)),
    "signal": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Conv1d(4, 2, 2)), (2, 7)),
    "image": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU()),
            *(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(36, 2)),
        ),
        (2, 5, 5),
    ),
    "text": (Text, (5,)),
}
scales = st.sampled_from([1e-3, 1.0, 37.0, 1e3, 1e6, 1e15, 1e20, 3e38, float("inf")])


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
@given(scales, st.sampled_from([0.01, 1.0, 100.0]), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_no_record_gives_more_than_the_clip(
    name: str, scale: float, clip: float, seed: int
) -> None:
    torch.manual_seed(seed)
    build, shape = MODELS[name]
    assert norm(sums(build(), torch.randn(1, *shape) * scale, torch.randn(1, 1), clip)) <= clip * (
        1 + 1e-6
    )


@pytest.mark.parametrize("name", [name for name in MODELS if name != "text"])
def test_a_broken_record_counts_exactly_zero(name: str) -> None:
    build, shape = MODELS[name]
    model, x, y = build(), torch.randn(6, *shape), torch.randn(6, 1)
    x[2].view(-1)[0] = float("nan")
    assert norm(sums(model, x[2:3], y[2:3], 1.0)) == 0
    others = [0, 1, 3, 4, 5]
    for ours, without in zip(
        sums(model, x, y, 1.0), sums(model, x[others], y[others], 1.0), strict=True
    ):
        assert torch.allclose(ours, without, rtol=1e-2, atol=1e-2)


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_the_sums_are_nearly_those_of_float32(name: str) -> None:
    torch.manual_seed(1)
    build, shape = MODELS[name]
    model, x, y = build(), torch.randn(8, *shape), torch.randn(8, 1)
    right = sums(model, x, y, 1.0, "float32")
    ours = sums(model, x, y, 1.0)
    assert all(s.dtype == torch.float32 for s in ours)
    assert norm([a - b for a, b in zip(ours, right, strict=True)]) < 0.05 * norm(right)


@pytest.mark.parametrize(
    "more", [{"unit": "client"}, {"simulation": {"engine": "vector"}}, {"precision": "float16"}]
)
def test_a_plan_that_cannot_be_trained_in_bfloat16_is_refused(more: dict[str, object]) -> None:
    assert parse(PLAN).precision == "bfloat16"
    with pytest.raises(PlanError, match="precision must be"):
        parse(PLAN | more)
