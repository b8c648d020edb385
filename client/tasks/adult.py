"""Adult census income (UCI): 14 columns of 48,842 people, who earns more than 50,000 dollars."""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from client.data.formats.idx import folder_file
from client.data.loading import load as load_rows
from client.tasks.preprocessing import Category, Columns, Number
from client.tasks.rows import Encoded, Rows, check_part

if TYPE_CHECKING:
    from client.tasks.task import Task

NAMES: Final = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status"),
    *("occupation", "relationship", "race", "sex", "capital-gain", "capital-loss"),
    *("hours-per-week", "native-country", "income"),
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CLASSES: Final = ("<=50K", ">50K")
COLUMNS: Final = Columns(
    (
        Number("age", 17, 90, knots=(22, 25, 28, 31, 35, 40, 45, 50, 55, 60, 65)),
        Category(
            "workclass",
            _words(
                "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov "
                "Without-pay Never-worked ?"
            ),
            other=True,
        ),
        Number("education-num", 1, 16, knots=(9, 10, 11, 13, 14, 15)),
        Category(
            "marital-status",
            _words(
                "Married-civ-spouse Divorced Never-married Separated Widowed "
                "Married-spouse-absent Married-AF-spouse"
            ),
            other=True,
        ),
        Category(
            "occupation",
            _words(
                "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty "
                "Handlers-cleaners Machine-op-inspct Adm-clerical Farming-fishing "
                "Transport-moving Priv-house-serv Protective-serv Armed-Forces ?"
            ),
            other=True,
        ),
        Category(
            "relationship",
            _words("Wife Own-child Husband Not-in-family Other-relative Unmarried"),
            other=True,
        ),
        Category(
            "race",
            _words("White Asian-Pac-Islander Amer-Indian-Eskimo Other Black"),
            other=True,
        ),
        Category("sex", ("Female", "Male"), other=True),
        Number("capital-gain", 0, 100_000, log=True, knots=(5_100, 7_000)),
        Number("capital-loss", 0, 5_000, log=True, knots=(1_800, 2_000)),
        Number("hours-per-week", 1, 99, knots=(30, 40, 41, 50)),
        Category("native-country", ("United-States", "?"), other=True),
    ),
    Category("income", CLASSES, aliases=MappingProxyType({"<=50K.": "<=50K", ">50K.": ">50K"})),
)
"""Bounds and knots that common knowledge of ages, school years, hours and tax brackets gives."""


WANTED: Final = COLUMNS.wanted(names=NAMES, comment="|")
"""UCI's files have no header line; the first line of one is a comment."""


def load(path: Path | None, part: str) -> Rows:
    """The rows of a folder with adult.data and adult.test, or of one file (all of it, any part)."""
    check_part(part)
    return _loaded(path, part, COLUMNS.encode)


def _loaded(path: Path | None, part: str, encode: Callable[[Any], Encoded]) -> Rows:
    if path is not None and path.is_file():
        return load_rows(path, WANTED, encode).rows
    files = [
        folder_file(path, "adult", name, f"{name}.gz")
        for name in {"train": ["adult.data"], "test": ["adult.test"]}.get(
            part, ["adult.data", "adult.test"]
        )
    ]
    parts = [load_rows(file, WANTED, encode).rows for file in files]
    return sum(parts[1:], start=parts[0])


def task() -> "Task":
    """Logistic regression on the public categories and on numbers with public knots."""
    from client.tasks.classifier import classifier

    return classifier(
        COLUMNS,
        CLASSES,
        name="adult",
        load=load,
        load_with=lambda path, encode: _loaded(path, "train", encode),
        wanted=WANTED,
    )
