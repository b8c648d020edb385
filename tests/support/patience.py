"""How long a test waits for what must happen: seconds of an idle machine, scaled to this one.

A wait ends with its event, so that patience costs a test that passes nothing. Use it for every
deadline of a test; the product's own time-outs are its own.
"""

import hashlib
import os
import time
from collections.abc import Callable
from functools import cache

_REFERENCE = 0.04
"""Seconds of `_work` on an idle core of the machine on which the tests' deadlines were chosen."""


def patience(seconds: float) -> float:
    """So many seconds of an idle machine, in seconds of this one as it is now loaded."""
    return seconds * slowness() * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@cache
def slowness() -> float:
    """How much slower than the reference a core of this machine is; at least 1.

    CPU time, so that a neighbour's work counts once, in the load.
    """
    began = time.process_time()
    hashlib.pbkdf2_hmac("sha256", b"calibration", b"", 100_000)
    return max(1.0, (time.process_time() - began) / _REFERENCE)


def wait_for(true: Callable[[], object], seconds: float = 20) -> bool:
    """Whether it became true within patience."""
    end = time.monotonic() + patience(seconds)
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return bool(true())
