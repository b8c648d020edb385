"""Which rows a model and a loss take, where training has failed on some: each stands for itself."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from client.tasks.rows import Rows

_CHUNK: Final = 256


def rows_taken(model: nn.Module, rows: Rows, loss: Callable[[Any, Tensor], Tensor]) -> Rows:
    """The rows on which neither the model nor the loss raises; their order stays.

    Rows that fail together are tried in halves, down to one: whether a row is taken follows from
    itself and from the public weights. On the CPU: an index out of range leaves a GPU unusable.
    """
    model.cpu().train()
    waiting = list(np.array_split(np.arange(len(rows)), max(1, -(-len(rows) // _CHUNK))))
    taken = [np.zeros(0, np.int64)]
    while waiting:
        some = waiting.pop()
        if _passes(model, rows.take(some), loss):
            taken.append(some)
        elif len(some) > 1:
            waiting += np.array_split(some, 2)
    return rows.take(np.sort(np.concatenate(taken)))


def _passes(model: nn.Module, rows: Rows, loss: Callable[[Any, Tensor], Tensor]) -> bool:
    try:
        with torch.no_grad():
            return len(loss(model(rows.x), rows.y)) == len(rows)
    except Exception:  # noqa: BLE001 - what an approved package's code raises on a row of its own
        return False
