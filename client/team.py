"""torch's own threads, lent to other compiled code: a second pool beside them slows both down."""

import ctypes
from functools import cache
from pathlib import Path

import torch

from privacy.native import ALONE, Team


def team() -> Team:
    """The threads that torch computes with in this process, where they are GNU OpenMP's."""
    threads = torch.get_num_threads()
    return (_parallel(), threads) if threads > 1 else ALONE


@cache
def _parallel() -> int | None:
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        found = ctypes.CDLL(str(library)).GOMP_parallel  # its own, or of what it is linked to
    except (OSError, AttributeError):
        return None
    return ctypes.cast(found, ctypes.c_void_p).value
