"""Low-rank adapters in the last layers of a frozen encoder of sentences (Hu et al. 2021).

A text comes as its tokens after the first layers, which are frozen, so computed once. Of the last
ones the query and the value projection learn a product of two thin matrices beside their weights;
all else stays as it came. Sites exchange these matrices and the head alone.
"""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.tasks.features.sentence_encoder import encoder_layer, sentence_encoder
from client.tasks.rows import TaskError

ADAPTED: Final = ("query", "value")
"""The projections with adapters, as Hu et al. chose them."""
_SELF: Final = "attention.self"


class LowRank(nn.Module):
    """x W + b + x A B with W and b frozen; in evaluation mode one product with W + A B.

    B begins at zero, so that the first outputs are those of W.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return functional.linear(x, self.weight + self.up.weight @ self.down.weight, self.bias)
        out: Tensor = functional.linear(x, self.weight, self.bias) + self.up(self.down(x))
        return out


class AdaptedLayer(nn.Module):
    """One layer of the encoder, [B, T, width], with adapters in its attention."""

    def __init__(self, weights: dict[str, Tensor], heads: int, eps: float, rank: int) -> None:
        super().__init__()
        self.heads, self.eps = heads, eps
        self.query, self.value = (
            LowRank(weights[f"{_SELF}.{n}.weight"], weights[f"{_SELF}.{n}.bias"], rank)
            for n in ADAPTED
        )
        own = tuple(f"{_SELF}.{name}." for name in ADAPTED)
        self.names = {n: n.replace(".", "_") for n in weights if not n.startswith(own)}
        for name, buffer in self.names.items():
            self.register_buffer(buffer, weights[name], persistent=False)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        weights = {name: getattr(self, buffer) for name, buffer in self.names.items()}
        return encoder_layer(
            h,
            weights,
            heads=self.heads,
            eps=self.eps,
            mask=mask,
            query=self.query,
            value=self.value,
        )


class AdaptedText(nn.Module):
    """Rows [B, N] whose numbers from `at` on are a text's tokens [tokens, width]: the text's vector
    of length 1 takes their place, [B, N - tokens * width + width].

    Tokens of zeros alone are none.
    """

    def __init__(self, at: int, tokens: int, layers: list[AdaptedLayer], width: int) -> None:
        super().__init__()
        self.at, self.tokens, self.width = at, tokens, width
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        end = self.at + self.tokens * self.width
        h = x[:, self.at : end].reshape(x.shape[0], self.tokens, self.width)
        there = (h != 0).any(2)
        first = torch.arange(self.tokens, device=x.device) == 0
        there = there | first  # a text without tokens sees a zero
        for layer in self.layers:
            h = layer(h, there[:, None, None, :])
        kept = there[:, :, None].to(h.dtype)
        vector = functional.normalize((h * kept).sum(1) / kept.sum(1), dim=1)
        return torch.cat([x[:, : self.at], vector, x[:, end:]], 1)


def adapted_text(
    folder: Path, digest: str, *, at: int, tokens: int, adapted: int, rank: int
) -> AdaptedText:
    """The last `adapted` layers of a backbone's folder; their adapters are drawn from torch."""
    encoder = sentence_encoder(folder, digest)
    whole = encoder.layers
    if not 0 < adapted <= whole:
        raise TaskError(f"adapted must be 1 to {whole}, the backbone's layers, got {adapted}")
    numbers = range(whole - adapted, whole)
    layers = [AdaptedLayer(encoder.layer(n), encoder.heads, encoder.eps, rank) for n in numbers]
    return AdaptedText(at, tokens, layers, encoder.width)
