"""What reading and encoding rows needs of a task; a whole one has it (`client.tasks.task`)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from client.data.wanted import Wanted
from client.tasks.rows import Encoded, Rows
from privacy.task_package.manifest import Kind


class Form(Protocol):
    """The part of a task that rows are read and encoded by; the fields are those of `Task`."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def label(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def wanted(self) -> Wanted: ...
    @property
    def encode(self) -> Callable[[Any], Encoded]: ...
    @property
    def read(self) -> Callable[[Path, bool], Iterator[tuple[Rows, Any]]] | None: ...
