"""Workers in processes of this machine."""

import sys
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Final

import pyarrow as pa
import torch

from client.data.input_files import Chunk
from client.data.reader import Part
from client.scoring.ordered import WorkersError
from client.scoring.work import Refused, Scored, Work
from privacy.runtime import begin_worker

_DIED: Final = "a worker process has died (out of memory?); nothing was written"

_work: Work | None = None
"""What this process works on, if it is a worker."""


class Processes:
    """A pool of processes, each with the model; on Linux forks, there at once.

    Each computes in one thread. A worker's death ends the work: what it did may be why it died.
    """

    def __init__(self, work: Work, workers: int) -> None:
        self.room = 2 * workers
        context = get_context("fork" if sys.platform == "linux" else "spawn")
        self._pool = ProcessPoolExecutor(workers, context, _begin, (work,))
        self._pool.submit(_ready)  # all begin now: this process has read nothing yet

    def submit(self, part: Part | Chunk, first: int, explain: int) -> "Future[Scored | Refused]":
        """Give a part to the next process that is free."""
        try:
            return self._pool.submit(_done, part, first, explain)
        except BrokenProcessPool:
            raise WorkersError(_DIED) from None

    def result(self, asked: "Future[Scored | Refused]") -> Scored | Refused:
        """Wait for a result."""
        try:
            return asked.result()
        except BrokenProcessPool:
            raise WorkersError(_DIED) from None

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)


def _begin(work: Work) -> None:
    global _work
    begin_worker()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    _work = work


def _ready() -> bool:
    return _work is not None


def _done(part: Part | Chunk, first: int, explain: int) -> Scored | Refused:
    if _work is None:
        raise RuntimeError("expected a process with a work")
    return _work.done(part, first, explain)
