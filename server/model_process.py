"""What needs torch at the coordinator runs in a child process: first weights, public evaluation.

Arrays go through the pipe one by one and are never a second time in memory on their way.
"""

import contextlib
import multiprocessing
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from privacy.arrays import Arrays
from privacy.contract.plan import Plan
from privacy.contract.plan_file import from_json
from privacy.runtime import loading
from privacy.statistics.columns import Column

_ROWS: Final = "rows"
_BASE: Final = "base"
_COLUMNS: Final = "columns"


class ChildError(ValueError):
    """The child could not do what was asked: one line."""


class Child:
    """A process that holds the task's model; closed with the block that opened it.

    It is started before anything waits for it: importing torch takes seconds.
    """

    def __init__(self, plan: Plan, data: Path | None, tasks: Path | None = None) -> None:
        """`data` are public test rows; `tasks` is the folder of the plan's task package."""
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(there, plan.to_json(), data, tasks), daemon=True
        )
        self._process.start()
        there.close()
        self._evaluates: bool | None = None

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._here.close()
        self._process.kill()  # it holds nothing that would have to be kept
        self._process.join()

    def ready(self) -> bool:
        """Wait for the child; whether it evaluates. ChildError if it cannot load task or rows."""
        if self._evaluates is None:
            self._evaluates = bool(self._answer())
        return self._evaluates

    def initial(self) -> Arrays:
        """The first weights."""
        self.ready()
        with _alive():
            self._here.send(None)
            return _take(self._here)

    def rows(self) -> int | None:
        """How many training rows an embedded task has, which is public; None for another task."""
        self.ready()
        with _alive():
            self._here.send(_ROWS)
        count: int | None = self._answer()
        return count

    def base(self) -> str:
        """The digest of the model's frozen part, "" where nothing is frozen."""
        self.ready()
        with _alive():
            self._here.send(_BASE)
        digest: str = self._answer()
        return digest

    def columns(self) -> tuple[Column, ...]:
        """The public descriptions of the columns that a plan of statistics counts."""
        self.ready()
        with _alive():
            self._here.send(_COLUMNS)
        columns: tuple[Column, ...] = self._answer()
        return columns

    def evaluate(self, weights: Arrays) -> Mapping[str, float]:
        """Metrics of `weights` on the public test rows; none where there are none."""
        if not self.ready():
            return {}
        with _alive():
            _give(self._here, weights)
        metrics: Mapping[str, float] = self._answer()
        return metrics

    def _answer(self) -> Any:
        with _alive():
            fine, answer = self._here.recv()
        if not fine:
            raise ChildError(answer)
        return answer


@contextlib.contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError):
        raise RuntimeError("the evaluating process has died") from None


def _serve(pipe: Connection, text: str, data: Path | None, tasks: Path | None) -> None:
    """The loop: None asks for first weights, a word for its answer, arrays for their metrics."""
    try:
        with loading():  # torch
            from server.evaluation import (
                embedded_rows,
                evaluator,
                frozen_base,
                initial_weights,
                provide_package,
                public_columns,
            )

            plan = from_json(text)
            if tasks is not None:
                provide_package(plan, tasks)
            weights: Arrays | None = initial_weights(plan)
        evaluate = evaluator(plan, data)
        reply: object = (True, evaluate is not None)
    except ValueError as error:
        evaluate, reply = None, (False, str(error))
    # The other end is gone: so is this process.
    with contextlib.suppress(EOFError, OSError):
        pipe.send(reply)
        while True:
            request = pipe.recv()
            if request is None:
                _give(pipe, weights if weights is not None else initial_weights(plan))
                weights = None
            elif request == _BASE:
                pipe.send((True, frozen_base(plan)))
            elif request == _COLUMNS:
                pipe.send((True, public_columns(plan)))
            elif request == _ROWS:
                pipe.send((True, embedded_rows(plan)))
            elif evaluate is not None:
                pipe.send((True, dict(evaluate(_take(pipe, request)))))


def _give(pipe: Connection, arrays: Arrays) -> None:
    pipe.send([(name, array.shape) for name, array in arrays.items()])
    for array in arrays.values():
        pipe.send_bytes(_bytes(np.ascontiguousarray(array, dtype=np.float32)))


def _take(pipe: Connection, head: Any = None) -> Arrays:
    arrays: Arrays = {}
    for name, shape in head if head is not None else pipe.recv():
        arrays[name] = np.empty(shape, dtype=np.float32)
        pipe.recv_bytes_into(_bytes(arrays[name]))
    return arrays


def _bytes(array: npt.NDArray[np.float32]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
