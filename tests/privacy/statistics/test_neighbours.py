"""Two sets of rows that differ by one record (or person) cannot be told apart for the price paid.

Many releases of both, in the manner of Google's statistical tests of its library: the sets of
outcomes that tell most are searched in one half of the samples and measured in the other. Whatever
is searched, P(set) <= e^epsilon Q(set) + delta has to hold, beyond chance.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.contract.keys.tables import StatisticsPlan
from privacy.mechanism import noise
from privacy.statistics import release
from privacy.statistics.columns import CategoryColumn, NumberColumn
from privacy.statistics.design import Design, design
from privacy.statistics.figures import figures
from privacy.statistics.release import exact_sums, noisy_sums, standard_deviation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SIGMA = 1.0
DELTAS = (0.3, 0.1, 0.02)
"""The ledger's epsilon at each of these is held to."""
SAMPLES = 8_000
BUCKETS = 24
SURE = 5.5
"""Standard deviations of chance; some 10,000 comparisons are made."""

NUMBERS = (NumberColumn("age", 0, 100), NumberColumn("dose", -1, 1))
COLUMNS = (*NUMBERS, CategoryColumn("ward", ("a", "b", "c")), CategoryColumn("ill", ("no", "yes")))
NAN, NOT_GIVEN = math.nan, 1e9
Rows = list[list[float]]


@dataclass(frozen=True)
class Case:
    """What is asked, and two sets of rows that differ by one record, or by one person's rows."""

    asked: dict[str, Any]
    rows: Rows
    more: Rows
    people: tuple[list[int], list[int]] | None = None
    most: int | None = None

    @property
    def of(self) -> Design:
        return design(
            StatisticsPlan(of="table", **{"columns": {}, "bins": 16, **self.asked}), COLUMNS
        )

    def values(self, rows: Rows) -> np.ndarray:
        """The rows' values in the order of the design, whose columns are sorted by name."""
        names = [column.name for column in COLUMNS]
        at = [names.index(column.name) for column in self.of.columns]
        width = len(COLUMNS) + 2 * bool(self.of.plan.groups)  # prediction and score
        table = np.array(rows, np.float64).reshape(len(rows), width)
        return table[:, [*at, *range(len(COLUMNS), width)]]

    def exact(self, *, of_more: bool) -> np.ndarray:
        """What one of the two has before the noise, in records."""
        people = None if self.people is None else np.array(self.people[of_more], np.int64)
        values = self.values(self.rows + self.more if of_more else self.rows)
        return exact_sums(self.of, values, subject=people, most=self.most)

    def samples(self, count: int, *, of_more: bool) -> np.ndarray:
        """Releases of one of the two, in records; the exact sums are added up once."""
        of, exact = self.of, self.exact(of_more=of_more)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(release, "exact_sums", lambda *given, **more: exact.copy())
            drawn = [noisy_sums(of, np.zeros((0, of.width)), SIGMA) for _ in range(count)]
        return np.array(drawn, np.float64) * of.bound

    def direction(self) -> np.ndarray:
        """Where the exact sums differ: what tells most of two Gaussians."""
        return self.exact(of_more=True) - self.exact(of_more=False)


YOUNG, OLD = [0.0, -1.0, 0, 0], [100.0, 1.0, 2, 1]
MIDDLE = [50.0, 0.0, 1, 0]
ALL = {
    "columns": {
        "age": ("quantiles", "moments", "missing", "outside"),
        "dose": ("histogram", "mean"),
        "ward": ("frequencies",),
        "ill": ("missing",),
    },
    "correlation": ("age", "dose"),
}
CASES = {
    "a count, from nobody to one": Case({"columns": {"ill": ("missing",)}}, [], [MIDDLE]),
    "a count of many": Case({"columns": {"ill": ("missing",)}}, [MIDDLE] * 50, [MIDDLE]),
    "a mean, at the end of the range": Case({"columns": {"age": ("mean",)}}, [YOUNG] * 30, [OLD]),
    "a mean, far beyond the range": Case(
        {"columns": {"age": ("mean",)}}, [MIDDLE] * 30, [[1e9, 0.0, 0, 0]]
    ),
    "a mean, of a value that is missing": Case(
        {"columns": {"age": ("mean", "missing")}}, [OLD] * 30, [[NAN, 0.0, 0, 0]]
    ),
    "a variance": Case({"columns": {"dose": ("moments",)}}, [MIDDLE] * 40, [OLD]),
    "quantiles": Case({"columns": {"age": ("quantiles",)}}, [YOUNG, OLD] * 20, [OLD]),
    "quantiles, of a value out of range": Case(
        {"columns": {"age": ("quantiles",)}}, [MIDDLE] * 40, [[-5.0, 0.0, 0, 0]]
    ),
    "a table of categories": Case({"columns": {"ward": ("frequencies",)}}, [YOUNG] * 20, [OLD]),
    "a category that nobody knows": Case(
        {"columns": {"ward": ("frequencies",)}}, [YOUNG] * 20, [[1.0, 0.0, 99, 0]]
    ),
    "a correlation": Case({"correlation": ("age", "dose")}, [YOUNG, MIDDLE] * 15, [OLD]),
    "everything at once": Case(ALL, [YOUNG, MIDDLE] * 15, [OLD]),
    "groups of predictions": Case(
        {"label": "ill", "groups": ("ward",)},
        [[*MIDDLE, 0.0, 0.3]] * 30,
        [[*OLD, 1.0, 1.0]],
    ),
    "a person of many rows": Case(
        ALL, [YOUNG] * 6, [OLD] * 7, people=([0, 0, 1, 2, 2, 2], [0, 0, 1, 2, 2, 2, *[5] * 7])
    ),
    "a person of capped rows": Case(
        ALL,
        [MIDDLE] * 6,
        [OLD, OLD, YOUNG, YOUNG],
        people=([0, 0, 1, 2, 2, 2], [0, 0, 1, 2, 2, 2, *[5] * 4]),
        most=2,
    ),
}


def told_apart(one: np.ndarray, other: np.ndarray) -> str | None:
    """How two sets of outcomes [n] differ by more than the ledger's price; None where not."""
    half = len(one) // 2
    searched, measured = (one[:half], other[:half]), (one[half:], other[half:])
    pooled = np.concatenate(searched)
    edges = np.unique(np.quantile(pooled, np.linspace(0, 1, BUCKETS + 1)[1:-1]))
    shares = [
        np.bincount(np.searchsorted(edges, x), minlength=BUCKETS + 1) / half for x in searched
    ]
    for delta, epsilon in prices():
        for p, q in ((0, 1), (1, 0)):
            telling = np.flatnonzero(shares[p] > math.exp(epsilon) * shares[q])
            n = len(measured[p])
            hit, miss = (
                float(np.isin(np.searchsorted(edges, measured[i]), telling).mean()) for i in (p, q)
            )
            excess = hit - math.exp(epsilon) * miss - delta
            spread = math.sqrt(
                (hit * (1 - hit) + math.exp(2 * epsilon) * miss * (1 - miss) + 1 / n) / n
            )
            if excess > SURE * spread:
                return f"delta {delta + excess:.4f} at epsilon {epsilon:.3f}, paid for {delta}"
    return None


def prices() -> Iterator[tuple[float, float]]:
    for delta in DELTAS:
        yield delta, spent([Event("record", SIGMA, 1.0, 1)], delta)


def numbers(value: Any) -> Iterator[float]:
    """All numbers of a JSON value, in their order; one that is not given is very large."""
    if value is None:
        yield from (NOT_GIVEN,) * 3
    elif isinstance(value, dict) and {*value} == {"value", "low", "high"}:
        yield from (NOT_GIVEN if one is None else float(one) for one in value.values())
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers(one)


def found(name: str) -> str | None:
    """Whether a case's releases tell its two sets of rows apart, together or by one number."""
    case = CASES[name]
    one, other = (case.samples(SAMPLES, of_more=more) for more in (False, True))
    along = case.direction()
    looks = [along, *np.eye(len(along))[along != 0]]
    return next((said for look in looks if (said := told_apart(one @ look, other @ look))), None)


@pytest.mark.parametrize("name", CASES)
def test_one_record_or_person_is_hidden_as_the_ledger_says(name: str) -> None:
    assert found(name) is None


def test_the_worst_record_uses_the_whole_price() -> None:
    """Else the test above would compare too far away from the bound to see anything."""
    for name in ("everything at once", "quantiles", "groups of predictions", "a variance"):
        length = float(np.linalg.norm(CASES[name].direction()))
        assert length == pytest.approx(CASES[name].of.bound, rel=1e-6)


@pytest.mark.parametrize(
    "name",
    ["a count of many", "a mean, at the end of the range", "quantiles", "everything at once"],
)
def test_the_figures_tell_no_more_than_the_sums(name: str) -> None:
    case, count = CASES[name], 1500
    std = standard_deviation(case.of, SIGMA)
    shown = [
        np.array(
            [
                list(numbers(figures(case.of, sums, std)))
                for sums in case.samples(count, of_more=more)
            ]
        )
        for more in (False, True)
    ]
    different = [i for i in range(shown[0].shape[1]) if told_apart(shown[0][:, i], shown[1][:, i])]
    assert not different


Plant = Callable[[pytest.MonkeyPatch], None]


def quiet(patch: pytest.MonkeyPatch) -> None:
    real = noise.privatise
    patch.setattr(noise, "privatise", lambda sums, std, **more: real(sums, 0.75 * std, **more))


def trees_for_nothing(patch: pytest.MonkeyPatch) -> None:
    def too_small(of: Design, sigma: float) -> float:
        return sigma * math.sqrt(sum(b.squared_norm for b in of.blocks if b.kind != "tree"))

    patch.setattr(release, "standard_deviation", too_small)


def sums_of_people(patch: pytest.MonkeyPatch) -> None:
    real = release._people

    def undivided(*args: Any) -> Any:
        values, person, counts = real(*args)
        return values, person, np.ones_like(counts)

    patch.setattr(release, "_people", undivided)


def exact_count(patch: pytest.MonkeyPatch) -> None:
    real = noise.privatise

    def first_left_out(sums: np.ndarray, std: float, **more: float) -> None:
        exact = sums[0]
        real(sums, std, **more)
        sums[0] = exact / more["over"]

    patch.setattr(noise, "privatise", first_left_out)


@pytest.mark.parametrize(
    ("plant", "names"),
    [
        (quiet, ["a count of many", "everything at once", "groups of predictions"]),
        (trees_for_nothing, ["quantiles"]),
        (sums_of_people, ["a person of many rows"]),
        (exact_count, ["a count of many", "a table of categories", "a person of many rows"]),
    ],
)
def test_a_planted_bug_is_found(
    plant: Plant, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert [name for name in names if found(name) is None] == []
