"""A pipe between a simulation and its worker, and memory that both share for what is large.

A pipe holds 200 kB: who sends more waits until the other side has read it, which may be busy.
"""

import io
import pickle
from collections.abc import Callable
from mmap import mmap
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from privacy.arrays import Buffer, memory

_LARGE: Final = 1 << 10

Place = tuple[int, int]
"""A value's number and its length."""

Get = Callable[[Place], bytes]


class Shared:
    """Memory of a process and its forks that holds one value: one of them puts, others get it."""

    def __init__(self, room: int) -> None:
        self._memory = mmap(-1, room)
        self._number = 0
        self._value: Buffer = b""

    def put(self, value: Buffer, *, over: bool = True) -> Place | None:
        """Put a value over the last one, if it is another; None where it may not or does not fit.

        It may not go `over` a value that somebody is yet to get.
        """
        if value is not self._value:
            if not over or len(value) > len(self._memory):
                return None
            self._memory[: len(value)] = memory(value)
            self._number, self._value = self._number + 1, value
        return self._number, len(value)

    def get(self, place: Place) -> bytes:
        """A copy of the value that was put last."""
        return self._memory[: place[1]]


def send(pipe: Connection, value: object, shared: Shared | None, *, over: bool = True) -> None:
    """Send a value, the first large part of it by way of `shared` where that can take it."""
    whole = io.BytesIO()
    _Pickler(whole, shared, over).dump(value)
    pipe.send_bytes(whole.getbuffer())


def receive(pipe: Connection, get: Get | None) -> Any:
    """What the other side, a process of our own, has sent; `get` takes what it shared."""
    return _Unpickler(io.BytesIO(pipe.recv_bytes()), get).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, shared: Shared | None, over: bool) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._shared, self._over = shared, over

    def persistent_id(self, obj: object) -> Place | None:
        whole = obj if type(obj) is bytes else _buffer(obj)
        if self._shared is None or whole is None or len(whole) < _LARGE:
            return None
        place = self._shared.put(whole, over=self._over)
        self._over = self._over and place is None  # nothing else goes over what this value has
        return place


def _buffer(obj: object) -> NDArray[np.uint8] | None:
    """An encoded model that is no `bytes`; it arrives as such."""
    if not isinstance(obj, np.ndarray) or obj.dtype != np.uint8 or obj.ndim != 1:
        return None
    return obj if obj.flags.c_contiguous else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, get: Get | None) -> None:
        super().__init__(file)
        self._get = get

    def persistent_load(self, pid: Place) -> bytes:
        if self._get is None:
            raise pickle.UnpicklingError("expected shared memory")
        return self._get(pid)
