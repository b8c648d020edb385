"""What one record adds to a release of statistics, and that it never adds more than the bound."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.contract.keys.tables import StatisticsPlan
from privacy.contract.keys.types import PlanError
from privacy.statistics.columns import CategoryColumn, NumberColumn, StatisticsError
from privacy.statistics.design import STEPS, design

COLUMNS = (
    NumberColumn("age", 17, 90),
    NumberColumn("dose", 0.5, 2.5),
    CategoryColumn("ward", ("a", "b", "c")),
)
NUMBER = ("missing", "outside", "histogram", "quantiles", "mean", "moments")


def asked(**more: object) -> StatisticsPlan:
    columns = {"age": ("quantiles", "moments"), "dose": ("mean",), "ward": ("frequencies",)}
    values: dict[str, object] = {"of": "table", "columns": columns, "bins": 8}
    return StatisticsPlan(**{**values, **more})  # type: ignore[arg-type]


def words(allowed: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(allowed), min_size=1, unique=True).map(tuple)


plans = st.builds(
    lambda age, dose, ward, bins, whole, pair: asked(
        columns={"age": age, "dose": dose, "ward": ward},
        bins=bins,
        whole=whole,
        correlation=pair,
    ),
    words(NUMBER),
    words(NUMBER),
    words(("missing", "frequencies")),
    st.integers(2, 40),
    st.sampled_from([(), ("age",), ("age", "dose")]),
    st.sampled_from([(), ("age", "dose")]),
)
anything = st.floats(allow_nan=True, allow_infinity=True)


@given(plans, st.lists(st.tuples(anything, anything, anything), min_size=1, max_size=20))
@settings(max_examples=25)
def test_no_record_is_longer_than_the_bound_and_sums_are_exact(plan, rows) -> None:
    of = design(plan, COLUMNS)
    vectors = of.vectors(np.array(rows, dtype=np.float64))
    assert np.isfinite(vectors).all()
    assert (np.linalg.norm(vectors, axis=1) <= of.bound).all()
    assert (vectors * STEPS == np.rint(vectors * STEPS)).all()
    assert (vectors[:, 0] == 1).all()


@given(plans)
@settings(max_examples=15)
def test_the_bound_is_reached_so_no_noise_is_wasted(plan) -> None:
    """A value at the end of its range is in every level and has moments of size 1."""
    of = design(plan, COLUMNS)
    ends = {"age": 17.0, "dose": 0.5, "ward": 0.0}
    row = np.array([[ends[column.name] for column in of.columns]])
    longest = np.linalg.norm(of.vectors(row))
    if "dose" in plan.whole:  # its only whole numbers are 1 and 2: held to the nearest
        assert longest <= of.bound
    else:
        assert longest == pytest.approx(of.bound)


def test_the_vector_of_one_record_by_hand() -> None:
    of = design(asked(columns={"age": ("quantiles",)}, bins=4), (NumberColumn("age", 0, 8),))
    kinds = [(block.kind, block.size) for block in of.blocks]
    assert kinds == [("rows", 1), ("cells", 8), ("tree", 2)]
    inside, below, above, wrong, gone = of.vectors(
        np.array([[5.0], [-1.0], [9.0], [math.inf], [math.nan]])
    )
    assert inside.tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1]
    assert np.flatnonzero(below).tolist() == [0, 5]
    assert np.flatnonzero(above).tolist() == [0, 6]
    assert np.flatnonzero(wrong).tolist() == [0, 7]
    assert np.flatnonzero(gone).tolist() == [0, 8]
    assert of.bound == pytest.approx(math.sqrt(3))


def test_moments_by_hand() -> None:
    plan = asked(columns={}, correlation=("age", "dose"))
    of = design(plan, COLUMNS)
    middle = of.vectors(np.array([[90.0, 1.0], [math.nan, 1.0]]))
    assert middle[0].tolist() == [1, 1, 1, -0.5, 1, -0.5, 0.25]
    assert middle[1].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert of.bound == pytest.approx(math.sqrt(7))


def test_whole_numbers_have_a_cell_each_and_the_ends_are_inside() -> None:
    of = design(asked(columns={"age": ("histogram",)}, whole=("age",)), COLUMNS)
    cells = of.block("cells", 0)
    assert cells is not None and cells.size == 74 + 4
    values = np.array([[17.0], [17.4], [90.0], [16.9], [90.1]])
    places = of.vectors(values)[:, cells.at].argmax(1)
    assert places.tolist() == [0, 0, 73, 74, 75]


def test_the_layout_does_not_depend_on_the_order_of_the_keys() -> None:
    columns = {"ward": ("frequencies",), "age": ("quantiles", "moments"), "dose": ("mean",)}
    one, other = design(asked(), COLUMNS), design(asked(columns=columns), COLUMNS[::-1])
    assert list(one.blocks) == list(other.blocks)
    assert one.columns == other.columns


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"columns": {"height": ("mean",)}}, "must have a column height"),
        ({"columns": {"ward": ("mean",)}}, "for a category, got mean"),
        ({"columns": {"age": ("frequencies",)}}, "for a number, got frequencies"),
        ({"columns": {"ward": ("missing",)}, "whole": ("ward",)}, "ward must be a number"),
        ({"correlation": ("age", "ward")}, "ward must be a number"),
    ],
)
def test_what_a_column_does_not_have_is_refused(more, text) -> None:
    with pytest.raises(StatisticsError, match=text):
        design(asked(**more), COLUMNS)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"columns": {"age": ("median",)}}, "statistics.columns"),
        ({"columns": {"age": ("mean", "mean")}}, "statistics.columns"),
        ({"columns": {"age": ()}}, "statistics.columns"),
        ({"bins": 1}, "statistics.bins"),
        ({"whole": ("height",)}, "must name columns of"),
        ({"correlation": ("age",)}, "at least two"),
    ],
)
def test_a_plan_of_statistics_has_bounds(more, text) -> None:
    with pytest.raises(PlanError, match=text):
        asked(**more)


def test_too_many_numbers_are_refused() -> None:
    columns = tuple(NumberColumn(f"c{i}", 0, 1) for i in range(250))
    names = {one.name: ("quantiles",) for one in columns}
    with pytest.raises(StatisticsError, match="at most 200000 numbers"):
        design(asked(columns=names, bins=1024), columns)
