"""Models that people train, of common building blocks: wide residual networks, attention."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """A residual block of two convolutions with GroupNorm."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.other = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(16, outer) for _ in range(2))
        self.way = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inner, H, W] to [B, outer, H / stride, W / stride]."""
        out = functional.relu(self.norms[0](self.one(x)))
        return functional.relu(self.norms[1](self.other(out)) + self.way(x))


def resnet(blocks: tuple[int, ...], width: int) -> nn.Module:
    """A ResNet for 32x32 images: stages of `blocks`, each twice as wide."""
    stages: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.GroupNorm(16, width)]
    inner = width
    for stage, count in enumerate(blocks):
        for i in range(count):
            outer = width * 2**stage
            stages.append(Block(inner, outer, 2 if stage and not i else 1))
            inner = outer
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, 10))


class Attention(nn.Module):
    """Self-attention by one projection in and one out."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.all, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] to the same."""
        rows, places, width = x.shape
        q, k, v = self.all(x).view(rows, places, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(out.transpose(1, 2).reshape(rows, places, width))


class Layer(nn.Module):
    """A transformer's block, norms first."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, heads, causal)
        self.into, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, width] to the same."""
        x = x + self.attention(self.norms[0](x))
        return x + self.out(functional.gelu(self.into(self.norms[1](x))))


class Vision(nn.Module):
    """A ViT for 32x32 images in patches of 4: six blocks of width 192."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 192, 4, 4)
        self.places = nn.Embedding(64, 192)
        self.blocks = nn.Sequential(*(Layer(192, 3, causal=False) for _ in range(6)))
        self.norm, self.head = nn.LayerNorm(192), nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images [B, 3, 32, 32]."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.places(torch.arange(64, device=x.device).expand(len(x), -1))
        return self.head(self.norm(self.blocks(x)).mean(1))


class Language(nn.Module):
    """A small GPT over 128 tokens, four blocks of width 256; the last token is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(4096, 256), nn.Embedding(128, 256)
        self.blocks = nn.Sequential(*(Layer(256, 4, causal=True) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(256), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of tokens [B, 128]."""
        places = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        return self.head(self.norm(self.blocks(self.table(x) + self.places(places)))[:, -1])
