"""What is learnt, by its kind: a loss per row, metrics of public rows, and what an output means.

Every loss is a function of one row's outputs and label alone, so that it can be clipped by row.
That is why Cox' partial likelihood, whose terms compare patients, is not here: its grouped form is
(Prentice & Gloeckler 1978; Kalbfleisch & Prentice 2002, section 4.8), over public bins of time.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from client.tasks import losses
from client.tasks.rows import TaskError

Loss = Callable[[Tensor, Tensor], Tensor]
Metrics = Callable[[Tensor, Tensor], dict[str, float]]
LIST = ";"
"""Between several labels of one row, and between the time and the event of a survival."""
IGNORED = -100
"""The label of a token that is not learnt from, as padding."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """`width` is how many numbers the model gives a row (0: it is the package's own affair).

    `loss(outputs, y)` is [B]; `metrics(outputs, y)` of public rows; `decode(outputs)` is what a
    prediction says.
    """

    width: int
    loss: Loss
    metrics: Metrics
    decode: Callable[[Tensor], Tensor]


def outcome(
    kind: str,
    *,
    classes: Sequence[str] = (),
    bounds: Sequence[float] = (),
    times: Sequence[float] = (),
    hazard: str = "logistic",
) -> Outcome:
    """The outcome of a kind (privacy/task_package/manifest.py); TaskError for one that has none.

    `hazard` of a survival is "logistic" (odds in each bin, Gensheimer & Narasimhan 2019) or "cox"
    (proportional hazards: the complementary log-log link).
    """
    if kind == "classification":
        return Outcome(
            len(classes),
            losses.cross_entropy,
            losses.classification_metrics,
            losses.probabilities,
        )
    if kind == "regression":
        half, middle = (bounds[1] - bounds[0]) / 2, (bounds[1] + bounds[0]) / 2
        return Outcome(
            1,
            losses.squared_error,
            losses.regression_metrics(half),
            lambda outputs: outputs.reshape(len(outputs)) * half + middle,
        )
    if kind == "multi-label":
        return Outcome(len(classes), _binary, _several_metrics, torch.sigmoid)
    if kind == "ordinal":
        return Outcome(len(classes) - 1, _ordinal, _ordinal_metrics, _ordered)
    if kind == "counts":
        return Outcome(1, _poisson, _count_metrics, lambda out: out.reshape(len(out)).exp())
    if kind == "tokens":
        return Outcome(0, _tokens, _token_metrics, lambda out: functional.softmax(out, dim=-1))
    if kind == "survival":
        edges = tuple(float(t) for t in times)
        return Outcome(
            len(edges) - 1,
            partial(survival_loss, times=edges, hazard=hazard),
            partial(_survival_metrics, times=edges, hazard=hazard),
            partial(survival_curve, hazard=hazard),
        )
    raise TaskError(f"kind must be one with a loss of its own, got {kind!r}")


def _binary(outputs: Tensor, y: Tensor) -> Tensor:
    """Several yes-or-no labels [B, K]: the sum of their cross-entropies, [B]."""
    return functional.binary_cross_entropy_with_logits(outputs, y, reduction="none").sum(1)


def _several_metrics(outputs: Tensor, y: Tensor) -> dict[str, float]:
    if not len(y):
        return {}
    predictions, true = outputs.detach() > 0, y > 0.5
    hits, predicted, there = (t.double().sum(0) for t in (predictions & true, predictions, true))
    f1 = (2 * hits / (predicted + there)).nan_to_num(0.0)
    return {
        "accuracy": float((predictions == true).double().mean()),
        "exact": float((predictions == true).all(1).double().mean()),
        "f1": float(f1[predicted + there > 0].mean())
        if bool((predicted + there > 0).any())
        else 0.0,
        "loss": float(_binary(outputs.detach(), y).mean()),
    }


def _ordinal(outputs: Tensor, y: Tensor) -> Tensor:
    """Ordered classes: K-1 logits of "more than class k" [B, K-1], their cross-entropies' sum."""
    steps = torch.arange(outputs.shape[1], device=outputs.device)
    return _binary(outputs, (y[:, None] > steps).to(outputs.dtype))


def _ordered(outputs: Tensor) -> Tensor:
    """Probabilities [B, K] of ordered classes; logits that cross are put in order first."""
    above = torch.sigmoid(outputs).cummin(1).values
    ends = torch.ones_like(above[:, :1])
    every = torch.cat([ends, above, torch.zeros_like(ends)], 1)
    return every[:, :-1] - every[:, 1:]


def _ordinal_metrics(outputs: Tensor, y: Tensor) -> dict[str, float]:
    if not len(y):
        return {}
    predictions = (outputs.detach() > 0).sum(1)
    return {
        "accuracy": float((predictions == y).double().mean()),
        "mae": float((predictions - y).abs().double().mean()),
        "loss": float(_ordinal(outputs.detach(), y).mean()),
    }


def _poisson(outputs: Tensor, y: Tensor) -> Tensor:
    """Counts: the negative log-likelihood of a Poisson variable whose log-rate is the output."""
    rate = outputs.reshape(len(y)).clamp(-20, 20)
    return rate.exp() - y * rate + torch.lgamma(y + 1)


def _count_metrics(outputs: Tensor, y: Tensor) -> dict[str, float]:
    if not len(y):
        return {}
    rate = outputs.detach().reshape(len(y)).clamp(-20, 20)
    terms = torch.xlogy(y, y) - y * rate - (y - rate.exp())
    return {
        "deviance": float(2 * terms.double().mean()),
        "mae": float((rate.exp() - y).abs().double().mean()),
        "loss": float(_poisson(outputs.detach(), y).mean()),
    }


def _tokens(outputs: Tensor, y: Tensor) -> Tensor:
    """Tokens [B, T] of logits [B, T, V]: each row's sum over its tokens that are not IGNORED."""
    each = functional.cross_entropy(
        outputs.transpose(1, 2), y, reduction="none", ignore_index=IGNORED
    )
    return each.sum(1)


def _token_metrics(outputs: Tensor, y: Tensor) -> dict[str, float]:
    mask = y != IGNORED
    if not bool(mask.any()):
        return {}
    total = float(_tokens(outputs.detach(), y).double().sum()) / float(mask.sum())
    hits = (outputs.detach().argmax(2) == y)[mask]
    return {
        "accuracy": float(hits.double().mean()),
        "perplexity": math.exp(min(total, 700.0)),
        "loss": total,
    }


def _log_survival(outputs: Tensor, hazard: str) -> tuple[Tensor, Tensor]:
    """log of dying, and of not dying, in each bin [B, K], given that one came so far."""
    if hazard == "cox":  # 1 - h = exp(-exp(score))
        rate = outputs.clamp(-30, 10).exp()
        return torch.log(-torch.expm1(-rate).clamp(max=-1e-30)), -rate
    return functional.logsigmoid(outputs), functional.logsigmoid(-outputs)


def survival_loss(
    outputs: Tensor, y: Tensor, *, times: Sequence[float], hazard: str = "logistic"
) -> Tensor:
    """Discrete hazards: -log likelihood of each row's own time and event, [B].

    `outputs` [B, K] are the scores of K bins, whose public edges are `times` (K + 1); `y` [B, 2] is
    the time, and 1 for an event or 0 for a censored row. A row is known to have come through the
    bins that end before its time; an event lies in the bin that holds its time. A time beyond the
    last edge is censored there.
    """
    edges = torch.tensor(times, dtype=y.dtype, device=y.device)
    time, event = y[:, 0], y[:, 1] > 0.5
    dies, lives = _log_survival(outputs, hazard)
    place = torch.bucketize(time.contiguous(), edges[1:], right=False)
    bins = torch.arange(outputs.shape[1], device=y.device)
    inside = event & (place < outputs.shape[1])
    through = bins < place[:, None]
    through |= ~inside[:, None] & (edges[1:] <= time[:, None])
    here = inside[:, None] & (bins == place[:, None])
    zero = torch.zeros_like(outputs)
    return -(torch.where(through, lives, zero) + torch.where(here, dies, zero)).sum(1)


def survival_curve(outputs: Tensor, *, hazard: str = "logistic") -> Tensor:
    """The probability of having come through each bin, [B, K]."""
    return _log_survival(outputs, hazard)[1].cumsum(1).exp()


def _survival_metrics(
    outputs: Tensor, y: Tensor, *, times: Sequence[float], hazard: str
) -> dict[str, float]:
    if not len(y):
        return {}
    risk = -survival_curve(outputs.detach(), hazard=hazard).double().sum(1)
    lost = survival_loss(outputs.detach(), y, times=times, hazard=hazard)
    metrics = {"loss": float(lost.mean())}
    index = concordance(risk.numpy(), y[:, 0].numpy(), y[:, 1].numpy() > 0.5)
    return metrics if index is None else metrics | {"c_index": index}


def concordance(
    risk: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]",
    time: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]",
    event: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]",
) -> float | None:
    """Harrell's C: of the pairs whose order is known, how many have the higher risk die first.

    Equal risks count one half. A pair is known where the earlier of the two times is an event; of
    equal times, where one alone is. None where no pair is known.
    """
    agreeing, known = 0.0, 0
    for i in np.flatnonzero(event):
        later = (time > time[i]) | ((time == time[i]) & ~event)
        known += int(later.sum())
        agreeing += float((risk[later] < risk[i]).sum() + 0.5 * (risk[later] == risk[i]).sum())
    return agreeing / known if known else None
