"""What every contender learns: the same rows, models, steps and noise. Needs torch alone."""

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from turns import CLIENTS, ROWS

TESTED = 1000


class Scaled(nn.Module):
    """Bytes to -0.5..0.5, so that rows are kept as bytes by everybody."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """Rows [B, 784] of bytes to [B, *shape]."""
        return x.reshape(-1, *self.shape).to(torch.float32).mul_(1 / 255).sub_(0.5)


def mlp() -> nn.Module:
    """784-256-10."""
    return nn.Sequential(Scaled(784), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def cnn() -> nn.Module:
    """The network of Opacus' and TensorFlow Privacy's MNIST tutorials, 26,010 parameters."""
    return nn.Sequential(
        *(Scaled(1, 28, 28), nn.Conv2d(1, 16, 8, 2, padding=3), nn.Tanh(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, 2), nn.Tanh(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(32 * 4 * 4, 32), nn.Tanh(), nn.Linear(32, 10)),
    )


MODELS = {"mlp": mlp, "cnn": cnn}


def model(name: str, seed: int = 0) -> nn.Module:
    """Fresh weights, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name]()


@dataclass(frozen=True)
class Data:
    """Bytes [n, 784] and labels [n]."""

    x: Tensor
    y: Tensor

    def part(self, client: int) -> tuple[Tensor, Tensor]:
        """One client's rows."""
        at = slice(client * ROWS, (client + 1) * ROWS)
        return self.x[at], self.y[at]


def data(part: str) -> Data:
    """Fashion-MNIST where TACIT_DATA has it, else random bytes; of `test` the first rows."""
    count = CLIENTS * ROWS if part == "train" else TESTED
    root = os.environ.get("TACIT_DATA")
    folder = Path(root) / "fashion_mnist" if root else None
    if folder is None or not folder.is_dir():
        draw = torch.Generator().manual_seed(len(part))
        x = torch.randint(0, 256, (count, 784), generator=draw, dtype=torch.uint8)
        return Data(x, torch.randint(0, 10, (count,), generator=draw))
    name = "train" if part == "train" else "t10k"
    x = _bytes(folder / f"{name}-images-idx3-ubyte.gz", 16, count * 784)
    y = _bytes(folder / f"{name}-labels-idx1-ubyte.gz", 8, count)
    return Data(x.reshape(count, 784), y.long())


def _bytes(path: Path, skip: int, count: int) -> Tensor:
    with gzip.open(path) as file:
        file.read(skip)
        read = bytearray()
        while len(read) < count and (more := file.read(min(1 << 20, count - len(read)))):
            read += more
    if len(read) < count:
        raise SystemExit(f"{path}: expected {count} bytes")
    return torch.frombuffer(read, dtype=torch.uint8)


@torch.inference_mode()
def accuracy(net: nn.Module, rows: Data) -> float:
    """The share of rows that are recognised."""
    return float((net(rows.x).argmax(1) == rows.y).float().mean())
