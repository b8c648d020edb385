"""A model on a site's own labelled rows: how good, how well calibrated, and for which groups not.

Everything here stays at the site: figures of private rows are themselves releases. Groups smaller
than a threshold are suppressed even so, since a page is easily passed on.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from client.dpsgd.trees import joined
from client.inference.decoded_columns import best
from client.scoring.predictions import Predictions
from client.tasks.task import Task

SMALLEST: Final = 20
"""Rows of the smallest group that is shown."""
BINS: Final = 10
"""Bins of the reliability plot, and of the expected calibration error."""


@dataclass(frozen=True, slots=True)
class Bin:
    """The rows whose confidence lies in one tenth: their mean confidence and their accuracy."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Group:
    """One value of the grouping column; `metrics` is empty where the group is too small."""

    name: str
    rows: int
    metrics: dict[str, float]
    behind: bool = False


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of all rows and of each group; `confusion[true][predicted]` counts rows.

    A group is `behind` if its accuracy is worse than that of all other rows by more than chance
    explains: two standard errors of the difference, at least 0.05; where there are no classes, if
    its mean loss (its mean squared error) is, by at least a tenth.
    """

    rows: int
    metrics: dict[str, float]
    confusion: tuple[tuple[int, ...], ...]
    bins: tuple[Bin, ...]
    groups: tuple[Group, ...] = ()
    suppressed: int = 0
    skipped: int = 0
    classes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as JSON values."""
        return {
            "rows": self.rows,
            "skipped": self.skipped,
            "metrics": self.metrics,
            "classes": list(self.classes),
            "confusion": [list(row) for row in self.confusion],
            "reliability": [
                {
                    "low": b.low,
                    "high": b.high,
                    "rows": b.rows,
                    "confidence": b.confidence,
                    "accuracy": b.accuracy,
                }
                for b in self.bins
            ],
            "groups": {
                g.name: {"rows": g.rows, "behind": g.behind, **g.metrics} for g in self.groups
            },
            "groups_suppressed": self.suppressed,
        }


def evaluate(
    task: Task, predicted: Iterator[Predictions], *, smallest: int = SMALLEST
) -> Evaluation:
    """Gather the scores of labelled rows (a few numbers a row) and measure them."""
    scores: list[Any] = []
    labels: list[Tensor] = []
    groups: list[str] = []
    skipped = 0
    for part in predicted:
        skipped += len({fault.row for fault in part.faults})
        if part.labels is None or not len(part.rows):
            continue
        scores.append(part.scores)
        labels.append(part.labels)
        groups += part.groups or []
    if not scores:
        raise ValueError("expected labelled rows, found none")
    return measure(task, joined(scores), torch.cat(labels), groups, smallest, skipped)


def measure(
    task: Task,
    scores: Any,
    labels: Any,
    groups: Sequence[str] = (),
    smallest: int = SMALLEST,
    skipped: int = 0,
) -> Evaluation:
    """The figures of raw outputs (a tree of [rows, ...]) against labels, by group where given."""
    scores, y = pytree.tree_map(torch.as_tensor, scores), torch.as_tensor(labels)
    evaluation = Evaluation(
        rows=len(y),
        metrics=metrics(task, scores, y),
        confusion=confusion(task, scores, y),
        bins=reliability(task, scores, y),
        skipped=skipped,
        classes=task.classes,
    )
    if not groups:
        return evaluation
    names = np.array(groups, dtype=object)
    errors = _errors(task, scores, y)
    shown, hidden = _large_enough(names, smallest)
    figures = []
    for name in shown:
        members = names == name
        behind = _behind(errors[members], errors[~members], task.kind)
        at = torch.from_numpy(members)
        of_own = metrics(task, pytree.tree_map(lambda t, at=at: t[at], scores), y[at])
        figures.append(Group(name or "(none)", int(members.sum()), of_own, behind))
    return replace(evaluation, groups=tuple(figures), suppressed=hidden)


def _large_enough(names: NDArray[Any], smallest: int) -> tuple[list[str], int]:
    """The groups that may be shown, and how many may not.

    What is hidden together has to be large enough too: it is all rows less the groups shown.
    """
    counts = sorted(Counter(names.tolist()).items(), key=lambda item: (item[1], item[0]))
    hidden = rows = 0
    for _, count in counts:
        if count >= smallest and (rows == 0 or rows >= smallest):
            break
        hidden, rows = hidden + 1, rows + count
    return sorted(name for name, _ in counts[hidden:]), hidden


def metrics(task: Task, scores: Any, y: Tensor) -> dict[str, float]:
    """The task's own metrics; for classes the area under the ROC curve and the ECE too."""
    values = dict(task.metrics(scores, y))
    if task.kind != "classification":
        return values
    decoded = task.decode(scores)
    # A class that no row has, or every row has, has no curve.
    present = torch.unique(y)
    if len(present) > 1:
        classes = [1] if decoded.shape[1] == 2 else present.tolist()
        values_of, labels = decoded.numpy(), y.numpy()
        each = [auroc(values_of[:, c], labels == c) for c in classes]
        values["auc"] = sum(each) / len(each)
    values["ece"] = calibration_error(reliability(task, scores, y))
    return values


def auroc(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """The area under the ROC curve of scores [n]: the chance that a positive one has the higher.

    Equal scores count one half (Mann and Whitney 1947; Hanley and McNeil 1982). Both kinds of rows
    have to be there.
    """
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[place]  # from 1, the mean rank where scores are equal
    hits = int(positive.sum())
    above = float(ranks[positive].sum()) - hits * (hits + 1) / 2
    return above / (hits * (len(scores) - hits))


def confusion(task: Task, scores: Any, y: Tensor) -> tuple[tuple[int, ...], ...]:
    """How many rows of each class (first index) were taken for each class; else none."""
    if task.kind not in ("classification", "ordinal"):
        return ()
    count = len(task.classes)
    pairs = torch.bincount(y * count + best(task, task.decode(scores)), minlength=count * count)
    return tuple(tuple(row) for row in pairs.reshape(count, count).tolist())


def reliability(task: Task, scores: Any, labels: Any) -> tuple[Bin, ...]:
    """Confidence against accuracy in tenths of confidence; empty ones are left out."""
    if task.kind != "classification":
        return ()
    decoded = task.decode(pytree.tree_map(torch.as_tensor, scores)).numpy()
    confidence, right = decoded.max(1), decoded.argmax(1) == np.asarray(labels)
    place = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    bins = []
    for i in range(BINS):
        members = place == i
        if members.any():
            mean, accuracy = float(confidence[members].mean()), float(right[members].mean())
            bins.append(Bin(i / BINS, (i + 1) / BINS, int(members.sum()), mean, accuracy))
    return tuple(bins)


def calibration_error(bins: Sequence[Bin]) -> float:
    """The mean distance of confidence and accuracy over rows (Guo et al. 2017, section 2)."""
    total = sum(b.rows for b in bins)
    return sum(b.rows * abs(b.confidence - b.accuracy) for b in bins) / total if total else 0.0


def _errors(task: Task, scores: Any, y: Tensor) -> NDArray[np.float64]:
    """A row's error: 1 for a wrong class; its loss where there are no classes."""
    if task.kind in ("classification", "ordinal"):
        wrong = best(task, task.decode(scores)) != y
        return np.asarray(wrong.double().numpy(), np.float64)
    return np.asarray(task.loss(scores, y).double().numpy(), np.float64)


def _behind(members: NDArray[np.float64], others: NDArray[np.float64], kind: str) -> bool:
    if not len(others):
        return False
    worse = float(members.mean() - others.mean())
    chance = 2 * float(np.sqrt(members.var() / len(members) + others.var() / len(others)))
    least = 0.05 if kind in ("classification", "ordinal") else 0.1 * float(others.mean())
    return worse > max(chance, least)
