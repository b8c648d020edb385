"""`python -m simulations.templates.regions FOLDER`: made-up patients of four regions.

`rows.npz` has `values` [n, 6] (six markers; the last two say nothing), `y` [n, 2] (years seen, and
1 where they ended in death) and `region`. Hazards are proportional, those of regions differ a
little, and how long a patient is followed does not depend on them.
"""

from pathlib import Path

import numpy as np

from simulations.templates.command import run


def write(folder: Path, *, patients: int = 1600, seed: int = 0) -> Path:
    """Write `folder`/rows.npz; its path. The same seed gives the same patients."""
    draw = np.random.default_rng(seed)
    names = np.array(["north", "east", "south", "west"])
    region = draw.integers(len(names), size=patients)
    values = draw.normal(size=(patients, 6))
    risk = (
        values @ np.array([0.9, -0.7, 0.5, 0.3, 0.0, 0.0]) + np.array([0.0, 0.2, -0.2, 0.1])[region]
    )
    life = draw.exponential(4 * np.exp(-risk))
    followed = draw.uniform(1, 10, patients)
    y = np.stack([np.minimum(life, followed), life <= followed], 1).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.npz"
    np.savez(path, values=values.astype(np.float32), y=y, region=names[region])
    return path


if __name__ == "__main__":
    run("regions", write, "survival")
