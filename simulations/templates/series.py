"""Windows of a sensor: SITE.csv, a label and its values on each line. Change what differs."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn


def read(path: Path, options: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """One raw record after the other; nothing is computed from more than one of them."""
    for file in [path] if path.is_file() else sorted(path.glob("*.csv")):
        with open(file, encoding="utf-8") as lines:
            for line in csv.reader(lines):
                yield file.stem, line


def encode(record: tuple[str, list[str]], options: dict[str, Any]) -> dict[str, Any]:
    """One record to a window of one length, its label, its site."""
    site, (label, *texts) = record
    values = np.zeros(options["length"], np.float32)
    known = np.array(texts[: options["length"]], np.float32)
    values[: len(known)] = known
    return {"x": np.clip(values, -5, 5)[None], "y": label, "site": site}


def model(options: dict[str, Any]) -> nn.Module:
    """Whatever keeps examples apart: no BatchNorm."""
    width = options["width"]
    return nn.Sequential(
        nn.Conv1d(1, width, 5, stride=2),
        nn.GroupNorm(4, width),
        nn.Tanh(),
        nn.AdaptiveAvgPool1d(8),
        nn.Flatten(),
        nn.Linear(8 * width, 2),
    )
