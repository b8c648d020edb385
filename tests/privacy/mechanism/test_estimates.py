"""Most numbers are decided by estimates in floats: to the very bits that doubles give them."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privacy.mechanism import gaussian, native, noise

WORST = """
double worst(const uint64_t *radii, const uint64_t *angles, float std, double *far)
{
    static float x[PAIRS], y[PAIRS], within[PAIRS];
    static double right_x[PAIRS], right_y[PAIRS];
    uint8_t out[PAIRS];
    double most = 0;
    estimate(radii, angles, PAIRS, std, x, y, within, out);
    transform(radii, angles, PAIRS, std * FINE, right_x, right_y);
    for (long i = 0; i < PAIRS; i++) {
        *far += out[i];
        double allowed = 0.5 - (double)within[i] - PER_STEP;
        double error = fmax(fabs(x[i] - right_x[i] / FINE), fabs(y[i] - right_y[i] / FINE));
        if (!out[i] && error / allowed > most)
            most = error / allowed;
    }
    return most;
}
"""
BLOCKS = 2000


def worst(source: str, folder: Path) -> tuple[float, float]:
    """The largest error of an estimate, as a part of what is allowed; how many are left out.

    Radii and angles from the whole range, with the lowest and the highest bits that are not read.
    """
    (folder / "worst.c").write_text(source + WORST)
    library = native.compiled(folder / "worst.c")
    if library is None:
        pytest.skip("no C compiler")
    library.worst.restype = ctypes.c_double
    rng, far, most = np.random.default_rng(5), ctypes.c_double(0), 0.0
    ends, unread = np.arange(gaussian.PAIRS), np.uint64(2**32 - 1)
    for block in range(BLOCKS):
        words = rng.integers(0, 2**64, (2, gaussian.PAIRS), dtype=np.uint64)
        words[0, ends % 4 < 2] |= unread
        words[0, ends % 4 >= 2] &= ~unread
        words[1, ends % 2 == 0] |= unread
        words[1, ends % 2 == 1] &= ~unread
        words[0, :64] >>= np.uint64(block % 12)  # long radii, and short ones
        words[0, 64:128] |= ~(np.uint64(2**64 - 1) >> np.uint64(block % 17))
        std = ctypes.c_float(rng.uniform(1024, 2048))
        addresses = [ctypes.c_void_p(row.ctypes.data) for row in words]
        most = max(most, library.worst(*addresses, std, ctypes.byref(far)))
    return most, far.value / (BLOCKS * gaussian.PAIRS)


def test_no_estimate_is_further_off_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    most, far = worst(native._SOURCE.read_text(), tmp_path)
    assert 0.15 < most < 0.5, most  # in most cases roundings do not all go one way
    assert 0 < far < 0.05  # of words that are chosen to be so


@pytest.mark.slow
def test_without_fused_operations_no_estimate_is_further_off_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = native._SOURCE.read_text()
    most, _ = worst(source.replace("#ifdef __FP_FAST_FMAF", "#if 0"), tmp_path)
    assert 0.15 < most < 0.5, most


@settings(max_examples=150)
@given(
    st.integers(1, 3000),
    st.floats(-249, 249),
    st.floats(-4, 18),
    st.sampled_from(["float32", "float64", "two"]),
    st.integers(0, 2**32),
)
@example(2048, 0.0, 0.0, "two", 1)
@example(1500, 30.4, -3.0, "float32", 1)  # 1 / step is subnormal as a float
@example(1500, -35.0, 2.0, "float32", 1)  # sums are subnormal
@example(1500, 40.0, 17.0, "float32", 1)  # what is released is infinite
def test_any_sums_get_the_bits_that_numpy_gives_them(
    n: int, exponent: float, size: float, kind: str, seed: int
) -> None:
    kernel = noise._kernel()
    if kernel is None:
        pytest.skip("no C compiler")
    rng, std = np.random.default_rng(seed), 10.0**exponent
    step, over = noise.grid(std), float(rng.choice([1.0, 3.0, 1e-3, 256.0]))
    bits = rng.integers(0, 256, gaussian.bits_for(n), dtype=np.uint8)
    with np.errstate(all="ignore"):
        sums = rng.standard_cauchy(n) * std * 10.0**size
        more = (rng.normal(0, 1, n) * std * 10.0**size).astype(np.float32)
        start = sums.astype(np.float64 if kind == "float64" else np.float32)
        results = []
        for add in (kernel.add_noise, gaussian.add_noise):
            noisy, open, before = start.copy(), np.zeros(n, np.int64), np.zeros(n)
            two = more if kind == "two" else None
            count = add(noisy, bits, std, step, over, open, before, two)
            results.append((noisy, open[:count], before[:count]))
    for one, other in zip(*results, strict=True):
        assert one.tobytes() == other.tobytes()
