"""What every contender learns: the same rows, models, steps and noise. Needs torch alone.

A run stops after each round until its parent says go (`Turns`), so that the rounds of several
contenders can take turns, and the waiting ones rest.
"""

import gzip
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

CLIENTS, COHORT, ROWS, BATCH = 100, 10, 600, 32
STEPS = 19  # one epoch: 600 rows, 32 a step
RATE, LR, CLIP, SIGMA, DELTA = BATCH / ROWS, 0.1, 1.0, 1.0, 1e-5
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
        read = bytearray(count)
        if file.readinto(read) != count:
            raise SystemExit(f"{path}: expected {count} bytes")
    return torch.frombuffer(read, dtype=torch.uint8)


@torch.inference_mode()
def accuracy(net: nn.Module, rows: Data) -> float:
    """The share of rows that are recognised."""
    return float((net(rows.x).argmax(1) == rows.y).float().mean())


class Turns:
    """Says on stdout when a round has ended, and waits on stdin for the next to begin."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever else prints does not disturb the talk
        self._began = self._start = 0.0

    def begin(self) -> None:
        """The first round begins now."""
        self._began = self._start = time.monotonic()

    def end(self, accuracy: float | None = None) -> None:
        """A round has ended; come back when the next may begin."""
        now = time.monotonic()
        said = {"began": self._start, "at": now, "took": now - self._began, "acc": accuracy}
        print(json.dumps(said), file=self._out, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        self._began = time.monotonic()
