"""A task made of a researcher's own model and arrays: no file, no registration."""

import copy
import json
import secrets
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from client.data.wanted import Wanted
from client.dpsgd.training import model_refusal
from client.tasks import losses
from client.tasks.packages.package_task import folder_file, package_task
from client.tasks.packages.product import remember
from client.tasks.registry import provided_package, task_of
from client.tasks.rows import Encoded, Rows, TaskError
from client.tasks.task import Task
from privacy.contract.plan import Plan, PlanError
from privacy.files import canonical_json
from privacy.task_package.archive import PackageError, load_package
from privacy.task_package.manifest import manifest_of
from simulations.engines.errors import OwnCodeError

_TEST_SHARE: Final = 0.2
_MOST_CLASSES: Final = 10_000
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class OwnData:
    """Arrays for a simulation.

    `x` is [n, ...] (floats, or integers that are ids), `y` is [n]: integers, booleans or texts are
    classes; floats are a number within the public `bounds` (low, high). `classes` are the public
    names of the classes, by default the sorted values of `y`. `site` and `subject` say whose a row
    is. `test` holds (x, y) to evaluate on; without it a random fifth of the rows, or of the
    subjects, is held out.
    """

    x: Any
    y: Any
    classes: Sequence[Any] | None = None
    bounds: tuple[float, float] | None = None
    site: Sequence[str] | None = None
    subject: Any = None
    test: tuple[Any, Any] | None = None


def own_data(data: Any, label: str | None = None) -> OwnData:
    """The arrays of an OwnData, of a pair (x, y), of a torch Dataset, or of a DataFrame.

    Of a DataFrame (pandas or polars) `label` names the column to learn; every other one is a
    number.
    """
    if isinstance(data, OwnData):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        return OwnData(*data)
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):
        names = [str(name) for name in data.columns]
        if label is None or label not in names:
            raise TaskError(f"label must be one of {', '.join(names)}, got {label!r}")
        others = [name for name in data.columns if str(name) != label]
        table = np.asarray(data[others].to_numpy())
        if table.dtype.kind not in "fiub":
            raise TaskError("every column but the label must be a number: encode texts first")
        return OwnData(table.astype(np.float32), np.asarray(data[label].to_numpy()))
    arrays = isinstance(data, np.ndarray | Tensor | list | str)
    if not arrays and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        pairs = [data[i] for i in range(len(data))]
        if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            raise TaskError("a Dataset must give pairs (x, y), and at least one")
        x = torch.stack([torch.as_tensor(np.asarray(x)) for x, _ in pairs])
        return OwnData(x, np.asarray([np.asarray(y).item() for _, y in pairs]))
    raise TaskError(
        f"data must be a pair (x, y), OwnData, a Dataset or a DataFrame, got {type(data).__name__}"
    )


def own_task(
    model: nn.Module | Callable[[], nn.Module],
    data: OwnData,
    *,
    loss: Loss | None,
    seed: int,
    per_example: bool,
) -> tuple[Task, Rows, Rows]:
    """The task, the training and the held-out rows of a model and arrays; TaskError.

    `model` is a module, whose weights are the first ones, or a function without arguments that
    builds one. `loss(outputs, y)` gives a loss per row [B]; by default cross-entropy of logits
    [B, classes], or the squared error of [B, 1]. The model is tried out on two rows first, and
    where it is trained `per_example` it is examined as a site would; OwnCodeError.
    """
    x = _inputs(data.x)
    classes, y, unit = _labels(data, data.y)
    rows = Rows(x, y, *_owners(data, len(x)))
    if data.test is None:
        people = np.arange(len(rows)) if rows.subject is None else rows.subject.numpy()
        everybody = np.unique(people)
        some = max(1, round(len(everybody) * _TEST_SHARE))
        held = np.isin(people, np.random.default_rng(seed).permutation(everybody)[:some])
        train, test = rows.take(np.flatnonzero(~held)), rows.take(np.flatnonzero(held))
    else:
        train, test = rows, Rows(_inputs(data.test[0]), _labels(data, data.test[1])[1])
    if not len(train):
        raise TaskError(f"data must hold at least 2 rows, got {len(rows)}")
    kind = "classification" if classes else "regression"
    learning = Task(
        name=f"own-{secrets.token_hex(6)}",
        kind="classification" if classes else "regression",
        classes=classes,
        inputs=(),
        label="y",
        shape=tuple(x.shape[1:]),
        model=_copies(model) if isinstance(model, nn.Module) else losses.seeded(model),
        load=_no_files,
        wanted=Wanted(()),
        encode=_no_columns,
        loss=loss or (losses.cross_entropy if classes else losses.squared_error),
        metrics=losses.classification_metrics if classes else losses.regression_metrics(unit),
        decode=losses.probabilities if kind == "classification" else _first,
        dtype=x.dtype,
        subjects=data.subject is not None,
        sample=None if x.is_floating_point() else _drawn(train),
    )
    _try_out(learning, train, seed)
    if per_example and (refusal := model_refusal(learning, seed)):
        raise OwnCodeError(refusal)
    return learning, train, test


@contextmanager
def packaged(plan: Plan, path: Path) -> Iterator[Plan]:
    """The plan with the digest of a package, whose task is found while the block lasts.

    PlanError where the plan names other code; TaskError, OwnCodeError for the package.
    """
    try:
        package = load_package(path)
        name = manifest_of(package).name
    except PackageError as error:
        raise TaskError(str(error)) from None
    if plan.simulation.engine == "ray":
        raise PlanError("a task package must not be run by the engine ray")
    if plan.code not in (None, package.code):
        raise PlanError(f"code must be {package.code}, that of {path}, got {plan.code}")
    if plan.task != name:
        raise PlanError(f"task must be {name}, the name in {path}, got {plan.task}")
    remember()
    file = folder_file(path)

    @lru_cache(maxsize=4)
    def build(options: str) -> Task:
        return package_task(package, json.loads(options), file=file, tell=True)

    with provided_package(
        package.code, lambda request: build(canonical_json(dict(request.task_options)))
    ):
        plan = replace(plan, code=package.code)
        learning = task_of(plan)
        if plan.noised_at_site and (refusal := model_refusal(learning, plan.seed)):
            raise OwnCodeError(refusal)
        yield plan


def _drawn(rows: Rows) -> Callable[[int, torch.Generator], Rows]:
    """Rows for the examination of a model that takes ids: not every integer is one."""
    return lambda n, draw: rows.take(torch.randint(len(rows), (n,), generator=draw))


def _inputs(x: Any) -> Tensor:
    values = x if isinstance(x, Tensor) else torch.from_numpy(np.ascontiguousarray(np.asarray(x)))
    if values.ndim < 2:
        raise TaskError(f"x must have the shape [rows, ...], got {list(values.shape)}")
    if values.is_floating_point():
        values = values.to(torch.float32)
        if not bool(torch.isfinite(values).all()):
            raise TaskError("x must be finite in every row")
        return values.contiguous()
    return values.to(torch.int64).contiguous()


def _labels(data: OwnData, y: Any) -> tuple[tuple[str, ...], Tensor, float]:
    """The classes' names, the labels, and what 1 of them is in the label's unit."""
    values = np.asarray(y.numpy() if isinstance(y, Tensor) else y)
    if values.ndim != 1:
        raise TaskError(f"y must have the shape [rows], got {list(values.shape)}")
    if values.dtype.kind == "f" and data.classes is None:
        if data.bounds is None:
            raise TaskError("bounds must be the public (low, high) of y where y is a number")
        low, high = data.bounds
        if not low < high:
            raise TaskError(f"bounds must be (low, high) with low < high, got {data.bounds}")
        scaled = (np.clip(values, low, high) - low) / (high - low) * 2 - 1
        return (), torch.from_numpy(scaled.astype(np.float32)), (high - low) / 2
    names = sorted(set(values.tolist())) if data.classes is None else list(data.classes)
    if not 2 <= len(names) <= _MOST_CLASSES:
        raise TaskError(f"y must have between 2 and {_MOST_CLASSES} classes, got {len(names)}")
    places = {name: i for i, name in enumerate(names)}
    try:
        indices = [places[value] for value in values.tolist()]
    except KeyError as error:
        raise TaskError(f"y must be one of the classes, got {error}") from None
    return tuple(str(name) for name in names), torch.tensor(indices, dtype=torch.int64), 1.0


def _owners(data: OwnData, count: int) -> tuple[tuple[str, ...] | None, Tensor | None]:
    site = None if data.site is None else tuple(str(one) for one in data.site)
    subject = None
    if data.subject is not None:
        _, numbers = np.unique(np.asarray(data.subject), return_inverse=True)
        subject = torch.from_numpy(numbers.astype(np.int64))
    return site, subject


def _copies(model: nn.Module) -> Callable[[int], nn.Module]:
    template = copy.deepcopy(model)
    return lambda seed: copy.deepcopy(template)


def _first(outputs: Tensor) -> Tensor:
    return outputs.reshape(len(outputs))


def _no_files(*_: Any) -> NoReturn:
    raise TaskError("a task of own arrays reads no files")


def _no_columns(table: Any) -> Encoded:
    raise TaskError("a task of own arrays has no columns")


def _try_out(learning: Task, rows: Rows, seed: int) -> None:
    """One forward, loss and backward on two rows: what fails, fails here, in the own code."""
    part = rows.take(range(min(2, len(rows))))
    try:
        model = learning.model(seed)
        lost = learning.loss(model(part.x), part.y)
        if lost.shape != (len(part),):
            raise TaskError(f"loss must be one per row [{len(part)}], got {list(lost.shape)}")
        lost.sum().backward()
    except TaskError:
        raise
    except Exception as error:
        raise OwnCodeError(described(error)) from error


def described(error: BaseException) -> str:
    """An error in own code as one line: its type, its message, its file and line."""
    frames = traceback.extract_tb(error.__traceback__)
    user_frames = [f for f in frames if not _is_library(f.filename)] or list(frames)
    where = f" ({user_frames[-1].filename}:{user_frames[-1].lineno})" if user_frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def _is_library(file: str) -> bool:
    here = Path(__file__).resolve().parents[1]
    path = Path(file)
    ours = any(path.is_relative_to(here / part) for part in ("client", "simulations", "privacy"))
    return ours or "site-packages" in path.parts
