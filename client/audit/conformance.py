"""Is this installation's DP-SGD what it claims to be? Named checks of what the trainer releases.

Every check compares releases with their claimed distribution and says how likely chance alone would
be as far off (p, corrected for the number of comparisons in it). Only what leaves the trainer is
looked at, so it does not matter where a fault sits. Shuffled batches, one tensor without noise or a
constant seed hardly show in a canary audit; here they do.
"""

import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from client.audit.check import BROKEN, Check, Worst, broken
from client.audit.people_checks import PEOPLE_CHECKS
from client.audit.probes import (
    CLIP,
    Probe,
    Sums,
    clipped_sum,
    flat,
    in_a_fork,
    kinds,
    one_hot,
    package_root,
    release,
    wide,
)
from client.audit.setting_checks import SETTING_CHECKS
from client.audit.settings import Drawn, Setting
from client.statistics.conformance import STATISTICS_CHECKS
from client.tasks.rows import Rows
from privacy.accounting.segments import Budget
from privacy.audit.p_values import beyond, chi_square, correlation, echo
from privacy.ledger.ledger import Ledger
from privacy.mechanism import noise

_TINY: Final = 1e-5  # noise beside which the sums are seen plainly
_SLACK: Final = 1e-3  # of the clip: rounding in float32
_SCALES: Final = (1.0, 10.0, 1e3, 1e6, 1e20, math.inf, math.nan)
_RATES: Final = (0.25, 0.05)
_STEPS: Final = 8


def conform(device: str, drawn: Sequence[Drawn]) -> Iterator[Check]:
    """All checks, in turn: plain steps, whole replies, then steps under the `drawn` settings."""
    from client.audit.reply_checks import REPLY_CHECKS  # with Flower
    from client.audit.secure.checks import SECURE_CHECKS

    every: list[tuple[Callable[..., Check], Callable[[], Check]]]
    groups = (*STEP_CHECKS, *PEOPLE_CHECKS, *REPLY_CHECKS, *SECURE_CHECKS)
    every = [(check, partial(check, device)) for check in groups]
    every += [(check, check) for check in STATISTICS_CHECKS]
    every += [(check, partial(check, drawn, device)) for check in SETTING_CHECKS]
    for check, carry_out in every:
        try:
            yield carry_out()
        except BROKEN as error:
            yield broken(check.__name__.replace("_", " "), error)


def noise_without_records(device: str) -> Check:
    """Of an empty sample nothing but noise is released, at the claimed scale in every tensor."""
    samples: dict[str, list[NDArray[np.float64]]] = {}
    for probe in kinds():
        silent = probe.scaled(0.0)
        for _ in range(24):
            setting = Setting(sigma=1.3, rate=1e-4, nominal=10_000, device=device)
            _gather(samples, probe, release(silent, setting), setting.sum_std)
    return _scale_check("noise of an empty sample", samples)


def noise_beside_records(device: str) -> Check:
    """Beside a full sample the noise is the same: what remains after the exact sum is noise."""
    setting = Setting(sigma=0.8, device=device)
    std, samples, against = setting.sum_std, dict[str, list[NDArray[np.float64]]](), []
    for probe in kinds():
        exact = clipped_sum(probe)
        for _ in range(24):
            released = release(probe, setting)
            rest = {name: released[name] - exact[name] for name in exact}
            _gather(samples, probe, rest, std)
            against.append(float(flat(rest) @ flat(exact)) / (std * _length(exact)))
    scale = _scale_check("noise beside a full sample", samples)
    z = np.array(against)  # noise along the sum, the direction that tells most: N(0, 1)
    along = float(z.sum() / math.sqrt(len(z)))
    ps = (scale.p, float(2 * stats.norm.sf(abs(along))), chi_square(float(z @ z), len(z)))
    detail = f"{scale.detail}; along the sum z = {along:.2f}, deviation {z.std():.2f}"
    return Check(scale.name, scale.statistic, min(1.0, 3 * min(ps)), detail)


def noise_of_many_steps(device: str) -> Check:
    """The noise of T steps adds up like T independent draws: variances, not deviations, add."""
    samples: dict[str, list[NDArray[np.float64]]] = {}
    for probe in kinds():
        silent = probe.scaled(0.0)
        for steps in (2, 16):
            for _ in range(8):
                setting = Setting(sigma=2.0, steps=steps, device=device)
                released = release(silent, setting)
                _gather(samples, probe, released, setting.sum_std * math.sqrt(steps))
    return _scale_check("noise of many steps", samples)


def noise_is_normal(device: str) -> Check:
    """Kolmogorov-Smirnov, tails beyond 3, 4 and 5, no echo at any distance within a release."""
    draws = [flat(release(wide(512), Setting(sigma=1.0, device=device))) for _ in range(2)]
    z = np.concatenate(draws)
    ks = stats.kstest(z, "norm")
    tails = [
        stats.binomtest(int((np.abs(z) > k).sum()), len(z), 2 * stats.norm.sf(k)).pvalue
        for k in (3, 4, 5)
    ]
    echoes = min(1.0, min(echo(draw) for draw in draws) * len(draws))
    p = min(1.0, 5 * min(float(ks.pvalue), *map(float, tails), echoes))
    detail = f"Kolmogorov-Smirnov {ks.statistic:.4f} over {len(z)} draws; echo p = {echoes:.2g}"
    return Check("noise is normal", float(ks.statistic), p, detail)


def noise_is_fresh(device: str) -> Check:
    """Two sites, rounds or repetitions never share noise, whatever seeds the program has set."""
    state = torch.random.get_rng_state()
    legacy = np.random.get_state()
    draws: list[Sums] = []
    try:
        for site, number in (("a", 1), ("a", 1), ("b", 1), ("a", 2), ("b", 2)):
            torch.manual_seed(0)
            np.random.seed(0)
            setting = Setting(sigma=1.0, site=site, round=number, device=device)
            draws.append(release(wide(), setting))
    finally:
        torch.random.set_rng_state(state)
        np.random.set_state(legacy)
    pairs = [
        (left[a].reshape(-1), right[b].reshape(-1))
        for left, right in combinations(draws, 2)
        for a in left
        for b in right
    ]
    pairs += [(d[a].reshape(-1), d[b].reshape(-1)) for d in draws for a, b in combinations(d, 2)]
    r, p = min((correlation(a, b) for a, b in pairs), key=lambda result: result[1])
    p = min(1.0, p * len(pairs))
    return Check("noise is fresh", r, p, f"worst correlation of {len(pairs)} pairs: {r:.4f}")


def processes_differ(device: str) -> Check:
    """Copies of this process, and fresh processes, draw noise and samples of their own."""

    def draw() -> bytes:
        noisy = np.zeros(64, dtype=np.float32)
        noise.privatise(noisy, 1.0)
        drawn = np.isin(np.arange(512), noise.poisson(512, 0.5))
        sample: bytes = np.packbits(drawn).tobytes()
        return noisy.tobytes() + sample

    def train() -> bytes:
        return flat(release(wide(8), Setting(sigma=1.0))).astype(np.float32).tobytes()

    program = (
        "import sys, numpy; from privacy.mechanism import noise;"
        "noisy = numpy.zeros(64, dtype='f4'); noise.privatise(noisy, 1.0);"
        "sys.stdout.write(noisy.tobytes().hex())"
    )
    fresh = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=package_root(),
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for _ in range(2)
    ]
    same = ["two fresh processes"] if fresh[0] == fresh[1] else []
    untold = []
    for what, work in (("drawing", draw), ("training", train)):
        copies = [in_a_fork(work) for _ in range(2)]
        if None in copies:
            untold.append(what)
        elif _shared(copies[0] or b"", copies[1] or b""):
            same.append(f"two copies of this process, {what}")
    detail = f"same noise or samples in {', '.join(same)}" if same else "all differ"
    if untold:
        detail += f"; no copy could be made for {', '.join(untold)}"
    return Check("processes differ", float(len(same)), 0.0 if same else 1.0, detail)


def a_record_is_bounded(device: str) -> Check:
    """One record, however monstrous, moves the released sum by at most the clip."""
    worst = Worst()
    for probe in kinds(32):
        setting = Setting(sigma=_TINY, nominal=50, device=device)
        base = flat(release(probe, setting))
        for scale in _SCALES:
            for field in (
                ("gradient", "input") if probe.rows.x.is_floating_point() else ("gradient",)
            ):
                x, y = probe.rows.x[:1].clone(), torch.full((1,), -4.0)
                if field == "gradient":
                    y = y * scale
                else:
                    x = x * scale
                rows = Rows(torch.cat([probe.rows.x, x]), torch.cat([probe.rows.y, y]))
                moved = flat(release(Probe(probe.name, probe.model, rows), setting)) - base
                length, chance = beyond(moved, CLIP * (1 + _SLACK), math.sqrt(2) * _TINY)
                worst = worst.and_(chance, f"{probe.name}, {field} x {scale:g}", length)
    return worst.check("a record is bounded", f"moved {worst.size:.4f} of the clip at most")


def sums_are_exact(device: str) -> Check:
    """The released sum is that of records clipped one by one, over the public denominator."""
    worst = Worst()
    for count, nominal in ((12, 20), (40, 20), (1, 20)):
        for probe in kinds(count):
            released = release(probe, Setting(sigma=_TINY, nominal=nominal, device=device))
            exact = clipped_sum(probe)
            rest = flat({name: released[name] - exact[name] for name in exact})
            length, chance = beyond(rest, CLIP * _SLACK * count, _TINY)
            worst = worst.and_(chance, f"{probe.name}, {count} records", length / count)
    return worst.check("sums are exact", f"off by {worst.size:.2g} of the clip a record")


def samples_are_poisson(device: str) -> Check:
    """Every step's sample has the size that independent draws give: Binomial(n, rate)."""
    sizes, ps = [], []
    for rate in _RATES:
        drawn, broken = _drawn(rate, device)
        n = drawn.shape[2]
        counts = drawn.sum(2).reshape(-1)
        z = (counts - n * rate) / math.sqrt(n * rate * (1 - rate))
        sizes.append(f"rate {rate}: mean {counts.mean():.1f}, sd {counts.std():.1f}")
        ps.append(float(stats.binomtest(int(counts.sum()), n * len(counts), rate).pvalue))
        ps.append(chi_square(float(z @ z), len(z)))
        ps.append(0.0 if broken else 1.0)
        if broken:
            sizes.append(f"{broken} records not drawn once or never in a step")
    return Check("samples are Poisson", min(ps), min(1.0, len(ps) * min(ps)), "; ".join(sizes))


def draws_are_independent(device: str) -> Check:
    """Who was drawn says nothing of who will be: overlaps of steps, rounds; counts of records."""
    ps, details = [], []
    for rate in _RATES:
        drawn, _ = _drawn(rate, device)
        repeats, steps, n = drawn.shape
        pairs = [drawn[:, s] & drawn[:, t] for s, t in combinations(range(steps), 2)]
        pairs += [drawn[r] & drawn[r + 1] for r in range(repeats - 1)]
        pairs += [drawn[r, -1] & drawn[r + 1, 0] for r in range(repeats - 1)]
        each = [
            float(stats.binomtest(int(both.sum()), both.size, rate * rate).pvalue) for both in pairs
        ]
        counts = drawn.sum((0, 1))
        tails = np.minimum(
            stats.binom.cdf(counts, repeats * steps, rate),
            stats.binom.sf(counts - 1, repeats * steps, rate),
        )
        ps += [len(pairs) * min(each), 2 * n * float(tails.min())]
        mean = np.mean([both.mean() for both in pairs])
        details.append(f"rate {rate}: overlap {mean:.4f}, expected {rate * rate:.4f}")
    p = min(1.0, len(ps) * min(ps))
    return Check("draws are independent", min(ps), p, "; ".join(details))


def steps_are_counted(device: str) -> Check:
    """A ledger's events and the steps seen in the release are the same number."""
    probe, wrong, details, p = one_hot(16), 0.0, [], 1.0
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder) / "audit.jsonl", population="audit", durable=False)
        for number, steps in enumerate((1, 5, 40), 1):
            setting = Setting(sigma=_TINY, steps=steps, round=number, device=device)
            limit = Budget(math.inf, 1e-5)
            entry = ledger.spend(setting.event, limit, run="audit", round=number, plan="audit")
            seen = flat(release(probe, setting, entry.event)) / -CLIP
            rest = np.abs(seen) - steps
            length, chance = beyond(rest, _SLACK * steps, _TINY * math.sqrt(steps))
            details.append(f"{float(np.abs(seen).mean()):.2f} of {steps}")
            wrong, p = max(wrong, length), min(p, 3 * chance)
        paid = sum(event.steps * event.count for event in ledger.events())
    if paid != 46:
        p = 0.0
    return Check("steps are counted", wrong, min(1.0, p), f"seen {', '.join(details)}; paid {paid}")


Samples = tuple[NDArray[np.bool_], int]


STEP_CHECKS: Final[tuple[Callable[[str], Check], ...]] = (
    noise_without_records,
    noise_beside_records,
    noise_of_many_steps,
    noise_is_normal,
    noise_is_fresh,
    processes_differ,
    a_record_is_bounded,
    sums_are_exact,
    samples_are_poisson,
    draws_are_independent,
    steps_are_counted,
)
"""Each takes the device."""
TRAINER_CHECKS: Final = tuple(
    check for check in STEP_CHECKS if check not in (processes_differ, draws_are_independent)
)
"""Those of the trainer on a device; the two others are of the host's draws."""


def _drawn(rate: float, device: str, count: int = 1000, repeats: int = 8) -> Samples:
    """Who was drawn in which step, [rounds, steps, records], read from the releases alone.

    With momentum 1/2 the draw k steps before the end weighs 2 - 2^(1-k), so that a record's weight
    is a binary number of the steps in which it was drawn. Weights that are no such number are
    counted: drawn twice in a step, or in a step that nobody paid for.
    """
    probe = one_hot(count)
    setting = Setting(
        sigma=_TINY,
        rate=rate,
        steps=_STEPS,
        nominal=count,
        optimizer="momentum",
        momentum=0.5,
        device=device,
    )
    drawn, broken = np.zeros((repeats, _STEPS, count), dtype=bool), 0
    for r in range(repeats):
        weights = np.abs(flat(release(probe, setting))) / CLIP
        number = np.ceil(weights / 2 - 1e-3)
        code = (2 * number - weights) * 2 ** (_STEPS - 1)
        whole = np.rint(code).astype(np.int64)
        for k in range(_STEPS):  # bit k: drawn in step k, from the first
            drawn[r, k] = (whole >> k) & 1
        right = (np.abs(code - whole) < 0.2) & (whole >= 0) & (whole < 2**_STEPS)
        broken += int((~right | (drawn[r].sum(0) != number)).sum())
    return drawn, broken


def _gather(
    samples: dict[str, list[NDArray[np.float64]]], probe: Probe, sums: Sums, std: float
) -> None:
    for name, value in sums.items():
        samples.setdefault(f"{probe.name} {name}", []).append(value.reshape(-1) / std)


def _scale_check(name: str, samples: dict[str, list[NDArray[np.float64]]]) -> Check:
    """Chi-square of each tensor's draws, both sides, the worst of them."""
    ratio, p, where = 1.0, 1.0, "every tensor"
    for tensor, draws in samples.items():
        z = np.concatenate(draws)
        square = float(z @ z)
        chance = chi_square(square, len(z))
        if chance < p:
            ratio, p, where = math.sqrt(square / len(z)), chance, tensor
    detail = (
        f"standard deviation {ratio:.3f} of the claimed one in {where}, of {len(samples)} tensors"
    )
    return Check(name, ratio, min(1.0, p * len(samples)), detail)


def _length(sums: Sums) -> float:
    return float(np.linalg.norm(flat(sums)))


def _shared(left: bytes, right: bytes) -> bool:
    """Whether two copies have any 32 equal bytes, not all zero, at the same place."""
    starts = range(0, min(len(left), len(right)) - 31, 32)
    return any(left[i : i + 32] == right[i : i + 32] and any(left[i : i + 32]) for i in starts)
