"""What a source's files hold, as one digest: the same rows, wherever and whenever they were copied.

A file is read again only where it may have changed. Times alone would not tell: a copy can keep
them, and two changes within a clock's tick have the same.
"""

import hashlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client.data.reader import sources
from client.data.source import FILE, options_of
from client.tasks.rows import TaskError

SETTLED: Final = 2_000_000_000
"""Nanoseconds after a change until which its time is no proof that there was no other."""

_Facts = tuple[int, int, int, int, int]


@dataclass(slots=True)
class Contents:
    """The files of a source, each with its digest and what the file system said of it then."""

    path: Path
    known: dict[Path, tuple[_Facts, str]] = field(default_factory=dict)

    def digest(self) -> str:
        """SHA-256 over the names and contents of all files; TaskError where one cannot be read."""
        total = hashlib.sha256()
        files = self.files()
        for file in files:
            name = os.path.relpath(file, self.path.absolute().parent)
            total.update(f"{name}\0{self._of(file)}\n".encode("utf-8", "surrogateescape"))
        self.known = {file: self.known[file] for file in files if file in self.known}
        return total.hexdigest()

    @property
    def whole(self) -> bool:
        """Whether the files are all that the rows come from: a database may change at any time."""
        return not options_of(self.path).query

    def files(self) -> list[Path]:
        """Every file that the rows come from, with the `source.toml` that says how to read them."""
        path = self.path.absolute()
        options = options_of(path)
        files = {path} if path.is_file() else set()
        if path.is_dir():
            files |= {file for file in path.rglob("*") if file.is_file()}
        if options.files:
            files |= set(sources(path, options))
        beside = path.parent / FILE
        if path.is_file() and beside.is_file():
            files.add(beside)
        if options.password_file is not None:
            files.discard(options.password_file)
        return sorted(files)

    def _of(self, file: Path) -> str:
        began = time.time_ns()
        try:
            with file.open("rb") as opened:
                status = os.fstat(opened.fileno())
                facts = (
                    *(status.st_dev, status.st_ino, status.st_size),
                    *(status.st_mtime_ns, status.st_ctime_ns),
                )
                before = self.known.get(file)
                if before is not None and before[0] == facts:
                    return before[1]
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise TaskError(f"{file}: expected a readable file ({error.strerror})") from None
        if max(facts[3:]) < began - SETTLED:
            self.known[file] = (facts, digest)
        else:
            self.known.pop(file, None)
        return digest
