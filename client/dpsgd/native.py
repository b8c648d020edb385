"""Norms and sums of per-example gradients by compiled code, where there is a compiler.

`client.dpsgd.clipped_sum` computes the same in torch where there is none, or on a GPU.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from client.dpsgd.openmp import team
from privacy.mechanism import native

_SOURCE: Final = Path(__file__).with_name("gradients.c")
_SHARES: Final = 4  # of native/gradients.c
_log = logging.getLogger(__name__)


class _Work(ctypes.Structure):
    """`Work` of native/gradients.c."""

    _pointer, _long = ctypes.c_void_p, ctypes.c_long
    _fields_ = (
        *(("tokens", _pointer), ("rows", _long), ("length", _long), ("padding", _long)),
        *(("g", _pointer), ("row", _long), ("place", _long), ("width", _long)),
        *(("next", _pointer), ("again", _pointer), ("slots", _pointer), ("bits", ctypes.c_int)),
        *(("squares", _pointer), ("factors", _pointer), ("sums", _pointer)),
        *(("shares", _long), ("taken", _long)),
    )


class Lookups:
    """The gradients g [B, L, d] of the rows that the tokens [B, L] look up."""

    def __init__(self, library: ctypes.CDLL, tokens: Tensor, g: Tensor, padding: int) -> None:
        rows, length = tokens.shape
        self._library = library
        self._tokens, self._g = tokens.contiguous(), g if _runs(g) else g.contiguous()
        bits = (2 * length - 1).bit_length()
        self._slots = torch.empty(_SHARES << bits, dtype=torch.int32)
        self._next = torch.empty(rows, length, dtype=torch.int32)
        self._again = torch.empty(rows, length, dtype=torch.uint8)
        self._work = _Work(
            *(self._tokens.data_ptr(), rows, length, padding),
            *(self._g.data_ptr(), self._g.stride(0), self._g.stride(1), g.shape[2]),
            *(self._next.data_ptr(), self._again.data_ptr(), self._slots.data_ptr(), bits),
        )
        self.square = torch.empty(rows)
        """Each example's squared norm, its equal tokens' gradients added up before."""
        self._work.squares = self.square.data_ptr()
        library.squares(ctypes.byref(self._work), *team())

    def add(self, sums: Tensor, factors: Tensor) -> None:
        """Add each example's gradient times its factor to sums [vocabulary, d].

        Nothing of an example whose factor is 0, whatever its gradient is.
        """
        self._work.factors, self._work.sums = factors.data_ptr(), sums.data_ptr()
        self._library.add(ctypes.byref(self._work), *team())


def outer(a: Tensor, g: Tensor, more: float, most: float) -> Tensor | None:
    """|g|^2 (|a|^2 + more) of the rows of a [B, n] and g [B, m]; infinite where one exceeds `most`.

    None where there is no compiled code for such tensors.
    """
    library = _library() if _suits(a) and _suits(g) else None
    if library is None or not (_runs(a) and _runs(g)):
        return None
    return _outer(library, a, g, more, most)


def _outer(library: ctypes.CDLL, a: Tensor, g: Tensor, more: float, most: float) -> Tensor:
    squares = torch.empty(len(a))
    library.outer(
        *(a.data_ptr(), a.stride(0), a.shape[1], g.data_ptr(), g.stride(0), g.shape[1], len(a)),
        *(more, most, squares.data_ptr(), *team()),
    )
    return squares


def _suits(x: Tensor) -> bool:
    if type(x) is not Tensor:  # one that is traced has no memory
        return False
    return x.dtype == torch.float32 and x.device.type == "cpu"


def _runs(x: Tensor) -> bool:
    """Whether the numbers of the last dimension lie side by side."""
    return x.stride(-1) == 1 or x.shape[-1] == 1


def lookups(tokens: Tensor, g: Tensor, padding: int | None) -> Lookups | None:
    """None where there is no compiled code for such tensors."""
    library = _library() if _suits(g) and tokens.dtype == torch.int64 else None
    if library is None:
        return None
    return Lookups(library, tokens, g, -1 if padding is None else padding)


@cache
def _library() -> ctypes.CDLL | None:
    library = native.compiled(_SOURCE)
    if library is None:
        return None
    pointer, long = ctypes.c_void_p, ctypes.c_long
    rows: list[Any] = [pointer, long, long] * 2
    library.outer.argtypes = [*rows, long, *[ctypes.c_float] * 2, pointer, pointer, ctypes.c_uint]
    for function in (library.squares, library.add):
        function.argtypes = [pointer, pointer, ctypes.c_uint]
    for function in (library.outer, library.squares, library.add):
        function.restype = None
    if not (_looks_up(library) and _multiplies(library)):
        _log.warning("gradients: the native code disagrees with torch and is not used")
        return None
    return library


def _looks_up(library: ctypes.CDLL) -> bool:
    """Whether it gives torch's numbers for repeated, padded and broken tokens."""
    tokens = torch.arange(5 * 40).view(5, 40) ** 2 % 23
    g = torch.linspace(-1, 1, 5 * 40 * 19).view(5, 40, 19).sin()
    dense = torch.zeros(5, 23, 19)
    for example, at, values in zip(dense, tokens, g, strict=True):
        example.index_add_(0, at, values)
    dense[:, 3] = 0
    factors, sums = torch.tensor([1.0, 0.5, 0.25, 0.0, 2.0]), torch.ones(23, 19)
    right: Any = 1 + torch.einsum("b,bvd->vd", factors, dense)
    g[3] = torch.nan
    made = Lookups(library, tokens, g, 3)
    made.add(sums, factors)
    whole = torch.tensor([0, 1, 2, 4])
    squares = dense.square().sum((1, 2))
    return (
        torch.allclose(made.square[whole], squares[whole], rtol=1e-5)
        and bool(made.square[3].isnan())
        and torch.allclose(sums, right, rtol=1e-5, atol=1e-5)
    )


def _multiplies(library: ctypes.CDLL) -> bool:
    """Whether it gives torch's norms of outer products, the impossible ones included."""
    a, g = (torch.linspace(-1, 1, 7 * n).view(7, n).sin() for n in (50, 17))
    a[0], a[1, 0], g[2, 16], g[3, 0] = 1e20, torch.nan, torch.inf, 1e18
    right = g.square().sum(1) * (a.square().sum(1) + 1)
    right[:4] = torch.inf
    return torch.allclose(_outer(library, a, g, 1.0, 1e30), right, rtol=1e-5)
