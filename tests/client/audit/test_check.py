"""The tally of a check: the least likely of many, and nothing that is no number passes."""

import math

import pytest

from client.audit.check import Worst


def test_the_least_likely_is_told_with_its_place_and_corrected_for_all_that_were_tried() -> None:
    worst = Worst().and_(0.5, "here", 1.0).and_(0.001, "there", 0.5).and_(0.2, "elsewhere", 3.0)
    check = worst.check("a name", "seen 3")
    assert check.p == pytest.approx(0.003)
    assert (check.statistic, check.name) == (3.0, "a name")
    assert check.detail == "seen 3; least likely: there"
    assert worst.check("a name", "", 7.0).statistic == 7.0
    assert Worst().check("a name", "").passed


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("p", "size"), [(math.nan, 1.0), (0.9, math.nan)])
def test_what_is_no_number_fails_wherever_it_comes(p: float, size: float, late: bool) -> None:
    order = [(0.9, 1.0), (p, size)] if late else [(p, size), (0.9, 1.0)]
    worst = Worst()
    for one, seen in order:
        worst = worst.and_(one, "somewhere", seen)
    check = worst.check("a name", "")
    assert not check.passed
    assert math.isnan(check.statistic) == math.isnan(size)
