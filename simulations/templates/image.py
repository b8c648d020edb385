"""Pictures in folders: DATA/SITE/CLASS/NAME.png. Change what differs for yours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn


def read(path: Path, options: dict[str, Any]) -> Iterator[Path]:
    """One raw record after the other; nothing is computed from more than one of them."""
    yield from [path] if path.is_file() else sorted(path.rglob("*.png"))


def encode(record: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One record to its arrays, its label, its site."""
    size = (options["size"], options["size"])
    pixels = np.asarray(Image.open(record).convert("L").resize(size), np.float32)
    site, label = record.parts[-3:-1]
    return {"x": pixels[None] / 127.5 - 1, "y": label, "site": site}


def model(options: dict[str, Any]) -> nn.Module:
    """Whatever keeps examples apart: no BatchNorm."""
    width = options["width"]
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.GroupNorm(4, width),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(16 * width, 2),
    )
