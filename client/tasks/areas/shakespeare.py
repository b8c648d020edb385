"""Language by person: the next character of a play's lines, a role with all its lines a person.

The published file of tinyshakespeare has blocks between blank lines, whose first line is "NAME:".
A role's lines are cut into windows of characters; roles are held out whole, by a public hash of
their names. The model counts: the next character by the last one, and whatever the last one is.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.data.loading import of_people
from client.data.wanted import Wanted
from client.tasks.areas.pieces import Piece, file_of, text_of
from client.tasks.described.holding_out import number_of
from client.tasks.described.outcomes import IGNORED, outcome
from client.tasks.losses import seeded
from client.tasks.rows import Encoded, NoRows, Rows, TaskError, check_part
from client.tasks.task import Task

ALPHABET: Final = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The characters that are told apart; any other is 0."""
CHARACTERS: Final = len(ALPHABET) + 1
LENGTH: Final = 64
HELD_OUT: Final = 0.2
_PLACES: Final = {character: i + 1 for i, character in enumerate(ALPHABET)}


class NextCharacter(nn.Module):
    """Ids [B, T] to scores of each next character [B, T, CHARACTERS]; all zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Embedding(1, CHARACTERS)
        self.last = nn.Embedding(CHARACTERS, CHARACTERS)
        nn.init.zeros_(self.always.weight)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.always(torch.zeros_like(x)) + self.last(x)
        return out


def roles(path: Path) -> dict[str, str]:
    """Each role's lines, one after the other, in the order of the file."""
    spoken: dict[str, list[str]] = {}
    for block in text_of(path, "a play").replace("\r\n", "\n").split("\n\n"):
        name, colon, lines = block.strip("\n").partition(":\n")
        if colon and name and "\n" not in name and len(name) <= 100:
            spoken.setdefault(name, []).append(lines)
    if not spoken:
        raise NoRows(f'{path}: expected blocks of lines after "NAME:", found none')
    return {name: "\n".join(lines) for name, lines in spoken.items()}


def windows(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A text's windows: ids [n, LENGTH] and the next ids, IGNORED past the text's end."""
    ids = np.array([_PLACES.get(character, 0) for character in text], np.int64)
    count = max(1, -(-max(len(ids) - 1, 1) // LENGTH))
    x = np.zeros(count * LENGTH, np.int64)
    y = np.full(count * LENGTH, IGNORED, np.int64)
    known = max(len(ids) - 1, 0)
    x[:known], y[:known] = ids[:-1], ids[1:]
    return x.reshape(count, LENGTH), y.reshape(count, LENGTH)


def _rows(spoken: dict[str, str]) -> Rows:
    parts = [(number_of(name.encode()), *windows(text)) for name, text in spoken.items()]
    return Rows(
        torch.from_numpy(np.concatenate([x for _, x, _ in parts])),
        torch.from_numpy(np.concatenate([y for _, _, y in parts])),
        None,
        torch.tensor([who for who, x, _ in parts for _ in range(len(x))], dtype=torch.int64),
    )


def load(path: Path | None, part: str) -> Rows:
    """The windows of the roles of "train", "test" or "all"."""
    check_part(part)  # before a file is read
    return of_people(
        _rows(roles(file_of(path, "the play", "input.txt", "input.txt.gz"))), part, HELD_OUT
    )


def read(path: Path, labels: bool) -> Iterator[tuple[Rows, Piece]]:
    """The windows of each role, for prediction and evaluation."""
    number = 0
    for name, text in roles(file_of(path, "the play", "input.txt", "input.txt.gz")).items():
        rows = _rows({name: text})
        piece = Piece()
        piece.arrays["number"] = np.arange(number, number + len(rows))
        if labels:
            piece.arrays["y"] = rows.y.numpy()
        piece.texts["id"] = [f"{name} {i + 1}" for i in range(len(rows))]
        number += len(rows)
        yield rows, piece


def unigram_perplexity(train: Rows, test: Rows) -> float:
    """The perplexity of characters by their frequency in training rows, without any privacy."""
    counts = np.bincount(train.y[train.y != IGNORED].numpy(), minlength=CHARACTERS) + 1.0
    logs = np.log(counts / counts.sum())
    return float(np.exp(-logs[test.y[test.y != IGNORED].numpy()].mean()))


def _mean_loss(outputs: Tensor, y: Tensor) -> Tensor:
    known = (y != IGNORED).sum(1).clamp(min=1)
    return outcome("tokens").loss(outputs, y) / known


def _sample(n: int, generator: torch.Generator) -> Rows:
    x, y = (torch.randint(CHARACTERS, (n, LENGTH), generator=generator) for _ in range(2))
    return Rows(x, y)


def _encode(table: Any) -> Encoded:
    raise TaskError("shakespeare reads a play, and no table of columns")


def task() -> Task:
    """Scores of the next character by the last one."""
    learnt = outcome("tokens")
    return Task(
        name="shakespeare",
        kind="tokens",
        classes=(),
        inputs=(),
        label="next",
        shape=(LENGTH,),
        model=seeded(NextCharacter),
        load=load,
        wanted=Wanted(()),
        encode=_encode,
        loss=_mean_loss,
        metrics=learnt.metrics,
        decode=learnt.decode,
        dtype=torch.int64,
        subjects=True,
        sample=_sample,
        y_shape=(LENGTH,),
        y_dtype=torch.int64,
        read=read,
    )
