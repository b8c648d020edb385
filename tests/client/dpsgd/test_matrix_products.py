"""Certified norms: never below what is added, close to it, and the same sums as products held."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from client.dpsgd import per_sample
from client.dpsgd.clipped_sum import Sampled
from client.dpsgd.clipping import BookKeeping, clip_factors
from client.dpsgd.matrix_products import Certified, certifiable, certified_squares
from client.dpsgd.people import Group
from client.dpsgd.per_sample import Layer, layer_of, parts

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "few places": (lambda: nn.Linear(24, 40), (3, 24)),
    "many places": (lambda: nn.Linear(24, 40), (50, 24)),
    "two dimensions of places": (lambda: nn.Linear(24, 40, bias=False), (3, 4, 24)),
    "image": (lambda: nn.Conv2d(3, 20, (3, 2), stride=(2, 1), padding=1), (3, 9, 6)),
    "wide image": (lambda: nn.Conv2d(2, 30, 3, dilation=2, padding="same"), (2, 9, 8)),
    "circular": (lambda: nn.Conv2d(2, 9, 2, padding=1, padding_mode="circular"), (2, 5, 5)),
    "series": (lambda: nn.Conv1d(4, 16, 5, padding=2), (4, 40)),
}


def uses(name: str, rows: int = 7, scale: float = 1.0) -> tuple[Layer, list[tuple[Tensor, Tensor]]]:
    build, shape = LAYERS[name]
    layer = layer_of(build())
    a = torch.randn(rows, *shape)
    with torch.no_grad():
        g = scale * torch.randn_like(layer.forward(a))
    return layer, [(a, g)]


def added(part: Certified | Sampled, factors: Tensor, layer: Layer, **options: object) -> Tensor:
    for p in layer.trained:
        p.grad = None
    part.add(factors, None, **options)  # type: ignore[arg-type]
    return torch.cat([p.grad.flatten() for p in layer.trained if p.grad is not None])


def certified(layer: Layer, pairs: list[tuple[Tensor, Tensor]]) -> Certified:
    return Certified(layer.module, layer.pairs(pairs), layer.restored)


@pytest.mark.parametrize("name", LAYERS)
def test_the_sum_is_that_of_the_products_that_are_held(name: str) -> None:
    layer, pairs = uses(name)
    held, bounded, factors = Sampled([(layer, *pairs[0])]), certified(layer, pairs), torch.rand(7)
    expected = added(held, factors, layer)
    assert torch.allclose(added(bounded, factors, layer), expected, rtol=1e-5, atol=1e-4)
    sizes = layer.sizes(pairs)
    assert sizes is not None
    places = sizes[0]
    assert (bounded.square >= held.square * (1 - 2.0**-14)).all()
    assert (bounded.square <= held.square * (1 + 2.0**-10 * places)).all()


@pytest.mark.parametrize("name", ["few places", "many places", "image"])
def test_blocks_and_double_precision_add_up_to_the_same(name: str) -> None:
    layer, pairs = uses(name)
    part, factors = certified(layer, pairs), torch.rand(7)
    whole = added(part, factors, layer)
    wide = {p: torch.zeros_like(p, dtype=torch.float64) for p in layer.trained}
    for rows in (slice(0, 3), slice(3, 6), slice(6, 9)):
        part.add(factors, None, wide.__getitem__, rows)
    blocks = torch.cat([total.flatten() for total in wide.values()])
    assert torch.allclose(blocks, whole.double(), rtol=1e-5, atol=1e-5)


places = st.integers(1, 40)
scales = st.sampled_from([1e-18, 1e-6, 1.0, 1e6, 1e15])


@given(places, st.integers(1, 30), st.integers(1, 30), scales, scales, st.floats(0, 1e-3))
@settings(max_examples=60, deadline=None)
def test_a_certified_norm_is_never_below_the_norm(
    count: int, width: int, depth: int, one: float, other: float, apart: float
) -> None:
    a, g = one * torch.randn(3, count, width), other * torch.randn(3, count, depth)
    a[1] = a[1, :1] * (1 + apart * torch.randn(count, 1))  # all but parallel inputs,
    g[1] -= g[1].mean(0)  # whose output gradients cancel
    a[2], g[2] = a[2, :1], g[2, :1] * (-1.0) ** torch.arange(count)[:, None] * (1 + apart)
    exact = (g.double().transpose(1, 2) @ a.double()).square().sum((1, 2))
    computed = (g.transpose(1, 2) @ a).double().square().sum((1, 2))
    bound = certified_squares(a, g)
    assert (bound >= exact * (1 - 1e-12)).all()
    assert (bound >= computed * (1 - 1e-12)).all()


def test_what_overflows_is_infinite_and_what_is_not_a_number_stays_none() -> None:
    a, g = torch.ones(4, 2, 3), torch.ones(4, 2, 3)
    a[0], g[0, 1] = 3e38, -1.0
    a[1, 0, 0] = float("nan")
    g[2, 1, 1] = float("-inf")
    bound = certified_squares(a, g)
    assert [bool(torch.isfinite(x)) for x in bound] == [False, False, False, True]


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize("count", [2, 32, 34, 64])
def test_a_record_whose_terms_cancel_moves_the_sum_by_at_most_the_clip(
    count: int, apart: float
) -> None:
    # Of equal inputs with near-opposite gradients a plain ghost norm is mostly rounding.
    layer = layer_of(nn.Linear(64, 48, bias=False))
    a = torch.randn(6, 1, 64).expand(6, count, 64) * 1e4
    signs = (-1.0) ** torch.arange(count)[:, None] * (1 + apart * torch.rand(6, count, 1))
    g = torch.randn(6, 1, 48) * 1e4 * signs
    part = certified(layer, [(a.contiguous(), g)])
    factors, _ = clip_factors(part.square, 1.0)
    others = torch.cat([factors[:5], torch.zeros(1)])
    moved = added(part, factors, layer) - added(part, others, layer)
    assert moved.norm() <= 1 + 1e-5
    exact = (g.double().transpose(1, 2) @ a.double()) * factors.double()[:, None, None]
    assert (exact.flatten(1).norm(dim=1) <= 1 + 1e-7).all()


def test_a_broken_record_adds_exactly_nothing() -> None:
    for name in ("few places", "many places", "image"):
        layer, ((a, g),) = uses(name)
        without = certified(layer, [(a[:6], g[:6])])
        a[6].view(-1)[1] = float("inf")
        part = certified(layer, [(a, g)])
        factors, broken = clip_factors(part.square, 0.5)
        assert broken is not None and broken.tolist() == [False] * 6 + [True]
        part.add(factors, broken)
        sums = torch.cat([p.grad.flatten() for p in layer.trained if p.grad is not None])
        expected = added(without, clip_factors(without.square, 0.5)[0], layer)
        assert torch.allclose(sums, expected, rtol=1e-5, atol=1e-6)


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.middle = nn.Conv2d(2, 8, 3, padding=1), nn.Linear(4, 48)
        self.last = nn.Linear(8 * 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.convolution(x).relu().flatten(2)).tanh().flatten(1))


def loss(out: Tensor, y: Tensor) -> Tensor:
    return functional.mse_loss(out, y, reduction="none").sum(1)


@pytest.mark.parametrize("clip", [0.01, 1e6])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_learns_the_same_with_certified_norms(
    clip: float, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = Wide(), torch.randn(9, 2, 2, 2), torch.randn(9, 1)
    sums = []
    for large in (1 << 30, 1):
        monkeypatch.setattr(per_sample, "_LARGE", large)
        book = BookKeeping(model, clip=clip, precision=precision)
        model.zero_grad()
        book.accumulate(x, y, loss)
        sums.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert [layer.certified for layer in book.layers] == [large == 1, large == 1, False]
        book.to_standard_module()
    close = 3e-3 if precision == "float32" else 2e-2
    assert (sums[0] - sums[1]).norm() <= close * sums[0].norm()
    assert sums[1].norm() <= 9 * clip * (1 + 1e-5)


def test_the_choice_is_made_once_by_shapes_and_never_for_people(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(per_sample, "_LARGE", 1)
    layer, pairs = uses("few places")
    assert isinstance(parts({layer: pairs}, certify=False)[0], Sampled)
    assert layer.certified is None
    assert isinstance(parts({layer: pairs})[0], Certified)
    long = [(torch.randn(2, 900, 24), torch.randn(2, 900, 40))]
    assert isinstance(parts({layer: long})[0], Certified)  # once chosen, it stays
    other = layer_of(nn.Linear(24, 40))
    assert isinstance(parts({other: long})[0], Sampled)
    assert isinstance(parts({other: pairs})[0], Sampled)
    group = Group(torch.arange(9).view(3, 3), torch.ones(3, 3, dtype=torch.bool), torch.ones(9) / 3)
    book = BookKeeping(Wide(), clip=1.0)
    book.accumulate(torch.randn(9, 2, 2, 2), torch.randn(9, 1), loss, group)
    assert [one.certified for one in book.layers] == [None, None, None]


def test_products_of_many_layers_are_not_all_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_sample, "_TOGETHER", 24 * 40 + 1)
    layers = [layer_of(nn.Linear(24, 40)) for _ in range(3)]
    a, g = torch.randn(2, 3, 24), torch.randn(2, 3, 40)
    kinds = [type(part) for part in parts({layer: [(a, g)] for layer in layers})]
    assert sorted(kinds, key=str) == [Sampled, Certified, Certified]


def test_a_certificate_is_only_taken_where_it_is_close_and_cheap() -> None:
    assert certifiable(16, 4608, 512)
    assert certifiable(64, 2304, 256)
    assert not certifiable(1024, 27, 64)  # its norms take more work than its products
    assert not certifiable(400, 4096, 4096)  # rounding could add more than a hundredth


def test_a_group_norm_of_channels_last_is_as_exact_as_any(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = nn.GroupNorm(4, 16)
    layer = layer_of(norm)
    x = (3 + 0.05 * torch.randn(3, 16, 8, 8)).contiguous(memory_format=torch.channels_last)
    g = torch.randn(3, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    exact = functional.group_norm(x.double(), 4, eps=norm.eps)
    plain = functional.group_norm(x, 4, eps=norm.eps)
    assert (plain.double() - exact).abs().max() > 1e-4  # why it is centred first
    assert (layer.forward(x).double() - exact).abs().max() < 1e-5
    weight = dict(layer.samples(x, g))[norm.weight].double()
    assert torch.allclose(weight, (g.double() * exact).sum((2, 3)), rtol=1e-4, atol=1e-4)
    inputs = [t.detach().requires_grad_() for t in (x, x.double())]
    layer.forward(inputs[0]).backward(g)
    functional.group_norm(inputs[1], 4, eps=norm.eps).backward(g.double())
    assert inputs[0].grad is not None and inputs[1].grad is not None
    error = (inputs[0].grad.double() - inputs[1].grad).norm() / inputs[1].grad.norm()
    assert error < 1e-5
