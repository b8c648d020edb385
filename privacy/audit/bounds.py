"""Lower bounds on epsilon from an attacker's scores: pure functions, exact where statistics allow.

A canary is a unit put in or left out by a fair coin; its score is high where the attacker believes
it was in. A claim is contradicted when the attacker does better than the claim allows by more than
chance. An audit can only ever find a violation; it never proves privacy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from privacy.accounting.tradeoff import LEAST_SIGMA, Curve, curve

Vector: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]

CONFIDENCE: Final = 0.99
"""Of the lower bounds that are reported."""

ALPHA: Final = 1e-7
"""A check fails when chance would do this or worse with a smaller probability than this. Fixed
before looking; with some thirty checks a correct installation is accused three times in a million.
"""

GUESSES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""Shares of the canaries guessed in (and guessed out) by the one-run bound; fixed beforehand."""


class AuditError(ValueError):
    """Scores or settings that cannot be audited."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower bound on epsilon at `confidence`, and how surprising the claim makes the scores."""

    name: str
    epsilon: float
    confidence: float
    p: float


def clopper_pearson(hits: int, trials: int, alpha: float) -> tuple[float, float]:
    """Bounds below and above a probability, each wrong with probability <= alpha.

    Clopper and Pearson 1934: exact, by the quantiles of the beta distribution.

    >>> low, high = clopper_pearson(0, 10, 0.05)
    >>> low, round(high, 4)
    (0.0, 0.2589)
    """
    if not 0 <= hits <= trials or trials < 1 or not 0 < alpha < 1:
        raise AuditError(f"expected 0 <= hits <= trials and 0 < alpha < 1, got {hits}, {trials}")
    low = 0.0 if hits == 0 else float(stats.beta.ppf(alpha, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(stats.beta.isf(alpha, hits + 1, trials - hits))
    return low, high


def one_run_p(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """How likely an (epsilon, delta)-DP training allows so many correct guesses.

    Steinke, Nasr and Jagielski 2023, Theorem 5.2 (Algorithm in Appendix D): each of `canaries`
    examples is in by a fair coin, the attacker guesses at `guesses` of them and abstains at the
    rest. Nothing is assumed about the training: the guesses may depend on each other.
    """
    if not 0 <= correct <= guesses <= canaries or epsilon < 0 or not 0 <= delta <= 1:
        raise AuditError(
            f"expected 0 <= correct <= guesses <= canaries, got {correct}, {guesses}, {canaries}"
        )
    right = 1 / (1 + math.exp(-epsilon))  # of randomised response, the worst epsilon-DP mechanism
    p = float(stats.binom.sf(correct - 1, guesses, right))
    if delta > 0 and correct > 0:
        i = np.arange(1, correct + 1)
        near = np.cumsum(stats.binom.pmf(correct - i, guesses, right))  # P[v > Binomial >= v - i]
        p += float(np.max(near / i)) * 2 * canaries * delta
    return min(p, 1.0)


def one_run_epsilon(canaries: int, guesses: int, correct: int, delta: float, alpha: float) -> float:
    """The largest epsilon that so many correct guesses contradict at level `alpha`; 0 for none."""
    if one_run_p(canaries, guesses, correct, 0.0, delta) >= alpha:
        return 0.0
    low, high = 0.0, 1.0
    while high < 60 and one_run_p(canaries, guesses, correct, high, delta) < alpha:
        low, high = high, high + 1
    while high - low > 1e-6:
        middle = (low + high) / 2
        contradicted = one_run_p(canaries, guesses, correct, middle, delta) < alpha
        low, high = (middle, high) if contradicted else (low, middle)
    return low


def one_run_bound(
    scores: Vector, included: Mask, *, epsilon: float, delta: float, confidence: float = CONFIDENCE
) -> Bound:
    """Guess the highest scores in and the lowest out; the best of `GUESSES` by Bonferroni."""
    m = _checked(scores, included)
    order = np.argsort(scores, kind="stable")
    best, p = 0.0, 1.0
    for share in GUESSES:
        k = max(1, int(m * share))
        correct = int(included[order[-k:]].sum() + (~included[order[:k]]).sum())
        level = (1 - confidence) / len(GUESSES)
        best = max(best, one_run_epsilon(m, 2 * k, correct, delta, level))
        p = min(p, len(GUESSES) * one_run_p(m, 2 * k, correct, epsilon, delta))
    return Bound("one-run (Steinke, Nasr, Jagielski 2023)", best, confidence, min(p, 1.0))


@dataclass(frozen=True, slots=True)
class Errors:
    """What a test "in if the score is above the threshold" got wrong."""

    threshold: float
    false_in: int
    out: int
    false_out: int
    inside: int


def errors(scores: Vector, included: Mask, thresholds: Sequence[float]) -> tuple[Errors, ...]:
    """The errors at thresholds that must not depend on these scores."""
    _checked(scores, included)
    inside, out = scores[included], scores[~included]
    return tuple(
        Errors(t, int((out > t).sum()), len(out), int((inside <= t).sum()), len(inside))
        for t in thresholds
    )


def contradicted(claim: Curve, error_counts: Sequence[Errors], alpha: float) -> bool:
    """Whether both error rates of some test lie below the claimed curve beyond doubt `alpha`.

    The f-DP test: a mechanism with trade-off curve f has fnr >= f(fpr) for every test (Dong, Roth
    and Su 2022, Definition 2.3), so upper Clopper-Pearson limits of both rates that still lie below
    the curve contradict it. Holds where the canaries' scores are independent given the coins, as
    for canaries on coordinates of their own.
    """
    level = alpha / (2 * len(error_counts))
    for e in error_counts:
        fpr = clopper_pearson(e.false_in, e.out, level)[1]
        fnr = clopper_pearson(e.false_out, e.inside, level)[1]
        if fnr < claim.fnr(fpr):
            return True
    return False


def curve_bound(
    error_counts: Sequence[Errors],
    *,
    sigma: float,
    rate: float,
    steps: int,
    delta: float,
    confidence: float = CONFIDENCE,
) -> Bound:
    """The f-DP lower bound: epsilon of the most private claim of this kind that is contradicted.

    The claims are those with the same rate and steps and any noise; p is the smallest level at
    which the claimed sigma itself is contradicted.
    """
    alpha = 1 - confidence
    low, high = max(sigma / 64, LEAST_SIGMA), sigma * 64  # contradicted from some noise upwards
    if not contradicted(curve(high, rate, steps), error_counts, alpha):
        return Bound("f-DP (claimed trade-off curve)", 0.0, confidence, 1.0)
    while high / low > 1.002:
        middle = math.sqrt(low * high)
        if contradicted(curve(middle, rate, steps), error_counts, alpha):
            high = middle
        else:
            low = middle
    epsilon = curve(high, rate, steps).epsilon(delta)
    return Bound(
        "f-DP (claimed trade-off curve)",
        epsilon,
        confidence,
        _least_level(curve(sigma, rate, steps), error_counts),
    )


def _least_level(claim: Curve, error_counts: Sequence[Errors]) -> float:
    low, high = -30.0, 0.0  # powers of ten
    if not contradicted(claim, error_counts, 0.5):
        return 1.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (
            (low, middle) if contradicted(claim, error_counts, 10**middle) else (middle, high)
        )
    return float(10**high)


def auc(members: Vector, others: Vector) -> float:
    """The chance that a member scores above another, ties counted half (Mann and Whitney 1947)."""
    ranks = stats.rankdata(np.concatenate([members, others]))
    n, k = len(members), len(others)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * k))


def tpr_at(members: Vector, others: Vector, fpr: float) -> float:
    """The share of members found when at most the share `fpr` of the others is accused wrongly.

    The measure of Carlini et al. 2022: an attack that is sure of a few is an attack.
    """
    allowed = int(fpr * len(others))
    threshold = np.sort(others)[::-1][allowed] if allowed < len(others) else -np.inf
    return float((members > threshold).mean())


def normals_epsilon(mean: float, spread: float, null_spread: float, delta: float) -> float:
    """The epsilon between N(mean, spread^2) and N(0, null_spread^2): an estimate, no bound.

    Andrew et al. 2023 (Section 3) read it off the cosines between a release and the canaries that
    were in it, against random directions of the same dimension, N(0, 1/d).
    """
    reach = 12 * max(spread, null_spread) + abs(mean)
    x = np.linspace(-reach, reach, 400_001)
    p = np.diff(stats.norm.cdf(x, mean, spread))
    q = np.diff(stats.norm.cdf(x, 0.0, null_spread))

    def delta_at(epsilon: float) -> float:
        factor = math.exp(epsilon)
        return float(max(np.maximum(p - factor * q, 0).sum(), np.maximum(q - factor * p, 0).sum()))

    low, high = 0.0, 1.0
    if delta_at(0.0) <= delta:
        return 0.0
    while delta_at(high) > delta:
        low, high = high, 2 * high
        if high > 500:
            return math.inf
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if delta_at(middle) <= delta else (middle, high)
    return high


def _checked(scores: Vector, included: Mask) -> int:
    if scores.shape != included.shape or scores.ndim != 1 or not 0 < included.sum() < len(scores):
        raise AuditError("expected one score and one coin a canary, with some in and some out")
    if not np.isfinite(scores).all():
        raise AuditError("expected finite scores")
    return len(scores)
