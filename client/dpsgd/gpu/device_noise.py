"""Clipped sums that lie on a GPU get their noise there: no copy to the host and back.

At first use the kernel is compiled and compared with numpy to the last bit, on sums of both types
and on numbers close to the middle of two steps. Where there is no kernel, or where it disagrees,
the caller adds noise on the host as for a CPU.
"""

import ctypes
import logging
import os
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.dpsgd.gpu.nvrtc import Kernel, KernelError, compiled
from privacy.mechanism import device, noise
from privacy.mechanism.gaussian import Sums

_ROOM: Final = 1024
"""Undecided numbers that are expected at most, beside one in 10,000; one in 20 million is."""

_log = logging.getLogger(__name__)


class Key(ctypes.Structure):
    """`Key` of noise.cu."""

    _fields_ = (("words", ctypes.c_uint32 * 8),)


class Opened(ctypes.Structure):
    """`Opened` of noise.cu."""

    _fields_ = (
        ("open", ctypes.c_void_p),
        ("before", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
        ("room", ctypes.c_int64),
    )


class CudaSums:
    """Contiguous sums on a GPU, as `privacy.mechanism.noise.privatise_on` takes them."""

    def __init__(self, sums: Tensor, kernel: Any) -> None:
        self._sums, self._kernel = sums.view(-1), kernel

    def __len__(self) -> int:
        return self._sums.numel()

    def add_noise(
        self, key: bytes, std: float, step: float, over: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """See `privacy.mechanism.device.DeviceSums`."""
        sums, n = self._sums, len(self)
        room, on = n // 10_000 + _ROOM, sums.device
        positions = torch.empty(room, dtype=torch.int64, device=on)
        before = torch.empty(room, dtype=torch.float64, device=on)
        count = torch.zeros(1, dtype=torch.int32, device=on)
        opened = Opened(positions.data_ptr(), before.data_ptr(), count.data_ptr(), room)
        arguments = (
            ctypes.c_void_p(sums.data_ptr()),
            ctypes.c_int(sums.dtype == torch.float64),
            ctypes.c_int64(n),
            Key.from_buffer_copy(key),
            *map(ctypes.c_double, (std, step, over)),
            opened,
        )
        self._kernel.launch(device.threads(n), arguments)
        undecided = int(count.item())  # waits for the kernel
        if undecided > room:
            raise noise.NoiseError(f"noise: {undecided} numbers are undecided, at most {room} can")
        return positions[:undecided].cpu().numpy(), before[:undecided].cpu().numpy()

    def put(self, positions: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """See `privacy.mechanism.device.DeviceSums`."""
        at = torch.from_numpy(positions).to(self._sums.device)
        self._sums[at] = torch.from_numpy(values).to(self._sums.device, self._sums.dtype)

    def read(self) -> Sums:
        """See `privacy.mechanism.device.DeviceSums`."""
        sums: Sums = self._sums.cpu().numpy()
        return sums

    def divide(self, over: float) -> None:
        """See `privacy.mechanism.device.DeviceSums`."""
        self._sums /= over


def cuda_sums(sums: Tensor) -> CudaSums | None:
    """The sums as what makes its own noise; None where they lie elsewhere or there is no kernel."""
    if not sums.is_cuda:
        return None
    kernel = _kernel(sums.device.index or 0)
    return None if kernel is None else CudaSums(sums, kernel)


@cache
def _kernel(index: int) -> Kernel | None:
    """The compiled kernel of a device, if it agrees with numpy."""
    if os.environ.get("TACIT_NATIVE") == "0":
        return None
    try:
        with torch.cuda.device(index):
            major, minor = torch.cuda.get_device_capability(index)
            torch.zeros(1, device=f"cuda:{index}")  # so that there is a context
            code = compiled(device.source(), device.FUNCTION, f"sm_{major}{minor}")
            kernel = Kernel(code, device.FUNCTION)
            agree = noise.agrees(lambda start: CudaSums(torch.from_numpy(start).cuda(), kernel))
    except (KernelError, OSError, AttributeError) as error:
        _log.warning("noise: no kernel for cuda:%d, it is made on the host (%s)", index, error)
        return None
    if not agree:
        _log.warning("noise: the kernel of cuda:%d disagrees with numpy and is not used", index)
        return None
    return kernel
