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
from urllib.parse import parse_qs

from client.dpsgd.trees import cut, joined, tensors
from client.inference.decoded_columns import columns
from client.inference.export import refuse_private
from client.inference.predictor import Predictor, one_row, predictor
from client.models.loading import Model, ModelError, Tasks, load
from client.models.provenance import Trust
from client.serving.address import Limits, Listening, say
from client.serving.description import DESCRIPTION, ROUTES
from client.serving.file_rows import FileRows
from client.serving.request import Encode, encoder
from client.tasks.registry import task_of
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
    files: FileRows
    model: Model
    stamp: tuple[Path, int]
    quick: int

    @classmethod
    def of(cls, model: Model, limits: Limits) -> "Ready":
        """Load, warm up once, and describe."""
        model_predictor = predictor(model, threads=1)
        quick, form = 0, one_row(model.task)
        for rows in (1, 8, 64, 512):
            x = joined([form] * rows)
            began = min(_seconds(model_predictor, x) for _ in range(4))
            quick = rows if began < QUICK else quick
            if began > 0.1:
                break
        files = FileRows(model.task, limits.rows)
        reads_files = model.task.read is not None
        encode = files if reads_files else encoder(model.task, limits.rows)
        return cls(model_predictor, encode, files, model, _stamp(model.path), quick)

    def close(self) -> None:
        """End what reads files."""
        self.files.close()

    def card(self) -> dict[str, Any]:
        """What `/model` says."""
        facts = {"model": self.model.digest, "origin": self.model.origin.words}
        return facts | {"card": self.model.card.to_dict()}


def _seconds(model_predictor: Predictor, x: Any) -> float:
    began = time.perf_counter()
    model_predictor.outputs(x)
    return time.perf_counter() - began


def _at_once(
    loop: asyncio.AbstractEventLoop, run: Callable[[Any], Any], x: Any
) -> "asyncio.Future[Any]":
    """A future that is done already."""
    future: asyncio.Future[Any] = loop.create_future()
    try:
        future.set_result(run(x))
    except (RuntimeError, ModelError) as error:
        future.set_exception(error)
    return future


def _stamp(path: Path) -> tuple[Path, int]:
    return path, path.stat().st_mtime_ns


class Service:
    """The application: an ASGI callable over the current model."""

    def __init__(
        self, first: Model, where: Listening, limits: Limits, tasks: Tasks = task_of
    ) -> None:
        self.where, self.limits, self.tasks = where, limits, tasks
        self.current = Ready.of(first, limits)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.waiting: list[tuple[Any, asyncio.Future[tuple[Any, Ready]]]] = []
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
            name = parse_qs(scope["query_string"].decode("ascii", "replace")).get("name", [""])
            body = await read_body(scope, receive, self.limits.body, HTTP_LIMITS)
            return await self._predicted(body, name[0])
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

    async def _predicted(self, body: bytes, file: str) -> bytes:
        encode = self.current.files if file else self.current.encode
        if len(body) > _LARGE or isinstance(encode, FileRows):
            request = await asyncio.to_thread(encode, body, file)
        else:
            request = encode(body, file)
        scores, ready = await self._scores(request.x)
        found = columns(ready.model.task, scores)
        values = [column.to_pylist() for column in found.values()]
        predictions = [dict(zip(found, row, strict=True)) for row in zip(*values, strict=True)]
        if request.names is not None:
            for one, name in zip(predictions, request.names, strict=True):
                one["id"] = name
        answer = {"model": ready.model.digest}
        several = {"predictions": predictions}
        return json.dumps(answer | (predictions[0] if request.single else several)).encode()

    async def _scores(self, x: Any) -> tuple[Any, Ready]:
        """The scores of these rows, from the next run of the model."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Any, Ready]] = loop.create_future()
        self.waiting.append((x, future))
        if not self.busy:
            self.busy = True
            loop.call_soon(self._start, loop)
        return await future

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the model on what is waiting, whole requests at a time, then on what came since."""
        rows, taken = 0, 0
        for x, _ in self.waiting:
            if taken and rows + _count(x) > MOST_ROWS:
                break
            rows, taken = rows + _count(x), taken + 1
        batch, self.waiting = self.waiting[:taken], self.waiting[taken:]
        ready = self.current
        whole = batch[0][0] if taken == 1 else joined([x for x, _ in batch])
        if rows <= ready.quick:
            self._finish(loop, batch, ready, _at_once(loop, ready.ready.outputs, whole))
            return
        running = loop.run_in_executor(self.thread, ready.ready.outputs, whole)
        running.add_done_callback(lambda done: self._finish(loop, batch, ready, done))

    def _finish(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[tuple[Any, asyncio.Future[tuple[Any, Ready]]]],
        ready: Ready,
        done: "asyncio.Future[Any]",
    ) -> None:
        error, start = done.exception(), 0
        for x, future in batch:
            end = start + _count(x)
            if future.cancelled():
                pass
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result((cut(done.result(), slice(start, end)), ready))
            start = end
        if self.waiting:
            loop.call_soon(self._start, loop)
        else:
            self.busy = False

    def renew(self, newest: Callable[[], Path], trust: Trust) -> None:
        """Load the newest model if it is another one; keep the old one where it may not be used."""
        path = newest()
        if _stamp(path) == self.current.stamp:
            return
        model = load(path, trust, self.tasks)
        old = self.current.model
        if (model.task.name, model.card.schema) != (old.task.name, old.card.schema):
            raise ModelError(f"{path}: expected a model of task {old.task.name}")
        if not self.where.loopback:
            refuse_private(model)
        before, self.current = self.current, Ready.of(model, self.limits)
        before.close()
        say(f"now round {model.card.round} of run {model.card.run}: {model.origin.words}")


def _count(x: Any) -> int:
    return len(tensors(x)[0])


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}"
