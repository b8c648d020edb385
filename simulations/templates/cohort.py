"""`python -m simulations.templates.cohort FOLDER`: patients of six regions, to learn survival from.

Public cohorts with regions of their own are not small enough to ship, so this makes one of the size
and shape of a cancer registry: 1,088 patients of six regions of 311 to 51, age and 38 findings that
are there or not, most of which say nothing, and deaths of one patient in seven; the others are
censored when their study ends. The regions differ in age and in how long they watch. A model that
knew the true risks would reach a C-index of about 0.84.

`patients.npz` holds `values` [n, 39] (age, 0..1 for 20..100 years, then 0 or 1), `y` [n, 2] (years,
and 1 for a death or 0) and `region` [n].
"""

from pathlib import Path
from typing import Final

import numpy as np

from simulations.templates.command import run

REGIONS: Final = {
    "north": 311,
    "east": 206,
    "south": 196,
    "west": 162,
    "coast": 162,
    "islands": 51,
}
FINDINGS: Final = 38
_TELLING: Final = 10
"""So many of the findings say something."""
_RISK: Final = 1.7
"""Standard deviation of the true log hazard ratio."""
_DEATHS: Final = 1 / 7


def write(folder: Path, *, seed: int = 0) -> Path:
    """Write `folder`/patients.npz; its path. The same seed gives the same patients."""
    truth = np.random.default_rng([seed, 0])
    shares = truth.uniform(0.1, 0.5, FINDINGS)
    effects = np.zeros(FINDINGS)
    effects[truth.permutation(FINDINGS)[:_TELLING]] = truth.choice([-1, 1], _TELLING) * (
        truth.uniform(0.6, 1.4, _TELLING)
    )
    draw = np.random.default_rng([seed, 1])
    regions = np.repeat(list(REGIONS), list(REGIONS.values()))
    older = dict(zip(REGIONS, draw.normal(0, 4, len(REGIONS)), strict=True))
    age = np.clip(draw.normal([58 + older[r] for r in regions], 12), 26, 90)
    findings = (draw.random((len(age), FINDINGS)) < shares).astype(np.float32)
    risk = 0.05 * (age - 58) + (findings - shares) @ effects
    risk *= _RISK / risk.std()
    watched = draw.uniform(0.5, [4 + 8 * draw.random() for _ in regions])
    lives = draw.exponential(np.exp(-risk))
    low, high = 1e-3, 1e6  # years by which so many deaths are seen
    while high / low > 1.0001:
        scale = float(np.sqrt(low * high))
        low, high = (scale, high) if (scale * lives <= watched).mean() > _DEATHS else (low, scale)
    time = np.minimum(scale * lives, watched)
    died = scale * lives <= watched
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "patients.npz"
    values = np.concatenate([(age[:, None] - 20) / 80, findings], 1).astype(np.float32)
    y = np.stack([time, died], 1).astype(np.float32)
    np.savez(path, values=values, y=y, region=regions)
    return path


if __name__ == "__main__":
    run("cohort", write)
