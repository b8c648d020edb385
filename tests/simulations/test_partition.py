"""Splits: every row at exactly one site, the same for the same seed, refused where impossible."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.partition import SplitError, split

LABELS = np.repeat(np.arange(10), 40)


@given(
    st.sampled_from(["iid", "dirichlet:0.05", "dirichlet:1", "dirichlet:100", "labels:2"]),
    st.integers(5, 30),
    st.integers(0, 1000),
)
def test_every_row_is_at_exactly_one_site(spec: str, sites: int, seed: int) -> None:
    parts = split(spec, LABELS, None, sites, seed)
    assert list(parts) == [f"site-{i}" for i in range(sites)]
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(LABELS)))
    assert all(len(rows) for rows in parts.values())
    again = split(spec, LABELS, None, sites, seed)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_another_seed_is_another_split() -> None:
    one, two = (split("iid", LABELS, None, 5, seed)["site-0"] for seed in (0, 1))
    assert not np.array_equal(one, two)


def test_iid_sites_are_equal_but_for_one_row() -> None:
    sizes = [len(rows) for rows in split("iid", LABELS[:397], None, 5, 0).values()]
    assert max(sizes) - min(sizes) <= 1


def test_a_site_of_two_labels_holds_two_labels() -> None:
    for rows in split("labels:2", LABELS, None, 7, 3).values():
        assert len(set(LABELS[rows].tolist())) == 2


def test_a_small_alpha_is_more_skewed_than_a_large_one() -> None:
    def skew(alpha: str) -> float:
        parts = split(f"dirichlet:{alpha}", LABELS, None, 5, 0).values()
        shares = [np.bincount(LABELS[rows], minlength=10) / len(rows) for rows in parts]
        return float(np.abs(np.array(shares) - 0.1).mean())

    assert skew("0.1") > 3 * skew("100")


def test_natural_sites_keep_their_own_rows_and_names() -> None:
    natural = ["va", "cleveland", "va", "hungarian"]
    parts = split("natural", np.arange(4), natural, 3, 0)
    assert {name: rows.tolist() for name, rows in parts.items()} == {
        "cleveland": [1],
        "hungarian": [3],
        "va": [0, 2],
    }


@pytest.mark.parametrize(
    ("spec", "sites", "said"),
    [
        ("random", 5, "must be iid, dirichlet:ALPHA"),
        ("iid:2", 5, "must be iid, dirichlet:ALPHA"),
        ("dirichlet", 5, "ALPHA"),
        ("dirichlet:0", 5, "ALPHA"),
        ("dirichlet:nan", 5, "ALPHA"),
        ("labels:0", 5, "K >= 1"),
        ("labels:1.5", 5, "K >= 1"),
        ("labels:11", 5, "K <= 10"),
        ("labels:1", 5, "2 <= K"),
        ("natural", 5, "natural sites"),
        ("iid", 0, "sites must be >= 1 and <="),
        ("iid", 401, "sites must be >= 1 and <="),
    ],
)
def test_an_impossible_split_is_one_line(spec: str, sites: int, said: str) -> None:
    with pytest.raises(SplitError) as refused:
        split(spec, LABELS, None, sites, 0)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_regression_has_no_classes_to_split_by() -> None:
    with pytest.raises(SplitError, match="labels are classes"):
        split("labels:1", np.linspace(0, 1, 10), None, 2, 0)


def test_natural_sites_are_as_many_as_they_are() -> None:
    with pytest.raises(SplitError, match=r"sites must be 2 \(a, b\), got 3"):
        split("natural", np.arange(3), ["a", "b", "a"], 3, 0)
