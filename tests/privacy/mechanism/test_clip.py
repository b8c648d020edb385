"""The clip's own limits: an impossible bound is refused, a record on the bound stays."""

import math

import numpy as np
import pytest

from privacy.mechanism.noise import NoiseError, clip


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_bound_is_refused(bound: float) -> None:
    with pytest.raises(NoiseError, match="bound"):
        clip([np.ones(3)], bound)


def test_at_the_bound_nothing_changes_and_above_it_the_norm_is_the_bound() -> None:
    at = [np.array([3.0, 4.0])]
    assert clip(at, 5.0)[0][0] is at[0]
    clipped, before = clip([np.array([6.0, 8.0])], 5.0)
    assert before == 10.0
    assert np.linalg.norm(clipped[0]) <= 5.0
    assert np.linalg.norm(clipped[0]) == pytest.approx(5.0)
