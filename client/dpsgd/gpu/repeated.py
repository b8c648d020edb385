"""A step recorded once as a CUDA graph and run again: for small models, which the host slows down.

Opt in by TACIT_CUDA_GRAPHS=1. A recorded step makes new noise whenever it runs, since the stream's
key and turn lie in the device's memory and its first kernel takes a new turn; one that lacked this
kernel would give NaN (`privacy/mechanism/noise.cu`). Nothing else that is drawn on the host may be
part of it.
"""

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from client.dpsgd.gpu.rows import padded_on
from client.dpsgd.gpu.stream import CudaStream
from client.dpsgd.trees import mapped
from privacy.contract.plan import Plan

Step = Callable[[], None]

_log = logging.getLogger(__name__)


def wanted(plan: Plan) -> bool:
    """Whether this process asks for recorded steps, and those of the plan are all alike.

    They are not where something of a step is the host's: a learning rate that changes, Adam's count
    of steps, batches in parts, views that are drawn.
    """
    if os.environ.get("TACIT_CUDA_GRAPHS") != "1":
        return False
    alike = plan.schedule == "constant" and plan.optimizer != "adam"
    alike = alike and not plan.micro_batch and plan.augment is None
    if not alike:
        _log.warning("graphs: steps of this plan are not all alike and run as they are")
    return alike


def take_steps(
    add: Callable[..., None],
    optimizer: Any,
    stream: CudaStream,
    data: tuple[Any, Tensor, Any],
    rate: float,
    steps: int,
) -> None:
    """The steps of a round, each on as many rows: those that were not drawn count for nothing.

    `data` are x, y and the loss; `add` is `BookKeeping.accumulate`, `optimizer` a `NoisyOptimizer`.
    """
    x, y, loss = data
    for some in padded_on(stream, len(y), rate, steps):
        at, real = torch.empty_like(some.at[0]), torch.empty_like(some.real[0])

        def step(at: Tensor = at, real: Tensor = real) -> None:
            optimizer.begin(len(at))
            rows = mapped(partial(torch.index_select, dim=0, index=at), x)
            add(rows, y.index_select(0, at), loss, None, real)
            optimizer.step()

        again = Repeated(step, partial(cuda_graph, on=stream.device))
        for rows, drawn in zip(some.at, some.real, strict=True):
            at.copy_(rows)
            real.copy_(drawn)
            again()


class Repeated:
    """Calls a step that reads and writes the same memory each time: first as it is, then recorded.

    `record` gives what runs a step again, and raises RuntimeError for one that cannot be recorded;
    such a step runs as it is, and the log says so. Nothing is run while it is recorded.
    """

    def __init__(self, step: Step, record: Callable[[Step], Step]) -> None:
        self._step, self._record = step, record
        self._run: Step | None = None
        self._calls = 0

    def __call__(self) -> None:
        """Take a step."""
        self._calls += 1
        if self._calls == 2:  # the first has made all that is made once
            self._run = self._recorded()
        (self._run or self._step)()

    def _recorded(self) -> Step | None:
        try:
            return self._record(self._step)
        except RuntimeError as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            _log.warning("graphs: the step cannot be recorded and runs as it is (%s)", reason[0])
            return None


def cuda_graph(step: Step, *, on: torch.device) -> Step:
    """Record a step on a device; RuntimeError where it waits for the device."""
    with torch.cuda.device(on):
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                step()
            except BaseException:
                _ended(graph)
                raise
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(side)
    replay: Step = graph.replay
    return replay


def _ended(graph: torch.cuda.CUDAGraph) -> None:
    """End a recording that has failed, which raises as well."""
    try:
        graph.capture_end()
    except RuntimeError as error:
        _log.debug("graphs: the failed recording has ended (%s)", error)
