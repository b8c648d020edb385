"""C compiled at first use, where the machine has a compiler: noise and draws.

Nothing here is needed: without a compiler, a private cache folder or agreement with numpy and
OpenSSL there is no kernel, and the caller computes the same numbers by these. `TACIT_NATIVE=0`
does without.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Fill = Callable[[NDArray[np.float32], NDArray[np.uint8], float, float, float], None]
"""(sums, bits, std, step, over): what `Kernel.fill` does, in numpy."""

Team = tuple[int | None, int]
"""Where a GNU OpenMP library's `GOMP_parallel` lies in memory, and how many threads to ask for."""

ALONE: Final[Team] = (None, 1)
PAIRS: Final = 512
"""Pairs of numbers in a chunk of bits; a shorter last one has a multiple of four."""

_SOURCE: Final = Path(__file__).with_name("noise.c")
_FLAGS: Final = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)
_log = logging.getLogger(__name__)


def size(numbers: int) -> int:
    """How many bytes of random bits so many normal numbers take."""
    whole, rest = divmod(numbers, 2 * PAIRS)
    return 12 * (PAIRS * whole + (rest + 7) // 8 * 4)


class Kernel:
    """The compiled functions. `bits` are random bytes, or a key of 32 to expand if `streams`."""

    def __init__(self, own: ctypes.CDLL) -> None:
        self._fill, self._draw = own.fill, own.draw
        pointers: list[Any] = [*(ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)]
        self._fill.argtypes = [*pointers, *[ctypes.c_double] * 3, ctypes.c_void_p, ctypes.c_uint]
        self._draw.argtypes = [pointers[0], ctypes.c_long, *pointers[1:], ctypes.c_long]
        self._fill.restype, self._draw.restype = None, ctypes.c_long
        self.streams = bool(own.streams())

    def fill(
        self,
        sums: NDArray[np.float32],
        bits: NDArray[np.uint8] | bytes,
        std: float,
        step: float,
        over: float,
        team: Team = ALONE,
    ) -> None:
        """Add N(0, std^2) to contiguous sums, round to multiples of `step`, divide by `over`.

        Step 0 puts the draws alone. Every team makes the same numbers.
        """
        given = self._given(bits, size(len(sums)))
        self._fill(sums.ctypes.data, len(sums), *given, std, step, over, *team)

    def draw(self, n: int, bits: NDArray[np.uint8] | bytes, threshold: int) -> NDArray[np.int64]:
        """Which of `n` 16-bit words are below `threshold`, and ~i of those equal to it."""
        given = self._given(bits, 2 * n)
        expected = n * (threshold + 1) / 2**16
        for room in (int(expected + 10 * expected**0.5) + 64, n):  # many more, once in 1e20 draws
            rows = np.empty(min(room, n), dtype=np.int64)
            found = self._draw(rows.ctypes.data, len(rows), n, *given, threshold)
            if found >= 0:
                break
        return rows[:found].copy()

    def _given(self, bits: NDArray[np.uint8] | bytes, needed: int) -> tuple[Any, Any]:
        """(bits, key), one of them None."""
        if isinstance(bits, bytes):
            if not self.streams or len(bits) != 32:
                raise ValueError("expected bits, or a key of 32 bytes where there is a stream")
            return None, bits
        if bits.nbytes < needed:
            raise ValueError(f"expected {needed} bytes of bits, got {bits.nbytes}")
        return bits.ctypes.data, None


def load(slow: Fill, stream: Callable[[bytes, int], NDArray[np.uint8]]) -> Kernel | None:
    """The compiled kernel if it can be had and agrees with `slow` and with `stream`, else None.

    `stream(key, size)` is AES-256 in counter mode, by OpenSSL.
    """
    library = compiled(_SOURCE)
    if library is None:
        return None
    kernel = Kernel(library)
    if not _agree(kernel, slow, stream):
        _log.warning("noise: the native kernel disagrees with numpy and is not used")
        return None
    return kernel


def compiled(source: Path) -> ctypes.CDLL | None:
    """The library of a C file, or None, with the reason in the log."""
    if os.environ.get("TACIT_NATIVE") == "0":
        return None
    try:
        return ctypes.CDLL(str(_library(source)))
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("%s: no native code (%s)", source.stem, error)
        return None


def _library(source: Path) -> Path:
    """The shared library, compiled unless it lies in the cache under its content's name."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise OSError("no C compiler")
    folder = private_cache()
    identity = "\0".join([compiler, *_FLAGS, platform.machine(), _processor()]).encode()
    name = hashlib.sha256(identity + source.read_bytes()).hexdigest()[:32]
    library = folder / f"{source.stem}-{name}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as made:
            target = Path(made) / library.name
            command = [compiler, *_FLAGS, "-o", str(target), str(source), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            target.replace(library)
    return library


def private_cache(part: str = "") -> Path:
    """A folder, or part of it, that nobody else can write to: what is loaded from it runs as us."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = private_cache() / part if part else Path(base) / "tacit"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise OSError(f"{folder} is not private")
    return folder


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))


def _agree(kernel: Kernel, slow: Fill, stream: Callable[[bytes, int], NDArray[np.uint8]]) -> bool:
    """Whether the kernel gives the slow path's numbers, the extreme bits included."""
    rng = np.random.default_rng(0)  # public: only compares the two
    count, key = 40 * PAIRS + 13, bytes(range(32))  # more than a thread takes at a time
    bits = rng.integers(0, 256, size(count), dtype=np.uint8)
    radii, angles = bits[: 8 * PAIRS].view(np.uint64), bits[8 * PAIRS :][: 4 * PAIRS]
    radii[:64] = np.uint64(2**64 - 1) >> np.arange(64, dtype=np.uint64)
    radii[64:66] = (0, 1)
    angles.view(np.uint32)[:] = np.arange(PAIRS, dtype=np.uint32) << np.uint32(23)
    sums = rng.normal(0, 2.0, count).astype(np.float32)
    for step in (0.0, 2.0**-11):
        fast, right = sums.copy(), sums.copy()
        kernel.fill(fast, bits, 2.0, step, 3.0)
        slow(right, bits, 2.0, step, 3.0)
        # A sum half-way between two grid points may be rounded to either of them.
        if not np.allclose(fast, right, rtol=1e-6, atol=max(1e-7, 1.01 * step)):
            return False
        if np.mean(fast != right) > 0.01 and step:
            return False
    words = rng.integers(0, 2**16, 10_007, dtype=np.uint16)
    words[::101] = 500
    found = kernel.draw(len(words), words.view(np.uint8), 500)
    at = np.flatnonzero(words <= 500)
    if not np.array_equal(found, np.where(words[at] == 500, ~at, at)):
        return False
    if not kernel.streams:
        return True
    made = sums.copy()
    kernel.fill(made, key, 2.0, 2.0**-11, 3.0)
    kernel.fill(fast := sums.copy(), stream(key, size(count)), 2.0, 2.0**-11, 3.0)
    drawn = kernel.draw(10_007, key, 500)
    given = kernel.draw(10_007, stream(key, 20_014), 500)
    return np.array_equal(made, fast) and np.array_equal(drawn, given)
