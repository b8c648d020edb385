"""The local service: predictions over HTTP, on this machine unless told otherwise.

Requests that arrive while the model is busy are answered together by its next run, so the service
batches exactly as much as the load asks for. A newer released model takes over between two runs.
"""

import asyncio
import hmac
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.inference.export import refuse_private
from client.inference.predictor import Predictor, Scores, decode, input_type, predictor
from client.models.loading import Model, ModelError, load
from client.models.provenance import Trust
from client.serving.address import Limits, Listening, say
from client.serving.description import DESCRIPTION, ROUTES
from client.serving.request import Encode, encoder
from privacy.http.exchange import HttpError, HttpLimits, Receive, Scope, Send, read_body, respond
from privacy.http.request_head import is_local

HTTP_LIMITS: Final = HttpLimits()
JSON: Final = b"application/json"
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
MOST_ROWS: Final = 4096
QUICK: Final = 1e-3
_LARGE: Final = 65536


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A model ready to answer: nothing of it changes; a newer one replaces all of it.

    Up to `quick` rows take less time than it costs to hand them to another thread and back.
    """

    ready: Predictor
    encode: Encode
    model: Model
    stamp: tuple[Path, int]
    quick: int

    @classmethod
    def of(cls, model: Model, limits: Limits) -> "Ready":
        """Load, warm up once, and describe."""
        model_predictor = predictor(model, threads=1)
        quick = 0
        for rows in (1, 8, 64, 512):
            x = np.zeros((rows, *model.task.shape), _kind(model))
            began = min(_seconds(model_predictor, x) for _ in range(4))
            quick = rows if began < QUICK else quick
        return cls(
            model_predictor, encoder(model.task, limits.rows), model, _stamp(model.path), quick
        )

    def card(self) -> dict[str, Any]:
        """What `/model` says."""
        facts = {"model": self.model.digest, "origin": self.model.origin.words}
        return facts | {"card": self.model.card.to_dict()}


def _kind(model: Model) -> str:
    return str(input_type(model.task)).removeprefix("torch.")


def _seconds(model_predictor: Predictor, x: NDArray[Any]) -> float:
    began = time.perf_counter()
    model_predictor.outputs(x)
    return time.perf_counter() - began


def _at_once(
    loop: asyncio.AbstractEventLoop, run: Callable[[NDArray[Any]], Scores], x: NDArray[Any]
) -> "asyncio.Future[Scores]":
    """A future that is done already."""
    future: asyncio.Future[Scores] = loop.create_future()
    try:
        future.set_result(run(x))
    except RuntimeError as error:
        future.set_exception(error)
    return future


def _stamp(path: Path) -> tuple[Path, int]:
    return path, path.stat().st_mtime_ns


class Service:
    """The application: an ASGI callable over the current model."""

    def __init__(self, first: Model, where: Listening, limits: Limits) -> None:
        self.where, self.limits = where, limits
        self.current = Ready.of(first, limits)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.waiting: list[tuple[NDArray[Any], asyncio.Future[tuple[Scores, Ready]]]] = []
        self.busy = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._admit(scope)
            answer = await self._answer(scope, receive)
            await respond(send, 200, answer, JSON)
        except HttpError as error:
            allow = ROUTES.get(scope["path"], "") if error.status == 405 else ""
            fields = ((b"allow", allow.encode()),) if allow else ()
            body = json.dumps({"error": str(error)}).encode()
            await respond(send, error.status, body, JSON, fields)
        except Exception as error:  # noqa: BLE001 - its text may hold a row: only its place is told
            say(f"failed: {type(error).__name__} at {_place(error)}")
            await respond(send, 500, b'{"error": "the service failed"}', JSON)

    async def _answer(self, scope: Scope, receive: Receive) -> bytes:
        path = scope["path"]
        if path not in ROUTES:
            raise HttpError(404, "no such path")
        if scope["method"] != ROUTES[path]:
            raise HttpError(405, f"must be {ROUTES[path]}")
        if path == "/predict":
            return await self._predicted(
                await read_body(scope, receive, self.limits.body, HTTP_LIMITS)
            )
        if path == "/health":
            health = {"status": "ok", "model": self.current.model.digest[:16]}
            return json.dumps(health).encode()
        return json.dumps(self.current.card() if path == "/model" else DESCRIPTION).encode()

    def _admit(self, scope: Scope) -> None:
        """Ask for the token; on loopback, refuse names that a web page could have rebound."""
        headers = dict(scope["headers"])
        if self.where.loopback and not is_local(scope, (*_LOOPBACK, self.where.host)):
            raise HttpError(421, "the Host field must be this machine's own name")
        if self.where.token is not None and scope["path"] != "/health":
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.where.token):
                raise HttpError(401, "the token of this service is required")

    async def _predicted(self, body: bytes) -> bytes:
        encode = self.current.encode
        if len(body) > _LARGE:
            x, single = await asyncio.to_thread(encode, body)
        else:
            x, single = encode(body)
        scores, ready = await self._scores(x)
        names, probability = decode(ready.model.task, scores)
        predictions = [
            {"prediction": name, "probability": None if p is None else round(p, 6)}
            for name, p in zip(
                names,
                [None] * len(names) if probability is None else probability.tolist(),
                strict=True,
            )
        ]
        answer = {"model": ready.model.digest}
        return json.dumps(
            answer | (predictions[0] if single else {"predictions": predictions})
        ).encode()

    async def _scores(self, x: NDArray[Any]) -> tuple[Scores, Ready]:
        """The scores of these rows, from the next run of the model."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Scores, Ready]] = loop.create_future()
        self.waiting.append((x, future))
        if not self.busy:
            self.busy = True
            loop.call_soon(self._start, loop)
        return await future

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the model on what is waiting, whole requests at a time, then on what came since."""
        rows, taken = 0, 0
        for x, _ in self.waiting:
            if taken and rows + len(x) > MOST_ROWS:
                break
            rows, taken = rows + len(x), taken + 1
        batch, self.waiting = self.waiting[:taken], self.waiting[taken:]
        ready = self.current
        joined = batch[0][0] if taken == 1 else np.concatenate([x for x, _ in batch])
        if len(joined) <= ready.quick:
            self._finish(loop, batch, ready, _at_once(loop, ready.ready.outputs, joined))
            return
        running = loop.run_in_executor(self.thread, ready.ready.outputs, joined)
        running.add_done_callback(lambda done: self._finish(loop, batch, ready, done))

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[tuple[NDArray[Any], asyncio.Future[tuple[Scores, Ready]]]],
        ready: Ready,
        done: "asyncio.Future[Scores]",
    ) -> None:
        error, start = done.exception(), 0
        for x, future in batch:
            if future.cancelled():
                pass
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result((done.result()[start : start + len(x)], ready))
            start += len(x)
        if self.waiting:
            loop.call_soon(self._start, loop)
        else:
            self.busy = False

    def renew(self, newest: Callable[[], Path], trust: Trust) -> None:
        """Load the newest model if it is another one; keep the old one where it may not be used."""
        path = newest()
        if _stamp(path) == self.current.stamp:
            return
        model = load(path, trust)
        old = self.current.model
        if (model.task.name, model.card.schema) != (old.task.name, old.card.schema):
            raise ModelError(f"{path}: expected a model of task {old.task.name}")
        if not self.where.loopback:
            refuse_private(model)
        self.current = Ready.of(model, self.limits)
        say(f"now round {model.card.round} of run {model.card.run}: {model.origin.words}")


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}"
