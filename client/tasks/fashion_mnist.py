"""Fashion-MNIST: 70,000 images of clothes, 28x28 pixels, 10 kinds.

The model sees each image through fixed filters (client/tasks/features/scattering.py): public,
since nothing about them was learnt from these images, and each image passes them alone.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from client.data.formats.idx import folder_file, images
from client.tasks.classifier import classifier
from client.tasks.features import scattering
from client.tasks.preprocessing import Category, Columns, Number
from client.tasks.rows import Encoded, Rows, TaskError, check_part
from client.tasks.task import Task

CLASSES: Final = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
COLUMNS: Final = Columns(
    tuple(Number(f"pixel-{i}", 0, 255) for i in range(784)),
    Category("kind", CLASSES, aliases={str(i): name for i, name in enumerate(CLASSES)}),
)
FILES: Final = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def load(path: Path | None, part: str) -> Rows:
    """The rows of a folder with the idx files, .gz or unpacked."""
    check_part(part)
    parts = [_part(path, name) for name in FILES if part in (name, "all")]
    return Rows(torch.cat([rows.x for rows in parts]), torch.cat([rows.y for rows in parts]))


def _part(path: Path | None, part: str) -> Rows:
    pictures, names = (folder_file(path, "fashion-mnist", f"{n}.gz", n) for n in FILES[part])
    pixels = images(pictures, 2051, (0, 28, 28))
    labels = images(names, 2049, (0,))
    if len(labels) != len(pixels):
        raise TaskError(f"{names}: expected {len(pixels)} labels, got {len(labels)}")
    if labels.max() >= len(CLASSES):
        raise TaskError(f"{names}: expected labels from 0 to {len(CLASSES) - 1}, got another")
    return Rows(_seen(torch.from_numpy(pixels.copy())), torch.from_numpy(labels.astype(np.int64)))


def _seen(pixels: torch.Tensor) -> torch.Tensor:
    """Images [n, 28, 28] of bytes to features [n, scattering.WIDTH], some at a time."""
    starts = range(0, len(pixels), 2000)
    return torch.cat([scattering.oriented(pixels[i : i + 2000].float() / 255) for i in starts])


def encode(table: object) -> Encoded:
    """Pixel columns to features, by the same filters."""
    pixels = COLUMNS.encode(table)
    seen = front(pixels.x) if len(pixels.x) else torch.zeros(0, scattering.WIDTH)
    return replace(pixels, x=seen, raw=pixels.x)


def front(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels in -1..1 [n, 784] to features."""
    return scattering.oriented((pixels.reshape(-1, 28, 28) + 1) / 2)


def task() -> Task:
    """Softmax regression of oriented edges."""
    return classifier(
        COLUMNS,
        CLASSES,
        width=scattering.WIDTH,
        name="fashion-mnist",
        load=load,
        wanted=COLUMNS.wanted(),
        encode=encode,
        features=(),
        front=front,
    )
