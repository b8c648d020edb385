"""Norms and sums are the same by compiled code, by torch and by dense gradients."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from client.dpsgd import clipped_sum
from client.dpsgd import native as gradients
from client.dpsgd.clipped_sum import Lookup, gradient_of
from client.dpsgd.per_sample import Embedding, Sampled, layer_of
from privacy.mechanism import native


@pytest.fixture(autouse=True)
def native_code() -> None:
    if gradients._library() is None:
        pytest.skip("no C compiler")


def by(kind: str, layer: Embedding, tokens: Tensor, g: Tensor) -> Lookup | Sampled:
    if kind == "dense":
        return Sampled([(layer, tokens, g)])
    with pytest.MonkeyPatch.context() as patch:
        if kind == "torch":
            patch.setattr(clipped_sum, "lookups", lambda *_: None)
        return Lookup(layer.module, tokens, g)


def summed(
    part: Lookup | Sampled, layer: Embedding, factors: Tensor, broken: Tensor | None
) -> Tensor:
    layer.module.weight.grad = None
    part.add(factors, broken, gradient_of)
    total = gradient_of(layer.module.weight).clone()
    double = torch.zeros_like(total, dtype=torch.float64)
    part.add(factors, broken, lambda _: double)
    assert torch.allclose(double.float(), total, rtol=1e-5, atol=1e-5)
    blocks = torch.zeros_like(double)
    for start in range(0, len(factors), 3):
        part.add(factors, broken, lambda _: blocks, slice(start, start + 3))
    assert torch.allclose(blocks, double, rtol=1e-5, atol=1e-5)
    return total


@st.composite
def cases(draw: st.DrawFn) -> tuple[Embedding, Tensor, Tensor]:
    whole = st.integers(1, 9)
    vocabulary, width = draw(whole), draw(st.sampled_from([1, 3, 16, 17, 5000]))
    shape = (draw(whole), *draw(st.lists(whole, max_size=2)))
    padding = draw(st.none() | st.integers(0, vocabulary - 1))
    module = nn.Embedding(vocabulary, width, padding_idx=padding)
    seeded = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    tokens = torch.randint(0, vocabulary, shape, generator=seeded)
    g = torch.randn(*shape, width, generator=seeded)
    if len(shape) > 1 and draw(st.booleans()):  # as the mean over an example's tokens gives it
        g = g[:, :1].expand(g.shape)
    if draw(st.booleans()):
        g = g.transpose(0, -1).contiguous().transpose(0, -1)
    layer = layer_of(module)
    assert isinstance(layer, Embedding)
    return layer, tokens, g


@given(cases(), st.booleans())
def test_three_ways_give_the_same_norms_and_sums(
    case: tuple[Embedding, Tensor, Tensor], breaking: bool
) -> None:
    layer, tokens, g = case
    factors = torch.linspace(0.1, 1, len(g))
    broken = None
    if breaking:
        g = g.clone()
        g[0] = torch.nan
        broken = torch.arange(len(g)) == 0
        factors[0] = 0
    with torch.no_grad():
        made = {kind: by(kind, layer, tokens, g) for kind in ("dense", "torch", "compiled")}
        sums = {kind: summed(part, layer, factors, broken) for kind, part in made.items()}
    for kind in ("torch", "compiled"):
        assert torch.allclose(made[kind].square, made["dense"].square, rtol=1e-5, equal_nan=True)
        assert torch.allclose(sums[kind], sums["dense"], rtol=1e-5, atol=1e-5)
        assert torch.isfinite(sums[kind]).all()


def test_terms_that_cancel_add_up_before_they_are_weighed() -> None:
    layer = layer_of(nn.Embedding(4, 2))
    tokens = torch.tensor([[1, 2, 1, 1]])
    g = torch.tensor([1e30, 0.5, -1e30, 0.25])[None, :, None].expand(1, 4, 2)
    assert isinstance(layer, Embedding)
    with torch.no_grad():
        made = by("compiled", layer, tokens, g)
        assert made.square.item() == 2 * (0.5**2 + 0.25**2)
        sums = summed(made, layer, torch.tensor([0.5]), None)
    assert sums.tolist() == [[0, 0], [0.125, 0.125], [0.25, 0.25], [0, 0]]


@pytest.mark.long
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("made[i] += other[i]", "made[i] = other[i]"),
        ("sum[i] += factor", "sum[i] = factor"),
        ("if (factor == 0)", "if (factor < 0)"),
        ("again[l] = tokens[l] == w->padding", "again[l] = 0"),
        ("block += g[i] * g[i]", "block += g[i]"),
        ("(double)factor * g[i]", "(double)factor"),
    ],
)
def test_code_that_disagrees_is_not_used(
    right: str, wrong: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = gradients._SOURCE.read_text()
    assert right in source
    planted = tmp_path / "gradients.c"
    planted.write_text(source.replace(right, wrong))
    monkeypatch.setattr(gradients, "_SOURCE", planted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.compiled(planted) is not None
    assert gradients._library.__wrapped__() is None


def test_without_a_compiler_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACIT_NATIVE", "0")
    assert gradients._library.__wrapped__() is None
