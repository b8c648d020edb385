"""Task packages for tests: a small honest one, and what is changed in it."""

import csv
from pathlib import Path

import numpy as np

from privacy.task_package.archive import Package, unpack
from privacy.task_package.archive import pack as pack_folder

MANIFEST = """name = "mine"
version = "1"
kind = "classification"
licence = "MIT"
classes = ["no", "yes"]
test = 0.25
[x.values]
shape = [3]
[options.width]
type = "integer"
default = 4
min = 1
max = 64
"""
READ = """
import csv


def read(path, options):
    with open(path) as file:
        yield from csv.DictReader(file)


def encode(record, options):
    x = [float(record[name]) for name in ("a", "b", "c")]
    return {"x": x, "y": record.get("y"), "site": record["site"]}
"""
MODEL = """
from torch import nn


def model(options):
    width = options["width"]
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))
"""
NO_MODEL = """
def model(options):
    return None
"""


def package(folder: Path, source: str = READ + MODEL, manifest: str = MANIFEST) -> Package:
    """A package of these texts; its folder is `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.py").write_text(source, encoding="utf-8")
    (folder / "task.toml").write_text(manifest, encoding="utf-8")
    return pack_folder(folder)


def packed(source: str = READ + MODEL, manifest: str = MANIFEST) -> Package:
    """The same without a folder that stays."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        return unpack(package(Path(place), source, manifest).content)


def rows(path: Path, count: int = 120, seed: int = 0) -> Path:
    """A CSV file for the honest package: two sites, labels that its first column decides."""
    draw = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["site", "a", "b", "c", "y"])
        for i in range(count):
            x = draw.normal(size=3)
            said = "yes" if x[0] + 0.3 * draw.normal() > 0 else "no"
            lines.writerow(["north" if i % 2 else "south", *(f"{v:.4f}" for v in x), said])
    return path
