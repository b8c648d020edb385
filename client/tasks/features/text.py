"""A column of texts as numbers: by a public hash, a public vocabulary or a frozen backbone.

Each text is turned into a vector of length 1 by itself. No vocabulary and no frequency is ever
taken from rows.
"""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.data.values import Mask, distinct
from client.tasks.features.backbones import Backbone
from client.tasks.rows import TaskError

LONGEST: Final = 20_000
"""Characters of a text that are read; the rest is left out."""
_WORD: Final = re.compile(r"\w+|[^\w\s]")
_PARTS: Final = (3, 4)
"""Lengths of the parts of words that are hashed beside words and pairs of words."""


@dataclass(frozen=True, slots=True)
class Text:
    """A column of texts, `width` features each: exactly one of the three ways.

    * `hashed`: words, pairs of words and parts of words fall into so many places by a public hash,
      with a public sign (Weinberger et al. 2009);
    * `vocabulary`: one feature for each of these public words;
    * `backbone`: the vector of a frozen encoder of `vector` numbers; with `adapted` its first
      `tokens` tokens before the last `adapted` layers, which adapters of `rank` are learnt in.
    """

    name: str
    hashed: int = 0
    vocabulary: tuple[str, ...] = ()
    backbone: Backbone | None = None
    vector: int = 0
    adapted: int = 0
    tokens: int = 0
    rank: int = 0

    @property
    def width(self) -> int:
        """How many features the column becomes."""
        return self.hashed or len(self.vocabulary) or self.vector * (self.tokens or 1)

    @property
    def expected(self) -> str:
        """What a value has to be."""
        return "a text"

    def encode(self, column: Any) -> tuple[NDArray[np.float32], Mask, Mask]:
        """Features [n, width], which values do not fit (none), and which are missing."""
        texts, index = distinct(column)
        gone = np.array([text is None or not text.strip() for text in texts], dtype=bool)
        words = ["" if text is None else text[:LONGEST] for text in texts]
        features = self._vectors(words) if words else np.zeros((0, self.width), np.float32)
        features[gone] = 0
        return features.take(index, 0), np.zeros(len(index), dtype=bool), gone[index]

    def missing(self, column: Any) -> Mask:
        """Which texts are missing or empty [n]."""
        texts, index = distinct(column)
        gone = np.array([text is None or not text.strip() for text in texts], dtype=bool)
        missing: Mask = gone[index]
        return missing

    def _vectors(self, texts: list[str]) -> NDArray[np.float32]:
        if self.backbone is not None:
            from client.tasks.features.sentence_encoder import sentence_encoder

            encoder = sentence_encoder(self.backbone.folder(), self.backbone.digest)
            if encoder.width != self.vector:
                raise TaskError(
                    f"column {self.name}: vector must be {encoder.width}, got {self.vector}"
                )
            if self.adapted:
                if self.adapted > encoder.layers or self.tokens > encoder.tokens:
                    raise TaskError(
                        f"column {self.name}: adapted must be at most {encoder.layers} and tokens "
                        f"at most {encoder.tokens} with this backbone"
                    )
                before = encoder.layers - self.adapted
                return encoder.tokens_of(texts, before, self.tokens).reshape(len(texts), -1)
            return encoder.vectors(texts)
        if self.hashed:
            return np.stack([_hashed(text, self.hashed) for text in texts])
        places = {word.casefold(): i for i, word in enumerate(self.vocabulary)}
        out = np.zeros((len(texts), len(places)), np.float32)
        for row, text in enumerate(texts):
            for word, count in Counter(_WORD.findall(text.casefold())).items():
                if word in places:
                    out[row, places[word]] = 1 + np.log(count)
        return _long_as_one(out)


def _hashed(text: str, places: int) -> NDArray[np.float32]:
    words = _WORD.findall(text.casefold())
    parts = [f"2 {a} {b}" for a, b in pairwise(words)]
    for word in words:
        parts.append(f"1 {word}")
        framed = f"<{word}>"
        for size in _PARTS:
            parts += [f"p {framed[i : i + size]}" for i in range(len(framed) - size + 1)]
    out = np.zeros(places, np.float32)
    for part, count in Counter(parts).items():
        number = _number(part)
        out[(number >> 1) % places] += (1 if number & 1 else -1) * (1 + np.log(count))
    row: NDArray[np.float32] = _long_as_one(out[None])[0]
    return row


@lru_cache(maxsize=1 << 16)
def _number(part: str) -> int:
    return int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")


def _long_as_one(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-6), np.float32)
