"""Epsilon: known answers, and the laws that matter more."""

import math
import subprocess
import sys
from statistics import NormalDist

import numpy as np
import pytest
import scipy.fft
import scipy.signal
from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting.accountants import _Forgetful, _once
from privacy.accounting.epsilon import calibrate, spent, within
from privacy.accounting.events import Event, EventError
from privacy.accounting.segments import AccountingError, Budget, merge


def record(sigma: float, rate: float, steps: int, count: int = 1) -> Event:
    return Event("record", sigma, rate, steps, count)


@pytest.mark.long
@pytest.mark.parametrize(
    ("segments", "delta", "pld", "rdp"),
    [
        ([(1, 0.01, 1000)], 1e-5, 1.8282, 2.1014),
        ([(4, 0.01, 10000)], 1e-5, 0.9469, 1.0355),
        ([(1.5, 0.1, 200)], 1e-4, 4.3347, 4.8422),
        ([(10, 1, 30)], 1e-6, 2.4920, 2.6730),
        ([(1, 0.01, 500), (1.5, 0.02, 300), (2, 0.05, 200)], 1e-5, 2.3209, 2.5652),
    ],
)
def test_epsilon_is_what_other_libraries_say(
    segments: list[tuple[float, float, int]], delta: float, pld: float, rdp: float
) -> None:
    events = [record(*segment) for segment in segments]
    assert spent(events, delta) == pytest.approx(pld, rel=2e-4)
    assert spent(events, delta, accountant="rdp") == pytest.approx(rdp, rel=2e-4)


def test_a_gaussian_without_sampling_agrees_with_its_closed_form() -> None:
    """Balle and Wang 2018, Theorem 8, at mu = sqrt(30) / 10."""
    assert spent([record(10, 1, 30)], 1e-6) == pytest.approx(2.49196, rel=1e-4)


@given(st.floats(0.05, 1e3), st.integers(1, 1000), st.integers(1, 4), st.floats(1e-12, 0.5))
def test_releases_of_every_record_are_one_gaussian_exactly(
    sigma: float, releases: int, records: int, delta: float
) -> None:
    found = spent([record(sigma, 1, releases)], delta, records=records)
    exact = get_epsilon_gaussian(sigma / records / math.sqrt(releases), delta)
    assert found == pytest.approx(exact, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("sigma", [0.5, 3.0, 40.0])
def test_the_exact_gaussian_is_at_most_its_discretised_losses(sigma: float) -> None:
    losses = pld.from_gaussian_mechanism(sigma, value_discretization_interval=1e-4)
    found = spent([record(sigma, 1, 1)], 1e-5)
    assert found <= losses.get_epsilon_for_delta(1e-5) <= found * (1 + 1e-3)


@pytest.mark.parametrize(
    ("records", "epsilon"),
    [(1, 1.83), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((2, 3.98), (5, 11.64)))],
)
def test_a_group_of_records_is_a_mixture_of_gaussians(records: int, epsilon: float) -> None:
    found = spent([record(1, 0.01, 1000)], 1e-5, records=records)
    assert found == pytest.approx(epsilon, rel=3e-3)


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    assert spent([], 1e-5) == 0.0
    assert spent([record(1, 0.5, 0), record(1, 0.0, 9), record(1, 0.5, 9, 0)], 1e-5) == 0.0
    assert spent([record(0, 0.5, 1)], 1e-5) == math.inf
    assert spent([record(0, 0.5, 1)], 1e-5, accountant="rdp") == math.inf


@pytest.mark.parametrize("delta", [0, 1, -1e-5, 2, math.nan, math.inf, "x", True])
def test_a_delta_outside_0_to_1_is_refused(delta: float) -> None:
    with pytest.raises(AccountingError, match="delta"):
        spent([], delta)


def test_units_never_mix() -> None:
    with pytest.raises(AccountingError, match="of one unit"):
        spent([record(1, 0.1, 1), Event("client", 1, 1.0, 1)], 1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"unit": "household"},
        {"sigma": -1.0},
        {"sigma": math.nan},
        {"rate": 1.5},
        {"steps": 1.5},
        {"count": -1},
        {"steps": True},
    ],
)
def test_a_value_that_is_no_event_is_refused(wrong: dict[str, object]) -> None:
    fine = {"unit": "record", "sigma": 1.0, "rate": 0.1, "steps": 1, "count": 1}
    with pytest.raises(EventError):
        Event.from_dict(fine | wrong)


def test_an_event_with_a_key_that_is_unknown_or_missing_is_refused() -> None:
    fine = record(1, 0.1, 1).to_dict()
    assert Event.from_dict(fine) == record(1, 0.1, 1)
    with pytest.raises(EventError):
        Event.from_dict(fine | {"discount": 0.5})
    with pytest.raises(EventError):
        Event.from_dict({k: v for k, v in fine.items() if k != "rate"})


events = st.builds(
    record,
    st.sampled_from([0.7, 1.0, 2.0, 4.0]),
    st.sampled_from([0.05, 0.2, 1.0]),
    st.integers(0, 20),
    st.integers(0, 3),
)
histories = st.lists(events, max_size=6)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(histories, st.randoms())
def test_neither_order_nor_grouping_matters(history: list[Event], random: object) -> None:
    shuffled = list(history)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    split = [record(e.sigma, e.rate, e.steps) for e in shuffled for _ in range(e.count)]
    assert merge(split) == merge(history)
    assert spent(split, 1e-5) == spent(history, 1e-5)


@pytest.mark.long
@settings(max_examples=8, deadline=None)
@given(histories, events)
def test_epsilon_never_falls_and_rdp_is_never_below(history: list[Event], more: Event) -> None:
    before, after = spent(history, 1e-5), spent([*history, more], 1e-5)
    assert before <= after + 1e-9
    assert spent(history, 1e-5, accountant="rdp") >= before - 1e-3


@pytest.mark.long
@settings(max_examples=12, deadline=None)
@given(histories, st.floats(0.1, 30))
def test_the_quick_answer_is_the_exact_one(history: list[Event], epsilon: float) -> None:
    assert within(history, Budget(epsilon, 1e-5)) == (spent(history, 1e-5) <= epsilon)


@pytest.mark.long
@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps"),
    [
        pytest.param(0.5, 1e-7, 0.5, 30, marks=pytest.mark.slow),
        (2.0, 1e-12, 0.2, 40),
        pytest.param(20.0, 1e-3, 0.1, 1, marks=pytest.mark.slow),
        (4.0, 1e-5, 1.0, 300),
    ],
)
def test_calibration_lands_inside_and_close(
    epsilon: float, delta: float, rate: float, steps: int
) -> None:
    sigma = calibrate(Budget(epsilon, delta), rate=rate, steps=steps)
    assert 0.995 * epsilon <= spent([record(sigma, rate, steps)], delta) <= epsilon


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.2, 20),
    st.sampled_from([1e-3, 1e-5, 1e-7]),
    st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    st.sampled_from([1, 30, 300]),
)
def test_every_calibration_lands_inside_and_close(
    epsilon: float, delta: float, rate: float, steps: int
) -> None:
    test_calibration_lands_inside_and_close(epsilon, delta, rate, steps)


@pytest.mark.slow
def test_calibration_leaves_room_for_what_is_paid_beside_it() -> None:
    beside = (record(20, 1.0, 30),)
    sigma = calibrate(Budget(3.0, 1e-4), rate=0.2, steps=30, beside=beside)
    together = spent([record(sigma, 0.2, 30), *beside], 1e-4)
    assert 0.995 * 3 <= together <= 3
    assert sigma > calibrate(Budget(3.0, 1e-4), rate=0.2, steps=30)


@pytest.mark.slow
def test_many_noise_levels_are_rounded_to_the_dear_side() -> None:
    many = [record(2 + i / 100, 0.01, 1) for i in range(100)]
    exact = spent([record(2, 0.01, 100)], 1e-5)
    assert 0 < spent(many, 1e-5) <= exact * 1.1
    assert len(merge(many)) <= 64
    assert spent(many, 1e-5) <= spent([*many, record(3.5, 0.01, 1)], 1e-5) + 1e-9


@pytest.mark.parametrize("sigma", [2e2, 5e5])
def test_very_small_epsilons_are_as_exact_as_large_ones(sigma: float) -> None:
    """Unsampled Gaussians against their closed form (Balle and Wang 2018, Theorem 8)."""
    steps, delta = 10_000, 1e-9
    mu = math.sqrt(steps) / sigma
    found = spent([record(sigma, 1.0, steps)], delta)
    normal = NormalDist()

    def delta_at(epsilon: float) -> float:
        left = normal.cdf(mu / 2 - epsilon / mu)
        return left - math.exp(epsilon) * normal.cdf(-mu / 2 - epsilon / mu)

    assert delta_at(found) <= delta * (1 + 1e-6)
    assert delta_at(found * 0.995) > delta


def test_the_forgetful_fft_is_scipys_to_the_last_bit() -> None:
    random = np.random.default_rng(0)
    for rows, length in ((700, 1155), (700, 1024), (1001, 97200)):
        real = random.random(rows)
        spectrum = scipy.fft.fft(real, length)
        apart = (spectrum, scipy.fft.ifft(spectrum), scipy.signal.fftconvolve(real, real))
        with scipy.fft.set_backend(_Forgetful, only=True):
            together = (
                scipy.fft.fft(real, length),
                scipy.fft.ifft(spectrum),
                scipy.signal.fftconvolve(real, real),
            )
        for one, other in zip(apart, together, strict=True):
            assert np.array_equal(one, other)


GROWING = """
from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

def ask(n):
    spent([Event("record", 1.0, 32 / 600, 19, n)], 1e-5)

ask(1)
before = megabytes()
for n in range(2, 12):
    ask(n)
print(megabytes() - before)
"""


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_growing_history_does_not_grow_in_memory() -> None:
    command = [sys.executable, "-c", GROWING]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40  # it was 120


def test_of_releases_without_sampling_no_distribution_is_kept() -> None:
    before = _once.cache_info().currsize
    for steps in (1, 2, 3):
        spent([record(5.5, 1.0, steps)], 1e-5)
    assert _once.cache_info().currsize == before


@pytest.mark.parametrize(
    ("field", "inside", "outside"),
    [
        ("sigma", [0, 1e-6, 1e9], [9e-7, 1.1e9, -1.0, math.inf, 10**400, "1", True]),
        ("rate", [0, 1e-12, 1], [5e-324, 9e-13, 1 + 1e-9, math.nan, 10**400]),
        ("steps", [0, 10**12], [10**12 + 1, -1, 1.0, True]),
        ("count", [0, 10**12], [10**12 + 1, 10**400]),
        ("records", [1, 10**9], [0, 10**9 + 1, 1.0]),
        ("sensitivity", [1.0, 1e3], [0.999, 1001, math.nan, 0]),
        ("sampling", ["poisson"], ["shuffled", "", None]),
    ],
)
def test_every_number_of_an_event_is_bounded_at_construction(
    field: str, inside: list[object], outside: list[object]
) -> None:
    fine = Event("record", 1.0, 0.1, 1).to_dict()
    for value in inside:
        assert getattr(Event.from_dict(fine | {field: value}), field) == value
    for value in outside:
        with pytest.raises(EventError, match=field):
            Event.from_dict(fine | {field: value})
    with pytest.raises(EventError, match=r"steps \* count"):
        Event("record", 1.0, 0.1, 10**7, 10**6)


def test_an_event_of_the_first_version_is_of_one_record_and_one_clip() -> None:
    event = Event("record", 1.0, 0.1, 5, 2)
    assert Event.from_dict(event.to_dict_of_0_1()) == event
    assert set(event.to_dict()) - set(event.to_dict_of_0_1()) == {
        "records",
        "sensitivity",
        "sampling",
    }


@pytest.mark.slow
def test_each_event_is_priced_for_the_records_that_a_person_had_then() -> None:
    """Composed by dp_accounting itself: a mixture for the past, single records after it."""
    past, later = Event("record", 2.0, 0.02, 50, 8, records=4), record(2.0, 0.02, 50, 139)
    composed = _once(2.0, 0.02, 1e-3, 4).self_compose(400)
    composed = composed.compose(_once(2.0, 0.02, 1e-3, 1).self_compose(50 * 139))
    truth = composed.get_epsilon_for_delta(1e-5)
    together = spent([past, later], 1e-5, records=None)
    assert truth * 0.995 < together < truth * 1.005
    assert together > 5.7 > spent([past, later], 1e-5) > 3.9
    everything_at_four = spent([past, later], 1e-5, records=4)
    assert everything_at_four > together


@pytest.mark.slow
@pytest.mark.parametrize("records", [1, 3])
def test_a_sum_that_one_unit_moves_further_is_dearer(records: int) -> None:
    quiet = Event("record", 2.2, 0.1, 20, records=records, sensitivity=1.1)
    assert quiet.noise == pytest.approx(2.0)
    plain = Event("record", quiet.noise, 0.1, 20, records=records)
    assert spent([quiet], 1e-5, records=None) == spent([plain], 1e-5, records=None)
    unmoved = Event("record", 2.2, 0.1, 20, records=records)
    assert spent([quiet], 1e-5, records=None) > spent([unmoved], 1e-5, records=None)


@pytest.mark.slow
def test_rounded_noise_levels_are_never_too_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two histories of 65 levels, in sigma and in rate: exactly composed they cost no more."""
    by_sigma = [record(2 + i / 40, 0.01, 1) for i in range(65)]
    by_rate = [record(2.0, 0.01 + i / 5000, 1) for i in range(65)]
    groups = [Event("record", 2 + i / 40, 0.01, 1, records=1 + i % 2) for i in range(65)]
    rounded = [spent(one, 1e-5, records=None) for one in (by_sigma, by_rate, groups)]
    monkeypatch.setattr("privacy.accounting.segments._DISTINCT_SEGMENTS", 65)
    exact = [spent(one, 1e-5, records=None) for one in (by_sigma, by_rate, groups)]
    for cheap, dear in zip(exact, rounded, strict=True):
        assert cheap <= dear <= 1.1 * cheap
    monkeypatch.undo()
    assert spent([*by_sigma, record(0, 0.01, 1)], 1e-5) == math.inf


DELTAS = (1e-300, 1e-30, 1e-18, 1e-15, 1e-12, 1e-9, 1e-5, 0.1, 0.9)
LOUD = record(0.4, 0.3, 20)
CASES = [(one, d) for one in (record(1.0, 0.01, 1000), record(3, 1, 50)) for d in DELTAS]
SLOW = [pytest.param(LOUD, delta, marks=pytest.mark.slow) for delta in DELTAS[-2:]]


@pytest.mark.long
@pytest.mark.parametrize(("event", "delta"), [*CASES, *((LOUD, d) for d in DELTAS[:-2]), *SLOW])
def test_every_delta_has_a_finite_epsilon_of_at_most_both_bounds(
    event: Event, delta: float
) -> None:
    found = spent([event], delta)
    assert 0 <= found <= spent([event], delta, accountant="rdp") < math.inf
    assert found <= spent([event], delta / 2)


@pytest.mark.slow
def test_an_epsilon_is_never_nan_whatever_the_event() -> None:
    for sigma in (0.0, 1e-6, 0.02, 1.0, 1e9):
        for rate in (1e-12, 1e-3, 0.999999, 1.0):
            for steps, records in ((1, 1), (10**12, 1), (1000, 10**9)):
                event = Event("record", sigma, rate, steps, records=records)
                for accountant, delta in (("pld", 1e-15), ("rdp", 1e-15), ("rdp", 1e-5)):
                    found = spent([event], delta, accountant=accountant, records=None)
                    assert found >= 0, (event, accountant)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    st.floats(0.5, 20),
    st.floats(1e-4, 0.5),
    st.integers(1, 300),
    st.integers(2, 5),
    st.sampled_from([1e-9, 1e-5, 1e-3]),
)
def test_renyis_bound_of_a_group_is_never_below_the_mixtures(
    sigma: float, rate: float, steps: int, records: int, delta: float
) -> None:
    mixture = _once(sigma, rate, 1e-3, records).self_compose(steps).get_epsilon_for_delta(delta)
    event = Event("record", sigma, rate, steps, records=records)
    bound = spent([event], delta, accountant="rdp", records=None)
    assert bound >= mixture * (1 - 1e-3) - 1e-3


def test_a_group_too_large_for_a_mixture_is_bounded_by_renyi_at_once() -> None:
    event = Event("record", 1e9, 1e-6, 10, records=10**6)
    found = spent([event], 1e-5, records=None)
    assert found == spent([event], 1e-5, accountant="rdp", records=None) < 0.01
