"""The planted mutations fit the code as it is, and the random ones are programs."""

import ast

import pytest

from tests.mutants.mutant import ROOT, covering, planted
from tests.mutants.operators import PATH, drawn


@pytest.mark.parametrize("one", planted(), ids=lambda one: one.name)
def test_a_planted_mutation_fits(one) -> None:
    changed = one.applied_to((ROOT / one.file).read_text(encoding="utf-8"))
    ast.parse(changed)
    assert all((ROOT / test.split("::")[0]).exists() for test in one.tests)


def test_the_privacy_path_is_there_and_has_tests() -> None:
    for name in PATH:
        assert (ROOT / name).exists(), name
        assert covering(name), name


@pytest.mark.long
def test_random_mutations_are_programs_that_differ() -> None:
    for one in drawn(60, seed=3):
        text = (ROOT / one.file).read_text(encoding="utf-8")
        changed = one.applied_to(text)
        assert changed != text
        ast.parse(changed)


@pytest.mark.long
def test_a_seed_draws_the_same_mutations() -> None:
    assert drawn(5, seed=1) == drawn(5, seed=1)
