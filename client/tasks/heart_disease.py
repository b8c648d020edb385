"""Heart disease (UCI): 10 clinical values of 4 hospitals' patients, healthy or not.

As FLamby has them (Ogier du Terrail et al., NeurIPS 2022): without the columns slope, ca and thal,
without rows that miss a value. Its split into train and test depends on how many rows a hospital
has; a site holds rows out by their content.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from client.data.loading import Loaded, held_out
from client.data.loading import load as load_rows
from client.tasks.preprocessing import Category, Columns, Number
from client.tasks.rows import Encoded, NoRows, Rows, TaskError, check_part

if TYPE_CHECKING:
    from client.tasks.task import Task

HOSPITALS: Final = ("cleveland", "hungarian", "switzerland", "va")
NAMES: Final = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak"),
    *("slope", "ca", "thal", "num"),
)
CLASSES: Final = ("healthy", "disease")
COLUMNS: Final = Columns(
    (
        Number("age", 30, 80),
        Number("sex", 0, 1),
        Category("cp", ("1", "2", "3", "4"), signed=True),
        Number("trestbps", 90, 200),
        Number("chol", 100, 400),
        Number("fbs", 0, 1),
        Category("restecg", ("0", "1", "2"), signed=True),
        Number("thalach", 80, 200),
        Number("exang", 0, 1),
        Number("oldpeak", 0, 4),
    ),
    Category(
        "num",
        CLASSES,
        aliases=MappingProxyType(
            {"0": "healthy"} | {str(degree): "disease" for degree in range(1, 5)}
        ),
    ),
)
"""Ranges that clinicians would write down without seeing a patient of these hospitals."""


WANTED: Final = COLUMNS.wanted(names=NAMES)
HELD_OUT: Final = 0.34
"""The part of the rows that is held out, as in the published split."""


def load(path: Path | None, part: str) -> Rows:
    """The rows of a folder with all four hospitals' files or one of them, or of one such file."""
    check_part(part)
    hospitals = []
    for name, loaded in _loaded(path, COLUMNS.encode):
        rows = loaded.rows
        if part != "all":
            held = held_out(loaded, HELD_OUT)
            rows = rows.take(np.flatnonzero(held if part == "test" else ~held))
        hospitals.append(replace(rows, site=(name,) * len(rows)))
    return sum(hospitals[1:], start=hospitals[0])


def _all(path: Path | None, encode: Callable[[Any], Encoded]) -> Rows:
    """Every row of the hospitals' files, in another encoding."""
    hospitals = [
        replace(loaded.rows, site=(name,) * len(loaded.rows))
        for name, loaded in _loaded(path, encode)
    ]
    return sum(hospitals[1:], start=hospitals[0])


def _loaded(path: Path | None, encode: Callable[[Any], Encoded]) -> list[tuple[str, Loaded]]:
    """What each hospital's file has; NoRows where none has a row that fits."""
    files, loaded = _files(path), list[tuple[str, Loaded]]()
    for at, (name, file) in enumerate(files):
        try:
            loaded.append((name, load_rows(file, WANTED, encode)))
        except NoRows:  # it takes no other file's rows with it
            if not loaded and at == len(files) - 1:
                raise
    return loaded


def _files(path: Path | None) -> list[tuple[str, Path]]:
    if path is None:
        raise TaskError("data: expected the folder of processed.<hospital>.data files, got none")
    if path.is_file():
        known = [name for name in HOSPITALS if name in path.name]
        return [(known[0] if known else path.stem, path)]
    files = [(name, path / f"processed.{name}.data") for name in HOSPITALS]
    present = [(name, file) for name, file in files if file.is_file()]
    if len(present) in (1, len(files)):
        return present
    missing = next(file for name, file in files if (name, file) not in present)
    raise TaskError(
        f"{missing}: expected the files of all four hospitals, or of one alone; found none"
    )


def task() -> "Task":
    """Logistic regression on clinical values scaled by public bounds."""
    from client.tasks.classifier import classifier

    return classifier(
        COLUMNS,
        CLASSES,
        name="heart-disease",
        load=load,
        load_with=_all,
        wanted=WANTED,
    )
