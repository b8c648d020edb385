"""Checks of secure aggregation: the sum has its noise and is exact, a reply is uniform, lies fail.

Only what leaves a party is looked at, and what the others know is taken off it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from client.audit.check import Check
from client.audit.secure.exchange import (
    CLIP,
    NAMES,
    WIDTH,
    Exchange,
    RefusedStep,
    Seen,
    exchange,
)
from privacy.audit.p_values import beyond, chi_square
from privacy.mechanism.noise import grid
from privacy.mechanism.sensitivity import noise_std, slack
from privacy.secagg.masks import Words, add_mask
from privacy.secagg.messages import list_text, map_text, names_text, read_list, read_map
from privacy.secagg.party import pair_seed
from privacy.secagg.shares import Rebuilding, ShareError

_SIGMA: Final = 1.7
_TINY: Final = 1e-4
_ATTEMPTS: Final = 16
_SHARES: Final = 2  # of four parties: one may drop out, one collude


def secure_sums_have_their_noise(device: str) -> Check:
    """Of empty samples a sum holds the noise of all parties, enough with two of them missing."""
    z = []
    with exchange(device, sigma=_SIGMA, rate=1e-6) as parties:
        for _ in range(_ATTEMPTS):
            value, std = _value(parties, parties.attempt())
            z.append(value / (std * math.sqrt(len(NAMES))))
    noises = np.concatenate(z)
    square = float(noises @ noises)
    ratio = math.sqrt(square / len(noises))
    p = chi_square(square, len(noises))
    detail = f"noise {ratio:.3f} of what {len(NAMES)} shares make"
    return Check("secure sums have their noise", ratio, p, detail)


def secure_sums_are_exact(device: str) -> Check:
    """A sum is that of all parties' records, each clipped: masks cancel, and nothing wraps."""
    p, worst = 1.0, 0.0
    half = 0.5 * CLIP * len(NAMES)  # of gradients (1/2, -1/2) x (record, 1), of norm 1
    sign = np.where(np.arange(WIDTH) % 2 == 0, 1.0, -1.0)
    exact = np.concatenate([np.zeros(2), np.stack([-half * sign, half * sign]).reshape(-1)])
    with exchange(device, sigma=_TINY, rate=1.0) as parties:
        for _ in range(3):
            value, std = _value(parties, parties.attempt())
            deviation = std * math.sqrt(len(NAMES))
            length, chance = beyond(value - exact, 1e-3 * CLIP * WIDTH, deviation)
            worst, p = max(worst, length / CLIP), min(p, 3 * chance)
    return Check("secure sums are exact", worst, min(1.0, p), f"off by {worst:.2g} clips")


def masked_replies_are_uniform(device: str) -> Check:
    """A reply is uniform to the coordinator, also without what all but one secret explains.

    Looked at are the bare replies, replies without all masks of pairs, replies without the own
    mask, and the latter's differences from one attempt to the next, which are small where a mask
    is used twice.
    """
    views: dict[str, list[Words]] = {"bare": [], "own mask": [], "masks of pairs": [], "again": []}
    with exchange(device, sigma=_SIGMA, rate=1e-6) as parties:
        before: dict[str, Words] = {}
        for _ in range(_ATTEMPTS):
            seen = parties.attempt()
            for name in NAMES:
                words = seen.masked[name]
                paired = _without_own(seen, name, words)
                views["bare"].append(words)
                views["own mask"].append(_without_pairs(seen, name, words))
                views["masks of pairs"].append(paired)
                if name in before:
                    views["again"].append(paired - before[name])
                before[name] = paired
    chances = {name: _uniform(words) for name, words in views.items()}
    where = min(chances, key=lambda name: chances[name])
    p = min(1.0, len(chances) * chances[where])
    return Check("masked replies are uniform", p, p, f"the least likely view: {where}")


def secure_lies_are_refused(device: str) -> Check:
    """Forged keys, unsigned lists, few survivors, unsigned survivors: every party declines.

    Keys serve one attempt, and fewer shares than the threshold rebuild nothing.
    """
    wrong = []
    with exchange(device, sigma=_SIGMA, rate=1e-6) as parties:
        for name, lie in _LIES.items():
            try:
                parties.attempt(lie)
                wrong.append(f"{name} was accepted")
            except RefusedStep:
                continue
        first, second = parties.attempt(), parties.attempt()
        keys = [
            key
            for seen in (first, second)
            for one in seen.parties.keys
            for key in (one.encryption, one.masking, one.commitment)
        ]
        if len(set(keys)) < len(keys):
            wrong.append("keys were used in two attempts")
        if any(set(one.seeds) & set(one.keys) for one in first.revealed):
            wrong.append("both secrets of a party were revealed")
        if _too_few_suffice(parties, first):
            wrong.append("fewer shares than the threshold rebuild a secret")
    detail = "; ".join(wrong) if wrong else f"{len(_LIES)} lies refused"
    return Check("secure lies are refused", float(len(wrong)), 0.0 if wrong else 1.0, detail)


Fields = dict[str, str]


def _forged(stage: str, fields: Fields) -> Fields:
    if stage != "shares":
        return fields
    keys = read_list(fields["keys"])
    changed = [replace(keys[0], masking=bytes(range(32))), *keys[1:]]
    return fields | {"keys": list_text(changed)}


def _unsigned(stage: str, fields: Fields) -> Fields:
    if stage != "masked":
        return fields
    signed = read_map(fields["agreements"], 64)
    return fields | {"agreements": map_text(dict.fromkeys(signed, bytes(64)))}


def _few(stage: str, fields: Fields) -> Fields:
    return fields | {"survivors": names_text(NAMES[:2])} if stage == "survivors" else fields


def _unconfirmed(stage: str, fields: Fields) -> Fields:
    if stage != "reveal":
        return fields
    signed = read_map(fields["signatures"], 64)
    return fields | {"signatures": map_text(dict.fromkeys(signed, bytes(64)))}


_LIES: Final[dict[str, Callable[[str, Fields], Fields]]] = {
    "a forged key": _forged,
    "a list that nobody signed": _unsigned,
    "two survivors of four": _few,
    "survivors that nobody signed": _unconfirmed,
}


def _value(parties: Exchange, seen: Seen) -> tuple[NDArray[np.float64], float]:
    """A sum in the units of clipped gradients, and the deviation of one share as it must be."""
    total = parties.unmask(seen)
    over = parties.plan.denominator(NAMES[0])
    sigma = parties.plan.sigma or 0.0
    std = noise_std(sigma, CLIP, len(total), slack(over)) / math.sqrt(_SHARES)
    value: NDArray[np.float64] = total.view(f"<i{total.itemsize}").astype(np.float64) * grid(std)
    return value, std


def _without_own(seen: Seen, name: str, words: Words) -> Words:
    left: Words = words.copy()
    add_mask(left, seen.secrets[name].seed, subtract=True)
    return left


def _without_pairs(seen: Seen, name: str, words: Words) -> Words:
    left: Words = words.copy()
    for other, state in seen.secrets.items():
        if other != name:
            seed = pair_seed(seen.parties, state.masking, other, name)
            add_mask(left, seed, subtract=name < other)
    return left


def _uniform(replies: Sequence[Words]) -> float:
    counts = np.bincount(np.concatenate(replies).view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return chi_square(float(np.square(counts - expected).sum() / expected), 255)


def _too_few_suffice(parties: Exchange, seen: Seen) -> bool:
    """Whether one share less than the threshold gives the first party's seed."""
    less, seed = parties.plan.terms.threshold - 1, seen.secrets[NAMES[0]].seed
    shares = {seen.parties.at(one.site): one.seeds[NAMES[0]] for one in seen.revealed[:less]}
    try:
        Rebuilding(less).rebuild(shares, lambda value: value == seed)
    except ShareError:
        return False
    return True


SECURE_CHECKS: Final = (
    secure_sums_have_their_noise,
    secure_sums_are_exact,
    masked_replies_are_uniform,
    secure_lies_are_refused,
)
