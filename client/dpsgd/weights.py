"""The weights that a request brings: checked before anything else, then put into a model.

The simulated sites of one process are asked with the same bytes, one after the other: small ones
are read once, large ones checked and hashed once.
"""

import copy
import hashlib
import weakref
from collections import OrderedDict
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.tasks.task import Task
from privacy.arrays import Arrays, Buffer, Shapes, WireError, decode, digest, views
from privacy.mechanism import noise

MOST_NORM: Final = 1e6
_SMALL: Final = 1 << 20
"""Bytes of weights that may be kept."""


class WeightsError(ValueError):
    """Weights that are not those of the task's model, or without bounds."""


def read(learning: Task, seed: int, blob: Buffer) -> tuple[Arrays, str]:
    """The weights by name, and the digest that they are known by; WeightsError.

    Those of a buffer are views of it.
    """
    if isinstance(blob, bytes):
        return (_read if len(blob) > _SMALL else _read_same)(learning, seed, blob)
    return _read_buffer(learning, seed, blob)


def filled(learning: Task, seed: int, weights: Arrays) -> nn.Module:
    """A model of the task with these weights."""
    template = _template(learning, seed)
    parameters = {
        id(old): _parameter(weights[name])
        for name, old in template.named_parameters()
        if old.requires_grad
    }
    hooks = {id(empty): OrderedDict[Any, Any]() for empty in _empty(learning, seed)}
    return copy.deepcopy(template, parameters | hooks)  # which finds these made already


def _parameter(values: NDArray[np.float32]) -> nn.Parameter:
    memory = torch.empty(values.shape)
    np.copyto(memory.numpy(), values)
    return nn.Parameter(memory)


def _read(learning: Task, seed: int, blob: Buffer) -> tuple[Arrays, str]:
    try:
        weights = decode(blob, shapes(learning, seed))
    except WireError:
        raise WeightsError("weights: expected those of the task's model") from None
    if not noise.norm(list(weights.values())) <= MOST_NORM:
        raise WeightsError(f"weights: expected a norm of at most {MOST_NORM:g}")
    return weights, digest(blob)


_read_same = lru_cache(maxsize=1)(_read)
_known: dict[tuple[Task, int], tuple[weakref.ref[NDArray[np.uint8]], str]] = {}
"""Of which buffer the weights were found to be right last, and their digest."""


def _read_buffer(learning: Task, seed: int, blob: NDArray[np.uint8]) -> tuple[Arrays, str]:
    """`_read`; of a buffer that was read before nothing but where its arrays are."""
    found = _known.get((learning, seed))
    if found is not None and found[0]() is blob:
        arrays, _ = views(blob)
        return {name: arrays[name] for name in shapes(learning, seed)}, found[1]
    weights, known = _read(learning, seed, blob)
    _known.clear()
    _known[learning, seed] = weakref.ref(blob), known
    return weights, known


@lru_cache(maxsize=1)
def _template(learning: Task, seed: int) -> nn.Module:
    """A model to copy: drawing its first weights takes longer, and they are replaced at once.

    Of what is trained it has the shapes alone, each in the memory of one number.
    """
    model = learning.model(seed)
    for p in trained_of(model).values():
        p.data = p.data.new_zeros(()).expand(p.shape)
    return model


@lru_cache(maxsize=1)
def _empty(learning: Task, seed: int) -> list[object]:
    """The template's dictionaries without a hook: a dozen a module, half the time of a copy."""
    inside = [value for m in _template(learning, seed).modules() for value in vars(m).values()]
    return [value for value in inside if isinstance(value, OrderedDict) and not value]


@lru_cache(maxsize=4)
def shapes(learning: Task, seed: int) -> Shapes:
    """The shapes of the task's trained weights by name: what is frozen does not travel."""
    return {n: tuple(p.shape) for n, p in trained_of(_template(learning, seed)).items()}


def trained_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name, each once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def base_digest(model: nn.Module) -> str:
    """SHA-256 of all that a model holds and training never changes; "" where there is nothing.

    Frozen parameters and buffers are everybody's own, from the task or its package; by this they
    are known to be the same.
    """
    trained = trained_of(model)
    frozen = {n: t for n, t in model.state_dict().items() if n not in trained}
    shared = {id(p) for p in trained.values()}
    named = dict(model.named_parameters(remove_duplicate=False))
    frozen = {n: t for n, t in frozen.items() if n not in named or id(named[n]) not in shared}
    if not frozen:
        return ""
    total = hashlib.sha256()
    for name, value in sorted(frozen.items()):
        total.update(f"{name}/{value.dtype}/{tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total.update(flat.numpy().tobytes())
    return total.hexdigest()


@lru_cache(maxsize=4)
def base_of(learning: Task, seed: int) -> str:
    """The digest of the frozen part of a task's model."""
    return base_digest(_template(learning, seed))
