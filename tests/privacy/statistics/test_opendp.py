"""OpenDP as a second opinion on what one Gaussian release of statistics costs."""

import math

import pytest

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.contract.keys.tables import StatisticsPlan
from privacy.statistics.columns import CategoryColumn
from privacy.statistics.design import design

dp = pytest.importorskip("opendp.prelude", reason="opendp is not installed: pip install opendp")


@pytest.mark.parametrize("sigma", [1.0, 2.0, 7.031881485206034])
def test_the_price_of_one_release_is_opendps(sigma: float) -> None:
    """By zCDP, all that OpenDP has, to 1e-3; our exact Gaussian account is never above it."""
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False), size=3), dp.l2_distance(T=float)
    release = dp.m.make_gaussian(*space, scale=sigma)
    assert release.map(1.0) == pytest.approx(1 / (2 * sigma**2), rel=1e-9)
    theirs = dp.c.make_zCDP_to_approxDP(release).map(1.0).epsilon(1e-5)
    event = [Event("record", sigma, 1.0, 1)]
    assert spent(event, 1e-5, accountant="rdp") == pytest.approx(theirs, abs=1e-3)
    assert spent(event, 1e-5) <= theirs


def test_counts_by_category_are_as_sensitive_as_opendp_says() -> None:
    """One record added or removed moves one count: OpenDP's stability map says the same."""
    dp.enable_features("contrib")
    texts = dp.vector_domain(dp.atom_domain(T=str))
    counted = dp.t.make_count_by_categories(
        texts, dp.symmetric_distance(), categories=["a", "b"], MO="L2Distance<f64>", TOA=float
    )
    columns = {f"c{i}": ("frequencies",) for i in range(3)}
    of = design(
        StatisticsPlan(of="table", columns=columns),  # type: ignore[arg-type]
        tuple(CategoryColumn(name, ("a", "b")) for name in columns),
    )
    # Three columns and the number of rows: four counts of OpenDP's side by side.
    assert of.bound == pytest.approx(math.sqrt(4 * counted.map(1) ** 2))
