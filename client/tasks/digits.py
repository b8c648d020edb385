"""Handwritten digits, 8x8 pixels, embedded: scikit-learn's 1,797 images need no files."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from client.tasks.preprocessing import Category, Columns, Number
from client.tasks.rows import Encoded, Rows, check_part

if TYPE_CHECKING:
    from client.tasks.task import Task

CLASSES: Final = tuple(str(digit) for digit in range(10))
INK: Final = 5
"""About a third of a written digit's paper is ink, as anybody can see who writes one."""
COLUMNS: Final = Columns(
    tuple(Number(f"pixel_{i // 8}_{i % 8}", 0, 16, zero=INK) for i in range(64)),
    Category("target", CLASSES),
)
WANTED: Final = COLUMNS.wanted()


@cache
def _rows(part: str) -> Rows:
    import torch
    from sklearn.datasets import load_digits  # SciPy and more: nothing that predicts needs them
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(((images - INK) / 8).astype(np.float32))
    rows = Rows(x, torch.from_numpy(labels.astype(np.int64)))
    if part == "all":
        return rows
    train, test = train_test_split(
        np.arange(len(rows)), test_size=0.2, random_state=0, stratify=labels
    )
    return rows.take(train if part == "train" else test)


def load(path: Path | None, part: str) -> Rows:
    """The embedded rows; `path` is not looked at. Test is a fixed, stratified fifth."""
    check_part(part)
    return _rows(part)


def load_with(path: Path | None, encode: Callable[[Any], Encoded]) -> Rows:
    """The embedded training rows in another encoding of their raw columns."""
    rows = _rows("train")
    pixels = rows.x.numpy().astype(np.float64) * 8 + INK
    columns = {column.name: pixels[:, i] for i, column in enumerate(COLUMNS.inputs)}
    table = pa.table(columns | {COLUMNS.label.name: [CLASSES[i] for i in rows.y.tolist()]})
    encoded = encode(table)
    return Rows(encoded.x, rows.y)


def task() -> "Task":
    """Softmax regression of 64 pixels (0..16, about a common grey)."""
    from client.tasks.classifier import classifier

    return classifier(
        COLUMNS,
        CLASSES,
        name="digits",
        load=load,
        load_with=load_with,
        wanted=WANTED,
        embedded=True,
    )
