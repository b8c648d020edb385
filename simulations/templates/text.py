"""Sentences of a CSV file with the columns site, text, label. Change what differs for yours."""

import csv
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn


def read(path: Path, options: dict[str, Any]) -> Iterator[dict[str, str]]:
    """One raw record after the other; nothing is computed from more than one of them."""
    with open(path if path.is_file() else path / "lines.csv", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def encode(record: dict[str, str], options: dict[str, Any]) -> dict[str, Any]:
    """One record to its word numbers, by a public hash: no vocabulary is learnt. 0 is padding."""
    words = re.findall(r"\w+", record["text"].lower())[: options["length"]]
    places = [
        1 + int(hashlib.sha256(word.encode()).hexdigest(), 16) % (options["words"] - 1)
        for word in words
    ]
    padded = places + [0] * (options["length"] - len(places))
    return {"x": padded, "y": record.get("label"), "site": record["site"]}


class Mean(nn.Module):
    """The mean of a sentence's word vectors, and a linear layer."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        there = (x > 0).sum(1, keepdim=True).clamp(min=1)
        return self.head(self.words(x).sum(1) / there)  # type: ignore[no-any-return]


def model(options: dict[str, Any]) -> nn.Module:
    """Whatever keeps examples apart."""
    return Mean(options["words"], options["width"])
