"""Estimates and their error bars: the intervals cover as often as they say."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

import privacy.statistics.estimates as estimates
from privacy.contract.keys.tables import StatisticsPlan
from privacy.statistics.columns import CategoryColumn, NumberColumn
from privacy.statistics.design import Design, design
from privacy.statistics.differences import difference
from privacy.statistics.estimates import (
    Interval,
    correlation,
    counts,
    deviation,
    mean,
    ranks,
    ratio,
)
from privacy.statistics.figures import figures, order_of
from privacy.statistics.release import exact_sums

COLUMNS = (
    NumberColumn("age", 0, 80),
    NumberColumn("dose", 0, 1),
    CategoryColumn("ward", ("a", "b", "c")),
)
STD = 25.0


def of(**more: object) -> Design:
    columns = {"age": ("quantiles",), "dose": ("moments",), "ward": ("frequencies",)}
    values: dict[str, object] = {"of": "table", "columns": columns, "bins": 16}
    return design(
        StatisticsPlan(**{**values, "correlation": ("age", "dose"), **more}),  # type: ignore[arg-type]
        COLUMNS,
    )


def rows(count: int = 4000, shift: float = 0.0, seed: int = 3) -> np.ndarray:
    source = np.random.default_rng(seed)
    age = source.normal(40 + shift, 14, count)
    dose = np.clip(age / 160 + source.normal(0.25, 0.15, count), 0, 1)
    ward = source.choice(4, count, p=(0.5, 0.3, 0.15, 0.05)).astype(float)
    values = np.stack([age, dose, ward], 1)
    values[source.random(values.shape) < 0.05] = math.nan
    return values


@dataclass(frozen=True)
class Repeated:
    """Noisy sums of the same rows, many times, and the truth."""

    of: Design
    exact: np.ndarray
    noisy: np.ndarray

    @classmethod
    def of_rows(cls, design_: Design, repetitions: int) -> "Repeated":
        exact = exact_sums(design_, rows())
        noise = np.random.default_rng(11).normal(0, STD, (repetitions, design_.size))
        return cls(design_, exact, exact + noise)

    def covered(self, interval) -> float:
        """How often an interval of noisy sums holds what it is without noise."""
        truth = interval(self.exact, 0.0).value
        found = [interval(sums, STD) for sums in self.noisy]
        return float(np.mean([one.low <= truth <= one.high for one in found]))


def shares(design_: Design, column: int, cells: list[int]):
    def interval(sums: np.ndarray, std: float) -> Interval:
        return counts(design_, column, sums, std).share(cells)

    return interval


def covering() -> dict[str, float]:
    """How often each kind of interval covers, over 2,000 releases."""
    repeated = Repeated.of_rows(of(), 2000)
    block = next(b for b in repeated.of.blocks if b.kind == "moments" and len(b.columns) > 1)
    alone = next(b for b in repeated.of.blocks if b.kind == "moments" and b.columns == (1,))

    def up_to_the_middle(sums: np.ndarray, std: float) -> Interval:
        return counts(repeated.of, 0, sums, std).share([16, *range(8)], [*range(16), 16, 17])

    return {
        "share of a category": repeated.covered(shares(repeated.of, 2, [1])),
        "share of missing values": repeated.covered(shares(repeated.of, 0, [19])),
        "count": repeated.covered(lambda s, d: counts(repeated.of, 0, s, d).count([3, 4])),
        "rank of a value": repeated.covered(up_to_the_middle),
        "mean": repeated.covered(lambda s, d: mean(repeated.of, alone, 0, s, d)),
        "deviation": repeated.covered(lambda s, d: deviation(repeated.of, alone, 0, s, d)),
        "correlation": repeated.covered(lambda s, d: correlation(block, 0, 1, s, d)),
    }


def test_intervals_cover_93_to_97_of_100_times_over_2000_releases() -> None:
    found = covering()
    assert all(0.93 <= share <= 0.97 for share in found.values()), found


def test_an_interval_that_is_too_narrow_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "Z", 1.7)
    assert all(share < 0.93 for share in covering().values())


def test_quantiles_are_covered_at_least_95_of_100_times_and_are_close() -> None:
    for whole in ((), ("age",)):
        repeated = Repeated.of_rows(of(whole=whole), 60)
        values = rows()[:, 0]
        values = np.sort(values[np.isfinite(values)])
        for share in (0.25, 0.5, 0.75):
            true = values[math.ceil(share * len(values)) - 1]
            true = math.floor(true) if whole else true
            held, ranks_ = 0, []
            for sums in repeated.noisy:
                one = ranks(repeated.of, 0, counts(repeated.of, 0, sums, STD)).quantile(share)
                held += one.low <= true <= one.high
                ranks_.append(np.mean(values <= one.value + (1 if whole else 0)))
            assert held >= 0.9 * len(repeated.noisy)
            assert np.abs(np.mean(ranks_) - share) < 0.02


def test_the_least_squares_are_better_than_the_cells_and_know_their_error() -> None:
    repeated = Repeated.of_rows(of(), 400)
    cells = repeated.of.block("cells", 0)
    fitted = np.array([counts(repeated.of, 0, s, STD).counts[:8].sum() for s in repeated.noisy])
    plain = repeated.noisy[:, cells.start : cells.start + 8].sum(1)
    truth = repeated.exact[cells.start : cells.start + 8].sum()
    assert np.std(fitted - truth) < 0.7 * np.std(plain - truth)
    said = counts(repeated.of, 0, repeated.noisy[0], STD).count(range(8))
    assert (said.high - said.low) / 2 / 1.96 == pytest.approx(np.std(fitted - truth), rel=0.15)


def test_a_ratio_by_hand() -> None:
    one = ratio(50.0, 100.0, 0.0, 0.0, 0.0)
    assert one == Interval(0.5, 0.5, 0.5)
    assert ratio(1.0, 4.9, 1.0, 1.0, 0.0) is None
    # Fieller: (a - r b)^2 = z^2 (va + r^2 vb)
    found = ratio(50.0, 100.0, 25.0, 16.0, 0.0)
    for end in (found.low, found.high):
        assert (50 - end * 100) ** 2 == pytest.approx(estimates.Z**2 * (25 + end**2 * 16))


def test_exact_sums_give_exact_figures() -> None:
    design_, values = of(whole=("age",)), rows()
    shown = figures(design_, exact_sums(design_, values), 0.0)
    age = next(one for one in shown["columns"] if one["column"] == "age")
    present = values[np.isfinite(values[:, 0]), 0]
    inside = present[(present >= 0) & (present <= 80)]
    assert shown["rows"] == {"value": 4000, "low": 4000, "high": 4000}
    assert age["missing"]["value"] == pytest.approx(np.isnan(values[:, 0]).mean())
    assert age["outside"]["value"] == pytest.approx((len(present) - len(inside)) / 4000)
    median = next(q["value"]["value"] for q in age["quantiles"] if q["share"] == 0.5)
    assert median == math.floor(np.sort(present)[len(present) // 2 - 1])
    both = values[np.isfinite(values[:, :2]).all(1)]
    held = np.clip(both[:, 0], 0, 80)
    true = np.corrcoef(held, both[:, 1])[0, 1]
    assert shown["correlation"][0]["correlation"]["value"] == pytest.approx(true, abs=1e-4)
    ward = next(one for one in shown["columns"] if one["column"] == "ward")
    assert [one["value"] for one in ward["frequencies"]] == ["a", "b", "c", None]
    assert ward["frequencies"][1]["count"]["value"] == pytest.approx((values[:, 2] == 1).sum())


def test_what_is_lost_in_the_noise_is_none_and_not_zero() -> None:
    design_ = of()
    shown = figures(design_, exact_sums(design_, rows(20)), STD)
    assert shown["correlation"][0]["correlation"] is None
    assert all(one["missing"] is None for one in shown["columns"] if "missing" in one)


def test_sites_that_are_alike_do_not_differ_and_others_do() -> None:
    design_ = of()

    def verdicts(shift: float, seed: int) -> list[float]:
        source = np.random.default_rng(seed)
        by_site = {}
        for i in range(4):
            exact = exact_sums(design_, rows(2000, shift if i == 3 else 0.0, seed=seed * 10 + i))
            by_site[f"s{i}"] = counts(design_, 0, exact + source.normal(0, STD, design_.size), STD)
        order = order_of(design_, 0, by_site["s0"])
        return difference("age", by_site, order).p

    alike = np.array([verdicts(0.0, seed) for seed in range(12)])
    assert np.mean(alike < 0.05) < 0.35 and np.mean(alike) > 0.25
    assert verdicts(4.0, 1) < 1e-4
