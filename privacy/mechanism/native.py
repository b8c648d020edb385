"""C compiled at first use, where the machine has a compiler: noise and draws.

Nothing here is needed: without a compiler, a private cache folder or agreement with numpy to the
last bit there is no kernel, and the caller computes the same numbers by numpy. `TACIT_NATIVE=0`
does without.
"""

import ctypes
import hashlib
import logging
import os
import platform
import secrets
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.mechanism import gaussian
from privacy.mechanism.gaussian import PAIRS, Doubles, Sums

_SOURCE: Final = Path(__file__).with_name("noise.c")
_FLAGS: Final = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",  # every operation rounds as numpy's does
    "-shared",
    "-fPIC",
)
_log = logging.getLogger(__name__)


class Kernel:
    """The compiled functions of noise.c."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._add_noise, self._draw = library.add_noise, library.draw
        pointer, long, double = ctypes.c_void_p, ctypes.c_long, ctypes.c_double
        given, more = (pointer, ctypes.c_int, pointer, long, pointer), (pointer, pointer)
        self._add_noise.argtypes = [*given, *[double] * 3, *more]
        self._draw.argtypes = [pointer, long, long, pointer, long]
        self._add_noise.restype = self._draw.restype = long

    def add_noise(
        self,
        sums: Sums,
        bits: NDArray[np.uint8],
        std: float,
        step: float,
        over: float,
        undecided: NDArray[np.int64],
        before: Doubles,
        more: NDArray[np.float32] | None = None,
    ) -> int:
        """What `gaussian.add_noise` does, to the same bits; all arrays are contiguous."""
        if bits.nbytes < gaussian.bits_for(len(sums)):
            raise ValueError(f"expected {gaussian.bits_for(len(sums))} bytes, got {bits.nbytes}")
        if min(len(undecided), len(before)) < len(sums):
            raise ValueError(f"expected room for {len(sums)} numbers, got {len(undecided)}")
        return self.adding(sums, bits, undecided, before, more)(0, len(sums), std, step, over)

    def adding(
        self,
        sums: Sums,
        bits: NDArray[np.uint8],
        undecided: NDArray[np.int64],
        before: Doubles,
        more: NDArray[np.float32] | None = None,
    ) -> Callable[[int, int, float, float, float], int]:
        """(at, count, std, step, over) -> `add_noise` of so many sums from `at` on.

        The arrays, whose addresses are asked for once, must be long enough, and outlive it.
        """
        if more is not None and (sums.dtype != np.float32 or more.shape != sums.shape):
            raise ValueError("more: expected as many float32 numbers as there are float32 sums")
        function, wide, size = self._add_noise, sums.dtype == np.float64, sums.itemsize
        first, taken, *room = (a.ctypes.data for a in (sums, bits, undecided, before))
        second = None if more is None else more.ctypes.data

        def add(at: int, count: int, std: float, step: float, over: float) -> int:
            beside = None if second is None else second + size * at
            start = first + size * at
            found: int = function(start, wide, beside, count, taken, std, step, over, *room)
            return found

        return add

    def draw(self, words: NDArray[np.uint16], threshold: int) -> NDArray[np.int64]:
        """Which of the words are below `threshold`, and ~i of those equal to it."""
        n = len(words)
        expected = n * (threshold + 1) / 2**16
        for room in (int(expected + 10 * expected**0.5) + 64, n):  # many more, once in 1e20 draws
            rows = np.empty(min(room, n), dtype=np.int64)
            count = self._draw(rows.ctypes.data, len(rows), n, words.ctypes.data, threshold)
            if count >= 0:
                break
        return rows[:count].copy()


def load() -> Kernel | None:
    """The compiled kernel if it can be had and agrees with numpy, else None."""
    library = compiled(_SOURCE)
    if library is None:
        return None
    kernel = Kernel(library)
    if not _agree(kernel):
        _log.warning("noise: the native kernel disagrees with numpy and is not used")
        return None
    return kernel


def compiled(source: Path) -> ctypes.CDLL | None:
    """The library of a C file, or None, with the reason in the log."""
    if os.environ.get("TACIT_NATIVE") == "0":
        return None
    try:
        return _loaded(source)
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("%s: no native code (%s)", source.stem, error)
        return None


def _loaded(source: Path) -> ctypes.CDLL:
    """The shared library, compiled unless it lies in the cache under its content's name.

    What was looked at is what is loaded: the descriptor names the file, whatever its path says by
    then. It stays open, since the loader takes one name for one library.
    """
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise OSError("no C compiler")
    identity = "\0".join([compiler, *_FLAGS, platform.machine(), _processor()]).encode()
    name = hashlib.sha256(identity + source.read_bytes()).hexdigest()[:32]
    name = f"{source.stem}-{name}.so"
    with private_cache() as folder:
        try:
            file = _open(name, folder)
        except FileNotFoundError:
            _compile(compiler, source, name, folder)
            file = _open(name, folder)
    try:
        place = Path(f"/proc/self/fd/{file}")
        return ctypes.CDLL(str(place if place.exists() else _cache() / name))
    except OSError:
        os.close(file)
        raise


def _compile(compiler: str, source: Path, name: str, folder: int) -> None:
    """Put the library of a C file into an open folder, whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="tacit-") as temporary:
        target = Path(temporary) / name
        command = [compiler, *_FLAGS, "-o", str(target), str(source), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        content = target.read_bytes()
    part = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(part, flags, 0o700, dir_fd=folder), "wb") as file:
            file.write(content)
        os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with suppress(OSError):
            os.unlink(part, dir_fd=folder)


def _open(name: str, folder: int) -> int:
    """A descriptor of a file in an open folder that nobody else can write to."""
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    if not _private(os.fstat(file), stat.S_ISREG):
        os.close(file)
        raise OSError(f"{_cache() / name} is not private")
    return file


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tacit"


@contextmanager
def private_cache() -> Iterator[int]:
    """A folder, open, that nobody else can write to: what is loaded from it runs as us."""
    path = _cache()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not _private(os.fstat(folder), stat.S_ISDIR):
            raise OSError(f"{path} is not private")
        yield folder
    finally:
        os.close(folder)


def _private(status: os.stat_result, kind: Callable[[int], bool]) -> bool:
    is_ours = status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o022
    return is_ours and kind(status.st_mode)


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))


def starts(bits: NDArray[np.uint8], count: int) -> Iterator[tuple[Sums, float]]:
    """Sums, with the steps of their grids, of which two samplers with the same bits must agree.

    Of standard deviation 2: usual ones of both types, ones out of range, ones that the noise brings
    close to the middle of two steps, to within a few fine ones or to where an estimate in floats
    begins to decide, and zeros on so fine a grid that every bit of the noise shows.
    """
    sums = np.random.default_rng(0).normal(0, 2.0, count)
    sums[:9] = (0.0, 1e30, -1e30, 3e-30, np.nan, np.inf, -np.inf, 1e-40, 2.0**18)
    silent = np.zeros(count)
    grid, fine = 2.0**-9, 2.0 ** (-9 - gaussian.FINE_BITS)
    close, room = silent.copy(), (np.zeros(count, np.int64), np.zeros(count))
    gaussian.add_noise(close, bits, 2.0, fine, 1.0, *room)
    sums[np.abs(close) < 0.4 * grid] = -0.0  # becomes 0
    middle = grid / 2 - close
    close = middle + (np.arange(count) % 9 - 4) * fine
    near = middle + (np.arange(count) % 128 - 63.5) * grid * 2.0**-14
    yield sums.astype(np.float32), grid
    yield near.astype(np.float32), grid
    yield near, grid
    yield sums, grid
    yield close, grid
    yield silent, 2.0**-62


def _agree(kernel: Kernel) -> bool:
    """Whether the kernel gives numpy's numbers, to the last bit, the extreme ones included."""
    rng = np.random.default_rng(0)  # public: only compares the two
    count = 40 * PAIRS + 13
    bits = rng.integers(0, 256, gaussian.bits_for(count), dtype=np.uint8)
    radii, angles = bits[: 8 * PAIRS].view(np.uint64), bits[8 * PAIRS : 16 * PAIRS].view(np.uint64)
    radii[:64] = np.uint64(2**64 - 1) >> np.arange(64, dtype=np.uint64)
    radii[64:130] = np.uint64(2**64 - 1) << np.arange(66, dtype=np.uint64)
    angles[:] = np.arange(PAIRS, dtype=np.uint64) << np.uint64(55)
    beside = rng.normal(0, 2.0, count).astype(np.float32)
    cases = [(start, step, None) for start, step in starts(bits, count)]
    (some, grid, _), (near, _, _), (whole, _, _) = cases[:3]
    rest = (whole - near).astype(np.float32)
    for start, step, more in (*cases, (some, grid, beside), (near, grid, rest)):
        results = []
        for add in (kernel.add_noise, gaussian.add_noise):
            noisy, undecided, before = start.copy(), np.zeros(count, np.int64), np.zeros(count)
            doubtful = add(noisy, bits, 2.0, step, 3.0, undecided, before, more)
            results.append((noisy, undecided[:doubtful], before[:doubtful]))
        if not all(a.tobytes() == b.tobytes() for a, b in zip(*results, strict=True)):
            return False
    words = rng.integers(0, 2**16, 10_007, dtype=np.uint16)
    words[::101] = 500
    at = np.flatnonzero(words <= 500)
    return np.array_equal(kernel.draw(words, 500), np.where(words[at] == 500, ~at, at))
