"""A round as mathematics: state and updates in, state out. No messages, no files, no clock."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from privacy.arrays import Arrays, laid_out
from privacy.contract.learning_rate import server_part
from privacy.contract.plan import Plan
from privacy.mechanism import noise
from privacy.mechanism.sensitivity import noise_std
from privacy.statistics.release import SUMS

Totals = dict[str, NDArray[Any]]
"""Sums of updates by name: float64 in the client unit, else float32."""

_ADDED: Final = 2.0**-18
"""What float64 adds to the sensitivity of a sum of at most 100,000 clipped updates, relative."""


_MEAN: Final = np.float32(0.9)
_SQUARE: Final = np.float32(0.99)
"""How much of the running means of steps and of their squares stays in a round."""


@dataclass(frozen=True, slots=True)
class State:
    """What the coordinator carries from round to round; `weights` start the next one.

    `velocity` and `scale` are what the server's optimizer remembers: running means of steps and of
    their squares. `sites` are each site's own noisy sums by its name, where the plan is one of
    statistics.
    """

    round: int
    weights: Arrays
    velocity: Arrays | None = None
    mean: Arrays | None = None
    clip: float | None = None
    sites: Arrays = field(default_factory=dict)
    scale: Arrays | None = None

    def released(self) -> Arrays:
        """The model that this round releases: the running mean where the plan averages."""
        return self.mean if self.mean is not None else self.weights

    def to_arrays(self) -> Arrays:
        """The released model by its own names, and the rest under `server/`."""
        arrays = dict(self.released())
        arrays["server/round"] = np.array([self.round], dtype=np.float32)
        if self.mean is not None:
            arrays |= {f"server/weights/{name}": a for name, a in self.weights.items()}
        if self.velocity is not None:
            arrays |= {f"server/velocity/{name}": a for name, a in self.velocity.items()}
        if self.scale is not None:
            arrays |= {f"server/scale/{name}": a for name, a in self.scale.items()}
        if self.clip is not None:
            arrays["server/clip"] = np.array([self.clip], dtype=np.float32)
        return arrays | {f"server/sites/{name}": a for name, a in self.sites.items()}

    @classmethod
    def from_arrays(cls, arrays: Arrays, number: int) -> "State":
        """Read what `to_arrays` wrote."""

        def under(prefix: str) -> Arrays | None:
            part = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
            return part or None

        released = {n: a for n, a in arrays.items() if not n.startswith("server/")}
        weights = under("server/weights/")
        clip = arrays.get("server/clip")
        return cls(
            number,
            weights if weights is not None else released,
            under("server/velocity/"),
            released if weights is not None else None,
            None if clip is None else float(clip[0]),
            under("server/sites/") or {},
            under("server/scale/"),
        )


@dataclass(frozen=True, slots=True)
class Update:
    """One site's new minus old weights of one round; `below` is the client unit's clip bit.

    `age` counts the rounds since its own: a late update counts 1 / sqrt(1 + age), a public number
    (Nguyen et al. 2022, FedBuff). With `weight` it is the sum of several sites' updates, made by
    `added`, whose weights add up to that; `site` is the relay that made it.
    """

    site: str
    arrays: Arrays
    below: float | None = None
    age: int = 0
    weight: float | None = None


def start(weights: Arrays, plan: Plan) -> State:
    """The state before the first round."""
    mean = {n: a.copy() for n, a in weights.items()} if plan.average else None
    return State(0, weights, mean=mean, clip=plan.clip if plan.noised_centrally else None)


def cohort(names: Iterable[str], plan: Plan, number: int) -> list[str]:
    """The sites that round `number` asks, in the order of their names: all, or the plan's `cohort`.

    A site's place in the draw follows from the plan's seed, the round and its own name: who else is
    there does not move it, so that a round played again asks the same sites, whose stored replies
    then serve. Whoever has the plan can compute the draw, so it amplifies no privacy.
    """
    known = tuple(names)
    if plan.cohort is None or len(known) <= plan.cohort:
        return sorted(known)
    factor = np.random.default_rng([plan.seed, number]).integers(2**63, dtype=np.uint64) * 2 + 1
    places = _marks(known) * factor  # modulo 2^64: multiplicative hashing
    return sorted(known[i] for i in np.argpartition(places, plan.cohort)[: plan.cohort])


@lru_cache(maxsize=2)
def _marks(names: tuple[str, ...]) -> NDArray[np.uint64]:
    """64 bits of every name, hashed once for as long as the same sites are there."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, np.uint64)


def combine(state: State, updates: Iterable[Update], plan: Plan, *, sites: int = 1) -> State:
    """The next state; `updates` is consumed one by one, so that one is in memory at a time.

    FedAvg (McMahan et al. 2017) over equal or public weights, with momentum at the server (Hsu et
    al. 2019): v = m v + mean(updates); w = w + server_lr v. Unit "client" is DP-FedAvg (McMahan et
    al. 2018): a sum of `sites` updates clipped to `clip`, noised here, over the number `sites`,
    which is public and does not depend on who answered.

    With `combine` "median" or "trimmed-mean" (Yin et al. 2018) all updates are in memory at once.
    """
    if plan.statistics is not None:
        return _counted(state, updates)
    if plan.combine != "mean":
        return moved(state, _middle(list(updates), plan), plan)
    total: Totals = {}
    weight, below = 0.0, 0.0
    for update in updates:
        weight += added(total, update, state, plan)
        below += update.below or 0.0
        del update  # else it would stay in memory while the next one unfolds
    if plan.noised_centrally:
        mean = _noisy_mean(total, state, plan, sites)
    elif weight == 0:
        raise ValueError("updates: must be at least one, got none")
    else:
        mean = total
        for name in mean:
            mean[name] /= np.float32(weight)
    following = moved(state, mean, plan)
    if plan.noised_centrally and plan.clip_quantile is not None:
        return replace(following, clip=_adapted(state, below, sites, plan))
    return following


def _counted(state: State, updates: Iterable[Update]) -> State:
    """The sum of all sites' noisy sums, and each site's own: they are noised, so both may be kept.

    A model that made predictions stays as it was.
    """
    sites = {update.site: update.arrays[SUMS] for update in updates}
    total = sum(sites.values(), np.zeros(state.weights[SUMS].shape))
    weights = {**state.weights, SUMS: total.astype(np.float32)}
    return State(state.round + 1, weights, sites=sites)


def weight_of(plan: Plan, site: str, age: int) -> float:
    """The public weight of a site's update that is `age` rounds late."""
    share = float(plan.units_of(site)) if plan.weights == "rows" else 1.0
    return share / math.sqrt(1 + age)


def added(total: Totals, update: Update, state: State, plan: Plan) -> float:
    """Add an update, clipped in the client unit, times its weight; returns the weight.

    In the client unit the sums are float64: the noise pays for their rounding, which is less.
    """
    arrays, share = update.arrays, 1.0
    if plan.noised_centrally:
        clipped, _ = noise.clip(list(arrays.values()), _clip(state))
        for name, array in zip(arrays, clipped, strict=True):
            if name in total:
                total[name] += array
            else:
                total[name] = array.astype(np.float64)
        return share
    if update.weight is None:
        share = weight_of(plan, update.site, update.age)
    else:
        share = 1 / math.sqrt(1 + update.age)
    for name, array in arrays.items():
        if name not in total:
            total[name] = np.multiply(array, np.float32(share), dtype=np.float32)
        else:
            total[name] += array if share == 1 else np.float32(share) * array
    return share * (1.0 if update.weight is None else update.weight)


def _middle(updates: list[Update], plan: Plan) -> Arrays:
    """Number by number, the median of the updates, or the mean of those that no end cuts off."""
    if not updates:
        raise ValueError("updates: must be at least one, got none")
    cut = int(plan.trim * len(updates)) if plan.combine == "trimmed-mean" else 0
    middle: Arrays = {}
    for name in updates[0].arrays:
        values = np.stack([update.arrays[name] for update in updates]).astype(np.float32)
        if plan.combine == "median":
            middle[name] = np.asarray(np.median(values, axis=0), np.float32)
        else:
            values.sort(axis=0)
            middle[name] = np.asarray(values[cut : len(values) - cut].mean(axis=0), np.float32)
    return middle


def moved(state: State, step: Arrays, plan: Plan) -> State:
    """The state after a step; `step` becomes its velocity, without another copy of the model."""
    optimizer = plan.server_optimizer
    if optimizer == "sgd" and plan.server_momentum and state.velocity is not None:
        for name, old in state.velocity.items():
            step[name] += np.float32(plan.server_momentum) * old
    velocity = step if optimizer == "sgd" and plan.server_momentum else None
    scale: Arrays | None = None
    along = step
    if optimizer != "sgd":
        velocity, scale, along = adaptive_step(
            step, plan, velocity=state.velocity, scale=state.scale, done=state.round
        )
    rate = np.float32(server_rate(plan, state.round))
    shrink = np.float32(0.0 if plan.l1 is None else plan.l1 * rate)
    weights: Arrays = laid_out({name: a.shape for name, a in state.weights.items()})
    for name, old in state.weights.items():
        new = np.multiply(along[name], rate, out=weights[name])
        new += old
        if shrink:
            new[...] = shrunk(new, shrink)
    mean: Arrays | None = None
    if plan.average and state.mean is not None:
        # A running mean whose memory grows with the rounds and forgets the start.
        keep = np.float32(min(0.98, (state.round + 1) / (state.round + 10)))
        past = state.mean
        mean = {
            n: np.asarray(keep * past[n] + (1 - keep) * a, np.float32) for n, a in weights.items()
        }
    return State(state.round + 1, weights, velocity, mean, state.clip, scale=scale)


def adaptive_step(
    step: Arrays, plan: Plan, *, velocity: Arrays | None, scale: Arrays | None, done: int
) -> tuple[Arrays | None, Arrays, Arrays]:
    """The new running means of steps (None for RMSprop) and squares, and the way to go.

    Reddi et al. 2021 (Adaptive Federated Optimization, Algorithm 2): the mean update takes the
    gradient's place. A site's own optimizer begins anew in every round, this one does not.
    `done` rounds were before. Both means are brought to the size that they would have without
    their start at zero (Kingma & Ba 2015, section 3). `server_tau` keeps the root from zero.
    """
    tau, number = np.float32(plan.server_tau), done + 1
    square: Arrays = {}
    for name, new in step.items():
        squares = np.asarray(new * new, np.float32)
        old = np.zeros_like(squares) if scale is None else scale[name]
        if plan.server_optimizer == "yogi":
            square[name] = old - (1 - _SQUARE) * squares * np.sign(old - squares)
        else:
            square[name] = _SQUARE * old + (1 - _SQUARE) * squares
    spread = 1 - float(_SQUARE) ** number
    if plan.server_optimizer == "rmsprop":
        return None, square, {n: new / _root(square[n], spread, tau) for n, new in step.items()}
    mean = {
        name: np.asarray(
            (1 - _MEAN) * new if velocity is None else _MEAN * velocity[name] + (1 - _MEAN) * new,
            np.float32,
        )
        for name, new in step.items()
    }
    size = np.float32(1 - float(_MEAN) ** number)
    return mean, square, {n: m / size / _root(square[n], spread, tau) for n, m in mean.items()}


def _root(square: NDArray[Any], spread: float, tau: np.float32) -> NDArray[np.float32]:
    return np.asarray(np.sqrt(np.maximum(square, 0) / np.float32(spread)) + tau, np.float32)


def server_rate(plan: Plan, done: int) -> float:
    """The coordinator's rate of the round after `done`: warmed up, then constant or a cosine."""
    return plan.server_lr * server_part(plan, done, plan.rounds)


def shrunk(weights: NDArray[Any], by: np.float32) -> NDArray[np.float32]:
    """Weights nearer to zero by so much, those within it zero: the step of an L1 penalty."""
    if not by:
        return np.asarray(weights, np.float32)
    return np.asarray(np.sign(weights) * np.maximum(np.abs(weights) - by, 0), np.float32)


def _clip(state: State) -> float:
    if state.clip is None:
        raise ValueError("clip: expected a number in a state of the client unit")
    return state.clip


def _noisy_mean(total: Totals, state: State, plan: Plan, sites: int) -> Arrays:
    """The noised sum of clipped updates (float64; empty if none came) over the sites asked."""
    sigma, clip = plan.nominal_sigma(), _clip(state)
    if sigma is None:
        raise ValueError("sigma: must be a number in the client unit, got nothing")
    if not total:
        total = {name: np.zeros(a.shape) for name, a in state.weights.items()}
    std = noise_std(sigma, clip, sum(a.size for a in total.values()), _ADDED)
    mean: Arrays = {}
    for name, array in total.items():
        noise.privatise(array, std, over=float(sites))
        mean[name] = array.astype(np.float32)
    return mean


def _adapted(state: State, below: float, sites: int, plan: Plan) -> float:
    """The clip moves towards the quantile of update norms (Andrew et al. 2021, Alg. 1).

    `below` counts the updates whose norm was at most the clip, each as +-1/2, so that its
    sensitivity is 1/2; the noisy share above the quantile shrinks the clip, below it grows it.
    """
    if plan.clip_quantile is None or plan.clip_sigma is None:
        return _clip(state)
    count = np.array([below], dtype=np.float64)
    noise.privatise(count, noise_std(plan.clip_sigma, 0.5, 1))
    share = float(count[0]) / sites + 0.5
    return float(_clip(state) * np.exp(-plan.clip_lr * (share - plan.clip_quantile)))
