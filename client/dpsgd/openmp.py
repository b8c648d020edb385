"""torch's own threads, lent to other compiled code: a second pool beside them slows both down."""

import ctypes
import os
from functools import cache
from pathlib import Path

import torch

from privacy.mechanism.native import ALONE, Team


def team() -> Team:
    """The threads that torch computes with in this process, where they are GNU OpenMP's.

    A fork has none of its parent's threads, and OpenMP does not know it: there is no team in it.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return ALONE
    parallel, owner = _parallel()
    return (parallel, threads) if owner == os.getpid() else ALONE


@cache
def _parallel() -> tuple[int | None, int]:
    """Where GOMP_parallel lies, and the process that asked first."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        found = ctypes.CDLL(str(library)).GOMP_parallel  # its own, or of what it is linked to
    except (OSError, AttributeError):
        return None, os.getpid()
    return ctypes.cast(found, ctypes.c_void_p).value, os.getpid()
