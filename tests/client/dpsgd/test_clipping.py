"""Book-keeping gives the sums that Opacus' hooks give, on every layer, and survives bad records."""

import logging
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from opacus.layers import DPGRU, DPLSTM, DPMultiheadAttention
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn import functional

from client.dpsgd import clipped_sum, per_sample
from client.dpsgd.clipping import BookKeeping
from client.dpsgd.examination.made_up_rows import Domain
from client.dpsgd.examination.separation import examine


def row_loss(out: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(out.flatten(1), y.expand(-1, out[:1].numel()), reduction="none").sum(
        1
    )


def by_bookkeeping(
    model: nn.Module, x: Tensor, y: Tensor, clip: float, examined: bool = True
) -> dict[str, Tensor]:
    wrapped = BookKeeping(model, clip=clip)
    model.zero_grad()
    if examined:
        examine(wrapped, Domain.of(x, y), row_loss)
    wrapped.accumulate(x, y, row_loss)
    wrapped.to_standard_module()
    sums = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return sums


def by_opacus(model: nn.Module, x: Tensor, y: Tensor, clip: float) -> dict[str, Tensor]:
    wrapped = GradSampleModule(model, loss_reduction="sum")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = DPOptimizer(
        torch.optim.SGD(trained, lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=clip,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        row_loss(wrapped(x), y).sum().backward()
    optimizer.clip_and_accumulate()
    sums = {n: p.summed_grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    wrapped.to_standard_module()
    for p in model.parameters():
        p.grad = None
    return sums


def agree(model: nn.Module, x: Tensor, clip: float | None = None, *, examined: bool = True) -> None:
    y = torch.randn(len(x), 1)
    clip = clip or 1.0
    ours = by_bookkeeping(model, x, y, clip, examined)
    theirs = by_opacus(model, x, y, clip)
    assert ours.keys() == theirs.keys()
    scale = torch.stack([t.square().sum() for t in theirs.values()]).sum().sqrt().item()
    for name, expected in theirs.items():
        # Examples may cancel: the sum's rounding is that of what was added up.
        assert torch.allclose(ours[name], expected, rtol=1e-5, atol=1e-5 * max(scale, 2e-2)), name


rows = st.integers(1, 6)
seeds = st.integers(0, 2**31)
clips = st.sampled_from([0.01, 1.0, 1e6])


@pytest.mark.long
@given(rows, st.integers(1, 7), st.integers(1, 5), st.booleans(), st.sampled_from([0, 1, 4]), clips)
@settings(max_examples=20, deadline=None)
def test_linear(b: int, i: int, o: int, bias: bool, time: int, clip: float) -> None:
    shape = (b, time, i) if time else (b, i)
    agree(
        nn.Sequential(nn.Linear(i, o, bias=bias), nn.Tanh()),
        torch.randn(shape),
        clip,
        examined=False,
    )


@given(st.data(), rows, clips)
@settings(max_examples=60, deadline=None)
def test_conv2d_of_odd_shapes(data: st.DataObject, b: int, clip: float) -> None:
    pick = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    groups = pick(1, 2)
    conv = nn.Conv2d(
        2 * groups,
        3 * groups,
        (pick(1, 2, 3), pick(1, 3)),
        stride=(pick(1, 2), pick(1, 3)),
        padding=(pick(0, 1), pick(0, 2)),
        dilation=(pick(1, 2), pick(1, 2)),
        groups=groups,
        bias=pick(True, False),
    )
    agree(
        nn.Sequential(conv, nn.Tanh(), nn.Conv2d(3 * groups, 2, 1)),
        torch.randn(b, 2 * groups, 7, 8),
        clip,
        examined=False,
    )


@given(st.data(), rows, clips)
@settings(max_examples=30, deadline=None)
def test_conv1d_of_odd_shapes(data: st.DataObject, b: int, clip: float) -> None:
    pick = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    groups = pick(1, 2)
    conv = nn.Conv1d(
        2 * groups,
        2 * groups,
        pick(1, 2, 3),
        stride=pick(1, 2),
        padding=pick(0, 1, 2),
        dilation=pick(1, 2),
        groups=groups,
        bias=pick(True, False),
    )
    agree(nn.Sequential(conv, nn.Tanh()), torch.randn(b, 2 * groups, 9), clip, examined=False)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_convolutions_that_pad_otherwise_or_to_the_same_size_match_autograd(mode: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode), nn.Conv2d(3, 2, (3, 5), padding="same")
    )
    matches_autograd(model, torch.randn(4, 2, 6, 6))


def matches_autograd(model: nn.Module, x: Tensor, clip: float = 1.0) -> None:
    y = torch.randn(len(x), 1)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    expected = {n: torch.zeros_like(p) for n, p in trained.items()}
    for i in range(len(x)):
        loss = row_loss(model(x[i : i + 1]), y[i : i + 1]).sum()
        one = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        norm = sum(g.square().sum() for g in one if g is not None) ** 0.5
        for name, g in zip(trained, one, strict=True):
            if g is not None:
                expected[name] += g * min(1.0, clip / (float(norm) + 1e-6))
    for name, ours in by_bookkeeping(model, x, y, clip).items():
        assert torch.allclose(ours, expected[name], rtol=1e-4, atol=1e-5), name


class Text(nn.Module):
    def __init__(self, pad: int | None) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 3, padding_idx=pad), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x).mean(1))


@pytest.mark.long
@given(rows, st.integers(1, 9), st.sampled_from([None, 0, 3]), clips)
@settings(max_examples=10, deadline=None)
def test_embedding_with_repeated_tokens(b: int, time: int, pad: int | None, clip: float) -> None:
    x = torch.randint(0, 4, (b, time))
    if pad is None:
        agree(Text(pad), x, clip, examined=False)
    matches_autograd(Text(pad), x, clip)
    one_a_row = nn.Sequential(nn.Embedding(7, 3, padding_idx=pad), nn.Linear(3, 2))
    matches_autograd(one_a_row, x[:, 0], clip)


def test_a_broken_row_of_repeated_tokens_takes_nothing_along() -> None:
    table = nn.Embedding(9, 2)
    tokens = torch.tensor([[1, 1, 2], [3, 4, 5], [6, 6, 6]])
    g = torch.randn(3, 3, 2)
    g[0, 1] = float("inf")
    part = per_sample.layer_of(table).part([(tokens, g)])
    broken = ~torch.isfinite(part.square)
    assert broken.tolist() == [True, False, False]
    assert part.square[2] == pytest.approx(float(g[2].sum(0).square().sum()), rel=1e-5)
    part.add(torch.tensor([0.0, 1.0, 0.5]), broken)
    assert table.weight.grad is not None
    assert not table.weight.grad[:3].any()
    assert torch.allclose(table.weight.grad[3:6], g[1])
    assert torch.allclose(table.weight.grad[6], g[2].sum(0) / 2, rtol=1e-5)


@given(rows, st.booleans(), clips)
@settings(max_examples=20, deadline=None)
def test_norms(b: int, spatial: bool, clip: float) -> None:
    model = (
        nn.Sequential(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.LayerNorm([4, 3, 3]))
        if spatial
        else nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GroupNorm(3, 6), nn.Linear(6, 1))
    )
    for p in model.parameters():
        nn.init.normal_(p)
    x = torch.randn(b, 2, 4, 4) if spatial else torch.randn(b, 5)
    agree(model, x, clip, examined=False)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mid, self.out = nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 6)
        self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.mid(self.mid(self.table(x)).tanh())
        return self.out(h)


def test_shared_weights_and_a_layer_used_twice() -> None:
    agree(Tied(), torch.randint(0, 6, (5, 3)), 0.5)
    agree(Tied(), torch.randint(0, 6, (5, 3)), 100.0)
    conv = nn.Conv2d(2, 2, 3, padding=1)
    agree(nn.Sequential(conv, nn.Tanh(), conv), torch.randn(3, 2, 5, 5))


class Recurrent(nn.Module):
    def __init__(self, cell: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.table, self.cell = nn.Embedding(9, 4), cell(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(self.table(x))[0][:, -1])


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = DPMultiheadAttention(6, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x + self.mix(x, x, x, need_weights=False)[0]).mean(1))


@pytest.mark.parametrize("cell", [DPLSTM, DPGRU])
def test_recurrent_networks(cell: Callable[..., nn.Module]) -> None:
    agree(Recurrent(cell), torch.randint(0, 9, (4, 6)), 0.3)


def test_attention() -> None:
    agree(Attentive(), torch.randn(4, 4, 6), 0.3)


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(width))
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).tanh() * self.scale


def test_any_other_layer_goes_through_opacus_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    model = nn.Sequential(nn.Linear(4, 4), Scale(4), nn.Linear(4, 1))
    agree(model, torch.randn(5, 4), 0.2)
    assert "1 (Scale): per-example gradients by torch.func" in caplog.text
    agree(
        nn.Sequential(nn.Conv3d(1, 2, 2), nn.InstanceNorm3d(2, affine=True), nn.Tanh()),
        torch.randn(3, 1, 4, 3, 3),
        0.2,
    )


def test_activations_in_place_do_no_harm() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ReLU(True))
    matches_autograd(model, torch.randn(5, 4))
    assert model[1].inplace


def test_frozen_layers_and_half_frozen_ones() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.LayerNorm(3))
    for p in [*model[0].parameters(), model[2].weight, model[3].bias]:
        p.requires_grad_(False)
    agree(model, torch.randn(3, 4), 0.2)
    model[0].bias.requires_grad_(True)
    agree(model, torch.randn(3, 4), 0.2)


def test_an_empty_batch_gives_zeros_and_a_batch_of_one_its_clipped_gradient() -> None:
    model = nn.Linear(3, 1)
    sums = by_bookkeeping(model, torch.zeros(0, 3), torch.zeros(0, 1), 1.0)
    assert all(not s.any() for s in sums.values())
    sums = by_bookkeeping(model, torch.full((1, 3), 50.0), torch.zeros(1, 1), 0.5)
    assert torch.cat([s.flatten() for s in sums.values()]).norm() == pytest.approx(0.5, rel=1e-5)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), (4,)),
    "sequence": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)), (3, 4)),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
        ),
        (1, 5, 5),
    ),
}


@pytest.mark.parametrize("value", [1e3, 1e6, 1e15, 1e20, 3e38, float("inf"), float("nan")])
@pytest.mark.parametrize("name", MODELS)
def test_no_record_moves_the_sum_by_more_than_the_clip(name: str, value: float) -> None:
    build, shape = MODELS[name]
    model, x, y = build(), torch.randn(6, *shape), torch.randn(6, 1)
    without = by_bookkeeping(model, x[:5], y[:5], 1.0)
    x[5] *= value
    sums = by_bookkeeping(model, x, y, 1.0)
    moved = torch.cat([(sums[n] - without[n]).flatten() for n in sums]).norm()
    assert moved <= 1 + 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_a_record_that_is_not_a_number_counts_exactly_zero(name: str) -> None:
    build, shape = MODELS[name]
    model, x, y = build(), torch.randn(6, *shape), torch.randn(6, 1)
    x[2].view(-1)[0] = float("nan")
    others = [0, 1, 3, 4, 5]
    sums, without = (
        by_bookkeeping(model, x, y, 1.0),
        by_bookkeeping(model, x[others], y[others], 1.0),
    )
    for n, s in sums.items():
        assert torch.allclose(s, without[n], rtol=1e-5, atol=1e-6)


def test_terms_that_cancel_do_not_hide_from_the_norm() -> None:
    # A "ghost norm" of these two equal inputs with near-opposite gradients is mostly rounding.
    model = nn.Linear(8, 8, bias=False)
    a = torch.randn(1, 1, 8).expand(1, 2, 8) * 1e4
    g = torch.randn(1, 1, 8) * 1e4
    g = torch.cat([g, -g * (1 + 1e-6)], 1)
    part = per_sample.layer_of(model).part([(a, g)])
    factor = (1 / (part.square.sqrt() + 1e-6)).clamp(max=1)
    part.add(factor, None)
    assert model.weight.grad is not None
    assert model.weight.grad.norm() <= 1 + 1e-5


@given(st.integers(1, 9), clips)
@settings(max_examples=10, deadline=None)
def test_chunks_of_examples_change_nothing(most: int, clip: float) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 1))
    x, y = torch.randn(7, 1, 3, 3), torch.randn(7, 1)
    x[3, 0, 0, 0] = float("inf")
    whole = by_bookkeeping(model, x, y, clip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clipped_sum, "_MOST", 10 * most)
        chunked = by_bookkeeping(model, x, y, clip)
    for name, s in whole.items():
        assert torch.allclose(s, chunked[name], rtol=1e-5, atol=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Scale(4))
    before = [set(vars(m)) for m in model.modules()]
    by_bookkeeping(model, torch.randn(2, 4), torch.zeros(2, 1), 1.0)
    assert [set(vars(m)) for m in model.modules()] == before
    assert all(p.requires_grad and not hasattr(p, "grad_sample") for p in model.parameters())
