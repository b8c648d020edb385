"""`python -m simulations.templates.windows FOLDER`: made-up movements of people, to learn from.

People carry a sensor of three axes, at 20 readings a second. Each has a stride, a strength and a
way to wear it of their own. `windows.csv` has a line a reading: `person`, `spell` (one activity of
one person, whose readings follow each other), `activity`, and `x`, `y`, `z` in units of gravity.
No statement about real people follows from it.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from simulations.templates.command import run

RATE: Final = 20
ACTIVITIES: Final = {
    "walking": (1.9, 0.35, 0.5),
    "jogging": (2.7, 0.9, 0.6),
    "upstairs": (1.6, 0.3, 0.9),
    "downstairs": (2.0, 0.45, 0.9),
    "sitting": (0.3, 0.015, 0.2),
    "standing": (0.4, 0.02, 0.2),
}
"""Strides a second, strength in units of gravity, and how uneven they are."""

Floats = NDArray[np.float64]


def spell(activity: str, steps: int, person: np.random.Generator, mood: int) -> Floats:
    """The readings of one activity of a person, [steps, 3]."""
    pace, strength, uneven = ACTIVITIES[activity]
    own = np.random.default_rng(mood)  # what this person does the same in every activity
    pace *= 1 + 0.1 * own.normal()
    strength *= np.exp(0.2 * own.normal())
    worn = own.normal(0, 0.25, 3) + (np.array([0.9, 0.1, 0.3]) if activity == "sitting" else 0)
    gravity = np.array([0.0, 1.0, 0.0]) + worn
    gravity /= np.linalg.norm(gravity)
    drift = np.cumsum(person.normal(0, 0.02, steps)) * uneven
    phase = 2 * np.pi * pace * np.arange(steps) / RATE + drift * 6
    shape = np.stack(
        [np.sin(phase) ** 3, np.sin(phase) + 0.4 * np.sin(2 * phase), np.cos(phase)], 1
    )
    if activity == "upstairs":
        shape[:, 0] += 0.5 * np.sin(phase / 2)
    if activity == "downstairs":
        shape[:, 1] += 0.6 * np.abs(np.sin(phase / 2)) ** 6
    swing = np.exp(0.3 * uneven * np.repeat(person.normal(size=steps // RATE + 1), RATE)[:steps])
    noise = person.normal(0, 0.03 + 0.1 * strength, (steps, 3))
    return np.asarray(gravity + strength * swing[:, None] * shape + noise, np.float64)


def lines(people: int, windows: int, seed: int) -> Iterator[list[object]]:
    """Every reading of everybody; a window has 64."""
    for number in range(people):
        person = np.random.default_rng([seed, number])
        for activity in ACTIVITIES:
            count = int(person.integers(windows // 2, windows + 1)) * 64
            for reading in spell(activity, count, person, seed * 1000 + number):
                values = [f"{v:.3f}" for v in np.clip(reading, -3, 3)]
                yield [f"person-{number}", f"person-{number}-{activity}", activity, *values]


def write(folder: Path, *, people: int = 36, windows: int = 16, seed: int = 0) -> Path:
    """Write `folder`/windows.csv; its path. The same seed gives the same movements."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "windows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(("person", "spell", "activity", "x", "y", "z"))
        out.writerows(lines(people, windows, seed))
    return path


if __name__ == "__main__":
    run("windows", write, "activity")
