"""What a coordinator and t - 1 parties see of an honest party is uniform: chi-square of its bytes.

The parties that collude give away all their secrets; what they know is taken off the masked update
before it is looked at.
"""

import numpy as np
import pytest

from privacy.audit.p_values import chi_square
from privacy.secagg.masks import add_mask
from privacy.secagg.parties import Terms
from privacy.secagg.party import Agreed, pair_seed
from tests.support.secagg import Parties, attempt

WORDS = 40_000


def byte_p_value(words: np.ndarray) -> float:
    counts = np.bincount(words.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return chi_square(float(((counts - expected) ** 2).sum() / expected), 255)


def known_off(state: Agreed, words: np.ndarray, colluding: dict[str, Agreed]) -> np.ndarray:
    """The masked update without the masks that the colluding parties share with its party."""
    left = words.copy()
    me = state.me.site
    for name, other in colluding.items():
        seed = pair_seed(other.parties, other.masking, name, me)
        add_mask(left, seed, subtract=me < name)
    return left


@pytest.mark.parametrize("honest", ["site-000", "site-003", "site-006"])
def test_the_view_of_a_coordinator_and_t_minus_1_parties_is_uniform(honest: str) -> None:
    parties = Parties(Terms(7, 2, 2))
    states, _ = parties.agreed(attempt())
    others = [name for name in states if name != honest][: parties.terms.threshold - 1]
    words = np.zeros(WORDS, dtype="<u4")  # any update would do: this shows the masks bare
    states[honest].mask(words)
    assert byte_p_value(words) > 1e-6
    left = known_off(states[honest], words, {name: states[name] for name in others})
    assert byte_p_value(left) > 1e-6
    everybody = {name: states[name] for name in states if name != honest}
    own = known_off(states[honest], words, everybody)
    assert byte_p_value(own) > 1e-6  # its own mask stays, until a share of its seed is revealed
    add_mask(own, states[honest].seed, subtract=True)
    assert not own.any()


def test_what_leaves_without_masks_is_seen() -> None:
    small = np.random.default_rng(1).normal(0, 1500, WORDS).astype(np.int64).astype("<u4")
    assert byte_p_value(small) < 1e-12
