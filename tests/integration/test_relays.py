"""Relays over TLS: the model and the epsilons of direct sites, and what a relay's end does."""

from pathlib import Path

import numpy as np

from tests.support.relays import Tree, plan_for


def test_two_relays_and_a_direct_site_make_the_model_of_five_direct_sites(tmp_path: Path) -> None:
    plan = plan_for(5)
    tree = Tree(tmp_path / "tree", {"east": "ab", "west": "cd"}, "e")
    with tree.running():
        outcome = tree.play(plan)
    assert outcome.reason == "done", outcome
    flat = Tree(tmp_path / "flat", {}, "abcde")
    with flat.running():
        expected = flat.play(plan)
    names = ["e", "east:a", "east:b", "west:c", "west:d"]
    for line, other in zip(outcome.history, expected.history, strict=True):
        assert {s: one["status"] for s, one in line["sites"].items()} == dict.fromkeys(
            names, "trained"
        )
        assert line["epsilon"] == other["epsilon"]
        by_own = {site.rpartition(":")[2]: one for site, one in line["sites"].items()}
        assert by_own == other["sites"]
    assert outcome.epsilons == {name: expected.epsilons[name.rpartition(":")[2]] for name in names}
    for name, array in flat.model().items():
        assert np.array_equal(array, tree.model()[name]), "bit for bit: the sums are exact"
    for site in tree.sites.values():
        assert site.paid == [1, 2]
        (released,) = site.released
        assert all(np.array_equal(released[n], a) for n, a in tree.model().items())
