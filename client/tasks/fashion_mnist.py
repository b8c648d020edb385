"""Fashion-MNIST: 70,000 images of clothes, 28x28 pixels, 10 kinds.

The model sees each image through fixed filters (client/tasks/features/scattering.py): public,
since nothing about them was learnt from these images, and each image passes them alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from client.data.formats.idx import folder_file, images
from client.tasks.classifier import classifier
from client.tasks.features import scattering
from client.tasks.preprocessing import Category, Columns, Number
from client.tasks.rows import Encoded, NoRows, Omission, Reading, Rows, TaskError, check_part
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
_CHUNK: Final = 2000


See = Callable[[torch.Tensor], torch.Tensor]
"""Images [n, 28, 28] in 0..1 to features [n, width], each image by itself."""


@dataclass(frozen=True, slots=True)
class Filters:
    """Fixed filters before a linear layer: their name as a task, and what they make of images."""

    name: str
    width: int
    see: See
    costly: bool = False

    def load(self, path: Path | None, part: str) -> Rows:
        """The rows of a folder with the idx files, .gz or unpacked."""
        check_part(part)
        parts = [self._part(path, name) for name in FILES if part in (name, "all")]
        return sum(parts[1:], start=parts[0])

    def _part(self, path: Path | None, part: str) -> Rows:
        pictures, names = (folder_file(path, self.name, f"{n}.gz", n) for n in FILES[part])
        pixels = images(pictures, 2051, (0, 28, 28))
        labels = images(names, 2049, (0,))
        if len(labels) != len(pixels):
            raise TaskError(f"{names}: expected {len(pixels)} labels, got {len(labels)}")
        known = labels < len(CLASSES)
        total, lost = len(labels), np.flatnonzero(~known)
        expected = f"a label from 0 to {len(CLASSES) - 1}"
        why = [Omission("kind", expected, len(lost), f"row {lost[0] + 1}")] if len(lost) else []
        reading = Reading(total, total, len(lost), tuple(why))
        if len(lost) == total:
            raise NoRows(f"{names}: expected rows that fit, got none among {reading}")
        some = torch.from_numpy(pixels[known]).split(_CHUNK)
        seen = torch.cat([self.see(one.float() / 255) for one in some])
        return Rows(seen, torch.from_numpy(labels[known].astype(np.int64)), reading=reading)

    def front(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels in -1..1 [n, 784] to features."""
        return self.see((pixels.reshape(-1, 28, 28) + 1) / 2)

    def encode(self, table: object) -> Encoded:
        """Pixel columns to features, by the same filters."""
        pixels = COLUMNS.encode(table)
        seen = self.front(pixels.x) if len(pixels.x) else torch.zeros(0, self.width)
        return replace(pixels, x=seen, raw=pixels.x)

    def task(self) -> Task:
        """Softmax regression of what the filters see."""
        return classifier(
            COLUMNS,
            CLASSES,
            width=self.width,
            name=self.name,
            load=self.load,
            wanted=COLUMNS.wanted(),
            encode=self.encode,
            features=(),
            front=self.front,
            costly=self.costly,
        )


def task() -> Task:
    """Softmax regression of oriented edges."""
    return Filters("fashion-mnist", scattering.WIDTH, scattering.oriented).task()
