"""A CSV file with the columns site, age, visits, pressure, smoker, ill. Change what differs."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

BOUNDS = {"age": (18, 100), "visits": (0, 50), "pressure": (60, 220), "smoker": (0, 1)}
"""Public ranges of what the numbers mean, never those of a file."""


def read(path: Path, options: dict[str, Any]) -> Iterator[dict[str, str]]:
    """One raw record after the other; nothing is computed from more than one of them."""
    with open(path if path.is_file() else path / "people.csv", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def encode(record: dict[str, str], options: dict[str, Any]) -> dict[str, Any]:
    """One record to numbers in -1..1, its label, its site."""
    x = []
    for name, (low, high) in BOUNDS.items():
        value = min(max(float(record[name]), low), high)
        x.append(2 * (value - low) / (high - low) - 1)
    return {"x": x, "y": record.get("ill"), "site": record["site"]}


def model(options: dict[str, Any]) -> nn.Module:
    """Whatever keeps examples apart."""
    hidden = options["hidden"]
    if not hidden:
        return nn.Linear(len(BOUNDS), 2)
    return nn.Sequential(nn.Linear(len(BOUNDS), hidden), nn.Tanh(), nn.Linear(hidden, 2))
