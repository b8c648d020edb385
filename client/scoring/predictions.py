"""What was predicted of some rows, whatever made it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from client.data.form import Form
from client.data.input_files import Chunk, Fault
from client.models.provenance import Origin
from privacy.model_card import Card


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What was said of some rows: `rows` counts from 1 through the file.

    `columns` are the predictions (`client.inference.decoded_columns`), `scores` the raw outputs,
    `labels` the known labels; `ids` is the column `ids_name` of the file, which names its rows.
    """

    rows: NDArray[np.int64]
    columns: dict[str, Any]
    scores: Any
    labels: Any = None
    groups: list[str] | None = None
    faults: tuple[Fault, ...] = ()
    done: float = 0.0
    ids: Any = None
    ids_name: str = ""


def of_chunk(chunk: Chunk, columns: dict[str, Any], scores: Any) -> Predictions:
    """The predictions of a chunk's rows."""
    return Predictions(
        chunk.rows,
        columns,
        scores,
        labels=chunk.y,
        groups=chunk.groups,
        faults=chunk.faults,
        done=chunk.done,
        ids=chunk.ids,
        ids_name=chunk.ids_name,
    )


class LoadedModel(Protocol):
    """A model whose origin was asked about (`client.models.loading.Model`)."""

    @property
    def task(self) -> Form: ...
    @property
    def card(self) -> Card: ...
    @property
    def digest(self) -> str: ...
    @property
    def origin(self) -> Origin: ...
    @property
    def path(self) -> Path: ...


class Ready(Protocol):
    """A loaded model ready to predict, and what it runs in."""

    @property
    def model(self) -> LoadedModel: ...
    @property
    def engine(self) -> str: ...

    def predict(self, chunks: Iterator[Chunk], *, every: bool = False) -> Iterator[Predictions]:
        """Predict chunk after chunk: memory holds one of them, whatever the file's size.

        With `every`, what stands behind each prediction is kept: the probabilities of all classes.
        """
