"""The local service: predictions over HTTP, on this machine unless told otherwise.

Requests that arrive while the model is busy are answered together by its next run, so the service
batches exactly as much as the load asks for. A newer released model takes over between two runs.
"""

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from client.inference.export import refuse_private
from client.inference.predictor import Predictor, Scores, decode, input_type, predictor
from client.models.loading import Model, ModelError, load
from client.models.provenance import Trust
from client.serving.address import Limits, Listening, say
from client.serving.request import Encode, RequestError, encoder

PATIENCE: Final = 10.0
"""Seconds in which a request's body has to arrive, and in which a stop waits for answers."""
MOST_ROWS: Final = 4096
QUICK: Final = 1e-3
_LARGE: Final = 65536

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


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
        found = predictor(model, threads=1)
        quick = 0
        for rows in (1, 8, 64, 512):
            x = np.zeros((rows, *model.task.shape), _kind(model))
            began = min(_seconds(found, x) for _ in range(4))
            quick = rows if began < QUICK else quick
        return cls(found, encoder(model.task, limits.rows), model, _stamp(model.path), quick)

    def card(self) -> dict[str, Any]:
        """What `/model` says."""
        facts = {"model": self.model.digest, "origin": self.model.origin.words}
        return facts | {"card": self.model.card.to_dict()}


def _kind(model: Model) -> str:
    return str(input_type(model.task)).removeprefix("torch.")


def _seconds(found: Predictor, x: NDArray[Any]) -> float:
    began = time.perf_counter()
    found.outputs(x)
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
        self.pages = _pages(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.pages(scope, receive, send)
            return
        try:
            self._admit(scope)
            if scope["path"] != "/predict":
                await self.pages(scope, receive, send)
                return
            if scope["method"] != "POST":
                raise RequestError(405, "expected POST")
            answer = await self._predicted(await _body(receive, scope, self.limits.body))
            await _respond(send, 200, answer)
        except RequestError as error:
            await _respond(send, error.status, json.dumps({"error": str(error)}).encode())
        except Exception as error:  # noqa: BLE001 - its text may hold a row: only its place is told
            say(f"failed: {type(error).__name__} at {_place(error)}")
            await _respond(send, 500, b'{"error": "the service failed"}')

    def _admit(self, scope: Scope) -> None:
        """Ask for the token; on loopback, refuse names that a web page could have rebound."""
        headers = dict(scope["headers"])
        if self.where.loopback:
            name = headers.get(b"host", b"").decode("latin-1").lower()
            name = name[1:].partition("]")[0] if name[:1] == "[" else name.partition(":")[0]
            if name not in ("localhost", "127.0.0.1", "::1", self.where.host, ""):
                raise RequestError(421, "expected this machine's own name as host")
        if self.where.token is not None and scope["path"] != "/health":
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.where.token):
                raise RequestError(401, "expected the token of this service")

    async def _predicted(self, body: bytes) -> bytes:
        encode = self.current.encode
        if len(body) > _LARGE:
            x, single = await asyncio.to_thread(encode, body)
        else:
            x, single = encode(body)
        scores, ready = await self._scores(x)
        names, probability = decode(ready.model.task, scores)
        said = [
            {"prediction": name, "probability": None if p is None else round(p, 6)}
            for name, p in zip(
                names,
                [None] * len(names) if probability is None else probability.tolist(),
                strict=True,
            )
        ]
        answer = {"model": ready.model.digest}
        return json.dumps(answer | (said[0] if single else {"predictions": said})).encode()

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
        own, self.waiting = self.waiting[:taken], self.waiting[taken:]
        ready = self.current
        joined = own[0][0] if taken == 1 else np.concatenate([x for x, _ in own])
        if len(joined) <= ready.quick:
            self._finish(loop, own, ready, _at_once(loop, ready.ready.outputs, joined))
            return
        running = loop.run_in_executor(self.thread, ready.ready.outputs, joined)
        running.add_done_callback(lambda done: self._finish(loop, own, ready, done))

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        own: list[tuple[NDArray[Any], asyncio.Future[tuple[Scores, Ready]]]],
        ready: Ready,
        done: "asyncio.Future[Scores]",
    ) -> None:
        error, start = done.exception(), 0
        for x, future in own:
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


def _pages(service: Service) -> FastAPI:
    """`/model`, `/health`, and the OpenAPI description of everything."""
    app = FastAPI(title="Tacit local inference", docs_url=None, redoc_url=None)

    @app.get("/health", summary="Whether the service can answer.")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": service.current.model.digest[:16]}

    @app.get("/model", summary="The card of the model that answers.")
    async def model() -> dict[str, Any]:
        return service.current.card()

    @app.post(
        "/predict",
        summary="Predict one row, or several.",
        openapi_extra={"requestBody": {"required": True, "content": _BODY}},
        responses={
            status: {"description": what}
            for status, what in (
                (400, "no such JSON"),
                (401, "no token"),
                (408, "the body came too slowly"),
                (413, "too large"),
                (422, "a row does not fit"),
            )
        },
    )
    async def predict() -> dict[str, Any]:
        raise RequestError(404, "answered before it comes here")

    return app


_ROW: Final = {"oneOf": [{"type": "object"}, {"type": "array", "items": {}}]}
_BODY: Final = {
    "application/json": {
        "schema": {
            "oneOf": [
                {"type": "object", "required": ["row"], "properties": {"row": _ROW}},
                {
                    "type": "object",
                    "required": ["rows"],
                    "properties": {"rows": {"type": "array", "items": _ROW, "minItems": 1}},
                },
            ]
        }
    }
}


async def _body(receive: Receive, scope: Scope, most: int) -> bytes:
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared[:20]) > most:
        raise RequestError(413, f"expected a body of at most {most} bytes")
    content = b""
    more = True
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while more:
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise RequestError(408, f"expected the body within {PATIENCE:g} seconds") from None
        if message["type"] == "http.disconnect":
            raise RequestError(400, "expected a whole body")
        content += message.get("body", b"")
        if len(content) > most:
            raise RequestError(413, f"expected a body of at most {most} bytes")
        more = message.get("more_body", False)
    return content


async def _respond(send: Send, status: int, body: bytes) -> None:
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    if status >= 400:
        # What is left of a refused body is not worth reading.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}"
