"""The models that `gpu.py` measures on a GPU, and tiny ones of the same kinds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from contenders.models import Layer, Vision, resnet
from torch import Tensor, nn
from torch.nn import functional

from client.tasks.rows import Rows


class Lora(nn.Module):
    """A frozen Linear and a trained change of rank 8 (Hu et al. 2021)."""

    def __init__(self, frozen: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return self.frozen(x) + self.up(self.down(x))


class Gpt(nn.Module):
    """GPT-2's layers, with a head of its own; it gives the logits of every next token."""

    def __init__(self, width: int, blocks: int, heads: int, tokens: int, places: int) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(tokens, width), nn.Embedding(places, width)
        self.blocks = nn.Sequential(*(Layer(width, heads, causal=True) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, T, tokens] of tokens [B, T]."""
        places = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        return self.head(self.norm(self.blocks(self.table(x) + self.places(places))))

    def with_lora(self) -> "Gpt":
        """Everything frozen, with changes of rank 8 to attention's projections."""
        self.requires_grad_(False)
        for block in self.blocks:
            block.attention.all = Lora(block.attention.all)
            block.attention.out = Lora(block.attention.out)
        return self


class Vit(nn.Module):
    """ViT-B for images of 224 pixels in patches of 16, by the mean of its places."""

    def __init__(self, width: int, blocks: int, heads: int, side: int, patch: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.count = (side // patch) ** 2
        self.places = nn.Embedding(self.count, width)
        self.blocks = nn.Sequential(*(Layer(width, heads, causal=False) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images [B, 3, side, side]."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.places(torch.arange(self.count, device=x.device).expand(len(x), -1))
        return self.head(self.norm(self.blocks(x)).mean(1))


def mlp(inputs: int, hidden: int) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def by_class(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each row."""
    return functional.cross_entropy(outputs, y, reduction="none")


def by_token(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of each row's next tokens."""
    return functional.cross_entropy(outputs.transpose(1, 2), y, reduction="none").mean(1)


@dataclass(frozen=True)
class Case:
    """A model, its batch and shape; `tokens` where rows are tokens and labels the next ones.

    `recorded`: small enough that the host may slow it down.
    """

    build: Callable[[], nn.Module]
    batch: int
    shape: tuple[int, ...]
    target: float | None
    tokens: int = 0
    recorded: bool = False

    def rows(self, count: int, seed: int = 0) -> Rows:
        """Made-up rows."""
        draw = torch.Generator().manual_seed(seed)
        if self.tokens:
            x = torch.randint(self.tokens, (count, *self.shape), generator=draw)
            return Rows(x, x.roll(-1, 1))
        x = torch.randn(count, *self.shape, generator=draw)
        return Rows(x, torch.randint(10, (count,), generator=draw))


@cache
def task_of(case: Case) -> Any:
    """All that training asks of a task; the same one each time, so that it is examined once."""
    sample = lambda n, draw: case.rows(n, int(torch.randint(2**31, (1,), generator=draw)))  # noqa: E731
    loss = by_token if case.tokens else by_class
    classes = tuple(map(str, range(case.tokens or 10)))
    return SimpleNamespace(loss=loss, classes=classes, sample=sample if case.tokens else None)


LARGE = {
    "mlp": Case(lambda: mlp(784, 256), 256, (784,), 1.5, recorded=True),
    "resnet-18": Case(lambda: resnet((2, 2, 2, 2), 64), 256, (3, 32, 32), 1.6),
    "gpt-2 lora": Case(
        lambda: Gpt(768, 12, 12, 50257, 256).with_lora(), 16, (256,), 1.15, tokens=50257
    ),
    "gpt-2 full": Case(lambda: Gpt(768, 12, 12, 50257, 256), 16, (256,), 1.4, tokens=50257),
    "vit-b": Case(lambda: Vit(768, 12, 12, 224, 16), 64, (3, 224, 224), 1.4),
    "vit-tiny": Case(Vision, 256, (3, 32, 32), None, recorded=True),
}
TINY = {
    "mlp": Case(lambda: mlp(12, 6), 4, (12,), 1.5, recorded=True),
    "resnet-18": Case(lambda: resnet((1, 1), 16), 4, (3, 8, 8), 1.6),
    "gpt-2 lora": Case(lambda: Gpt(16, 1, 2, 50, 8).with_lora(), 4, (8,), 1.15, tokens=50),
    "gpt-2 full": Case(lambda: Gpt(16, 1, 2, 50, 8), 4, (8,), 1.4, tokens=50),
    "vit-b": Case(lambda: Vit(16, 1, 2, 16, 8), 4, (3, 16, 16), 1.4),
}
