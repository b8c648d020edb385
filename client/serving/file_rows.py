"""Rows in files, as requests bring them: a table's text, or a task's own file or a zip of files.

Each request's files lie in a private folder for as long as it takes, and are read as `predict`
reads them (a file by its path, those of a zip by their folder's): by the product's reader, or by
a package's in one closed process. Of a table only plain text is taken: what is packed, columnar
files too, can be far longer than the request.
"""

import io
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Final

from client.data.input_files import Chunk, chunks, own_chunks
from client.dpsgd.trees import joined
from client.serving.request import Request, RequestError
from client.tasks.rows import TaskError
from client.tasks.task import Read, Task

TEXTS: Final = (".csv", ".tsv", ".txt")
"""The names of tables that a request may bring."""
_FILES_MAX: Final = 4096
_GROWTH: Final = 16
"""How many times its own size a zip may hold."""


class FileRows:
    """The encoder of requests that are files; call `close` when it is done with."""

    def __init__(self, task: Task, most: int) -> None:
        self._task, self._most = task, most
        self._own_folder: Path | None = None
        self._lock = threading.Lock()
        self._open: AbstractContextManager[Read] | None = None
        self._read: Read | None = None

    @property
    def _folder(self) -> Path:
        """Made by the first request that is a file."""
        if self._own_folder is None:
            self._own_folder = Path(tempfile.mkdtemp(prefix="tacit-serve-"))
        return self._own_folder

    def __call__(self, body: bytes, name: str) -> Request:
        """The rows of one request; RequestError where they do not fit."""
        if self._task.read is None and Path(name).suffix not in TEXTS:
            wanted = ", ".join(TEXTS)
            raise RequestError(400, f"expected a table by its name: /predict?name=FILE ({wanted})")
        with self._lock, tempfile.TemporaryDirectory(dir=self._folder) as place:
            parts = self._parts(unpack(body, name, Path(place)), Path(place))
        if not parts:
            raise RequestError(422, "expected at least one row, found none")
        ids = [chunk.ids.to_pylist() if chunk.ids is not None else None for chunk in parts]
        names = [one for some in ids if some is not None for one in some]
        x = joined([chunk.x for chunk in parts])
        return Request(x, False, names if None not in ids else None)

    def _parts(self, path: Path, place: Path) -> list[Chunk]:
        parts: list[Chunk] = []
        try:
            for chunk in self._opened(path):
                if chunk.faults:
                    where = "" if self._task.read is not None else f"the request/{path.name}: "
                    raise RequestError(422, f"{where}{chunk.faults[0]}")
                if len(chunk.rows):
                    parts.append(chunk)
                if sum(len(one.rows) for one in parts) > self._most:
                    raise RequestError(413, f"rows: expected at most {self._most}")
        except TaskError as error:
            self._end()
            raise RequestError(422, str(error).replace(f"{place}", "the request")) from None
        except RequestError:
            self._end()  # what a reader still has to say belongs to no later request
            raise
        return parts

    def _opened(self, path: Path) -> Iterator[Chunk]:
        read, held_open = self._task.read, self._task.held_open
        if read is None:
            return chunks(self._task, path)
        if self._read is None:
            self._open = nullcontext(read) if held_open is None else held_open(self._folder)
            self._read = self._open.__enter__()
        return own_chunks(self._read(path, False), None)

    def _end(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
        self._open = self._read = None

    def close(self) -> None:
        """End the reader, and forget the folder."""
        with self._lock:
            self._end()
            if self._own_folder is not None:
                shutil.rmtree(self._own_folder, ignore_errors=True)


def unpack(body: bytes, name: str, place: Path) -> Path:
    """Write a request's file into a folder, or the files of its zip; what is to be read.

    RequestError where the name or the zip is none.
    """
    if not _plain(name) or "/" in name:
        raise RequestError(400, "expected the file's name: /predict?name=FILE")
    if not name.lower().endswith(".zip"):
        (place / name).write_bytes(body)
        return place / name
    left = _GROWTH * len(body)
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if len(entries) > _FILES_MAX:
                raise RequestError(413, f"zip: expected at most {_FILES_MAX} files")
            for entry in entries:
                if not _plain(entry.filename):
                    raise RequestError(400, "zip: expected plain relative names")
                with archive.open(entry) as file:
                    content = file.read(left + 1)
                left -= len(content)
                if left < 0:
                    raise RequestError(413, f"zip: expected at most {_GROWTH} times its size")
                target = place / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(400, "zip: expected a whole zip file") from None
    return place


def _plain(name: str) -> bool:
    parts = PurePosixPath(name).parts
    inside = bool(parts) and len(parts) <= 8 and ".." not in parts and parts[0] != "/"
    return inside and len(name) <= 255 and name.isprintable() and "\\" not in name
