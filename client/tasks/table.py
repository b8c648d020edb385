"""Anybody's own table, described by a public schema in the plan (`client.tasks.schema`).

The schema's bounds and categories are written down by people; none is computed from the rows.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from client.data.loading import held_out, part
from client.data.loading import load as load_rows
from client.data.reader import is_table
from client.data.source import options_of
from client.tasks import losses
from client.tasks.features.adapters import adapted_text
from client.tasks.features.public_layers import first_layers
from client.tasks.features.text import Text
from client.tasks.preprocessing import Category, Columns
from client.tasks.rows import Encoded, Rows, TaskError, check_part
from client.tasks.schema import PARAMETERS_MAX, Schema, schema
from client.tasks.task import Task


def load(plan: Schema, path: Path | None, which: str) -> Rows:
    """The rows of a source; a fraction is held out by a public hash of what each row is.

    Rows of one subject (or of one key) stay together. A test file lies beside the file, or in the
    folder `path`.
    """
    check_part(which)
    if path is None:
        raise TaskError("data: expected the path of the table (CSV, Parquet, ..), got none")
    if isinstance(plan.test, str):
        beside = (path if path.is_dir() else path.parent) / plan.test
        file = _only(path, plan.test)
        if which == "all":
            return _rows(plan, file) + _rows(plan, beside)
        return _rows(plan, beside if which == "test" else file)
    loaded = load_rows(path, plan.wanted, plan.columns.encode, plan.roles)
    if which == "all":
        return loaded.rows
    held = held_out(loaded, plan.test)
    return part(loaded.rows, held if which == "test" else ~held)


def load_both(plan: Schema, path: Path | None) -> tuple[Rows, Rows]:
    """The rows to train on and those held out, from one reading of a file."""
    if path is None or isinstance(plan.test, str):
        return load(plan, path, "train"), load(plan, path, "test")
    loaded = load_rows(path, plan.wanted, plan.columns.encode, plan.roles)
    held = held_out(loaded, plan.test)
    return part(loaded.rows, ~held), part(loaded.rows, held)


def load_with(plan: Schema, path: Path | None, encode: Callable[[Any], Encoded]) -> Rows:
    """The rows of a source in another encoding, before any are held out by a fraction."""
    if path is None:
        raise TaskError("data: expected the path of the table (CSV, Parquet, ..), got none")
    file = _only(path, plan.test) if isinstance(plan.test, str) else path
    return load_rows(file, plan.wanted, encode, plan.roles).rows


def _only(path: Path, test: str) -> Path:
    """The file itself, or the one table of a folder that is not the test file."""
    if not path.is_dir() or options_of(path).files:
        return path
    tables = sorted(file for file in path.iterdir() if is_table(file) and file.name != test)
    if len(tables) != 1:
        raise TaskError(f"{path}: expected one table beside {test}, found {len(tables)}")
    return tables[0]


def _rows(plan: Schema, file: Path) -> Rows:
    return load_rows(file, plan.wanted, plan.columns.encode, plan.roles).rows


def _check_size(*widths: int) -> None:
    """Refuse a model by its layers' widths, before it is built."""
    parameters = sum((one + 1) * following for one, following in pairwise(widths))
    if parameters > PARAMETERS_MAX:
        raise TaskError(
            f"hidden: must describe at most {PARAMETERS_MAX} parameters, got {parameters}"
        )


def _adapted(columns: Columns) -> list[nn.Module]:
    """The last layers of a backbone, for each text that adapters are learnt for."""
    layers: list[nn.Module] = []
    at = 0
    for column in columns.inputs:
        if isinstance(column, Text) and column.adapted and column.backbone is not None:
            folder, digest = column.backbone.folder(), column.backbone.digest
            sizes = {"tokens": column.tokens, "adapted": column.adapted, "rank": column.rank}
            layers.append(adapted_text(folder, digest, at=at, **sizes))
            at += column.vector
        else:
            at += column.width
    return layers


def task(text: str) -> Task:
    """The task that a schema describes: softmax or least-squares regression, or hidden layers."""
    plan = schema(text)
    columns, label = plan.columns, plan.columns.label
    outputs = len(label.values) if isinstance(label, Category) else 1
    seen = columns.width - sum(one.width - one.vector for one in columns.adapted)
    if plan.random:  # a norm has no parameters, whatever its width
        _check_size(seen, plan.random)
    first, width = first_layers(seen, plan.norm, plan.random, plan.random_scale)
    _check_size(width, *plan.hidden, outputs)

    def build() -> nn.Module:
        learnt = losses.layered(width, plan.hidden, outputs)
        layers = [*_adapted(columns), *first]
        return nn.Sequential(*layers, learnt) if layers else learnt

    common: dict[str, Any] = {
        "name": "table",
        "kind": plan.kind,
        "inputs": tuple(column.name for column in columns.inputs),
        "label": label.name,
        "shape": (columns.width,),
        "load": lambda path, part: load(plan, path, part),
        "load_both": lambda path: load_both(plan, path),
        "load_with": lambda path, encode: load_with(plan, path, encode),
        "wanted": plan.wanted,
        "encode": columns.encode,
        "columns": columns,
        "subjects": bool(plan.roles.subject),
        "features": columns.features,
        "pretrained": tuple(one.words for one in columns.backbones),
        "costly": bool(columns.backbones),
    }
    if isinstance(label, Category):
        return Task(
            **common,
            classes=label.values,
            model=losses.seeded(build),
            loss=losses.cross_entropy,
            metrics=losses.classification_metrics,
            decode=losses.probabilities,
        )
    half, middle = (label.high - label.low) / 2, (label.high + label.low) / 2
    return Task(
        **common,
        classes=(),
        model=losses.seeded(build),
        loss=losses.squared_error,
        metrics=losses.regression_metrics(half),
        decode=lambda outputs: outputs.reshape(len(outputs)) * half + middle,
    )
