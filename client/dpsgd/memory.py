"""Memory between steps: every step frees and asks for the same megabytes, so they are kept."""

import contextlib
import ctypes
from functools import cache
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEPT: Final = 128 * 1024 * 1024
_LARGE: Final = 32 * 1024 * 1024  # the most that glibc takes


@cache
def keep_freed() -> None:
    """Have glibc keep up to 128 MiB: pages given back are faulted in again at every step."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        own = ctypes.CDLL(None)
        own.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        own.mallopt(_M_TRIM_THRESHOLD, _KEPT)
