"""Whether a model and its loss keep examples apart, found out before any private row is used.

The clipped sum is bounded only if example i's loss depends on row i alone, and if row i of every
layer belongs to example i. Opacus' validator knows modules by type; this runs the model, in the
mode of training and through the task's loss, on made-up rows of several scales, with the weights
it has and with others (zeros in a fresh model hide a lot). Of private rows only shapes and types
are used, so that what is found tells nothing of them.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final

import torch
from opacus.layers.dp_multihead_attention import SequenceBias
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from client.dpsgd.calls import Call, batch_not_first
from client.dpsgd.clipping import BookKeeping, Loss
from client.dpsgd.examination.apart import FAULTS, SCALES, check_apart
from client.dpsgd.examination.made_up_rows import Domain, MadeUp
from client.dpsgd.examination.traces import (
    OWN,
    as_in_training,
    close,
    length,
    negated,
    nothing_kept,
    other_weights,
    seeded,
)
from client.dpsgd.per_sample import EXPANDED, Layer, Layout, ModelError

_BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_FEW: Final = 3
_MORE: Final = 4
_LEAST: Final = 2
"""Made-up rows where any batch shows the same: those of a large model are dear."""
_CACHE_SIZE: Final = 64


@dataclass(frozen=True, slots=True)
class _Examination:
    channels_last: bool
    layers: tuple[tuple[Layout | None, bool, bool | None], ...]


_examinations: OrderedDict[Hashable, _Examination] = OrderedDict()
_confirmed: set[tuple[Hashable, str]] = set()
"""Those that a real batch has passed, and in which precision: made-up rows run in float32."""


def examine(book: BookKeeping, domain: Domain, loss: Loss) -> None:
    """Refuse a model or a loss that mixes examples; tell `book` how its layers are called.

    A model of the same classes, attributes and shapes is examined once in a process, and then has
    the first real batch show that the halves of it do not touch each other. ModelError says the
    module's path and the remedy.
    """
    _check_modules(book.model)
    key = _key(book, domain, loss)
    examination = _examinations.get(key) if key is not None else None
    if examination is None:
        precision, book.precision = book.precision, "float32"
        try:
            with as_in_training(book.model):
                examination = _examined(book, domain, loss)
        finally:
            book.precision = precision
        if key is not None:
            _examinations[key] = examination
            while len(_examinations) > _CACHE_SIZE:
                oldest, _ = _examinations.popitem(last=False)
                _confirmed.difference_update([one for one in _confirmed if one[0] == oldest])
    confirmed = (key, book.precision)
    if key is None or confirmed not in _confirmed:
        book.watch(lambda: _confirmed.add(confirmed))
    for layer, facts in zip(book.layers, examination.layers, strict=True):
        layer.channels_last = examination.channels_last
        layer.layout, layer.copied, layer.certified = facts


def forget() -> None:
    """Examine every model anew."""
    _examinations.clear()
    _confirmed.clear()


def _examined(book: BookKeeping, domain: Domain, loss: Loss) -> _Examination:
    source = _runs(book, MadeUp.of(domain, book.model), loss)
    for layer in book.layers:
        layer.channels_last = True
    try:
        _learn(book, source, loss)
    except RuntimeError:  # perhaps a view that channels_last does not have
        for layer in book.layers:
            layer.channels_last = False
        with _naming_the_module(book.model):
            _learn(book, source, loss)
    with _naming_the_module(book.model), nothing_kept(book.model):
        _check_recorded(book, source, loss)
        _check_outside(book, source, loss)
        alive = check_apart(book, source, loss, outliers=False)
        with other_weights(book.model):
            alive = check_apart(book, source, loss, outliers=True) or alive
            _check_sums(book, source, loss)
    if not alive:
        raise ModelError(
            "model: expected finite losses with gradients on made-up rows, got none (give the task "
            "a `sample` of rows that it is made for)"
        )
    facts = tuple((layer.layout, layer.copied, layer.certified) for layer in book.layers)
    return _Examination(book.layers[0].channels_last, facts)


def _check_modules(model: nn.Module) -> None:
    """Refuse what is known by its type."""
    for path, module in model.named_modules():
        name = f"{path} ({type(module).__name__})" if path else type(module).__name__
        if isinstance(module, _BATCH_NORMS):
            if module.training or not module.track_running_stats:
                raise ModelError(
                    f"model: {name} mixes the examples of a batch, frozen or not (use GroupNorm, "
                    "or keep it in eval() by the model's own train())"
                )
            continue
        if not any(p.requires_grad for p in module.parameters()):
            continue
        validator = ModuleValidator.VALIDATORS.get(type(module))
        errors = validator(module) if validator is not None else ()
        if errors:
            raise ModelError(
                f"model: {name} cannot be followed example by example (private_twins(model) of "
                "simulations, or twins = true in task.toml, replaces it and keeps its weights)"
            )


def _runs(book: BookKeeping, source: MadeUp, loss: Loss) -> MadeUp:
    """Made-up rows of a kind that the model takes at every scale."""
    fault: ModelError | None = None
    for kind in source.kinds():
        try:
            with _naming_the_module(book.model), book.passive():
                for scale in SCALES:
                    rows = kind.rows(_LEAST, scale)
                    with seeded():
                        losses = loss(book(rows.x), rows.y)
                    if losses.shape != (_LEAST,):
                        raise ModelError(
                            "loss: expected a loss for each of "
                            f"{_LEAST} rows, got shape {tuple(losses.shape)}"
                        )
            return kind
        except ModelError as error:
            fault = fault or error
    raise fault or ModelError("model: expected rows of some kind to be taken, got none")


def _learn(book: BookKeeping, source: MadeUp, loss: Loss) -> None:
    """In which dimension each layer's examples lie, and whose outputs are written into."""
    for layer in book.layers:
        layer.layout, layer.copied = None, True
    tapes: list[list[Call]] = []
    for count in (_FEW, _MORE):
        rows = source.rows(count, 1.0)
        with book.recording(count), seeded():
            book.losses(rows.x, rows.y, loss)
            tapes.append(list(book.tape))
    few, more = tapes
    if [call.layer for call in few] != [call.layer for call in more]:
        raise ModelError("model: expected the same calls of its layers for any number of rows")
    for layer in book.layers:
        layer.copied = False
    for one, other in zip(few, more, strict=True):
        layer = one.layer
        layer.copied |= one.written() or other.written()
        layout = _layout(layer, one, other)
        if layer.layout not in (None, layout):
            raise ModelError(f"model: {layer.name}: expected to be called in one way, got two")
        layer.layout = layout


def _layout(layer: Layer, one: Call, other: Call) -> Layout:
    inputs = tuple(_dim(x, y) for x, y in zip(one.given, other.given, strict=True))
    outputs = tuple(_dim(x, y) for x, y in zip(one.outs, other.outs, strict=True))
    fixed = isinstance(layer.module, nn.GroupNorm | nn.Conv1d | nn.Conv2d) or (
        layer.by == "Opacus" and not isinstance(layer.module, SequenceBias | nn.RMSNorm)
    )
    if not inputs or all(dim is None for dim in inputs):
        shape = one.given[0].shape if one.given else ()
        raise batch_not_first(layer, shape)
    if (not layer.by or fixed) and (inputs[0] is None or (fixed and inputs[0] > 0)):
        raise batch_not_first(layer, one.given[0].shape)
    return Layout(inputs, outputs)


def _dim(one: Tensor, other: Tensor) -> int | None:
    pairs = list(zip(one.shape, other.shape, strict=True)) if one.dim() == other.dim() else []
    if (_FEW, _MORE) in pairs:
        return pairs.index((_FEW, _MORE))
    return EXPANDED if pairs and pairs[0] == (1, 1) else None


def _check_recorded(book: BookKeeping, source: MadeUp, loss: Loss) -> None:
    """The model computes the same with its layers recorded as without."""
    rows = source.rows(_LEAST, 1.0)
    with book.passive(), seeded():
        plain = loss(book(rows.x), rows.y).detach()
    with book.recording(_LEAST), seeded():
        recorded = book.losses(rows.x, rows.y, loss).detach()
    if not close(plain[:, None], recorded[:, None], 1e-3):
        raise ModelError("model: expected the same losses with its layers recorded, got others")


def _check_outside(book: BookKeeping, source: MadeUp, loss: Loss) -> None:
    """Refuse a parameter that autograd reaches past its module: that use would not be trained."""
    rows = source.rows(_LEAST, 1.0)
    named = {n: p for n, p in book.model.named_parameters() if p.requires_grad}
    with book.outside(_LEAST), seeded():
        total = book.losses(rows.x, rows.y, loss).sum()
        if not total.requires_grad:
            return
        reached = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    for name, gradient in zip(named, reached, strict=True):
        if gradient is not None:
            raise ModelError(
                f"model: {name} is used outside its module, where its gradient cannot be clipped "
                "(call the module itself, or make the other use a module that shares it)"
            )


def _check_sums(book: BookKeeping, source: MadeUp, loss: Loss) -> None:
    """The examples' gradients add up to what autograd says of the sum of their losses."""
    rows = source.rows(_LEAST, 1.0)
    trained = [p for p in book.model.parameters() if p.requires_grad]
    before = [p.grad for p in trained]
    try:
        for p in trained:
            p.grad = None
        with seeded():
            parts, square = book.parts(rows.x, rows.y, loss)
        with book.passive(), seeded():
            total = loss(book(rows.x), rows.y).sum()
            theirs: list[Tensor | None] = list(
                torch.autograd.grad(total, trained, allow_unused=True)
            )
        size = length(theirs)
        for place, p in enumerate(trained):  # ours are added to what autograd says, negated
            p.grad, theirs[place] = negated(theirs[place], theirs), None
        with torch.no_grad():
            for part in parts:
                part.add(torch.ones_like(square, dtype=torch.float32), None)
        off = length([p.grad for p in trained])
    finally:
        for p, old in zip(trained, before, strict=True):
            p.grad = old
    if not off <= 1e-2 * size + 1e-6 and math.isfinite(size):
        raise ModelError("model: expected gradients that add up to autograd's, got others")


@contextmanager
def _naming_the_module(model: nn.Module) -> Iterator[None]:
    """Turn whatever a model's own code raises into one line with the module's path."""
    try:
        yield
    except ModelError:
        raise
    except FAULTS as error:
        paths = {module: path for path, module in model.named_modules()}
        where, trace = "", error.__traceback__
        while trace is not None:
            module = trace.tb_frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                where = paths.get(module, where)
            trace = trace.tb_next
        lines = str(error).strip().splitlines() or [""]
        place = f"{where}: " if where else ""
        raise ModelError(
            f"model: {place}{type(error).__name__} on made-up rows: {lines[0][:200]}"
        ) from error


def _key(book: BookKeeping, domain: Domain, loss: Loss) -> Hashable | None:
    """What an examination depends on; None where it cannot be told whether two are the same.

    Classes, functions and plain attributes are compared, and kept alive as long as the key.
    """
    order: dict[Tensor, int] = {}
    modules: list[Hashable] = []
    paths = {module: path for path, module in book.model.named_modules()}
    for module, path in paths.items():
        plain = {k: v for k, v in vars(module).items() if k not in OWN}
        weights = [
            (name, order.setdefault(p, len(order)), tuple(p.shape), p.dtype, p.requires_grad)
            for name, p in module.named_parameters(recurse=False, remove_duplicate=False)
        ]
        buffers = [(name, tuple(b.shape)) for name, b in module.named_buffers(recurse=False)]
        modules.append((path, type(module), _plain(plain, paths), tuple(weights), tuple(buffers)))
    key = (tuple(modules), domain.key(), loss)
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _plain(value: Any, paths: Mapping[nn.Module, str]) -> Any:
    """An attribute as a value compared by what it says; unhashable where nobody can tell.

    A module of the model itself (the cells of Opacus' LSTM, in a list) is told by its path, where
    what it holds is compared.
    """
    if isinstance(value, dict):
        return tuple((_plain(k, paths), _plain(v, paths)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return tuple(_plain(v, paths) for v in value)
    if isinstance(value, nn.Module) and value in paths:
        return (type(value), paths[value])
    kinds = (int, float, str, bytes, type, FunctionType, BuiltinFunctionType, torch.dtype)
    if value is None or isinstance(value, (*kinds, torch.device)):
        return (type(value), value)
    return [value]
