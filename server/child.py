"""What needs torch at the coordinator runs in a child process: first weights, public evaluation."""

import multiprocessing
from collections.abc import Mapping
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
    """A process that holds the task's model; closed with the block that opened it.

    It is started before anything waits for it: importing torch takes seconds.
    """

    def __init__(self, plan: Plan, data: Path | None, *, evaluates: bool = True) -> None:
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
        self._process.kill()  # it holds nothing that would have to be kept
        self._process.join()

    def initial(self) -> Arrays:
        """The first weights; waits for the child, and raises ChildError if it cannot load."""
        weights: Arrays = self._ask(None)
        return weights

    def rows(self) -> int | None:
        """How many training rows an embedded task has, which is public; None for another task."""
        count: int | None = self._ask("rows")
        return count

    def evaluate(self, weights: Arrays) -> Mapping[str, float]:
        """Metrics of `weights` on the public test rows."""
        metrics: Mapping[str, float] = self._ask(weights)
        return metrics

    def _ask(self, what: Arrays | str | None) -> Any:
        try:
            self._here.send(what)
            fine, answer = self._here.recv()
        except (EOFError, OSError):
            raise RuntimeError("the evaluating process has died") from None
        if not fine:
            raise ChildError(answer)
        return answer


def _serve(pipe: Connection, text: str, data: Path | None, evaluates: bool) -> None:
    """The child's loop: None asks for first weights, "rows" to count, arrays for their metrics."""
    from server.app import embedded_rows, evaluator, initial_weights

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
        elif isinstance(asked, str):
            _send(pipe, (True, embedded_rows(plan)))
        elif evaluate is None:
            _send(pipe, (True, {}))
        else:
            _send(pipe, (True, dict(evaluate(asked))))


def _send(pipe: Connection, what: object) -> None:
    try:
        pipe.send(what)
    except (BrokenPipeError, OSError):
        return
