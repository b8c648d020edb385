"""Histories of many noise levels are rounded to the dear side: never too cheap, hardly dearer."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import segments
from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.accounting.segments import Segment, merge

LEVELS = 70
DELTA = 1e-5


def history(rate: float = 1.0, spread: float = 0.013) -> list[Event]:
    """More noise levels, and rates, than are kept apart."""
    return [
        Event("record", 2 + spread * i, min(1.0, rate * (1 + i / 997)), 1 + i % 3)
        for i in range(LEVELS)
    ]


def exact(events: list[Event], monkeypatch: pytest.MonkeyPatch) -> tuple[Segment, ...]:
    with monkeypatch.context() as patch:
        patch.setattr(segments, "_DISTINCT_SEGMENTS", 10**9)
        return merge(events)


def rdp(parts: tuple[Segment, ...]) -> float:
    events = [Event("record", one.sigma, one.rate, one.releases) for one in parts]
    return spent(events, DELTA, accountant="rdp")


def test_up_to_64_levels_nothing_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    few = history()[:64]
    assert merge(few) == exact(few, monkeypatch)
    assert {one.sigma for one in merge(few)} == {event.sigma for event in few}


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_each_level_goes_down_and_each_rate_up_by_at_most_one_percent(
    rate: float,
) -> None:
    """Events that differ in nothing else go one by one through the rounding."""
    for (sigma, q), n in {(e.sigma, e.rate): e.steps for e in history(rate)}.items():
        (((low, high, records), count),) = segments._coarsen({(sigma, q, 3): n}).items()
        assert sigma / 1.0101 <= low <= sigma
        assert q <= high <= min(1.0, q * 1.0101)
        assert (records, count) == (3, n)


def test_rounding_of_sampled_releases_is_never_too_cheap_and_hardly_dearer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = history(0.01)[:6]
    apart = exact(events, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(segments, "_DISTINCT_SEGMENTS", 5)
        rounded = merge(events)
    assert len(apart) == 6
    assert sum(one.releases for one in rounded) == sum(one.releases for one in apart)
    assert rdp(apart) < rdp(rounded) <= rdp(apart) * 1.03


def test_epsilon_of_rounded_levels_is_at_least_the_closed_form() -> None:
    """Releases of every record are one Gaussian of mu^2 = sum of n / sigma^2."""
    events = history()
    mu = math.sqrt(sum(event.steps / event.sigma**2 for event in events))
    one = spent([Event("record", 1 / mu, 1.0, 1)], DELTA)
    assert one <= spent(events, DELTA) <= one * 1.03


def test_people_with_more_records_are_never_merged_with_others() -> None:
    events = [Event("record", e.sigma, 1.0, 1, records=1 + i % 2) for i, e in enumerate(history())]
    few = [Event("record", 2.0, 1.0, 1, records=records) for records in (1, 2)]
    for some in (events, few):
        found = merge(some, records=None)
        assert sum(one.releases for one in found if one.records == 2) == len(some) // 2


def test_a_segments_noise_is_that_beside_what_one_unit_moves() -> None:
    (found,) = merge([Event("record", 6.0, 0.1, 4, 5, sensitivity=1.5)])
    assert found == Segment(4.0, 0.1, 1, 20)


def test_one_release_without_noise_among_many_levels_costs_everything() -> None:
    events = [*history(), Event("record", 0.0, 1.0, 1)]
    assert spent(events, DELTA) == math.inf
    assert spent(events, DELTA, accountant="rdp") == math.inf


@settings(max_examples=50)
@given(st.floats(1e-6, 1e9), st.floats(1e-9, 1.0))
def test_a_value_of_the_grid_stays_and_any_other_moves_one_way(sigma: float, rate: float) -> None:
    (((low, high, _), _),) = segments._coarsen({(sigma, rate, 1): 1}).items()
    assert low <= sigma * (1 + 1e-12)
    assert min(1.0, high) >= rate * (1 - 1e-12)
    (((again, same, _), _),) = segments._coarsen({(low, high, 1): 1}).items()
    assert (again, same) == pytest.approx((low, high), rel=1e-11)
