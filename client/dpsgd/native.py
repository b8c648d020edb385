"""Norms and sums of an Embedding's per-example gradients by compiled code, if there is a compiler.

`client.dpsgd.clipped_sum` computes the same in torch where there is none, or on a GPU.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from privacy.mechanism import native

_SOURCE: Final = Path(__file__).with_name("gradients.c")
_log = logging.getLogger(__name__)


class _Work(ctypes.Structure):
    """`Work` of gradients.c."""

    _pointer, _long = ctypes.c_void_p, ctypes.c_long
    _fields_ = (
        *(("tokens", _pointer), ("rows", _long), ("length", _long), ("padding", _long)),
        *(("g", _pointer), ("row", _long), ("place", _long), ("width", _long)),
        *(("next", _pointer), ("again", _pointer), ("slots", _pointer), ("bits", ctypes.c_int)),
        *(("squares", _pointer), ("factors", _pointer)),
        *(("sums", _pointer), ("wide", ctypes.c_int)),
    )


class Lookups:
    """The gradients g [B, L, d] of the rows that the tokens [B, L] look up."""

    def __init__(self, library: ctypes.CDLL, tokens: Tensor, g: Tensor, padding: int) -> None:
        rows, length = tokens.shape
        self._library = library
        self._tokens, self._g = tokens.contiguous(), g if _is_contiguous(g) else g.contiguous()
        bits = (2 * length - 1).bit_length()
        self._slots = torch.empty(1 << bits, dtype=torch.int32)
        self._next = torch.empty(rows, length, dtype=torch.int32)
        self._again = torch.empty(rows, length, dtype=torch.uint8)
        self._work = _Work(
            *(self._tokens.data_ptr(), rows, length, padding),
            *(self._g.data_ptr(), self._g.stride(0), self._g.stride(1), g.shape[2]),
            *(self._next.data_ptr(), self._again.data_ptr(), self._slots.data_ptr(), bits),
        )
        self.square = torch.empty(rows, dtype=torch.float64)
        """Each example's squared norm, its equal tokens' gradients added up before."""
        self._work.squares = self.square.data_ptr()
        library.squares(ctypes.byref(self._work))

    def add(self, sums: Tensor, factors: Tensor, rows: slice = slice(None)) -> None:
        """Add the gradients of `rows`, times their factors [B], to sums [vocabulary, d].

        The sums are float32 or float64. Nothing of an example whose factor is 0 is added, whatever
        its gradient is.
        """
        chosen = torch.zeros(len(factors))
        chosen[rows] = factors[rows].float()
        factors = chosen
        self._work.factors, self._work.sums = factors.data_ptr(), sums.data_ptr()
        self._work.wide = sums.dtype == torch.float64
        self._library.add(ctypes.byref(self._work))


def lookups(tokens: Tensor, g: Tensor, padding: int | None) -> Lookups | None:
    """None where there is no compiled code for such tensors."""
    suits = g.dtype == torch.float32 and g.device.type == "cpu" and tokens.dtype == torch.int64
    library = _library() if suits else None
    if library is None:
        return None
    return Lookups(library, tokens, g, -1 if padding is None else padding)


def _is_contiguous(x: Tensor) -> bool:
    """Whether the numbers of the last dimension lie side by side."""
    return x.stride(-1) == 1 or x.shape[-1] == 1


@cache
def _library() -> ctypes.CDLL | None:
    library = native.compiled(_SOURCE)
    if library is None:
        return None
    for function in (library.squares, library.add):
        function.argtypes, function.restype = [ctypes.c_void_p], None
    if not _agrees(library):
        _log.warning("gradients: the native code disagrees with torch and is not used")
        return None
    return library


def _agrees(library: ctypes.CDLL) -> bool:
    """Whether it gives torch's numbers for repeated, padded and broken tokens."""
    tokens = torch.arange(5 * 40).view(5, 40) ** 2 % 23
    g = torch.linspace(-1, 1, 5 * 40 * 19).view(5, 40, 19).sin()
    dense = torch.zeros(5, 23, 19)
    for example, at, values in zip(dense, tokens, g, strict=True):
        example.index_add_(0, at, values)
    dense[:, 3] = 0
    factors = torch.tensor([1.0, 0.5, 0.25, 0.0, 2.0])
    right: Any = 1 + torch.einsum("b,bvd->vd", factors, dense)
    g[3] = torch.nan
    lookups = Lookups(library, tokens, g, 3)
    whole = torch.tensor([0, 1, 2, 4])
    squares = dense.double().square().sum((1, 2))
    agree = torch.allclose(lookups.square[whole], squares[whole], rtol=1e-5)
    for dtype in (torch.float32, torch.float64):
        sums = torch.ones(23, 19, dtype=dtype)
        lookups.add(sums, factors)
        agree &= torch.allclose(sums.float(), right, rtol=1e-5, atol=1e-5)
    return agree and bool(lookups.square[3].isnan())
