"""The noise transform compiled at first use, where the machine has a C compiler.

Nothing here is needed: without a compiler, a private cache folder or agreement with the slow
transform there is no kernel, and the caller computes the same numbers in numpy.
`TACIT_NATIVE=0` does without.
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
from typing import Final

import numpy as np
from numpy.typing import NDArray

Transform = Callable[
    [NDArray[np.uint64], NDArray[np.uint32], NDArray[np.float32], NDArray[np.float32], float], None
]
"""(radius bits, angle bits, cosines out, sines out, std); equal lengths, contiguous."""

_SOURCE: Final = Path(__file__).with_name("transform.c")
_FLAGS: Final = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)
_log = logging.getLogger(__name__)


def load(slow: Transform) -> Transform | None:
    """The compiled transform if it can be had and agrees with `slow`, else None."""
    if os.environ.get("TACIT_NATIVE") == "0":
        return None
    try:
        fast = _bind(_library())
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("noise: no native kernel (%s)", error)
        return None
    if not _agree(fast, slow):
        _log.warning("noise: the native kernel disagrees with numpy and is not used")
        return None
    return fast


def _library() -> Path:
    """The shared library, compiled unless it lies in the cache under its content's name."""
    compiler = shutil.which(os.environ.get("CC") or "cc")
    if compiler is None:
        raise OSError("no C compiler")
    source = _SOURCE.read_bytes()
    folder = _cache()
    identity = "\0".join([compiler, *_FLAGS, platform.machine(), _processor()]).encode()
    name = hashlib.sha256(identity + source).hexdigest()[:32]
    library = folder / f"transform-{name}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as made:
            target = Path(made) / "transform.so"
            command = [compiler, *_FLAGS, "-o", str(target), str(_SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            target.replace(library)
    return library


def _cache() -> Path:
    """A folder that nobody else can write to: what is loaded from it runs as us."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "tacit"
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


def _bind(library: Path) -> Transform:
    function = ctypes.CDLL(str(library)).transform
    function.restype = None
    function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long, ctypes.c_double]

    def transform(
        radii: NDArray[np.uint64],
        angles: NDArray[np.uint32],
        cosines: NDArray[np.float32],
        sines: NDArray[np.float32],
        std: float,
    ) -> None:
        pairs = len(radii)
        if not len(angles) == len(cosines) == len(sines) == pairs:
            raise ValueError("expected arrays of one length")
        function(
            *(radii.ctypes.data, angles.ctypes.data, cosines.ctypes.data, sines.ctypes.data),
            *(pairs, std),
        )

    return transform


def _agree(fast: Transform, slow: Transform) -> bool:
    """Whether both transforms give the same numbers, the extreme bits included."""
    rng = np.random.default_rng(0)  # public: only compares the two
    radii = rng.integers(0, 2**64, 4096, dtype=np.uint64, endpoint=False)
    angles = rng.integers(0, 2**32, 4096, dtype=np.uint32, endpoint=False)
    radii[:64] = np.uint64(2**64 - 1) >> np.arange(64, dtype=np.uint64)
    radii[64:66] = (0, 1)
    angles[:512] = np.arange(512, dtype=np.uint32) << np.uint32(23)
    made = np.empty((4, 4096), dtype=np.float32)
    fast(radii, angles, made[0], made[1], 2.0)
    slow(radii, angles, made[2], made[3], 2.0)
    return bool(np.allclose(made[:2], made[2:], rtol=1e-6, atol=1e-7))
