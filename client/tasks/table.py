"""Anybody's own table: a CSV or Parquet file, described by a schema that is public and in the plan.

The schema's bounds and categories are written down by people; none is computed from the rows.
"""

import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from client.data.csv import batches, place, whole
from client.tasks import losses
from client.tasks.preprocessing import ABSENT, Category, Columns, Number, distinct
from client.tasks.rows import Rows, TaskError, check_part
from client.tasks.task import Task

KEYS: Final = {"kind", "label", "subject", "site", "hidden", "test", "delimiter", "columns"}
NUMBER: Final = {"type", "min", "max", "missing", "log", "knots"}
CATEGORY: Final = {"type", "values"}


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema file, read: the columns, the roles of some, and how rows are held out."""

    kind: Literal["classification", "regression"]
    columns: Columns
    subject: str
    site: str
    hidden: tuple[int, ...]
    test: float | str
    delimiter: str


def schema(text: str) -> Schema:
    """Read the TOML text of a schema; TaskError names the key, its value and what was expected."""
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TaskError(f"schema: expected TOML, {error}") from error
    _known("", given, KEYS)
    kind = given.get("kind", "classification")
    if kind not in ("classification", "regression"):
        raise _refused("kind", "classification or regression", kind)
    described = given.get("columns")
    if not isinstance(described, dict) or not described:
        raise _refused("columns", "a table [columns.NAME] for each column", described)
    label = _text(given, "label", required=True)
    if label not in described:
        raise _refused("label", f"one of the columns {', '.join(described)}", label)
    columns = {name: _column(name, value) for name, value in described.items()}
    target = columns.pop(label)
    if isinstance(target, Number):
        target = Number(target.name, target.low, target.high)
    else:
        target = Category(target.name, target.values)
    if isinstance(target, Number) != (kind == "regression"):
        wanted = "number" if kind == "regression" else "category"
        raise _refused(f"columns.{label}.type", f"{wanted} for a {kind}", described[label]["type"])
    if not columns:
        raise _refused("columns", "a column beside the label", label)
    subject, site = _text(given, "subject"), _text(given, "site")
    for role, name in (("subject", subject), ("site", site)):
        if name in described:
            raise _refused(role, "a column that is not learnt from", name)
    return Schema(
        kind=kind,
        columns=Columns(tuple(columns.values()), target),
        subject=subject,
        site=site,
        hidden=_hidden(given.get("hidden", [])),
        test=_held_out(given.get("test", 0.2)),
        delimiter=_delimiter(given.get("delimiter", ",")),
    )


def load(plan: Schema, path: Path | None, part: str) -> Rows:
    """The rows of a file; a held-out fraction is chosen by a public hash of each row's position.

    Rows of one subject stay together. A test file lies beside the file, or in the folder `path`.
    """
    check_part(part)
    if path is None:
        raise TaskError("data: expected the path of the table (CSV or Parquet), got none")
    if isinstance(plan.test, str):
        beside = (path if path.is_dir() else path.parent) / plan.test
        file = _only(path, plan.test)
        if part == "test":
            return _rows(plan, beside)
        if part == "train":
            return _rows(plan, file)
        both = (_rows(plan, file), _rows(plan, beside))
        return _joined(*both)
    rows = _rows(plan, _only(path, None))
    if part == "all":
        return rows
    units = np.arange(len(rows)) if rows.subject is None else rows.subject.numpy()
    held = _held(units, plan.test)
    return rows.take(np.flatnonzero(held if part == "test" else ~held))


def _only(path: Path, test: str | None) -> Path:
    """The file itself, or the one table of a folder."""
    if not path.is_dir():
        return path
    tables = sorted(
        file
        for file in path.iterdir()
        if {".csv", ".parquet"} & set(file.suffixes) and file.name != test
    )
    if len(tables) != 1:
        raise TaskError(f"{path}: expected one CSV or Parquet file in it, found {len(tables)}")
    return tables[0]


def _rows(plan: Schema, file: Path) -> Rows:
    roles: dict[str, list[Any]] = {name: [] for name in (plan.subject, plan.site) if name}

    def watched() -> Iterator[Any]:
        for batch in batches(file, delimiter=plan.delimiter):
            for name, seen in roles.items():
                if name in batch.column_names:
                    seen.append(batch.column(name))
                elif name == plan.subject:
                    raise TaskError(f"{file}: expected a column named {name!r}, found none")
            yield batch

    rows = whole(file, plan.columns, watched(), delimiter=plan.delimiter)
    subject, site = None, None
    if plan.subject:
        values, index = _present(file, plan, plan.subject, roles[plan.subject])
        subject = torch.from_numpy(np.array([_number(value) for value in values])[index])
    if plan.site and roles[plan.site]:
        values, index = _present(file, plan, plan.site, roles[plan.site])
        site = tuple(values[i] for i in index.tolist())
    return Rows(rows.x, rows.y, site, subject)


def _present(
    file: Path, plan: Schema, name: str, parts: list[Any]
) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts of a column that may miss none, and each row's position in them."""
    texts, index = distinct(pa.chunked_array([chunk for part in parts for chunk in part.chunks]))
    values = ["" if text is None or text.strip() in ABSENT else text.strip() for text in texts]
    gone = np.array([not value for value in values])[index]
    if gone.any():
        where = place(file, int(gone.argmax()), delimiter=plan.delimiter)
        raise TaskError(f"{file}: {where}, column {name}: expected a value, got none")
    return values, index


def _number(subject: str) -> np.int64:
    """A subject's number, from its text alone: the same in every file."""
    return np.int64(
        int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "little", signed=True)
    )


def _held(units: NDArray[np.int64], fraction: float) -> NDArray[np.bool_]:
    """Which units are held out: a public hash (splitmix64) of each falls below `fraction`."""
    mixed = units.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53 < fraction


def _joined(first: Rows, second: Rows) -> Rows:
    site = None
    if first.site is not None and second.site is not None:
        site = first.site + second.site
    subject = None
    if first.subject is not None and second.subject is not None:
        subject = torch.cat([first.subject, second.subject])
    return Rows(torch.cat([first.x, second.x]), torch.cat([first.y, second.y]), site, subject)


def _column(name: str, given: object) -> Number | Category:
    key = f"columns.{name}"
    if not isinstance(given, dict):
        raise _refused(key, 'a table with type = "number" or "category"', given)
    if given.get("type") == "category":
        _known(f"{key}.", given, CATEGORY)
        values = given.get("values")
        if not isinstance(values, list) or not values:
            raise _refused(f"{key}.values", "a list of texts or numbers", values)
        texts = tuple(str(value) for value in values)
        if len(set(texts)) < len(texts):
            raise _refused(f"{key}.values", "distinct values", values)
        return Category(name, texts, other=True)
    if given.get("type") != "number":
        raise _refused(f"{key}.type", "number or category", given.get("type"))
    _known(f"{key}.", given, NUMBER)
    low, high = (_real(f"{key}.{end}", given.get(end)) for end in ("min", "max"))
    if not low < high:
        raise _refused(f"{key}.max", f"more than min = {low:g}", high)
    missing = given.get("missing")
    if missing is not None and missing != "indicator":
        missing = _real(f"{key}.missing", missing, 'a number or "indicator"')
    log, knots = given.get("log", False), given.get("knots", [])
    if not isinstance(log, bool):
        raise _refused(f"{key}.log", "true or false", log)
    if not isinstance(knots, list):
        raise _refused(f"{key}.knots", "a list of numbers", knots)
    return Number(name, low, high, missing, log, tuple(_real(f"{key}.knots", k) for k in knots))


def _hidden(given: object) -> tuple[int, ...]:
    if isinstance(given, list) and all(
        type(width) is int and 1 <= width <= 4096 for width in given
    ):
        return tuple(given)
    raise _refused("hidden", "a list of layer widths from 1 to 4096", given)


def _held_out(given: object) -> float | str:
    if isinstance(given, str) and given and Path(given).name == given:
        return given
    if isinstance(given, float) and 0 < given < 1:
        return given
    raise _refused(
        "test", "a fraction between 0 and 1, or the name of a file beside the data", given
    )


def _delimiter(given: object) -> str:
    if isinstance(given, str) and len(given) == 1:
        return given
    raise _refused("delimiter", "one character", given)


def _text(given: Mapping[str, object], key: str, required: bool = False) -> str:
    value = given.get(key, "")
    if not isinstance(value, str) or (required and not value):
        raise _refused(key, "the name of a column", given.get(key))
    return value


def _real(key: str, value: object, expected: str = "a number") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise _refused(key, expected, value)
    return float(value)


def _known(prefix: str, given: Mapping[str, object], keys: set[str]) -> None:
    for key in given:
        if key not in keys:
            raise TaskError(f"schema: {prefix}{key}: expected one of {', '.join(sorted(keys))}")


def _refused(key: str, expected: str, value: object) -> TaskError:
    got = "nothing" if value is None else repr(value)
    return TaskError(f"schema: {key}: expected {expected}, got {got}")


def task(text: str) -> Task:
    """The task that a schema describes: softmax or least-squares regression, or hidden layers."""
    plan = schema(text)
    columns, label = plan.columns, plan.columns.label
    common: dict[str, Any] = {
        "name": "table",
        "kind": plan.kind,
        "inputs": tuple(column.name for column in columns.inputs),
        "label": label.name,
        "shape": (columns.width,),
        "load": lambda path, part: load(plan, path, part),
        "read": lambda path: batches(path, delimiter=plan.delimiter),
        "encode": columns.encode,
        "columns": columns,
        "features": columns.features,
    }
    if isinstance(label, Category):
        outputs = len(label.values)
        return Task(
            **common,
            classes=label.values,
            model=losses.seeded(lambda: losses.layered(columns.width, plan.hidden, outputs)),
            loss=losses.cross_entropy,
            metrics=losses.classification_metrics,
            decode=losses.probabilities,
        )
    half, middle = (label.high - label.low) / 2, (label.high + label.low) / 2
    return Task(
        **common,
        classes=(),
        model=losses.seeded(lambda: losses.layered(columns.width, plan.hidden, 1)),
        loss=losses.squared_error,
        metrics=losses.regression_metrics(half),
        decode=lambda outputs: outputs.reshape(len(outputs)) * half + middle,
    )
