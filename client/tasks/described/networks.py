"""Named models of moderate size that can be clipped by example, for rows of a described shape."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.tasks.described.layers import Last, Recurrent, Swap, built
from client.tasks.features.public_layers import first_layers
from client.tasks.losses import layered, linear
from client.tasks.rows import TaskError
from privacy.contract.keys.tables import ModelPlan

PARAMETERS_MAX: Final = 50_000_000


@dataclass(frozen=True, slots=True)
class Input:
    """One array of a row: its shape, and how many ids it has (0: it holds numbers)."""

    shape: tuple[int, ...]
    words: int = 0


def network(plan: ModelPlan, inputs: Mapping[str, Input], outputs: int) -> nn.Module:
    """The model that a plan describes, for rows of these arrays; TaskError where it does not fit.

    It is drawn from torch's generator. Sizes are bounded before anything large is made.
    """
    if _parameters(plan, inputs, outputs) > PARAMETERS_MAX:
        raise TaskError(f"model: must have at most {PARAMETERS_MAX} parameters")
    return _network(plan, inputs, outputs)


def survival_network(plan: ModelPlan, inputs: Mapping[str, Input], bins: int) -> nn.Module:
    """The same for the scores of `bins` hazards: of one risk, unless the plan lists its layers."""
    if plan.layers is not None:
        return network(plan, inputs, bins)
    return Hazards(network(plan, inputs, 1), bins)


def _parameters(plan: ModelPlan, inputs: Mapping[str, Input], outputs: int) -> int:
    """How many numbers the model holds, from its sizes alone: nothing is made."""
    with torch.device("meta"):
        return sum(p.numel() for p in _network(plan, inputs, outputs).parameters())


def _network(plan: ModelPlan, inputs: Mapping[str, Input], outputs: int) -> nn.Module:
    name = plan.name
    if (plan.norm or plan.random) and name not in ("linear", "mlp"):
        raise TaskError(f"model.norm and model.random are for linear and mlp, got {name}")
    if name == "mixed":
        return Mixed(inputs, plan.width or 32, outputs)
    if len(inputs) != 1:
        raise TaskError('model.name must be "mixed" where a row has several arrays')
    one = next(iter(inputs.values()))
    if plan.layers is not None:
        return built(plan.layers, one.shape, words=one.words, outputs=outputs)
    width, depth = plan.width or 32, plan.depth or 2
    if name in ("linear", "mlp"):
        if one.words:
            raise TaskError(f"model.name: {name} needs numbers, got ids")
        size = 1
        for side in one.shape:
            size *= side
        hidden = () if name == "linear" else (width,) * depth
        first, size = first_layers(size, plan.norm or 0.0, plan.random or 0, 0.0)
        return nn.Sequential(nn.Flatten(), *first, layered(size, hidden, outputs))
    if name == "bag":
        return Bag(_ids(one, "bag"), width, outputs)
    if name == "text-cnn":
        return TextCnn(_ids(one, "text-cnn"), width, outputs)
    if name == "lstm":
        return _recurrent(one, width, outputs)
    if name == "transformer":
        return Encoder(one, width, depth, plan.heads or 4, plan.dropout or 0.0, outputs)
    if one.words or len(one.shape) not in (2, 3):
        raise TaskError(
            f"model.name: {name} needs [channels, height, width], got {list(one.shape)}"
        )
    if name == "cnn":
        return _cnn(one, width, depth, outputs)
    return _resnet(one, width, depth, outputs)


def _ids(one: Input, name: str) -> int:
    if not one.words or len(one.shape) != 1:
        raise TaskError(f"model.name: {name} needs ids in a line, got {list(one.shape)}")
    return one.words


def _groups(width: int) -> int:
    return next(n for n in (8, 4, 2, 1) if width % n == 0)


def _cnn(one: Input, width: int, depth: int, outputs: int) -> nn.Module:
    layers: list[str] = []
    for i in range(depth):
        channels = min(width * 2**i, 512)
        layers += [f"conv {channels} 3 2", f"groupnorm {_groups(channels)}", "tanh"]
    return built(
        [*layers, "adaptivepool 4", "flatten", f"linear {outputs}"],
        one.shape,
        words=0,
        outputs=outputs,
    )


def _resnet(one: Input, width: int, depth: int, outputs: int) -> nn.Module:
    if len(one.shape) != 3:
        raise TaskError(
            f"model.name: resnet needs [channels, height, width], got {list(one.shape)}"
        )
    parts: list[nn.Module] = [nn.Conv2d(one.shape[0], width, 3, padding=1)]
    before = width
    for i in range(depth):
        channels = min(width * 2**i, 512)
        parts.append(Residual(before, channels, 1 if i == 0 else 2))
        before = channels
    parts += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(before, outputs)]
    return nn.Sequential(*parts)


class Hazards(nn.Module):
    """One risk a person, and a baseline hazard a bin: proportional over time (Cox 1972).

    It has as many weights as a single output, so that less of the noise is in the ranking. At first
    half of all people come through all bins.
    """

    def __init__(self, risk: nn.Module, bins: int) -> None:
        super().__init__()
        self.risk, self.baseline = risk, Baseline(bins)

    def forward(self, x: Any) -> Tensor:
        out: Tensor = self.baseline(self.risk(x))
        return out


class Baseline(nn.Module):
    """Adds each bin's own number to a score: [B, 1] becomes [B, bins]."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((bins,), math.log(math.log(2) / bins)))

    def forward(self, score: Tensor) -> Tensor:
        return score + self.bias


class Residual(nn.Module):
    """Two convolutions beside the way past them, with GroupNorm (He et al. 2016; Wu & He 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(_groups(outputs), outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.last = nn.GroupNorm(_groups(outputs), outputs)
        past: list[nn.Module] = [nn.AvgPool2d(stride, ceil_mode=True)] if stride > 1 else []
        if inputs != outputs:  # after a pool: oneDNN corrupts memory for 1x1 kernels with strides
            past.append(nn.Conv2d(inputs, outputs, 1))
        self.past = nn.Sequential(*past)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.first(x)))
        out: Tensor = torch.relu(self.last(self.second(h)) + self.past(x))
        return out


def _recurrent(one: Input, width: int, outputs: int) -> nn.Module:
    parts: list[nn.Module]
    if one.words:
        parts, inputs = [nn.Embedding(one.words, width)], width
    elif len(one.shape) == 2:
        parts, inputs = [Swap()], one.shape[0]
    else:
        raise TaskError(f"model.name: lstm needs ids or [channels, time], got {list(one.shape)}")
    return nn.Sequential(*parts, Recurrent(inputs, width), Last(), linear(width, outputs))


class Bag(nn.Module):
    """The mean of the words' vectors, whatever their order; id 0 is padding."""

    def __init__(self, words: int, width: int, outputs: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.head = linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        there = (x > 0).sum(1, keepdim=True).clamp(min=1)
        out: Tensor = self.head(self.words(x).sum(1) / there)
        return out


class TextCnn(nn.Module):
    """Convolutions of 3, 4 and 5 words, each feature's largest value (Kim 2014)."""

    def __init__(self, words: int, width: int, outputs: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.views = nn.ModuleList(nn.Conv1d(width, width, k, padding=k - 1) for k in (3, 4, 5))
        self.head = linear(3 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x).transpose(1, 2)
        features = [torch.relu(view(h)).amax(2) for view in self.views]
        out: Tensor = self.head(torch.cat(features, 1))
        return out


class Attention(nn.Module):
    """Self-attention of Linear layers and torch's own product (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        rows, time, width = x.shape
        parts = self.into(x).view(rows, time, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mask = None if hidden is None else ~hidden[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, time, width))
        return out


class Block(nn.Module):
    """Attention and a small network, each after a LayerNorm and beside the way past it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.wide, self.back = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        x = x + self.dropout(self.attention(self.first(x), hidden))
        out: Tensor = x + self.dropout(self.back(functional.gelu(self.wide(self.second(x)))))
        return out


class Encoder(nn.Module):
    """A transformer encoder over ids (0 is padding) or over [channels, time]; then the mean."""

    def __init__(
        self, one: Input, width: int, depth: int, heads: int, dropout: float, outputs: int
    ) -> None:
        super().__init__()
        if width % heads:
            raise TaskError(f"model.heads must divide width = {width}, got {heads}")
        if len(one.shape) != (1 if one.words else 2):
            raise TaskError(
                f"model.name: transformer needs ids or [channels, time], got {list(one.shape)}"
            )
        self.ids = bool(one.words)
        self.first: nn.Module = (
            nn.Embedding(one.words, width) if one.words else nn.Linear(one.shape[0], width)
        )
        self.places = nn.Embedding(one.shape[-1], width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden = None
        if self.ids:
            hidden = (x == 0) & (x > 0).any(1, keepdim=True)  # a row of padding alone sees itself
        h = self.first(x if self.ids else x.transpose(1, 2))
        at = torch.arange(h.shape[1], device=h.device).expand(h.shape[0], -1)
        h = h + self.places(at)
        for block in self.blocks:
            h = block(h, hidden)
        h = self.norm(h)
        if hidden is None:
            h = h.mean(1)
        else:
            mask = (~hidden).to(h.dtype)[..., None]
            h = (h * mask).sum(1) / mask.sum(1).clamp(min=1)
        out: Tensor = self.head(h)
        return out


class Mixed(nn.Module):
    """Several arrays a row: ids as the mean of their vectors, numbers as they are; one layer."""

    def __init__(self, inputs: Mapping[str, Input], width: int, outputs: int) -> None:
        super().__init__()
        self.words = nn.ModuleDict(
            {name: nn.Embedding(one.words, width) for name, one in inputs.items() if one.words}
        )
        size = 0
        for one in inputs.values():
            numbers = 1
            for side in one.shape:
                numbers *= side
            size += width if one.words else numbers
        self.hidden = nn.Linear(size, width)
        self.head = linear(width, outputs)

    def forward(self, x: Any) -> Tensor:
        parts = []
        arrays = x if isinstance(x, dict) else {next(iter(self.words), "x"): x}
        for name, value in arrays.items():
            if name in self.words:
                h = self.words[name](value.flatten(1))
                parts.append(h.mean(1))
            else:
                parts.append(value.flatten(1))
        out: Tensor = self.head(torch.tanh(self.hidden(torch.cat(parts, 1))))
        return out
