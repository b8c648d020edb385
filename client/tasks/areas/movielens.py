"""Recommendation: MovieLens by user; what is shared says what films are alike, tastes stay at home.

A row is a user with all their ratings. The model shares a vector of each film; a user's own vector
is the ridge regression of their known ratings on these, computed inside the model from that user's
row alone, so it never leaves (as in federated reconstruction, Singhal et al. 2021). One clipped
gradient is one person's, and the unit is the person.

Some ratings of each user, by a public hash, are hidden from the user's vector and predicted.
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.data.loading import of_people
from client.data.values import UNREADABLE
from client.data.wanted import Wanted
from client.tasks.areas.pieces import Piece, file_of, text_of
from client.tasks.described.holding_out import number_of
from client.tasks.described.records import by_line
from client.tasks.losses import seeded
from client.tasks.rows import Encoded, NoRows, Omission, Reading, Rows, TaskError, check_part
from client.tasks.task import Task

FILMS: Final = 16_384
"""Places that films fall into by a public hash; 0 is no film."""
RATINGS: Final = 128
"""Ratings of a user that are used: the first ones by a public hash."""
FACTORS: Final = 4
_COLUMNS: Final = ("userId", "movieId", "rating")
MIDDLE: Final = 3.5
"""What a rating is without any knowledge: half a star to five."""
LIKED: Final = 4.0
HIDDEN: Final = 0.25
HELD_OUT: Final = 0.2
_RIDGE_MEAN: Final = 2.0
_RIDGE: Final = 4.0


class Reconstruction(nn.Module):
    """Ids, known ratings and their mask [B, RATINGS] to predictions [B, RATINGS], off MIDDLE."""

    def __init__(self) -> None:
        super().__init__()
        self.films = nn.Embedding(FILMS, 1 + FACTORS)
        with torch.no_grad():
            self.films.weight.mul_(0.1)
            self.films.weight[:, 0] = 0

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        films = self.films(x["films"])
        known = x["known"][..., None]
        level, factors = films[..., 0], films[..., 1:]
        seen = torch.cat([torch.ones_like(factors[..., :1]), factors], -1) * known
        left = (x["ratings"] - level)[..., None] * known
        ridge = torch.full((1 + FACTORS,), _RIDGE, dtype=films.dtype, device=films.device)
        ridge[0] = _RIDGE_MEAN
        gram = seen.transpose(1, 2) @ seen + torch.diag(ridge)
        own = _solved(gram, seen.transpose(1, 2) @ left)
        out: Tensor = level + own[:, 0] + (factors @ own[:, 1:])[..., 0]
        return out


def _solved(gram: Tensor, right: Tensor) -> Tensor:
    """The solution [B, k, 1] of positive definite systems [B, k, k], by elimination.

    Written out, so that it can be exported; the ridge keeps every pivot from zero.
    """
    size = gram.shape[-1]
    both = torch.cat([gram, right], -1)
    for i, unit in enumerate(torch.eye(size, dtype=gram.dtype, device=gram.device)):
        pivot = both[:, i : i + 1] / both[:, i : i + 1, i : i + 1]
        both = both - (both[:, :, i : i + 1] - unit[:, None]) * pivot
    return both[..., size:]


def _hash(*words: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join(words).encode()).digest()[:8], "little")


def users(path: Path) -> tuple[dict[str, dict[str, float]], Reading]:
    """Each user's ratings by film, of a CSV file with the columns userId, movieId, rating.

    A line that is no rating is left out by itself, and told.
    """
    lines = by_line(io.StringIO(text_of(path, "ratings"), newline=""), ",")
    names = next((values for _, values in lines), None) or []
    if not set(_COLUMNS) <= set(names):
        raise TaskError(f"{path}: expected the columns {', '.join(_COLUMNS)}")
    at = [names.index(name) for name in _COLUMNS]
    ratings: dict[str, dict[str, float]] = {}
    count, lost = 0, list[str]()
    for number, values in lines:
        if values == []:
            continue
        count += 1
        rating = _rating(values or [], at)
        if rating is None:
            lost.append(f"line {number}")
        else:
            user, film, value = rating
            ratings.setdefault(user, {})[film] = value
    expected = "a user, a film and a rating in 0..5"
    omissions = (Omission("the line", expected, len(lost), lost[0]),) if lost else ()
    reading = Reading(count, count, len(lost), omissions)
    if not ratings:
        raise NoRows(f"{path}: expected ratings, got none among {reading}")
    return ratings, reading


def _rating(values: list[str], at: list[int]) -> tuple[str, str, float] | None:
    """Who rated which film how; None of a line that does not say it."""
    if max(at) >= len(values):
        return None
    user, film, text = (values[i] for i in at)
    try:
        value = float(text)
    except ValueError:
        return None
    fits = user and film and UNREADABLE not in user + film and 0 <= value <= 5
    return (user, film, value) if fits else None


def _row(user: str, ratings: dict[str, float]) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """x and y of one user: y is the rating off MIDDLE, and 1 where it is hidden and asked for."""
    order = sorted(ratings, key=lambda film: _hash("order", user, film))[:RATINGS]
    films = np.zeros(RATINGS, np.int64)
    known, value, asked = (np.zeros(RATINGS, np.float32) for _ in range(3))
    for i, film in enumerate(order):
        films[i] = 1 + _hash("film", film) % (FILMS - 1)
        value[i] = ratings[film] - MIDDLE
        asked[i] = float(_hash("hidden", user, film) / 2**64 < HIDDEN)
        known[i] = 1 - asked[i]
    x = {"films": films, "ratings": value * known, "known": known}
    return x, np.stack([value * asked, asked], 1)


def _rows(ratings: dict[str, dict[str, float]], reading: Reading | None = None) -> Rows:
    vectors = [_row(user, one) for user, one in ratings.items()]
    x = {
        name: torch.from_numpy(np.stack([row[name] for row, _ in vectors]))
        for name in ("films", "ratings", "known")
    }
    y = torch.from_numpy(np.stack([one for _, one in vectors]))
    people = torch.tensor([number_of(user.encode()) for user in ratings])
    return Rows(x, y, None, people, reading)


def load(path: Path | None, part: str) -> Rows:
    """The users of "train", "test" or "all"; users are held out whole."""
    check_part(part)  # before a file is read
    return of_people(
        _rows(*users(file_of(path, "the ratings", "ratings.csv", "ratings.csv.gz"))), part, HELD_OUT
    )


def read(path: Path, labels: bool) -> Iterator[tuple[Rows, Piece]]:
    """The users one piece, for prediction and evaluation."""
    ratings, _ = users(file_of(path, "the ratings", "ratings.csv", "ratings.csv.gz"))
    rows = _rows(ratings)
    piece = Piece(texts={"id": list(ratings)})
    piece.arrays["number"] = np.arange(len(rows))
    if labels:
        piece.arrays["y"] = rows.y.numpy()
    yield rows, piece


def loss(outputs: Tensor, y: Tensor) -> Tensor:
    """The mean squared error of each user's hidden ratings [B]; 0 for a user without any."""
    hidden = y[..., 1]
    return ((outputs - y[..., 0]) ** 2 * hidden).sum(1) / hidden.sum(1).clamp(min=1)


def metrics(outputs: Tensor, y: Tensor) -> dict[str, float]:
    """Root mean squared error in stars over all hidden ratings; how often a first pick is liked.

    `hit_rate` is over the users with a liked hidden film and another: of these films, the model's
    best is liked.
    """
    outputs, asked = outputs.detach(), y[..., 1] > 0.5
    if not bool(asked.any()):
        return {}
    off = (outputs - y[..., 0]).double()[asked]
    liked = (y[..., 0] + MIDDLE >= LIKED) & asked
    open_ = liked.any(1) & (asked & ~liked).any(1)
    best = outputs.masked_fill(~asked, -1e9).argmax(1)
    hits = liked.gather(1, best[:, None])[:, 0][open_]
    result = {"rmse": float(off.square().mean().sqrt()), "loss": float(loss(outputs, y).mean())}
    return result | ({"hit_rate": float(hits.double().mean())} if len(hits) else {})


def item_mean_metrics(train: Rows, test: Rows) -> dict[str, float]:
    """The same metrics of each film's mean rating in training rows, without any privacy."""
    total, count = np.zeros(FILMS), np.zeros(FILMS)
    films, value = train.x["films"].numpy(), train.x["ratings"] + train.y[..., 0]
    there = films > 0
    np.add.at(total, films[there], value.numpy()[there])
    np.add.at(count, films[there], 1)
    overall = total.sum() / count.sum()
    means = np.where(count > 0, total / np.maximum(count, 1), overall)
    return metrics(torch.from_numpy(means[test.x["films"].numpy()]), test.y)


def _sample(n: int, generator: torch.Generator) -> Rows:
    films = torch.randint(FILMS, (n, RATINGS), generator=generator)
    known = (torch.rand((n, RATINGS), generator=generator) < 0.7).float()
    value = torch.rand((n, RATINGS), generator=generator) * 4.5 - 3
    x = {"films": films, "ratings": value * known, "known": known}
    return Rows(x, torch.stack([value * (1 - known), 1 - known], -1))


def _encode(table: Any) -> Encoded:
    raise TaskError("movielens reads ratings by user, and no table of columns")


def task() -> Task:
    """Shared vectors of films, and each user's own by ridge regression."""
    shapes = {
        "films": ((RATINGS,), torch.int64),
        "ratings": ((RATINGS,), torch.float32),
        "known": ((RATINGS,), torch.float32),
    }
    return Task(
        name="movielens",
        kind="values",
        classes=(),
        inputs=(),
        label="rating",
        shape=(),
        model=seeded(Reconstruction),
        load=load,
        wanted=Wanted(()),
        encode=_encode,
        loss=loss,
        metrics=metrics,
        decode=lambda outputs: (outputs + MIDDLE).clamp(0.5, 5.0),
        subjects=True,
        sample=_sample,
        x_shapes=shapes,
        y_shape=(RATINGS, 2),
        y_dtype=torch.float32,
        read=read,
    )
