"""An approved package as a Task: its model, loss and metrics run beside the trainer.

Its reader does not: rows come from a closed process (client/tasks/packages/reading.py).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from client.data.wanted import Wanted
from client.dpsgd.fused.twins import private_twins
from client.dpsgd.per_sample import ModelError
from client.tasks.described.outcomes import Outcome, outcome
from client.tasks.features.backbones import Backbone
from client.tasks.losses import seeded
from client.tasks.packages.product import product_changed
from client.tasks.packages.reading import Reader
from client.tasks.packages.source import backbones_of, fingerprint, load_source
from client.tasks.rows import Encoded, Rows, TaskError
from client.tasks.task import Task
from privacy.files import canonical_json
from privacy.printable import printable
from privacy.task_package.archive import SOURCE, Package, PackageError
from privacy.task_package.manifest import Manifest, manifest_of
from privacy.task_package.source_check import findings

_MOST_METRICS: Final = 64


def package_task(
    package: Package,
    options: Mapping[str, Any],
    *,
    name: str | None = None,
    file: str = SOURCE,
    tell: bool = False,
) -> Task:
    """The task of a package under a plan's options; TaskError, one line, where there is none.

    `name` is the plan's, which must be the package's. With `tell`, errors in reading say their
    text: for a researcher's own rows. The package is trusted here: its approval was asked before.
    """
    try:
        manifest = manifest_of(package)
        values = manifest.resolved(options)
    except PackageError as error:
        raise TaskError(str(error)) from None
    if name is not None and name != manifest.name:
        raise TaskError(f"task must be {manifest.name}, the package's name, got {printable(name)}")
    refused = [one for one in findings(package, manifest) if one.refused]
    if refused:
        raise TaskError(str(refused[0]))
    if missing := manifest.missing():
        raise TaskError(f"{manifest.name}: {missing[0]}")
    module = _loaded(package, file, backbones_of(manifest))
    reader = Reader(package, manifest, values, file=file, tell=tell)
    return _task(manifest, values, module, reader)


def _loaded(package: Package, file: str, backbones: Mapping[str, Path]) -> Any:
    try:
        module = load_source(package, file, backbones=backbones)
    except PackageError as error:
        raise TaskError(str(error)) from None
    except Exception as error:
        raise TaskError(
            f"{file}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if changed := product_changed():
        raise TaskError(f"{SOURCE}: must leave the product as it is, it changes {changed}")
    return module


def _task(manifest: Manifest, values: Mapping[str, Any], module: Any, reader: Reader) -> Task:
    before = fingerprint(module)

    def changed() -> str:
        if what := product_changed():
            return f"it changes {what}"
        return "it keeps state from round to round" if fingerprint(module) != before else ""

    known = _outcome(manifest)
    shapes, (label_shape, label_type) = manifest.shapes(values), manifest.label_of(values)
    kinds = {n: getattr(torch, one.dtype) for n, one in manifest.x.items()}
    single = len(shapes) == 1
    first = next(iter(shapes))
    return Task(
        name=manifest.name,
        kind=manifest.kind,
        classes=manifest.classes,
        inputs=(),
        label=manifest.label,
        shape=shapes[first] if single else (),
        model=seeded(lambda: _model(module, values, twins=manifest.twins)),
        load=reader.load,
        load_both=reader.load_both,
        wanted=Wanted(()),
        encode=_no_columns,
        loss=getattr(module, "loss", None) or _need(known, "loss").loss,
        metrics=_numbers(getattr(module, "metrics", None) or _need(known, "metrics").metrics),
        decode=getattr(module, "decode", None) or _need(known, "decode").decode,
        dtype=kinds[first],
        subjects=manifest.subjects,
        sample=_sample(module, values),
        x_shapes={} if single else {n: (s, kinds[n]) for n, s in shapes.items()},
        y_shape=label_shape,
        y_dtype=getattr(torch, label_type),
        read=reader.read,
        code=reader.package.code,
        options=canonical_json(dict(values)),
        changed=changed,
        times=manifest.times,
        held_open=reader.held_open,
        pretrained=tuple(Backbone(n, code).words for n, code in manifest.backbones.items()),
    )


def _model(module: Any, values: Mapping[str, Any], *, twins: bool) -> nn.Module:
    built = module.model(values)
    if not isinstance(built, nn.Module):
        raise TaskError(f"{SOURCE}: model must give a torch module, got {type(built).__name__}")
    try:
        return private_twins(built) if twins else built
    except ModelError as error:
        raise TaskError(f"{SOURCE}: {error}") from None


def _outcome(manifest: Manifest) -> Outcome | None:
    if manifest.kind == "values":
        return None
    return outcome(
        manifest.kind, classes=manifest.classes, bounds=manifest.bounds, times=manifest.times
    )


def _need(known: Outcome | None, name: str) -> Outcome:
    if known is not None:
        return known
    if name == "decode":
        return Outcome(0, _none, _no_metrics, lambda outputs: outputs)
    raise TaskError(f'{SOURCE}: must define the function {name} where kind = "values"')


def _none(outputs: Tensor, y: Tensor) -> Tensor:
    raise TaskError(f"{SOURCE}: must define the function loss")


def _no_metrics(outputs: Tensor, y: Tensor) -> dict[str, float]:
    return {}


def _numbers(
    metrics: Callable[[Tensor, Tensor], Mapping[str, Any]],
) -> Callable[[Tensor, Tensor], dict[str, float]]:
    """Metrics that are numbers under printable names, and nothing else."""

    def checked(outputs: Tensor, y: Tensor) -> dict[str, float]:
        values = metrics(outputs, y)
        if not isinstance(values, Mapping) or len(values) > _MOST_METRICS:
            raise TaskError(f"{SOURCE}: metrics must give at most {_MOST_METRICS} numbers by name")
        numbers: dict[str, float] = {}
        for name, value in values.items():
            plain = isinstance(name, str) and name.isidentifier() and len(name) <= 40
            if (
                not plain
                or np.ndim(value)
                or not isinstance(value, int | float | np.number | Tensor)
            ):
                raise TaskError(f"{SOURCE}: metrics must give plain numbers by plain names")
            numbers[name] = float(value)
        return numbers

    return checked


def _sample(
    module: Any, values: Mapping[str, Any]
) -> Callable[[int, torch.Generator], Rows] | None:
    function = getattr(module, "sample", None)
    if function is None:
        return None

    def sample(n: int, generator: torch.Generator) -> Rows:
        return Rows(*function(n, generator, values))

    return sample


def _no_columns(table: Any) -> Encoded:
    raise TaskError("a task package reads its own files, and no table")


def folder_file(path: Path) -> str:
    """The name that tracebacks show of a folder's task.py."""
    return str((path / SOURCE).absolute()) if path.is_dir() else SOURCE
