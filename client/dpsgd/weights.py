"""The weights that a request brings: checked before anything else, then put into a model.

The simulated sites of one process are asked with the same bytes, one after the other: small ones
are read once.
"""

import copy
from collections import OrderedDict
from functools import lru_cache
from typing import Any, Final

import torch
from torch import nn

from client.tasks.task import Task
from privacy.arrays import Arrays, Shapes, WireError, decode, digest
from privacy.mechanism import noise

MOST_NORM: Final = 1e6
_SMALL: Final = 1 << 20
"""Bytes of weights that may be kept."""


class WeightsError(ValueError):
    """Weights that are not those of the task's model, or without bounds."""


def read(learning: Task, seed: int, blob: bytes) -> tuple[Arrays, str]:
    """The weights by name, and the digest that they are known by; WeightsError."""
    return (_read if len(blob) > _SMALL else _read_same)(learning, seed, blob)


def filled(learning: Task, seed: int, weights: Arrays) -> nn.Module:
    """A model of the task with these weights."""
    template = _template(learning, seed)
    made = {
        id(old): nn.Parameter(torch.from_numpy(weights[name].copy()), old.requires_grad)
        for name, old in template.named_parameters()
    }
    hooks = {id(empty): OrderedDict[Any, Any]() for empty in _empty(learning, seed)}
    return copy.deepcopy(template, made | hooks)  # which finds these made already


def _read(learning: Task, seed: int, blob: bytes) -> tuple[Arrays, str]:
    try:
        weights = decode(blob, shapes(learning, seed))
    except WireError:
        raise WeightsError("weights: expected those of the task's model") from None
    if not noise.norm(list(weights.values())) <= MOST_NORM:
        raise WeightsError(f"weights: expected a norm of at most {MOST_NORM:g}")
    return weights, digest(blob)


_read_same = lru_cache(maxsize=1)(_read)


@lru_cache(maxsize=1)
def _template(learning: Task, seed: int) -> nn.Module:
    """A model to copy: drawing its first weights takes longer, and they are replaced at once."""
    return learning.model(seed)


@lru_cache(maxsize=1)
def _empty(learning: Task, seed: int) -> list[object]:
    """The template's dictionaries without a hook: a dozen a module, half the time of a copy."""
    inside = [value for m in _template(learning, seed).modules() for value in vars(m).values()]
    return [value for value in inside if isinstance(value, OrderedDict) and not value]


@lru_cache(maxsize=4)
def shapes(learning: Task, seed: int) -> Shapes:
    """The shapes of the task's weights by name."""
    return {name: tuple(p.shape) for name, p in _template(learning, seed).named_parameters()}
