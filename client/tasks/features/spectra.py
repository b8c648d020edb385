"""Short sounds as numbers: where the energy lies in time and pitch, whatever the loudness and pace.

The logarithm of a mel spectrum (Davis & Mermelstein 1980) of the loud part, brought to a fixed
length, then its cosine transform in both directions: slow changes and broad shapes carry the words,
so the low corner is kept. Each sound by itself; every constant is public.
"""

from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BANDS: Final = 32
PITCHES: Final = 16
TIMES: Final = 10
WIDTH: Final = PITCHES * TIMES
"""Numbers of one sound."""
_STEPS: Final = 32
_QUIET: Final = 1e-2
_FLOOR: Final = 1e-3
_GAIN_PITCH: Final = 0.3
_GAIN_TIME: Final = 0.15

Floats = NDArray[np.float64]


def cepstra(samples: NDArray[Any], rate: int) -> NDArray[np.float32]:
    """Samples in -1..1 [n] at `rate` a second to WIDTH numbers of length 1; ValueError if silent.

    Frames last 32 ms, every 5 ms. Those below a hundredth of the loudest at either end are left
    out.
    """
    frame, step = max(16, rate * 32 // 1000), max(1, rate * 5 // 1000)
    sound = np.append(samples[:1], samples[1:] - 0.95 * samples[:-1]).astype(np.float64)
    padded = np.pad(sound, (0, max(0, frame - len(sound))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, frame)[::step] * np.hanning(frame)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2 @ _mel(frame, rate).T
    energy = power.sum(1)
    loudest = float(energy.max())
    if not loudest > 1e-12:
        raise ValueError("a sound that is not silent")
    loud = np.flatnonzero(energy > _QUIET * loudest)
    bands = np.log(power[loud[0] : loud[-1] + 1] / loudest + _FLOOR)
    even = _stretched(bands)
    even -= even.mean()
    low = _cosines(_STEPS, TIMES) @ even @ _cosines(BANDS, PITCHES).T
    low *= (1.0 + np.arange(TIMES))[:, None] ** _GAIN_TIME
    low *= (1.0 + np.arange(PITCHES)) ** _GAIN_PITCH
    return np.asarray(low / (np.linalg.norm(low) + 1e-9), np.float32).reshape(-1)


def _stretched(bands: Floats) -> Floats:
    """Frames at `_STEPS` evenly spaced times, between two frames in proportion."""
    at = np.linspace(0, len(bands) - 1, _STEPS)
    before = np.floor(at).astype(int)
    after = np.minimum(before + 1, len(bands) - 1)
    out: Floats = bands[before] + (at - before)[:, None] * (bands[after] - bands[before])
    return out


@lru_cache(maxsize=4)
def _mel(frame: int, rate: int) -> Floats:
    """Triangles of equal width in mel from 60 Hz up, [BANDS, frame // 2 + 1]."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (60.0, rate / 2))
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    pitch = np.arange(frame // 2 + 1) * rate / frame
    rising = (pitch - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - pitch) / (edges[2:] - edges[1:-1])[:, None]
    triangles: Floats = np.clip(np.minimum(rising, falling), 0, None)
    return triangles


@lru_cache(maxsize=4)
def _cosines(points: int, kept: int) -> Floats:
    """The first rows of the orthonormal cosine transform (DCT-II), [kept, points]."""
    k = np.arange(kept)[:, None]
    rows: Floats = np.cos(np.pi * k * (2 * np.arange(points) + 1) / (2 * points))
    rows *= np.sqrt(2 / points)
    rows[0] /= np.sqrt(2)
    return rows
