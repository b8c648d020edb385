"""The built-in tasks by name: one module each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Final, cast

import torch

from client.statistics.statistics_task import statistics_task
from client.tasks.described.described_task import task as described_task
from client.tasks.described.description import READERS, reader_of
from client.tasks.rows import TaskError
from client.tasks.task import Task
from privacy.contract.keys.tables import ModelPlan
from privacy.contract.plan import Plan

AREAS: Final = ("spoken-digits", "shakespeare", "movielens", "fashion-scattering")
NAMES: Final = ("digits", "fashion-mnist", "heart-disease", "adult", *AREAS, "table", *READERS)
"""Every task: those of a reader are described by a schema; another NAME is a module's (_ for -)."""


_provided: dict[str, Task] = {}
_packages: dict[str, Callable[[Plan], Task]] = {}


@contextmanager
def provided(learning: Task) -> Iterator[None]:
    """While the block lasts, `task` finds a task that a program made, by its unique name.

    Forked processes inherit it; TaskError where the name is taken.
    """
    if learning.name in NAMES or learning.name in _provided:
        raise TaskError(f"a task's name must be new, got {learning.name!r}")
    _provided[learning.name] = learning
    try:
        yield
    finally:
        del _provided[learning.name]


def task_of(plan: Plan) -> Task:
    """The task of a plan: a shipped one, one that a program made, or that of a package.

    A package is found where a program has provided it (`provided_package`); a site's own come from
    its store. TaskError.
    """
    if plan.statistics is not None:
        return statistics_task(plan.statistics, task(plan.reads, plan.schema))
    if plan.code is None:
        return fitting(task(plan.task, plan.schema, plan.model), plan)
    package = _packages.get(plan.code)
    if package is None:
        raise TaskError(f"code must be a task package that is here, {plan.code} is not")
    return fitting(package(plan), plan)


def fitting(learning: Task, plan: Plan) -> Task:
    """The same task, if the plan's `class_weights` and `augment` fit its rows; TaskError."""
    if plan.class_weights and learning.kind not in ("classification", "ordinal"):
        raise TaskError(f"class_weights must be left out for a task of {learning.kind}")
    for name in plan.class_weights:
        if name not in learning.classes:
            raise TaskError(
                f"class_weights.{name}: must be one of {', '.join(learning.classes[:20])}"
            )
    if plan.augment is not None:
        if len(learning.shape) != 3 or learning.dtype != torch.float32:
            raise TaskError(
                "augment must be left out unless rows are pictures or spectra, "
                f"got rows of shape {list(learning.shape)}"
            )
        _, height, width = learning.shape
        for key, most in (("across", width), ("down", height)):
            if getattr(plan.augment, key) >= most:
                raise TaskError(f"augment.{key} must be below {most}, the size of a row")
    return learning


def provide(code: str, make: Callable[[Plan], Task]) -> None:
    """Let `task_of` find a package from now on: for a process that plays one plan."""
    _packages[code] = make


@contextmanager
def provided_package(code: str, make: Callable[[Plan], Task]) -> Iterator[None]:
    """While the block lasts, `task_of` finds the package of that digest."""
    before = _packages.get(code)
    _packages[code] = make
    try:
        yield
    finally:
        if before is None:
            del _packages[code]
        else:
            _packages[code] = before


def task(name: str, schema: str | None = None, model: ModelPlan | None = None) -> Task:
    """The task of that name; `schema` is the TOML text that describes its rows, where it needs one.

    `model` describes the model of a task whose schema names a reader.
    """
    if name in _provided:
        return _provided[name]
    return _shipped(name, schema) if model is None else _modelled(name, schema, model)


def task_of_schema(schema: str) -> Task:
    """The task that a schema describes, with that reader's usual model; TaskError."""
    return task(reader_of(schema), schema)


@lru_cache(maxsize=4)
def _modelled(name: str, schema: str | None, model: ModelPlan) -> Task:
    if name not in READERS or schema is None:
        raise TaskError(f"model must be left out where task = {name!r}: it has its own")
    return _described(name, schema, model)


def _described(name: str, schema: str, model: ModelPlan | None = None) -> Task:
    if reader_of(schema) != name:
        raise TaskError(f"task must be {reader_of(schema)}, the reader of its schema, got {name}")
    return described_task(schema, model)


@lru_cache(maxsize=4)
def _shipped(name: str, schema: str | None) -> Task:
    if name not in NAMES:
        raise TaskError(f"task: expected one of {', '.join(NAMES)}, got {name!r}")
    if name in READERS:
        if schema is None:
            raise TaskError(f"schema: expected the description of the {name}, got none")
        return _described(name, schema)
    place = "client.tasks.areas" if name in AREAS else "client.tasks"
    module = import_module(f"{place}.{name.replace('-', '_')}")
    if name == "table":
        if schema is None:
            raise TaskError("schema: expected the schema of a table, got none")
        return cast(Callable[[str], Task], module.task)(schema)
    if schema is not None:
        raise TaskError(f"schema: expected none, since {name} has its own columns")
    return cast(Callable[[], Task], module.task)()
