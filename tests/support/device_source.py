"""The source that a GPU runs, compiled as C: a stream whose device is this process's memory."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from privacy.mechanism import device
from privacy.mechanism.gaussian import Sums


class State(ctypes.Structure):
    _fields_ = (
        ("key", ctypes.c_uint32 * 8),
        ("turn", ctypes.c_uint64),
        ("done", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("failed", ctypes.c_uint32),
    )


class Stream(ctypes.Structure):
    _fields_ = (
        ("state", ctypes.c_void_p),
        ("open", ctypes.c_void_p),
        ("before", ctypes.c_void_p),
        ("room", ctypes.c_int64),
    )


class HostStream:
    """`DeviceStream` by the device's own source, one thread after the other."""

    def __init__(self, library: Any, room: int = 1 << 15) -> None:
        self._library, self.state = library, State()
        self._open, self._before = np.zeros(room, np.int64), np.zeros(room)
        self._stream = Stream(
            ctypes.addressof(self.state), self._open.ctypes.data, self._before.ctypes.data, room
        )

    def start(self, key: bytes) -> None:
        self.state = State(key=(ctypes.c_uint32 * 8).from_buffer_copy(key))
        self._stream.state = ctypes.addressof(self.state)

    def _on(
        self, name: str, sums: Any, std: float, step: float, over: float, *more: ctypes.c_void_p
    ) -> None:
        getattr(self._library, name)(
            ctypes.c_void_p(sums.ctypes.data),
            ctypes.c_int(sums.dtype == np.float64),
            *more,
            ctypes.c_int64(sums.size),
            *map(ctypes.c_double, (std, step, over)),
            self._stream,
        )

    def begin(self) -> None:
        self._library.begin_turn(self._stream)

    def add_noise(self, sums: Any, std: float, step: float, over: float, more: Any = None) -> None:
        self.begin()
        self.add_alone(sums, std, step, over, more)

    def add_alone(self, sums: Any, std: float, step: float, over: float, more: Any = None) -> None:
        beside = ctypes.c_void_p(None if more is None else more.ctypes.data)
        self._on("add_noise_to_sums", sums, std, step, over, beside)

    def settle(self, sums: Any, std: float, step: float, over: float) -> None:
        self._on("settle_undecided", sums, std, step, over)
        self._library.end_turn(self._stream)

    def draw(self, rows: int, threshold: int, rest: int) -> Any:
        drawn = np.full(rows, 7, np.uint8)
        self.begin()
        self._library.draw_rows(
            ctypes.c_void_p(drawn.ctypes.data),
            *(ctypes.c_int64(rows), ctypes.c_uint32(threshold), ctypes.c_uint64(rest)),
            self._stream,
        )
        self._library.end_turn(self._stream)
        return drawn

    def size(self, sums: Any) -> int:
        return int(sums.size)

    def divide(self, sums: Any, over: float, more: Any = None) -> None:
        sums /= sums.dtype.type(over)

    def put(self, values: Sums) -> Any:
        return values

    def read(self, values: Any) -> NDArray[Any]:
        return np.asarray(values)

    def opened(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        # a device's threads end in any order
        order = np.random.default_rng(0).permutation(min(self.state.count, len(self._open)))
        return self._open[order], self._before[order]

    def keep(self, positions: NDArray[np.int64], before: NDArray[np.float64]) -> None:
        self.state.count = len(positions)
        self._open[: len(positions)], self._before[: len(positions)] = positions, before

    def failed(self) -> bool:
        return bool(self.state.failed)


def compiled(folder: Path, source: str = "") -> Any:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "device.c").write_text(source or device.source())
    command = [
        compiler,
        "-O1" if source else "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-ffp-contract=off",
        "-shared",
    ]
    subprocess.run(
        [*command, "-fPIC", "-o", str(folder / "device.so"), str(folder / "device.c"), "-lm"],
        check=True,
    )
    return ctypes.CDLL(str(folder / "device.so"))
