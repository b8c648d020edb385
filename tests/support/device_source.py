"""The source that a GPU runs, compiled as C, and sums that get their noise from it."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from privacy.mechanism.gaussian import Sums


class Key(ctypes.Structure):
    _fields_ = (("words", ctypes.c_uint32 * 8),)


class Opened(ctypes.Structure):
    _fields_ = (
        ("open", ctypes.c_void_p),
        ("before", ctypes.c_void_p),
        ("count", ctypes.c_void_p),
        ("room", ctypes.c_int64),
    )


class HostSums:
    """`DeviceSums` by the device's own source, one group after the other."""

    def __init__(self, sums: Sums, library: Any) -> None:
        self.sums, self._library = sums, library

    def __len__(self) -> int:
        return len(self.sums)

    def add_noise(
        self, key: bytes, std: float, step: float, over: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        n = len(self.sums)
        positions, before = np.zeros(n, np.int64), np.zeros(n)
        count = np.zeros(1, np.uint32)
        opened = Opened(positions.ctypes.data, before.ctypes.data, count.ctypes.data, n)
        self._library.add_noise_in_groups(
            ctypes.c_void_p(self.sums.ctypes.data),
            ctypes.c_int(self.sums.dtype == np.float64),
            ctypes.c_int64(n),
            ctypes.byref(Key.from_buffer_copy(key)),
            *map(ctypes.c_double, (std, step, over)),
            ctypes.byref(opened),
        )
        found = int(count[0])
        # a device's threads end in any order
        order = np.random.default_rng(0).permutation(found)
        return positions[:found][order], before[:found][order]

    def put(self, positions: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        self.sums[positions] = values

    def divide(self, over: float) -> None:
        self.sums /= self.sums.dtype.type(over)

    def read(self) -> Sums:
        return self.sums


def compiled(folder: Path, source: str) -> Any:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "device.c").write_text(source)
    command = [compiler, "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-o"]
    subprocess.run(
        [*command, str(folder / "device.so"), str(folder / "device.c"), "-lm"], check=True
    )
    return ctypes.CDLL(str(folder / "device.so"))
