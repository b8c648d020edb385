"""Models by description: a list of layers, each from an allow-list and bounded, built in order.

Every shape follows from the one before: a layer that does not fit is named with what it got.
"""

from collections.abc import Callable, Sequence
from typing import Final

import torch
from opacus.layers import DPLSTM
from torch import Tensor, nn

from client.tasks.rows import TaskError

MOST: Final = 4096
"""The widest layer."""


class Mean(nn.Module):
    """The mean over time: [B, T, F] -> [B, F]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Last(nn.Module):
    """The last step of time: [B, T, F] -> [B, F]."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


class Swap(nn.Module):
    """Channels and time change places: [B, C, T] <-> [B, T, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Recurrent(nn.Module):
    """An LSTM over [B, T, F] that can be clipped by example: [B, T, width]."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.cells = DPLSTM(inputs, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cells(x)[0]
        return out


def built(layers: Sequence[str], shape: Sequence[int], *, words: int, outputs: int) -> nn.Module:
    """The layers in order for rows of a shape; the last must give `outputs` numbers a row.

    `words` is how many ids there are, 0 where the rows are numbers. TaskError names the layer.
    """
    modules: list[nn.Module] = []
    x = torch.zeros((2, *shape), dtype=torch.int64 if words else torch.float32)
    for number, text in enumerate(layers):
        name, *given = text.split()
        where = f"model.layers[{number}] {text!r}"
        if name not in _LAYERS:
            raise TaskError(f"{where}: must be one of {', '.join(sorted(_LAYERS))}")
        try:
            layer = _LAYERS[name]([float(one) for one in given], x, words)
            with torch.no_grad():
                x = layer(x)
        except (IndexError, ValueError, RuntimeError, TypeError, ZeroDivisionError) as error:
            why = " ".join(str(error).split())[:120]
            raise TaskError(
                f"{where}: must fit rows of shape {list(x.shape[1:])} ({why})"
            ) from None
        modules.append(layer)
    if tuple(x.shape[1:]) != (outputs,):
        raise TaskError(
            f"model.layers: must end in {outputs} numbers a row, got {list(x.shape[1:])}"
        )
    if modules and isinstance(modules[-1], nn.Linear):  # its first gradient is the data's
        nn.init.zeros_(modules[-1].weight)
        nn.init.zeros_(modules[-1].bias)
    return nn.Sequential(*modules)


def _whole(value: float, most: int = MOST) -> int:
    if value != int(value) or not 1 <= value <= most:
        raise ValueError(f"whole numbers from 1 to {most}")
    return int(value)


def _conv(given: Sequence[float], x: Tensor, words: int) -> nn.Module:
    channels, kernel = _whole(given[0]), _whole(given[1], 64)
    stride = _whole(given[2], 64) if len(given) > 2 else 1
    kind = {4: nn.Conv2d, 3: nn.Conv1d}[x.dim()] if x.dim() in (3, 4) else None
    if kind is None:
        raise ValueError("conv needs [channels, ..]")
    layer: nn.Module = kind(x.shape[1], channels, kernel, stride=stride, padding=kernel // 2)
    return layer


def _pool(two: type[nn.Module], one: type[nn.Module]) -> Callable[..., nn.Module]:
    def layer(given: Sequence[float], x: Tensor, words: int) -> nn.Module:
        return (two if x.dim() == 4 else one)(_whole(given[0], 1024))

    return layer


def _linear(given: Sequence[float], x: Tensor, words: int) -> nn.Module:
    return nn.Linear(x.shape[-1], _whole(given[0]))


def _embedding(given: Sequence[float], x: Tensor, words: int) -> nn.Module:
    if not words:
        raise ValueError("embedding needs ids")
    return nn.Embedding(words, _whole(given[0]))


def _dropout(given: Sequence[float], x: Tensor, words: int) -> nn.Module:
    if not 0 <= given[0] < 1:
        raise ValueError("dropout needs a share below 1")
    return nn.Dropout(given[0])


def _plain(kind: type[nn.Module]) -> Callable[..., nn.Module]:
    return lambda given, x, words: kind()


_LAYERS: Final[dict[str, Callable[[Sequence[float], Tensor, int], nn.Module]]] = {
    "conv": _conv,
    "maxpool": _pool(nn.MaxPool2d, nn.MaxPool1d),
    "avgpool": _pool(nn.AvgPool2d, nn.AvgPool1d),
    "adaptivepool": _pool(nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool1d),
    "groupnorm": lambda given, x, words: nn.GroupNorm(_whole(given[0]), x.shape[1]),
    "layernorm": lambda given, x, words: nn.LayerNorm(x.shape[-1]),
    "linear": _linear,
    "embedding": _embedding,
    "lstm": lambda given, x, words: Recurrent(x.shape[-1], _whole(given[0])),
    "dropout": _dropout,
    "flatten": _plain(nn.Flatten),
    "relu": _plain(nn.ReLU),
    "tanh": _plain(nn.Tanh),
    "gelu": _plain(nn.GELU),
    "sigmoid": _plain(nn.Sigmoid),
    "mean": _plain(Mean),
    "last": _plain(Last),
    "swap": _plain(Swap),
}
"""Every layer there is: NAME and its whole numbers, as "conv CHANNELS KERNEL [STRIDE]"."""
