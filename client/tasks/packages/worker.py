"""The closed process itself: it closes the doors, then runs a package's read and encode, or model.

Only this side ever imports a package before its approval.
"""

import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

_CHUNK_BYTES: Final = 4 << 20
_CHUNK_ROWS: Final = 4096
_ROW_BYTES: Final = 64 << 20


def main(descriptor: int) -> None:
    """Answer requests until there are none: they come on standard input, frames go to `descriptor`.

    First comes a head, then the package, then the requests, each with its length before it.
    """
    from client.tasks.packages.confinement import isolate

    missing = isolate()
    head, content = json.loads(_next_message()), _next_message()
    loaded: set[str] = set()
    while text := _next_message():
        request = json.loads(text)
        _import_libraries(request, loaded)
        child = os.fork()
        if not child:
            _answer(head, request, content, descriptor, missing)
        _, status = os.waitpid(child, 0)
        ended = {"ended": os.waitstatus_to_exitcode(status), "arrays": []}
        answer = json.dumps(ended).encode()
        os.write(descriptor, len(answer).to_bytes(8, "little") + answer)
    os._exit(0)


def _next_message() -> bytes:
    size = sys.stdin.buffer.read(8)
    return sys.stdin.buffer.read(int.from_bytes(size, "little")) if len(size) == 8 else b""


def _answer(
    head: Mapping[str, Any],
    request: Mapping[str, Any],
    content: bytes,
    descriptor: int,
    missing: list[str],
) -> NoReturn:
    """Close the doors, answer, and end."""
    from client.tasks.packages.confinement import Bounds, confine

    os.close(0)
    root = Path(head["root"])
    readable = [Path(p) for p in head["libraries"]] + [root / "client", root / "privacy"]
    readable += [Path(p) for p in head["readable"]]
    out = _Out(descriptor)
    try:
        absent = [*missing, *confine(readable, Bounds(**head["bounds"]))]
        _serve(request, content, head["data"], out, absent)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told its kind
        out.fail(error, request)
    os._exit(0)


def _import_libraries(request: Mapping[str, Any], loaded: set[str]) -> None:
    """Load what is large before the doors close; the package itself is not looked at."""
    mode = request["mode"]
    if mode in loaded:
        return
    loaded.add(mode)
    from privacy.runtime import defer

    modules = ["numpy", "client.tasks.packages.source", "privacy.task_package.manifest"]
    if request.get("torch", True):
        defer("opacus")
        modules.append("torch")
    modules += {"rows": [], "examine": ["client.tasks.packages.examine"]}.get(
        mode, ["client.tasks.packages.audit"]
    )
    for name in modules:
        importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


class _Out:
    """Frames to the parent."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "wb", buffering=0)

    def send(self, facts: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> None:
        import numpy as np

        arrays = arrays or {}
        text = json.dumps({**facts, "arrays": list(arrays)}).encode()
        self._write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            content = buffer.getvalue()
            self._write(len(content).to_bytes(8, "little") + content)

    def fail(self, error: BaseException, request: Mapping[str, Any]) -> None:
        self.send({"failed": described(error, request)})

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[self._file.write(view) or 0 :]


def described(error: BaseException, request: Mapping[str, Any]) -> dict[str, Any]:
    """An error's kind, and the line of task.py in which it came; its text for the owner alone."""
    line, trace, file = None, error.__traceback__, request.get("file", "task.py")
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    facts = {"kind": type(error).__name__, "file": file}
    if line is not None:
        facts["line"] = line
    if request.get("tell"):
        facts["text"] = str(error)[:300]
    return facts


def _serve(
    request: Mapping[str, Any], content: bytes, data: str | None, out: _Out, missing: list[str]
) -> None:
    from privacy.task_package.archive import unpack

    package = unpack(content)
    if request["mode"] == "rows":
        _rows(package, request, Path(data or "/", request["inside"]), out, missing)
    elif request["mode"] == "examine":
        from client.tasks.packages.examine import report

        out.send({"report": report(package, request), "missing": missing, "last": True})
    else:
        from client.tasks.packages.audit import audited

        out.send({"report": audited(package, request), "missing": missing, "last": True})


def _rows(
    package: Any, request: Mapping[str, Any], path: Path, out: _Out, missing: list[str]
) -> None:
    """Read and encode, row by row; a row that raises is left out by itself."""
    from client.tasks.packages.source import backbones_of, load_source
    from privacy.task_package.manifest import manifest_of

    manifest = manifest_of(package)
    options = manifest.resolved(request["options"])
    file, backbones = request.get("file", "task.py"), backbones_of(manifest)
    module = load_source(package, file, reading=True, backbones=backbones)
    shapes, (label, label_type) = manifest.shapes(options), manifest.label_of(options)
    wanted = {name: (shapes[name], one.dtype) for name, one in manifest.x.items()}
    chosen = None if request.get("only") is None else set(request["only"])
    labels = bool(request["labels"])
    label_form = (label, label_type)
    batch = _Batch(wanted, label_form, manifest.classes, out, labels, manifest.subjects)
    records = list[tuple[int, Any]]()
    for number, record in enumerate(module.read(path, options)):
        if chosen is None:
            batch.add(number, record, module.encode, options, request)
        elif number in chosen:
            records.append((number, record))
    for number, record in reversed(records):  # in another order, and without the others
        batch.add(number, record, module.encode, options, request)
    batch.flush(last=True, missing=missing)


class SubjectMissing(ValueError):
    """A row that does not say whose it is, where task.toml promises it."""


class SubjectNotDeclared(ValueError):
    """A row that says whose it is, where task.toml does not promise it of all."""


class _Batch:
    """Encoded rows that have not been sent yet."""

    def __init__(
        self,
        wanted: Mapping[str, tuple[tuple[int, ...], str]],
        label: tuple[tuple[int, ...], str],
        classes: tuple[str, ...],
        out: _Out,
        labels: bool,
        people: bool,
    ) -> None:
        self._people = people
        self._wanted, self._label, self._out, self._labels = wanted, label, out, labels
        self._classes = {name: i for i, name in enumerate(classes)} if label[0] == () else {}
        row = sum(_size(shape) * 4 for shape, _ in wanted.values())
        self._most = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // max(row, 1)))
        self._begin()

    def _begin(self) -> None:
        self.numbers: list[int] = []
        self.x: dict[str, list[Any]] = {name: [] for name in self._wanted}
        self.y: list[Any] = []
        self.texts: dict[str, list[str]] = {"site": [], "subject": [], "id": []}
        self.test: list[int] = []
        self.faults: list[dict[str, Any]] = []
        self.seen = 0

    def add(
        self,
        number: int,
        record: Any,
        encode: Callable[..., Any],
        options: Mapping[str, Any],
        request: Mapping[str, Any],
    ) -> None:
        self.seen += 1
        try:
            self._take(number, encode(record, options))
        except Exception as error:  # noqa: BLE001 - the row alone is left out, and that is told
            self.faults.append({"row": number, **described(error, request)})
        if len(self.numbers) >= self._most or len(self.faults) >= 256:
            self.flush()

    def _take(self, number: int, encoded: Any) -> None:
        import numpy as np

        if encoded is None:
            raise ValueError("encode left the row out")
        row = encoded if isinstance(encoded, dict) else dict(zip(("x", "y"), encoded, strict=True))
        x = row["x"] if isinstance(row["x"], dict) else {next(iter(self._wanted)): row["x"]}
        if set(x) != set(self._wanted):
            raise ValueError(f"x must hold {', '.join(self._wanted)}")
        arrays = {}
        for name, (shape, dtype) in self._wanted.items():
            array = np.asarray(x[name])
            if array.dtype.kind not in "biuf" or array.nbytes > _ROW_BYTES:
                raise TypeError(f"{name} must be numbers, got {array.dtype}")
            if array.shape != shape:
                raise ValueError(f"{name} must have the shape {shape}, got {array.shape}")
            if dtype != "float32" and array.dtype.kind == "f":
                raise TypeError(f"{name} must be {dtype}, got {array.dtype}")
            with np.errstate(over="ignore", invalid="ignore"):
                arrays[name] = array.astype(dtype)
            if array.dtype.kind == "f" and not np.isfinite(arrays[name]).all():
                raise ValueError(f"{name} must be finite as {dtype}")
        y = self._label_of(row.get("y")) if self._labels else None
        if self._labels:
            self._check_subject(row.get("subject"))
        for name, values in self.texts.items():
            value = row.get(name)
            values.append("" if value is None else str(value)[:200])
        for name, array in arrays.items():
            self.x[name].append(array)
        if self._labels:
            self.y.append(y)
        self.test.append(int(bool(row.get("test", False))))
        self.numbers.append(number)

    def _check_subject(self, value: Any) -> None:
        """Every row says whose it is, or none does: by task.toml, never by what the others say."""
        there = value is not None and bool(str(value).strip())
        if self._people and not there:
            raise SubjectMissing("subject must be there: task.toml says so")
        if there and not self._people:
            raise SubjectNotDeclared("subject must be left out: task.toml has no subjects = true")

    def _label_of(self, value: Any) -> Any:
        import numpy as np

        shape, dtype = self._label
        if isinstance(value, str):
            value = self._classes[value]
        if value is None:
            raise ValueError("y must be there")
        array = np.asarray(value)
        if array.dtype.kind not in "biuf" or array.shape != shape:
            raise ValueError(f"y must have the shape {shape}, got {array.dtype} {array.shape}")
        array = array.astype(dtype)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError("y must be finite")
        if self._classes and not 0 <= int(array) < len(self._classes):
            raise ValueError("y must be one of the classes")
        return array

    def flush(self, *, last: bool = False, missing: list[str] | None = None) -> None:
        import numpy as np

        count = len(self.numbers)
        arrays: dict[str, Any] = {}
        if count:
            arrays = {f"x/{name}": np.stack(values) for name, values in self.x.items()}
            arrays["test"] = np.array(self.test, np.uint8)
            arrays["number"] = np.array(self.numbers, np.int64)
            if self._labels:
                arrays["y"] = np.stack(self.y)
        texts = {name: values for name, values in self.texts.items() if any(values)}
        facts = {"rows": count, "seen": self.seen, "faults": self.faults, "last": last, **texts}
        self._out.send(facts | ({} if missing is None else {"missing": missing}), arrays)
        self._begin()


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for one in shape:
        total *= one
    return total
