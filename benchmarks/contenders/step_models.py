"""The models that `step.py` measures, of a kind each."""

import torch
from contenders.gpu_cases import Lora
from contenders.models import Language
from torch import Tensor, nn


class Text(nn.Module):
    """Mean of embeddings, as in fastText."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10_000, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of tokens [B, 32]."""
        return self.head(self.table(x).mean(1))


class Sequence(nn.Module):
    """An LSTM over embedded tokens, Opacus' own or torch's."""

    def __init__(self, private: bool) -> None:
        super().__init__()
        from opacus.layers import DPLSTM

        self.table = nn.Embedding(1000, 32)
        self.cell = (DPLSTM if private else nn.LSTM)(32, 64, batch_first=True)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of tokens [B, 32]."""
        return self.head(self.cell(self.table(x))[0][:, -1])


def mlp(_: bool) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def logistic(_: bool) -> nn.Module:
    """Softmax regression."""
    return nn.Linear(784, 10)


def mnist_cnn(_: bool) -> nn.Module:
    """The network of Opacus' and TensorFlow Privacy's MNIST tutorials."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 8, 2, padding=3), nn.Tanh(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, 2), nn.Tanh(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(32 * 4 * 4, 32), nn.Tanh(), nn.Linear(32, 10)),
    )


def cifar_cnn(_: bool) -> nn.Module:
    """Six convolutions with GroupNorm, 550,000 parameters."""
    layers: list[nn.Module] = []
    for i, o, pool in [
        (3, 32, 0),
        (32, 32, 1),
        (32, 64, 0),
        (64, 64, 1),
        (64, 128, 0),
        (128, 128, 1),
    ]:
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(min(32, o // 4), o), nn.ReLU()]
        layers += [nn.AvgPool2d(2)] * pool
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(128 * 4 * 4, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def wide_mlp(_: bool) -> nn.Module:
    """21 million weights in two layers."""
    return nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000))


class Recurrent(nn.Module):
    """A GRU over embedded tokens, Opacus' own or torch's."""

    def __init__(self, private: bool) -> None:
        super().__init__()
        from opacus.layers import DPGRU

        self.table = nn.Embedding(1000, 32)
        self.cell = (DPGRU if private else nn.GRU)(32, 64, batch_first=True)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of tokens [B, 32]."""
        return self.head(self.cell(self.table(x))[0][:, -1])


class TextCnn(nn.Module):
    """Kim's (2014) CNN for sentences: three widths of convolution over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10_000, 64)
        self.widths = nn.ModuleList(nn.Conv1d(64, 100, width) for width in (3, 4, 5))
        self.head = nn.Linear(300, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of tokens [B, 64]."""
        x = self.table(x).transpose(1, 2)
        return self.head(torch.cat([conv(x).relu().amax(2) for conv in self.widths], 1))


class Clicks(nn.Module):
    """DLRM in small (Naumov et al. 2019): eight fields in one table, an MLP above."""

    def __init__(self, ids: int) -> None:
        super().__init__()
        self.table = nn.Embedding(ids, 16)
        self.above = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of ids [B, 8]."""
        return self.above(self.table(x).flatten(1))


def audio(_: bool) -> nn.Module:
    """M5 (Dai et al. 2017) with GroupNorm over 8,000 samples."""
    layers: list[nn.Module] = []
    for i, o, kernel, stride in ((1, 32, 80, 16), (32, 32, 3, 1), (32, 64, 3, 1), (64, 64, 3, 1)):
        layers += [nn.Conv1d(i, o, kernel, stride), nn.GroupNorm(8, o), nn.ReLU(), nn.MaxPool1d(4)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 10))


def lora(_: bool) -> nn.Module:
    """`Language` frozen, with changes of rank 8 to attention's projections, which are trained."""
    model = Language().requires_grad_(False)
    for block in model.blocks:
        block.attention.all = Lora(block.attention.all)
        block.attention.out = Lora(block.attention.out)
    model.head.requires_grad_(True)
    return model
