"""Layers whose gradient by example is a product g'a of two matrices, of sequences or of images.

Where the products [B, d, p] are large they are not held: their norms are bounded by the ghost norm
(Li et al. 2022; Bu et al. 2022) plus all that rounding can have taken from it, so that no record
counts as smaller than it is (`docs/randomness.md`, section 1), and each is made once, when it is
added.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.dpsgd.clipped_sum import ALL, Part, SumOf, gradient_of, on_host, row_squares

CACHED: Final = 1 << 17
"""Numbers that fit a core's cache."""
_ROUNDOFF: Final = 2.0**-24
_RELATIVE: Final = 2.0**-6
"""The most by which a certified square may exceed a usual one, where its T terms are unlike."""
_LEAST_SHARE: Final = 2.0**-16
"""Of (sum_t |g_t| |a_t|)^2 at least this part is in the square, whatever cancels."""
_FEW_PLACES: Final = 32
"""Up to so many places an example's product costs less in double precision than to be held."""
_INNER: Final = 4096
"""Terms of one product in double precision."""
_HELD: Final = 1 << 24
"""Numbers that a GPU makes at a time: fewer do not fill it."""


def held_on(like: Tensor) -> int:
    """How many numbers are best made at a time, where a tensor lies."""
    return CACHED if like.device.type == "cpu" else _HELD


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Inputs a [B, ..., p] and output gradients g [B, T, d] of a layer with the gradient g'a.

    `a` may be a view of overlapping patches, whose dimensions make T * p numbers.
    """

    a: Tensor
    g: Tensor
    width: int
    """p"""

    def __getitem__(self, rows: slice) -> tuple[Tensor, Tensor]:
        """a [m, T, p] and g [m, T, d] of these examples, float32."""
        g = self.g[rows]
        return self.a[rows].reshape(*g.shape[:2], self.width).float(), g.float()


def certifiable(places: int, width: int, depth: int) -> bool:
    """Whether a certified norm of such products is close to theirs, and takes less work."""
    close = places * _relative(places, width, depth) <= _RELATIVE
    return close and 2 * places**2 <= width * depth


def _relative(places: int, width: int, depth: int) -> float:
    """What rounding takes from a ghost norm's square, relative to (sum_t |g_t| |a_t|)^2.

    Sums of `width` and of `depth` products, then of `places` in what is added, in float32.
    """
    return (1 + 2.0**-6) * (width + depth + 2 * places + 8) * _ROUNDOFF


def certified_squares(a: Tensor, g: Tensor) -> Tensor:
    """Upper bounds [B] of |g'a|^2 by example, float64, of a [B, T, p] and g [B, T, d] in float32.

    They hold for the exact product and for one that is computed in float32. Infinite where numbers
    overflow.
    """
    places, width, depth = *a.shape[1:], g.shape[2]
    ghost = ((a @ a.transpose(1, 2)) * (g @ g.transpose(1, 2))).sum((1, 2), dtype=torch.float64)
    ghost = torch.where(torch.isfinite(ghost), ghost.clamp(min=0), math.inf)
    one, other = _lengths(a), _lengths(g)
    relative = _relative(places, width, depth) + _LEAST_SHARE
    ghost += relative * (one * other).sum(1).square_()
    ghost += 2.0**-110 * (one.sum(1).square_() + other.sum(1).square_()) + 2.0**-100  # underflow
    return ghost


def _lengths(x: Tensor) -> Tensor:
    """Upper bounds of the norms [B, T] of x [B, T, n], float64."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=2).double()
    return lengths.mul_(1 + 2.0**-9).add_(2.0**-55)


class Certified(Part):
    """A layer's products by example, with certified norms, made once when they are added.

    `restored` brings a sum [d, p] into the weight's shape.
    """

    def __init__(self, module: Any, pairs: Pairs, restored: Callable[[Tensor], Tensor]) -> None:
        self._weight, self._bias = module.weight, module.bias
        self._pairs, self._restored = pairs, restored
        self._rows, places, self._depth = pairs.g.shape
        self.square = torch.zeros(self._rows, dtype=torch.float64, device=pairs.g.device)
        if self._weight.requires_grad:
            step = max(1, 2 * held_on(pairs.g) // (places * max(places, pairs.width)))
            for at in range(0, self._rows, step):
                some = slice(at, at + step)
                self.square[some] = certified_squares(*pairs[some])
        self._biases: Tensor | None = None
        if self._bias is not None and self._bias.requires_grad:
            self._biases = pairs.g.sum(1, dtype=torch.float32)
            self.square += row_squares(self._biases)

    def add(
        self,
        factors: Tensor,
        broken: Tensor | None,
        sum_of: SumOf = gradient_of,
        rows: slice = ALL,
    ) -> None:
        if self._weight.requires_grad:
            total = sum_of(self._weight)
            total.add_(self._restored(self._sum(factors, broken, rows, total.dtype)))
        if self._biases is not None:
            total, biases = sum_of(self._bias), self._biases[rows]
            if broken is not None:
                biases = biases.masked_fill(broken[rows, None], 0)
            total.addmv_(biases.t().to(total.dtype), factors[rows].to(total.dtype))

    def _sum(
        self, factors: Tensor, broken: Tensor | None, rows: slice, dtype: torch.dtype
    ) -> Tensor:
        """sum_i factors_i * product_i [d, p] over `rows`."""
        g, width = self._pairs.g, self._pairs.width
        total = g.new_zeros(self._depth, width, dtype=dtype)
        few = g.shape[1] <= _FEW_PLACES
        step = max(1, _INNER // g.shape[1] if few else held_on(g) // total.numel())
        products = None if few else g.new_empty(step, *total.shape, dtype=torch.float32)
        start, stop, _ = rows.indices(self._rows)
        for at in range(start, stop, step):
            some = slice(at, min(at + step, stop))
            left, right = self._pairs[some]
            scale = factors[some]
            if broken is not None:
                zero = broken[some, None, None]
                left, right = left.masked_fill(zero, 0), right.masked_fill(zero, 0)
            if products is None:
                scaled = right.double() * scale[:, None, None]
                total += scaled.flatten(0, 1).t() @ left.double().flatten(0, 1)
                continue
            made = products[: len(scale)]
            torch.bmm(right.transpose(1, 2), left, out=made)
            if len(scale) == 1 and on_host(scale):
                total.add_(made[0], alpha=float(scale))
            else:
                total += (scale.to(dtype) @ made.flatten(1).to(dtype)).view_as(total)
        return total


def patches(a: Tensor, g: Tensor, conv: nn.Conv2d | nn.Conv1d) -> Pairs:
    """What each output pixel of a convolution without groups sees: [B, h, w, *kernel, C].

    Channels are innermost, so that a patch is a few long runs. Of Conv1d images have height 1.
    """
    a, g, kernel, stride, dilation = planes(a, g, conv)
    # Runs copy several times faster than unfold does.
    a = a.permute(0, 2, 3, 1).contiguous()
    example, row, pixel, channel = a.stride()
    seen = a.as_strided(
        (a.shape[0], *g.shape[2:], *kernel, a.shape[3]),
        (
            *(example, row * stride[0], pixel * stride[1]),
            *(row * dilation[0], pixel * dilation[1], channel),
        ),
    )
    return Pairs(seen, g.permute(0, 2, 3, 1).flatten(1, 2), math.prod(kernel) * a.shape[3])


def planes(a: Tensor, g: Tensor, conv: Any) -> tuple[Tensor, Tensor, Any, Any, Any]:
    """Padded inputs and output gradients with two dimensions; kernel, stride and dilation."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    a = functional.pad(a, conv._reversed_padding_repeated_twice, mode=mode)
    sizes = conv.kernel_size, conv.stride, conv.dilation
    if a.dim() == 3:
        a, g = a[:, :, None], g[:, :, None]
        sizes = tuple((1, *size) for size in sizes)  # type: ignore[assignment]
    return a, g, *sizes


def convolved(total: Tensor, conv: nn.Conv2d | nn.Conv1d) -> Tensor:
    """[..., d, p] of `patches` in the shape of the weight [..., d, C, *kernel]."""
    leading = total.shape[:-1]
    last = total.view(*leading, *conv.kernel_size, -1)
    return last.movedim(-1, len(leading))


def weight_samples(a: Tensor, g: Tensor, conv: Any) -> Tensor:
    """A convolution's weight gradients by example [B, d, C / groups, *kernel].

    Products of bfloat16 are made float32, so that norm and sum are taken of the same numbers.
    """
    wide = torch.float32 if g.dtype == torch.bfloat16 else g.dtype
    if conv.groups > 1:
        a, g, kernel, stride, dilation = planes(a, g, conv)
        rows, pixels = g.shape[0], g.shape[2] * g.shape[3]
        columns = functional.unfold(a, kernel, dilation=dilation, stride=stride)
        columns = columns.view(rows, conv.groups, -1, pixels).transpose(2, 3)
        products = (g.reshape(rows, conv.groups, -1, pixels) @ columns).to(wide)
        return products.view(rows, g.shape[1], -1, *conv.kernel_size)
    pairs = patches(a, g, conv)
    rows, places, depth = pairs.g.shape
    # A few examples at a time, so that their patches stay in the cache.
    chunk = max(1, held_on(a) // (places * pairs.width)) * torch.get_num_threads()
    left = pairs.g.transpose(1, 2)
    products = a.new_empty(rows, depth, pairs.width, dtype=wide)
    for at in range(0, rows, chunk):
        part = slice(at, at + chunk)
        some = pairs.a[part].reshape(-1, places, pairs.width)
        if wide == g.dtype:
            torch.bmm(left[part], some, out=products[part])
        else:
            products[part] = torch.bmm(left[part], some)
    return convolved(products, conv)
