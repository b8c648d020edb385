"""`python -m simulations.templates.drives FOLDER`: cars on winding roads, to learn driving from.

No public set of drives is small enough to ship, so this makes one. A road bends smoothly; a car
drives along it at ten pictures a second, with a camera of two strips of pixels and its own faults:
how high and how straight the camera sits, how bright it sees, how noisy it is, how its driver
steers. Other cars and red lights come up. `drives.csv` has a line a picture:

* `near_0`.. and `far_0`..: the brightness (0..1) of the two strips, 8 m and 20 m ahead, in which
  the lines at both sides of the lane shine;
* `red_0`..: how red the far strip is (lights), `dark_0`..: how dark (a car ahead);
* `speed` in m/s; `steering` of the driver in -1..1, left to right; `action`, `go` or `stop`.

The driver sees the road itself, not the pictures, and is no part of the data.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulations.templates.command import run

PIXELS: Final = 16
STRIPS: Final = ("near", "far", "red", "dark")
COLUMNS: Final = (
    "vehicle",
    *(f"{strip}_{i}" for strip in STRIPS for i in range(PIXELS)),
    *("speed", "steering", "action"),
)
_STEP: Final = 0.1
_LANE: Final = 1.8
_VIEW: Final = 5.0
"""Metres to either side that a strip shows at 8 m; it shows the same angle at 20 m."""
_AHEAD: Final = (8.0, 20.0)

Floats = NDArray[np.float64]


def drive(vehicle: str, pictures: int, draw: np.random.Generator) -> Iterator[list[object]]:
    """The lines of one vehicle's drive."""
    tilt, shift = draw.normal(0, 0.02), draw.normal(0, 0.15)
    bright, noise = draw.uniform(0.6, 1.0), draw.uniform(0.03, 0.1)
    eager, habit = draw.normal(1, 0.1), draw.normal(0, 0.2)
    bend = offset = heading = 0.0
    speed, distance, red = 12.0, 60.0, 0.0
    for _ in range(pictures):
        bend += _STEP * (-0.2 * bend + 0.025 * draw.normal() / np.sqrt(_STEP))
        wanted = eager * (8.0 * bend - 0.12 * (offset - habit) - 1.1 * heading)
        steering = float(np.clip(wanted + 0.02 * draw.normal(), -1, 1))
        if distance > 80 and draw.random() < 0.02:
            distance, red = 60.0, float(draw.random() < 0.5)
        stop = distance < 2.0 * speed + 6.0
        strips = [
            _lines(ahead, bend, offset + shift, heading + tilt, bright, noise, draw)
            for ahead in _AHEAD
        ]
        there = _blob(distance, offset + shift, draw)
        strips += [there * red, there * (1 - red)]
        pixels = [
            f"{v:.3f}"
            for strip, dirt in zip(strips, (0, 0, noise, noise), strict=True)
            for v in np.clip(strip + dirt * draw.normal(size=PIXELS), 0, 1)
        ]
        action = "stop" if stop else "go"
        yield [vehicle, *pixels, f"{speed:.2f}", f"{steering:.4f}", action]
        heading += _STEP * speed * (steering / 8.0 - bend) + 0.01 * draw.normal()
        offset = float(np.clip(offset + _STEP * speed * heading, -1.5, 1.5))
        heading = float(np.clip(heading, -0.3, 0.3))
        speed = float(np.clip(speed + _STEP * (-5.0 if stop else 1.5), 0.5, 20.0))
        distance -= _STEP * speed
        if distance < 8 or (speed < 1 and draw.random() < 0.1):
            distance, red = float(draw.uniform(90, 250)), 0.0


def _lines(
    ahead: float,
    bend: float,
    offset: float,
    heading: float,
    bright: float,
    noise: float,
    draw: np.random.Generator,
) -> Floats:
    """A strip's brightness: the lane's two lines, as they lie `ahead` metres on."""
    across = np.linspace(-_VIEW, _VIEW, PIXELS) * ahead / _AHEAD[0]
    middle = bend * ahead**2 / 2 - offset - heading * ahead
    wide = 0.25 * ahead / _AHEAD[0] + 0.3
    lines = sum(np.exp(-(((across - middle - s * _LANE) / wide) ** 2)) for s in (-1, 1))
    return np.asarray(bright * lines + noise * draw.normal(size=PIXELS), np.float64)


def _blob(distance: float, offset: float, draw: np.random.Generator) -> Floats:
    """What is ahead, wider the nearer it is; nothing beyond 80 m."""
    if distance > 80:
        return np.zeros(PIXELS)
    across = np.linspace(-1, 1, PIXELS)
    return np.asarray(np.exp(-(((across + 0.05 * offset) * distance / 12) ** 2)), np.float64)


def write(folder: Path, *, vehicles: int = 8, pictures: int = 600, seed: int = 0) -> Path:
    """Write `folder`/drives.csv; its path. The same seed gives the same drives."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "drives.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(COLUMNS)
        for number in range(vehicles):
            draw = np.random.default_rng([seed, number])
            lines.writerows(drive(f"vehicle-{number + 1}", pictures, draw))
    return path


if __name__ == "__main__":
    run("drives", write, "driving")
