"""The noise and the rows of a round, made on a GPU by the stream of one fresh key.

Nothing here waits for the device but what reads from it, so that a step is asked for while the one
before it still runs. At first use the kernels are compiled and compared with numpy to the last bit.
Where there are none, or where they disagree, noise and rows are the host's, as on a CPU.
"""

import ctypes
import logging
import os
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.dpsgd.gpu.nvrtc import KernelError, Kernels, compiled
from privacy.mechanism import device, device_check
from privacy.mechanism.gaussian import Sums

_WORDS: Final = 7
"""Of 8 bytes in `State` of noise.cu: key (4), turn, done, count and failed."""
_COUNT, _FAILED = 12, 13  # in words of 4 bytes
_SETTLING: Final = 1024
"""Threads that settle undecided numbers."""
_COMPARED: Final = 1 << 15
_LANES: Final = 128

_log = logging.getLogger(__name__)


class Launcher(Protocol):
    """What runs kernels by name: `nvrtc.Kernels`."""

    def launch(self, name: str, threads: int, arguments: Sequence[Any]) -> None: ...


class Stream(ctypes.Structure):
    """`Stream` of noise.cu."""

    _fields_ = (
        ("state", ctypes.c_void_p),
        ("open", ctypes.c_void_p),
        ("before", ctypes.c_void_p),
        ("room", ctypes.c_int64),
    )


class CudaStream:
    """`privacy.mechanism.device.DeviceStream` for contiguous tensors on a GPU.

    `room` undecided numbers have room.
    """

    def __init__(self, kernels: Launcher, on: torch.device, room: int) -> None:
        self.device, self._kernels = on, kernels
        self._state = torch.zeros(_WORDS, dtype=torch.int64, device=on)
        self._open = torch.empty(room, dtype=torch.int64, device=on)
        self._before = torch.empty(room, dtype=torch.float64, device=on)
        places = (x.data_ptr() for x in (self._state, self._open, self._before))
        self._stream = Stream(*places, room)

    def start(self, key: bytes) -> None:
        """See `DeviceStream`."""
        fresh = bytearray(8 * _WORDS)
        fresh[: len(key)] = key
        self._state.copy_(torch.frombuffer(fresh, dtype=torch.int64))

    def add_noise(
        self, sums: Tensor, std: float, step: float, over: float, more: Tensor | None = None
    ) -> None:
        """See `DeviceStream`."""
        self._begin()
        beside = ctypes.c_void_p(None if more is None else more.data_ptr())
        numbers = map(ctypes.c_double, (std, step, over))
        where, wide, count = _told(sums)
        arguments = (where, wide, beside, count, *numbers, self._stream)
        self._kernels.launch("add_noise_to_sums", device.threads(sums.numel()), arguments)

    def settle(self, sums: Tensor, std: float, step: float, over: float) -> None:
        """See `DeviceStream`."""
        numbers = map(ctypes.c_double, (std, step, over))
        self._kernels.launch("settle_undecided", _SETTLING, (*_told(sums), *numbers, self._stream))
        self._end()

    def draw(self, rows: int, threshold: int, rest: int) -> Tensor:
        """See `DeviceStream`."""
        drawn = torch.empty(rows, dtype=torch.bool, device=self.device)
        self._begin()
        arguments = (
            *(ctypes.c_void_p(drawn.data_ptr()), ctypes.c_int64(rows)),
            *(ctypes.c_uint32(threshold), ctypes.c_uint64(rest), self._stream),
        )
        self._kernels.launch("draw_rows", max(1, -(-rows // 32)), arguments)
        self._end()
        return drawn

    def size(self, sums: Tensor) -> int:
        """See `DeviceStream`."""
        return sums.numel()

    def divide(self, sums: Tensor, over: float, more: Tensor | None = None) -> None:
        """See `DeviceStream`."""
        if more is None:
            sums /= over
        else:
            sums.copy_((sums.double() + more) / over)

    def put(self, values: Sums) -> Tensor:
        """See `DeviceStream`."""
        return torch.from_numpy(values).to(self.device)

    def read(self, values: Tensor) -> NDArray[Any]:
        """See `DeviceStream`."""
        read: NDArray[Any] = values.cpu().numpy()
        return read

    def opened(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """See `DeviceStream`."""
        count = int(self._state.view(torch.int32)[_COUNT])
        return self._open[:count].cpu().numpy(), self._before[:count].cpu().numpy()

    def keep(self, positions: NDArray[np.int64], before: NDArray[np.float64]) -> None:
        """See `DeviceStream`."""
        self._open[: len(positions)] = torch.from_numpy(positions).to(self.device)
        self._before[: len(positions)] = torch.from_numpy(before).to(self.device)
        self._state.view(torch.int32)[_COUNT] = len(positions)

    def failed(self) -> bool:
        """See `DeviceStream`."""
        return bool(self._state.view(torch.int32)[_FAILED])

    def _begin(self) -> None:
        self._kernels.launch("begin_turn", 1, (self._stream,))

    def _end(self) -> None:
        self._kernels.launch("end_turn", 1, (self._stream,))


def _told(sums: Tensor) -> tuple[Any, Any, Any]:
    """Where sums lie, whether they are doubles, and how many they are."""
    return (
        ctypes.c_void_p(sums.data_ptr()),
        ctypes.c_int(sums.dtype == torch.float64),
        ctypes.c_int64(sums.numel()),
    )


def stream_on(on: torch.device, count: int) -> CudaStream | None:
    """A stream for sums of `count` numbers; None on a CPU, or where there are no kernels."""
    if on.type != "cuda":
        return None
    kernels = kernels_on(on.index or 0)
    return None if kernels is None else CudaStream(kernels, on, device.room(count))


def without(rows: Tensor, broken: Tensor) -> Tensor:
    """Rows [m, n], which nobody else needs, with zeros where they are `broken` [m].

    Written in place where a kernel can: only what is broken is touched.
    """
    kernels = kernels_on(rows.device.index or 0) if rows.is_cuda else None
    return without_by(kernels, rows, broken)


def without_by(kernels: Launcher | None, rows: Tensor, broken: Tensor) -> Tensor:
    """`without` by these kernels."""
    count, width = rows.shape
    suits = rows.element_size() == 4 and rows.stride(1) == 1 and rows.stride(0) >= width
    if kernels is None or not suits:
        return rows.masked_fill(broken[:, None], 0)
    broken = broken.contiguous()
    arguments = (
        ctypes.c_void_p(rows.data_ptr()),
        *map(ctypes.c_int64, (count, rows.stride(0), width)),
        ctypes.c_void_p(broken.data_ptr()),
    )
    kernels.launch("erase_rows", count * _LANES, arguments)
    return rows


@cache
def kernels_on(index: int) -> Kernels | None:
    """The compiled kernels of a device, if they agree with numpy."""
    if os.environ.get("TACIT_NATIVE") == "0":
        return None
    try:
        with torch.cuda.device(index):
            on = torch.device("cuda", index)
            major, minor = torch.cuda.get_device_capability(index)
            torch.zeros(1, device=on)  # so that there is a context
            code = compiled(device.source(), "noise", f"sm_{major}{minor}")
            kernels = Kernels(code, device.KERNELS, index)
            agree = device_check.agrees(CudaStream(kernels, on, _COMPARED))
    except (KernelError, OSError, AttributeError) as error:
        _log.warning("noise: no kernels for cuda:%d, it is made on the host (%s)", index, error)
        return None
    if not agree:
        _log.warning("noise: the kernels of cuda:%d disagree with numpy and are not used", index)
        return None
    return kernels
