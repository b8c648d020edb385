"""Others' texts on a screen: nothing controls it, hides, overlays, or looks like another line."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.printable import LINE, folded, printable


def columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in ("W", "F") else 1 for c in text)


@given(st.text(max_size=200), st.integers(1, 100))
def test_a_text_is_one_line_of_printable_characters_within_its_columns(
    text: str, most: int
) -> None:
    shown = printable(text, most)
    assert shown.isprintable()
    assert columns(shown) <= most


@pytest.mark.parametrize(
    "hidden",
    [
        *"\u202e\u2066\u200b\u200d\u00ad\u3164\u2800\u034f\ufe0f\u115f\x1b\r\u2028\u0085\ufeff\U000e0101"
    ],
)
def test_what_hides_or_reorders_is_escaped(hidden: str) -> None:
    assert hidden not in printable(f"ab{hidden}c")
    assert printable(f"ab{hidden}c").startswith("ab\\")


def test_marks_that_would_overlay_other_lines_are_escaped_and_letters_keep_theirs() -> None:
    assert printable("e\u0301t\u00e9, \u0939\u093f\u0928\u094d\u0926\u0940") == "e\u0301té, हिन्दी"
    shown = printable("x" + "\u0300" * 40, 200)
    assert sum(unicodedata.combining(c) > 0 for c in shown) == 2


def test_wide_characters_count_for_two_columns() -> None:
    assert printable("漢" * 40) == "漢" * 40
    assert printable("漢" * 41) == "漢" * 39 + "…"


@given(st.text(st.characters(categories=["L", "N", "Zs", "P"]), max_size=900))
def test_a_folded_line_is_whole_and_every_further_line_begins_with_the_mark(line: str) -> None:
    parts = folded(line)
    assert all(columns(part) <= LINE for part in parts)
    assert parts[0] + "".join(part.removeprefix("    | ") for part in parts[1:]) == line
    assert all(part.startswith("    | ") for part in parts[1:])


def test_a_stranger_cannot_begin_a_line_of_the_screen() -> None:
    told = "  purpose, as the coordinator states it: "
    forged = "epsilon 0.001 is asked, 9.9 is left"
    for pad in range(120):
        lines = folded(told + printable("x" + " " * pad + forged, 500))
        assert not [line for line in lines if line.startswith("epsilon")]
