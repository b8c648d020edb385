"""What every contender is told, and whose turn it is; needs nothing but Python.

A run stops after each round until its parent says go, so that the rounds of several contenders can
take turns, and the waiting ones rest.
"""

import json
import os
import sys
import time

CLIENTS, COHORT, ROWS, BATCH = 100, 10, 600, 32
STEPS = 19  # one epoch: 600 rows, 32 a step
RATE, LR, CLIP, SIGMA, DELTA = BATCH / ROWS, 0.1, 1.0, 1.0, 1e-5


class Turns:
    """Says on stdout when a round has ended, and waits on stdin for the next to begin."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever else prints does not disturb the talk
        self._began = self._start = 0.0

    def begin(self) -> None:
        """The first round begins now."""
        self._began = self._start = time.monotonic()

    def end(self, accuracy: float | None = None) -> None:
        """A round has ended; come back when the next may begin."""
        now = time.monotonic()
        said = {"began": self._start, "at": now, "took": now - self._began, "acc": accuracy}
        print(json.dumps(said), file=self._out, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        self._began = time.monotonic()
