"""What needs torch at the coordinator runs in a child process: first weights, public evaluation."""

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from privacy.loading import from_json
from privacy.plan import Plan
from privacy.wire import Arrays


class ChildError(ValueError):
    """The child could not do what was asked: one line."""


class Child:
    """A process that holds the task's model; closed with the block that opened it."""

    def __init__(self, plan: Plan, data: Path | None, *, evaluates: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(there, plan.to_json(), data, evaluates), daemon=True
        )
        self._process.start()
        there.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._here.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def initial(self) -> Arrays:
        """The first weights; waits for the child, and raises ChildError if it cannot load."""
        weights: Arrays = self._ask(None)
        return weights

    def evaluate(self, weights: Arrays) -> Mapping[str, float]:
        """Metrics of `weights` on the public test rows."""
        metrics: Mapping[str, float] = self._ask(weights)
        return metrics

    def _ask(self, what: Arrays | None) -> Any:
        try:
            self._here.send(what)
            fine, answer = self._here.recv()
        except (EOFError, OSError):
            raise ChildError("the evaluating process has died") from None
        if not fine:
            raise ChildError(answer)
        return answer


def embedded_rows(plan: Plan) -> int | None:
    """How many training rows an embedded task has, which is public; None for any other task."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_count, plan.to_json()).result()


def _count(text: str) -> int | None:
    from server.app import embedded_rows

    return embedded_rows(from_json(text))


def _serve(pipe: Connection, text: str, data: Path | None, evaluates: bool) -> None:
    """The child's loop: None asks for first weights, arrays for their metrics."""
    from server.app import evaluator, initial_weights

    try:
        plan = from_json(text)
        weights = initial_weights(plan)
        evaluate = evaluator(plan, data) if evaluates else None
    except ValueError as error:
        _send(pipe, (False, str(error)))
        return
    while True:
        try:
            asked = pipe.recv()
        except (EOFError, OSError):
            return
        if asked is None:
            _send(pipe, (True, weights))
        elif evaluate is None:
            _send(pipe, (True, {}))
        else:
            _send(pipe, (True, dict(evaluate(asked))))


def _send(pipe: Connection, what: object) -> None:
    try:
        pipe.send(what)
    except (BrokenPipeError, OSError):
        return
