"""Per-example gradients of each kind of layer, from its inputs and its output gradients."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from opacus.grad_sample import GradSampleModule
from opacus.layers.dp_rnn import RNNLinear
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from client.dpsgd.clipped_sum import Lookup, Outer, Part, Sampled
from client.dpsgd.matrix_products import (
    Certified,
    Pairs,
    certifiable,
    convolved,
    patches,
    weight_samples,
)
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
_LARGE: Final = 1 << 19
"""Numbers of one example's gradient of a layer that are dearer to hold than to certify its norm."""
_TOGETHER: Final = 1 << 20
"""Numbers of one example's gradients that may be held, of all layers that could do without."""


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
    certified: bool | None = None
    """Whether its norms are certified. Chosen once, on made-up rows: if it depended on the batch, a
    record would change what the others give."""

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

    def sizes(self, uses: Uses) -> tuple[int, int, int] | None:
        """(T, p, d) where the gradients are products of [d, T] and [T, p] by themselves."""
        return None

    def pairs(self, uses: Uses) -> Pairs:
        """Those matrices."""
        raise ModelError(f"model: {self.name}: has no gradients that are products")

    def restored(self, total: Tensor) -> Tensor:
        """A sum of such products [d, p] in the shape of the weight."""
        return total


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

    def sizes(self, uses: Uses) -> tuple[int, int, int] | None:
        if any(a.dim() == 2 for a, _ in uses) and (len(uses) == 1 or uses[0][0].dim() > 2):
            return None
        places = sum(math.prod(a.shape[1:-1]) for a, _ in uses)
        return places, *reversed(self.module.weight.shape)

    def pairs(self, uses: Uses) -> Pairs:
        many = [tuple(x.reshape(len(x), -1, x.shape[-1]) for x in pair) for pair in uses]
        a, g = many[0] if len(many) == 1 else (torch.cat(x, 1) for x in zip(*many, strict=True))
        return Pairs(a, g, a.shape[2])


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
        weight = weight_samples(a, g, self.module)
        yield from _affine(self.module, weight, g.flatten(2).sum(2, dtype=weight.dtype))

    def sizes(self, uses: Uses) -> tuple[int, int, int] | None:
        if len(uses) > 1 or self.module.groups > 1:
            return None
        depth = self.module.out_channels
        return uses[0][1][0, 0].numel(), self.module.weight.numel() // depth, depth

    def pairs(self, uses: Uses) -> Pairs:
        return patches(*uses[0], self.module)

    def restored(self, total: Tensor) -> Tensor:
        return convolved(total, self.module)


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
            return super().forward(_centred(x, self.module))
        with torch.autocast(x.device.type, enabled=False):  # mixed, it is slower than float32
            return super().forward(_centred(x.float(), self.module)).to(x.dtype)

    def samples(self, a: Tensor, g: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        norm = self.module
        if isinstance(norm, nn.GroupNorm):
            centred = _centred(a, norm)
            normal = functional.group_norm(centred, norm.num_groups, None, None, norm.eps)
            shape = (a.shape[0], norm.num_channels, -1)
            scaled, plain = (g * normal).reshape(shape).sum(2), g.reshape(shape).sum(2)
        else:
            normal = functional.layer_norm(a, norm.normalized_shape, None, None, norm.eps)
            shape = (a.shape[0], -1, *norm.normalized_shape)
            scaled, plain = (g * normal).reshape(shape).sum(1), g.reshape(shape).sum(1)
        yield from _affine(norm, scaled, plain)


def _centred(x: Tensor, norm: nn.GroupNorm | nn.LayerNorm) -> Tensor:
    """Images in channels_last less each group's rough mean: neither norm nor gradient changes.

    torch takes their variance as E x^2 - (E x)^2, which a large mean leaves few digits of.
    """
    if isinstance(norm, nn.LayerNorm) or x.dim() != 4 or x.is_contiguous():
        return x
    means = x.detach()[:, :, ::2, ::2].mean((2, 3)).unflatten(1, (norm.num_groups, -1))
    centres = means.mean(2, keepdim=True).expand_as(means).flatten(1)
    centred: Tensor = x - centres[:, :, None, None]
    return centred


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


def parts(uses: Mapping[Layer, Uses], *, certify: bool = True) -> list[Part]:
    """The parts of a batch: a layer each, but those that share a parameter together.

    Without `certify` every norm is that of a product that is held.
    """
    owners: dict[nn.Parameter, int] = {}
    for layer in uses:
        for p in layer.trained:
            owners[p] = owners.get(p, 0) + 1
    shared = [layer for layer in uses if any(owners[p] > 1 for p in layer.trained)]
    alone = {layer: pairs for layer, pairs in uses.items() if layer not in shared}
    if certify and any(layer.certified is None for layer in alone):
        _choose(alone)
    every = [
        Certified(layer.module, layer.pairs(pairs), layer.restored)
        if certify and layer.certified
        else layer.part(pairs)
        for layer, pairs in alone.items()
    ]
    if shared:
        every.append(Sampled([(layer, a, g) for layer in shared for a, g in uses[layer]]))
    return every


def _choose(uses: Mapping[Layer, Uses]) -> None:
    """Which layers' products are not held: too large, or too many of one example together."""
    able: dict[Layer, int] = {}
    for layer, pairs in uses.items():
        sizes = layer.sizes(pairs)
        if sizes is not None and certifiable(*sizes):
            able[layer] = sizes[1] * sizes[2]
        if layer.certified is None:
            layer.certified = False
    held = sum(able.values())
    for layer, numbers in sorted(able.items(), key=lambda pair: -pair[1]):
        if numbers >= _LARGE or held > _TOGETHER:
            layer.certified = True
            held -= numbers
