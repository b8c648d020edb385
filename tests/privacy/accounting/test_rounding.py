"""Figures for people: what was spent is never shown smaller, what is left never larger."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting.rounding import left_text, spent_text


@given(st.floats(0, allow_nan=False, allow_infinity=False), st.integers(0, 6))
def test_spent_is_rounded_up_and_left_down_by_less_than_one_place(
    epsilon: float, places: int
) -> None:
    exact, unit = Fraction(epsilon), Fraction(1, 10**places)
    assert 0 <= Fraction(spent_text(epsilon, places)) - exact < unit
    assert 0 <= exact - Fraction(left_text(epsilon, places)) < unit


@pytest.mark.parametrize("text", [spent_text, left_text])
def test_what_is_no_number_has_a_word(text: object) -> None:
    assert callable(text)
    assert [text(math.inf), text(math.nan), text(None)] == ["infinite", "infinite", "-"]
    assert text(1.7976931348623157e308).startswith("17976931348623157")
