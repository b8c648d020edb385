"""The parent's side of a closed process: it starts one, and takes plain bounded frames from it.

A frame is a line of JSON and the arrays that it names, as .npy without pickles. Whatever comes is
checked against what was expected, since the child runs a stranger's code.
"""

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from client.tasks.packages.confinement import Bounds
from client.tasks.rows import TaskError
from privacy.files import DocumentError, Limits, parse_json
from privacy.task_package.archive import Package

_HEADER: Final = 1 << 22
_LIMITS: Final = Limits(size=_HEADER, length=1 << 12, count=1 << 18)
_ROOT: Final = Path(__file__).resolve().parents[3]
_PROGRAM: Final = (
    "import sys, json; sys.path[:0] = json.loads(sys.argv[1]); "
    "from client.tasks.packages.worker import main; main(int(sys.argv[2]))"
)
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LANG": "C.UTF-8",
    "HOME": "/",
}
_KEPT: Final = ("TACIT_BACKBONES",)
"""What a child keeps of the environment: where frozen models lie."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """What a child said once: JSON values, and the arrays beside them."""

    facts: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]


class Closed:
    """A closed process that holds a package's bytes; each request is answered by a fork of it.

    The forks know nothing of each other. Libraries are loaded once, before anything of the package.
    """

    def __init__(
        self,
        package: Package,
        *,
        data: Path | None = None,
        backbones: Collection[Path] = (),
        bounds: Bounds | None = None,
    ) -> None:
        """`data` and the folders of `backbones` are what it may read beside the libraries."""
        self._bounds = Bounds() if bounds is None else bounds
        here, there = os.pipe()
        paths = [str(_ROOT), *(p for p in sys.path if "site-packages" in p)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, json.dumps(paths), str(there)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(there,),
            cwd="/",
            env=_ENVIRONMENT | {name: os.environ[name] for name in _KEPT if name in os.environ},
            start_new_session=True,
        )
        os.close(there)
        self._pipe = os.fdopen(here, "rb", buffering=0)
        self._source = _Source(self._pipe, self._bounds.silence)
        place = None if data is None else str(data.resolve())
        head = {
            "data": place,
            "readable": [*([place] if place else []), *(str(p.resolve()) for p in backbones)],
            "bounds": asdict(self._bounds),
            "libraries": [p for p in (sys.prefix, sys.base_prefix, *paths[1:]) if p],
            "root": str(_ROOT),
        }
        self._tell(json.dumps(head).encode())
        self._tell(package.content)

    def __enter__(self) -> "Closed":
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()

    def ask(
        self, request: Mapping[str, Any], expected: Mapping[str, tuple[tuple[int, ...], str]]
    ) -> Iterator[Frame]:
        """The answer to a request, frame by frame; TaskError where there is none.

        `expected` are the arrays of a frame by name: one row's shape, and the type.
        """
        self._tell(json.dumps(dict(request)).encode())
        whole = False
        while (frame := _frame(self._source, expected)) is not None:
            if "failed" in frame.facts:
                raise TaskError(_failure(frame.facts["failed"], bool(request.get("tell"))))
            if "ended" in frame.facts:
                if whole:
                    return
                raise TaskError(f"task.py: {self._end(frame.facts['ended'])}")
            whole |= bool(frame.facts.get("last"))
            yield frame
        raise TaskError(f"task.py: {self._end(self._process.wait())}")

    def _tell(self, content: bytes) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.write(len(content).to_bytes(8, "little") + content)
                self._process.stdin.flush()

    def _end(self, code: object) -> str:
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"must need at most {self._bounds.cpu} s of CPU and its memory, was ended"
        if isinstance(code, int) and -64 < code < 0:
            return f"must answer, was ended by {signal.Signals(-code).name}"
        return f"must answer, ended with exit code {code if isinstance(code, int) else '?'}"


class _Source:
    """Bytes of a child, waited for as long as it is not silent for too long."""

    def __init__(self, pipe: IO[bytes], silence: float) -> None:
        self._pipe, self._silence = pipe, silence

    def read(self, count: int) -> bytes:
        """Exactly so many bytes; fewer where the child has ended. TaskError where it is silent."""
        parts, left = [], count
        until = time.monotonic() + self._silence
        while left:
            ready, _, _ = select.select([self._pipe], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TaskError(f"task.py: must answer within {self._silence:g} s, was silent")
            part = os.read(self._pipe.fileno(), min(left, 1 << 20))
            if not part:
                break
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


def _frame(source: _Source, expected: Mapping[str, tuple[tuple[int, ...], str]]) -> Frame | None:
    head = source.read(8)
    if len(head) < 8:
        return None
    size = int.from_bytes(head, "little")
    if size > _HEADER:
        raise TaskError("task.py: must answer in small frames, got a larger one")
    try:
        facts = parse_json(source.read(size), _LIMITS)
    except DocumentError as error:
        raise TaskError(f"task.py: its answer {error}") from None
    if not isinstance(facts, dict):
        raise TaskError("task.py: must answer with a JSON object")
    rows = facts.get("rows", 0)
    if type(rows) is not int or not 0 <= rows <= 1 << 16:
        raise TaskError("task.py: must answer with at most 65536 rows at once")
    arrays = {}
    for name in facts.get("arrays", []):
        if name not in expected:
            raise TaskError("task.py: must answer with the arrays of task.toml alone")
        shape, dtype = expected[name]
        arrays[name] = _array(source, (rows, *shape), np.dtype(dtype))
    return Frame(facts, arrays)


def _array(source: _Source, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """One .npy of exactly this shape and type."""
    size = int.from_bytes(source.read(8), "little")
    most = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize + 1024
    if size > most:
        raise TaskError(f"task.py: must answer with at most {most} bytes, got {size}")
    file = io.BytesIO(source.read(size))
    try:
        array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, TypeError):
        raise TaskError("task.py: must answer with plain arrays, got something else") from None
    if array.shape != shape or array.dtype != dtype:
        raise TaskError(
            f"task.py: must answer with {dtype} of shape {shape}, got {array.dtype} {array.shape}"
        )
    return array


def _failure(reply: object, tell: bool) -> str:
    """A child's error as one line: its kind and place; its text only for whom the rows belong."""
    facts = reply if isinstance(reply, dict) else {}
    kind, line = str(facts.get("kind", "Error"))[:60], facts.get("line")
    where = f" (line {line})" if type(line) is int else ""
    text = " ".join(str(facts.get("text", "")).split())[:300] if tell else ""
    shown = "".join(c for c in f"{kind}{': ' if text else ''}{text}" if c.isprintable())
    return f"{facts.get('file', 'task.py') if tell else 'task.py'}: {shown}{where}"
