"""Conformance under settings that each audit draws anew: what holds for plain steps holds for all.

`client.audit.conformance` looks closely at a few plain settings; here every optimizer, precision,
number of threads, micro-batch, clip, round, model size and row count is visited, in combinations
that nobody can foresee, and every kind of layer.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from client.audit.check import Check, Worst
from client.audit.probes import (
    Probe,
    Sums,
    clipped_sum,
    every_kind,
    flat,
    one_hot,
    updated,
)
from client.audit.reference import change, gain, spread
from client.audit.settings import Drawn, Setting
from client.tasks.losses import seeded
from client.tasks.rows import Rows
from privacy.audit.p_values import beyond, chi_square, echo
from privacy.mechanism import noise

_TINY: Final = 1e-5  # noise beside which the sums are seen plainly
_SLACK: Final = {"float32": 1e-3, "bfloat16": 0.05}  # of the clip, a record: of its direction
_BOUND: Final = 1e-3  # of the clip: how far rounding may take a record beyond it
_SCALES: Final = (1.0, 1e3, 1e20, math.inf, math.nan)
_WORK: Final = 2**22  # outputs of all rows of a step, at most
_PARTS: Final = 50  # micro-batches of a step, at most


def noise_under_every_setting(drawn: Sequence[Drawn], device: str) -> Check:
    """Of silent records nothing but noise is released: its scale, its tails, and no echo."""
    worst, every = Worst(), []
    for one in drawn:
        setting = replace(one.setting.visible(), device=device)
        if setting.optimizer == "adam":
            continue
        probe, setting = silent(one, setting)
        z = _noise(probe, setting)
        worst = worst.and_(chi_square(float(z @ z), len(z)), f"scale, {_where(one, setting)}")
        worst = worst.and_(echo(z), f"echo, {_where(one, setting)}")
        every.append(z)
    z = np.concatenate(every)
    for k in (3, 4, 5):
        count = int((np.abs(z) > k).sum())
        p = float(stats.binomtest(count, len(z), 2 * stats.norm.sf(k)).pvalue)
        worst = worst.and_(p, f"{count} draws beyond {k} standard deviations")
    if not np.isfinite(z).all():
        worst = worst.and_(0.0, "draws that are not finite")
    detail = f"{len(z)} draws under {len(every)} settings"
    return worst.check("noise under every setting", detail, float(z.std()))


def noise_under_adam(drawn: Sequence[Drawn], device: str) -> Check:
    """Adam's releases have the law that the claimed noise beside the exact sum gives.

    Adam hides how loud its gradients are: only beside records does it tell. Each record moves a
    weight of its own by exactly the clip, so that the sum is known at every step.
    """
    worst, count = Worst(), 0
    source = np.random.default_rng()
    for one in drawn:
        if one.setting.optimizer != "adam":
            continue
        sigma = 0.5 + 2.5 * (one.setting.sigma / 20)  # beside a clip it must be told
        setting = replace(one.setting, sigma=sigma, rate=1.0, device=device).visible()
        probe = one_hot(128, setting.clip)
        start = flat(_weights(probe))
        sums = np.full(len(start), -setting.clip / setting.plan.denominator(setting.site))
        for _ in range(8):
            update = flat(updated(probe, setting))
            means = sums + source.normal(0, setting.std, (setting.steps, len(start)))
            expected = change(setting, start, means)
            grain = 1e-4 * setting.lr  # a first step is the sign alone: float32 dust is no law
            ks = stats.ks_2samp(np.rint(update / grain), np.rint(expected / grain))
            worst = worst.and_(float(ks.pvalue), _where(one, setting), float(ks.statistic))
            count += len(update)
    return worst.check("noise under Adam", f"{count} releases against as many draws")


def a_record_is_bounded_under_every_setting(drawn: Sequence[Drawn], device: str) -> Check:
    """One record, however monstrous, moves the released sum by at most the clip."""
    worst = Worst()
    for one, probe in _with_kinds(drawn, count=24):
        setting = _plain_sum(one, device)
        base = _sum(probe, setting)
        for scale in _SCALES:
            x, y = probe.rows.x[:1], torch.full((1,), -4.0 * setting.clip * scale)
            rows = Rows(torch.cat([probe.rows.x, x]), torch.cat([probe.rows.y, y]))
            moved = (_sum(Probe(probe.name, probe.model, rows), setting) - base) / setting.clip
            length, p = beyond(moved, 1 + _BOUND, math.sqrt(2) * _TINY)
            worst = worst.and_(p, f"{probe.name}, gradient x {scale:g}, {setting.words}", length)
    return worst.check(
        "a record is bounded under every setting", f"moved {worst.size:.4f} of the clip at most"
    )


def sums_are_exact_under_every_setting(drawn: Sequence[Drawn], device: str) -> Check:
    """The released sum is that of records clipped one by one, however many rows there are."""
    worst = Worst()
    for one, probe in _with_kinds(drawn, count=20):
        setting = _plain_sum(one, device)
        most_rows = _PARTS * (setting.micro_batch or len(probe.rows))
        times = max(1, min(one.rows, most_rows) // len(probe.rows))
        rows = Rows(
            probe.rows.x.repeat(times, *[1] * (probe.rows.x.dim() - 1)),
            probe.rows.y.repeat(times),
        )
        exact = flat(clipped_sum(probe, setting.clip)) * times
        rest = (_sum(Probe(probe.name, probe.model, rows), setting) - exact) / setting.clip
        length, p = beyond(rest, _SLACK[setting.precision] * len(rows), _TINY)
        at = f"{probe.name}, {len(rows)} rows, {setting.words}"
        worst = worst.and_(p, at, length / len(rows))
    return worst.check(
        "sums are exact under every setting", f"off by {worst.size:.2g} of the clip a record"
    )


def releases_are_on_the_grid(drawn: Sequence[Drawn], device: str) -> Check:
    """What plain steps from weights of 0 release is a whole number of steps of the public grid."""
    off, total, coarse = 0, 0, math.inf
    for one in drawn:
        plain = Setting(one.setting.sigma, nominal=one.setting.nominal, clip=one.setting.clip)
        setting = replace(plain, threads=one.setting.threads, device=device)
        probe, setting = silent(one, setting, zero=True)
        over = setting.plan.denominator(setting.site)
        step = noise.grid(setting.sum_std)
        coarse = min(coarse, step / setting.sum_std)
        released = flat(updated(probe, setting)) * over / step
        allowed = np.abs(released) * 2.0**-22 + 1e-6  # two roundings to float32 of the quotient
        off += int((np.abs(released - np.rint(released)) > allowed).sum())
        total += len(released)
    detail = f"{off} of {total} numbers off a grid of {coarse:.2g} standard deviations"
    p = 0.0 if off or coarse < 2.0**-14 else 1.0
    return Check("releases are on the grid", off / total, p, detail)


def silent(one: Drawn, setting: Setting, *, zero: bool = False) -> tuple[Probe, Setting]:
    """A model of `size` weights and silent rows of it, sampled at a rate that bounds the work."""
    width = 8
    outputs = max(1, one.size // (width + 1))
    batch = min(_WORK / outputs, _PARTS * (setting.micro_batch or one.rows))
    rate = min(1.0, batch / one.rows)

    def model() -> nn.Module:
        layer = nn.Linear(width, outputs)
        if zero:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        return layer

    rows = Rows(torch.zeros(one.rows, width), torch.zeros(one.rows))
    nominal = max(setting.nominal, math.ceil(1 / rate))
    sampled = replace(setting, rate=rate, nominal=nominal)
    if setting.lr != 1.0:
        sampled = replace(sampled, l2=one.setting.l2, mu=one.setting.mu).visible()
    return Probe("silent", seeded(model), rows), sampled


def _noise(probe: Probe, setting: Setting) -> NDArray[np.float64]:
    """A round's noise in standard deviations: what is left of the update, tensor after tensor."""
    start = flat(_weights(probe))
    still = change(setting, start, np.zeros((setting.steps, len(start))))
    z: NDArray[np.float64] = (flat(updated(probe, setting)) - still) / (
        setting.std * spread(setting)
    )
    return z


def _plain_sum(one: Drawn, device: str) -> Setting:
    """The drawn setting where one step shows its sum: of little noise, and not by Adam."""
    drawn = one.setting
    setting = replace(
        drawn,
        sigma=_TINY,
        steps=1,
        rate=1.0,
        round=1,
        l2=0.0,
        mu=0.0,
        optimizer="sgd" if drawn.optimizer == "adam" else drawn.optimizer,
        device=device,
    )
    return replace(setting, lr=setting.plan.denominator(setting.site) / setting.clip)


def _sum(probe: Probe, setting: Setting) -> NDArray[np.float64]:
    """The noisy sum that a round of one step has released."""
    over = setting.plan.denominator(setting.site)
    released: NDArray[np.float64] = flat(updated(probe, setting)) / gain(setting) * over
    return released


def _weights(probe: Probe) -> Sums:
    return {
        name: p.detach().numpy().astype(np.float64) for name, p in probe.model(0).named_parameters()
    }


def _with_kinds(drawn: Sequence[Drawn], count: int) -> Iterator[tuple[Drawn, Probe]]:
    """Every setting with a kind of layer, every kind of layer with a setting."""
    for i in range(max(len(drawn), len(every_kind(1, 1.0)))):
        one = drawn[i % len(drawn)]
        kinds = every_kind(count, one.setting.clip)
        yield one, kinds[i % len(kinds)]


def _where(one: Drawn, setting: Setting) -> str:
    return f"{one.size} weights, {one.rows} rows, {setting.words}"


SETTING_CHECKS: Final[tuple[Callable[[Sequence[Drawn], str], Check], ...]] = (
    noise_under_every_setting,
    noise_under_adam,
    a_record_is_bounded_under_every_setting,
    sums_are_exact_under_every_setting,
    releases_are_on_the_grid,
)
"""Each takes the drawn settings and the device."""
