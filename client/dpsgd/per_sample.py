"""Per-example gradients of each kind of layer, from its inputs and its output gradients."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from opacus.grad_sample import GradSampleModule
from opacus.layers.dp_rnn import RNNLinear
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from client.dpsgd.clipped_sum import ALL, Lookup, Outer, Part, SumOf, gradient_of, row_squares
from client.dpsgd.trees import Batch, tensors

Uses = Sequence[tuple[Any, Any]]
"""(input, output gradient) of every call of a layer in one forward, batch first.

Both are tensors, or a `Batch` each where the layer is a `Functional` one or is called with more
than one tensor.
"""

DROPOUTS: Final = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_MOST: Final = 1 << 24
"""Per-example gradients held at a time, in numbers; more are made again in chunks of examples."""
_CACHED: Final = 1 << 17
"""Numbers that fit a core's cache."""


class ModelError(ValueError):
    """A model whose per-example gradients cannot be told apart, or that mixes examples."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a layer is called: in which dimension of its tensors the examples lie.

    Of each tensor of `inputs` and `outputs`: a dimension, None where the tensor is shared by all
    examples, or EXPANDED where its one row is meant for all of them.
    """

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]


EXPANDED: Final = -1
FUNCTIONAL: Final = "torch.func"


class Layer(ABC):
    """A module with trained parameters of its own.

    `layout` is what an examination found; until then the batch is taken to be first. `copied`: the
    model writes into the layer's output, and so gets a copy. While a layer is `direct`, its calls
    are not recorded.
    """

    by: ClassVar[str] = ""
    """Whose gradients these are, where they are not our own."""

    def __init__(self, module: nn.Module, path: str = "") -> None:
        self.module: Any = module
        kind = type(module).__name__
        self.name = f"{path} ({kind})" if path else kind
        self.path = path
        self.channels_last = False
        self.direct = False
        self.copied = False
        self.rows = 1
        self.layout: Layout | None = None
        self.trained = [p for p in module.parameters() if p.requires_grad]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward."""
        return type(self.module).forward(self.module, *args, **kwargs)

    def cast(self, a: Any, g: Any) -> tuple[Any, Any]:
        """What of a bfloat16 pass goes into `samples`: float32, where the layer knows no better."""
        whole = isinstance(a, Tensor) and not a.is_floating_point()
        return a if whole else a.float(), g.float()

    @abstractmethod
    def samples(self, a: Any, g: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each trained parameter's gradient per example [B, ...]."""

    def part(self, uses: Uses) -> Part:
        """The part of a batch that this layer alone answers for."""
        return Sampled([(self, a, g) for a, g in uses])


class Sampled(Part):
    """Per-example gradients as they are, in chunks of at most `most` examples."""

    def __init__(self, uses: Sequence[tuple[Layer, Any, Any]]) -> None:
        self._uses = uses
        rows = uses[0][1].shape[0]
        width = sum(p.numel() for p in {p for layer, _, _ in uses for p in layer.trained})
        self.most = max(1, _MOST // (width * max(layer.rows for layer, _, _ in uses)))
        self._rows = rows
        self._cached: Mapping[nn.Parameter, Tensor] | None = None
        squares: list[Any] = []
        for at in range(0, rows, self.most):
            samples = self._samples(slice(at, at + self.most))
            squares.append(sum(row_squares(_flat(x)[0]) for x in samples.values()))
            if rows <= self.most:
                self._cached = samples
        self.square = torch.cat(squares)

    def _samples(self, at: slice) -> dict[nn.Parameter, Tensor]:
        samples: dict[nn.Parameter, Tensor] = {}
        for layer, a, g in self._uses:
            for p, sample in layer.samples(a[at], g[at]):
                samples[p] = samples[p] + sample if p in samples else sample
        return samples

    def add(
        self,
        factors: Tensor,
        broken: Tensor | None,
        sum_of: SumOf = gradient_of,
        rows: slice = ALL,
    ) -> None:
        start, stop, _ = rows.indices(self._rows)
        step = stop - start if self._cached else self.most
        for at in (slice(x, min(x + step, stop)) for x in range(start, stop, step)):
            for p, sample in (self._cached or self._samples(at)).items():
                flat, restored = _flat(sample[at] if self._cached else sample)
                if broken is not None:
                    flat = flat.masked_fill(broken[at, None], 0)
                total = sum_of(p)
                total.add_(restored(factors[at].to(total.dtype) @ flat.to(total.dtype)))


def _flat(sample: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """[B, ...] as [B, n] in memory order, without copying; and the way back for one row."""
    if sample.dim() == 1:  # of a parameter that is one number
        return sample[:, None], lambda row: row.view(())
    strides = sample.stride()
    order = sorted(range(1, sample.dim()), key=lambda dim: -strides[dim])
    laid = sample.permute(0, *order)
    back = [order.index(dim) for dim in range(1, sample.dim())]
    return laid.flatten(1), lambda row: row.view(laid.shape[1:]).permute(back)


class Linear(Layer):
    def samples(self, a: Tensor, g: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        a, g = a.reshape(a.shape[0], -1, a.shape[-1]), g.reshape(g.shape[0], -1, g.shape[-1])
        yield from _affine(self.module, g.transpose(1, 2) @ a, g.sum(1))

    def part(self, uses: Uses) -> Part:
        if len(uses) == 1 and uses[0][0].dim() == 2:
            return Outer(self.module, *uses[0])
        if len(uses) > 1 and all(a.dim() == 2 for a, _ in uses):  # a recurrent cell: over time
            uses = [(torch.stack([a for a, _ in uses], 1), torch.stack([g for _, g in uses], 1))]
        return super().part(uses)


class Convolution(Layer):
    """Conv1d and Conv2d, by the patches of the input that each output pixel sees."""

    def cast(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Both in bfloat16: their products are the dearest part."""
        return a.to(torch.bfloat16), g.to(torch.bfloat16)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.channels_last or kwargs or args[0].dim() != 4:
            return super().forward(*args, **kwargs)
        out = super().forward(args[0].contiguous(memory_format=torch.channels_last))
        return out.contiguous(memory_format=torch.channels_last)

    def samples(self, a: Tensor, g: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        conv = self.module
        a = functional.pad(
            a, conv._reversed_padding_repeated_twice, mode=_PADDING[conv.padding_mode]
        )
        if a.dim() == 3:
            weight = _patched(a[:, :, None], g[:, :, None], conv).squeeze(3)
        else:
            weight = _patched(a, g, conv)
        yield from _affine(conv, weight, g.flatten(2).sum(2, dtype=weight.dtype))


def _patched(a: Tensor, g: Tensor, conv: Any) -> Tensor:
    """Weight gradients [B, P, C / groups, height, width] of a convolution of padded images.

    Products of bfloat16 are made float32, so that norm and sum are taken of the same numbers.
    """
    wide = torch.float32 if g.dtype == torch.bfloat16 else g.dtype
    kernel, stride, dilation = (
        (1, *x) if len(x) == 1 else x for x in (conv.kernel_size, conv.stride, conv.dilation)
    )
    rows, pixels = a.shape[0], g.shape[2] * g.shape[3]
    if conv.groups > 1:
        columns = functional.unfold(a, kernel, dilation=dilation, stride=stride)
        columns = columns.view(rows, conv.groups, -1, pixels).transpose(2, 3)
        products = (g.reshape(rows, conv.groups, -1, pixels) @ columns).to(wide)
        return products.view(rows, g.shape[1], -1, *kernel)
    # With the channels innermost a patch is a few long runs, which copy several times faster than
    # unfold does; a few examples at a time, so that their patches stay in the cache.
    a = a.permute(0, 2, 3, 1).contiguous()
    example, row, pixel, channel = a.stride()
    patches = a.as_strided(
        (rows, *g.shape[2:], *kernel, a.shape[3]),
        (
            *(example, row * stride[0], pixel * stride[1]),
            *(row * dilation[0], pixel * dilation[1], channel),
        ),
    )
    size = math.prod(kernel) * a.shape[3]
    chunk = max(1, _CACHED // (pixels * size)) * torch.get_num_threads()
    g = g.permute(0, 2, 3, 1).reshape(rows, pixels, -1).transpose(1, 2)
    products = a.new_empty(rows, g.shape[1], size, dtype=wide)
    for at in range(0, rows, chunk):
        part = slice(at, at + chunk)
        some = patches[part].reshape(-1, pixels, size)
        if wide == g.dtype:
            torch.bmm(g[part], some, out=products[part])
        else:
            products[part] = torch.bmm(g[part], some)
    return products.view(rows, -1, *kernel, a.shape[3]).permute(0, 1, 4, 2, 3)


_PADDING: Final = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "replicate",
    "circular": "circular",
}


class Embedding(Layer):
    def __init__(self, module: nn.Module, path: str = "") -> None:
        super().__init__(module, path)
        if self.module.scale_grad_by_freq or self.module.max_norm is not None:
            raise ModelError(
                f"model: {self.name}: expected an Embedding without max_norm or scale_grad_by_freq"
            )

    def samples(self, a: Tensor, g: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        weight: nn.Parameter = self.module.weight
        rows, (vocabulary, width) = len(a), weight.shape
        keys = a.reshape(rows, -1) + vocabulary * torch.arange(rows, device=a.device)[:, None]
        sample = g.new_zeros(rows * vocabulary, width)
        sample.index_add_(0, keys.flatten(), g.reshape(-1, width))
        sample = sample.view(rows, vocabulary, width)
        if self.module.padding_idx is not None:
            sample[:, self.module.padding_idx] = 0
        yield weight, sample

    def part(self, uses: Uses) -> Part:
        return Lookup(self.module, *uses[0]) if len(uses) == 1 else super().part(uses)


class Norm(Layer):
    """LayerNorm and GroupNorm: the scale's gradient is g times the normalised input."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["input"]
        if x.dtype == self.module.weight.dtype:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):  # mixed, it is slower than float32
            return super().forward(x.float()).to(x.dtype)

    def samples(self, a: Tensor, g: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        norm = self.module
        if isinstance(norm, nn.GroupNorm):
            normal = functional.group_norm(a, norm.num_groups, None, None, norm.eps)
            shape = (a.shape[0], norm.num_channels, -1)
            scaled, plain = (g * normal).reshape(shape).sum(2), g.reshape(shape).sum(2)
        else:
            normal = functional.layer_norm(a, norm.normalized_shape, None, None, norm.eps)
            shape = (a.shape[0], -1, *norm.normalized_shape)
            scaled, plain = (g * normal).reshape(shape).sum(1), g.reshape(shape).sum(1)
        yield from _affine(norm, scaled, plain)


class Functional(Layer):
    """Any layer, by torch.func: each example's gradient from a forward of that example alone."""

    by = FUNCTIONAL

    def __init__(self, module: nn.Module, path: str = "") -> None:
        super().__init__(module, path)
        if isinstance(module, nn.EmbeddingBag):  # Opacus drops its repeated tokens
            raise ModelError(f"model: {self.name}: expected Embedding and mean in its place")
        if any(isinstance(m, DROPOUTS) and m.p > 0 for m in module.modules()):
            raise ModelError(
                f"model: {self.name}: expected no Dropout inside a module that has parameters of "
                "its own (put these into a module of their own)"
            )
        self._names = {p: name for name, p in module.named_parameters() if p.requires_grad}

    def samples(self, a: Any, g: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
        names = self._names
        values = {name: p.detach() for p, name in names.items()}

        def product(params: Any, inputs: Any, gradients: Any) -> Tensor:
            args, kwargs = a.one(inputs)
            out = functional_call(self.module, params, args, kwargs)
            pairs = zip(_floating(out), g.dims, gradients, strict=True)
            parts = [(o * (y if dim is None else y.unsqueeze(dim))).sum() for o, dim, y in pairs]
            return torch.stack(parts).sum()

        dims = tuple(None if dim is None else 0 for dim in a.dims)
        self.direct = True
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")
                per_example = vmap(grad(product), in_dims=(None, dims, 0))(
                    values, a.values, g.values
                )
        finally:
            self.direct = False
        for p, name in names.items():
            yield p, per_example[name]


def _floating(out: Any) -> list[Tensor]:
    return [value for value in tensors(out) if value.is_floating_point()]


class ByOpacus(Functional):
    """A layer that Opacus has a sampler for."""

    by = "Opacus"

    def samples(self, a: Any, g: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
        if isinstance(a, Batch):
            yield from super().samples(a, g)
            return
        sampler = GradSampleModule.GRAD_SAMPLERS[type(self.module)]
        for p, sample in sampler(self.module, [a], g).items():
            if p.requires_grad:
                yield p, sample


def _affine(module: Any, weight: Tensor, bias: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
    if module.weight.requires_grad:
        yield module.weight, weight
    if module.bias is not None and module.bias.requires_grad:
        yield module.bias, bias


_KINDS: Final[Mapping[type[nn.Module], type[Layer]]] = {
    nn.Linear: Linear,
    RNNLinear: Linear,
    nn.Conv1d: Convolution,
    nn.Conv2d: Convolution,
    nn.Embedding: Embedding,
    nn.LayerNorm: Norm,
    nn.GroupNorm: Norm,
}


def layer_of(module: nn.Module, path: str = "") -> Layer:
    """The layer that knows `module`, which is at `path` in its model; ModelError where none is."""
    other = ByOpacus if type(module) in GradSampleModule.GRAD_SAMPLERS else Functional
    return _KINDS.get(type(module), other)(module, path)


def parts(uses: Mapping[Layer, Uses]) -> list[Part]:
    """The parts of a batch: a layer each, but those that share a parameter together."""
    owners: dict[nn.Parameter, int] = {}
    for layer in uses:
        for p in layer.trained:
            owners[p] = owners.get(p, 0) + 1
    shared = [layer for layer in uses if any(owners[p] > 1 for p in layer.trained)]
    every = [layer.part(pairs) for layer, pairs in uses.items() if layer not in shared]
    if shared:
        every.append(Sampled([(layer, a, g) for layer in shared for a, g in uses[layer]]))
    return every
