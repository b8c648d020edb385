"""The rows to predict, read piece by piece whatever the file's size, each with its place in it.

A row that does not fit is reported by its line and field, never by its value, and never dropped
unseen. Training reads files by the same reader (`client.data.loading`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from client.data.form import Form
from client.data.formats.columnar import row_place
from client.data.formats.input_arrays import ArraysError, arrays
from client.data.reader import BROKEN, Batch, Part, ahead, batch, check_rows, is_table, parts
from client.data.source import Options, options_of
from client.data.values import texts
from client.data.wanted import Piece, Wanted
from client.tasks.rows import Rows, TaskError

ROWS: Final = 16384
"""Rows of a file of arrays encoded at once."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One field that does not fit: the row (from 1), where it stands, and what was expected.

    `column` is empty where the row is none of its file's form.
    """

    row: int
    place: str
    column: str
    expected: str

    def __str__(self) -> str:
        column = f", {self.column}" if self.column else ""
        return f"{self.place}{column}: expected {self.expected}"


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Encoded rows: `rows` are their numbers in the file, from 1; `done` is the part read.

    `x`, `y` and `raw` are what the task's `encode` gives (`client.tasks.rows.Encoded`).

    `ids` is the column `ids_name` that names the rows, where the site has one; `unknown` counts, by
    column, values that are none of the public ones and stand as "other".
    """

    x: Any
    y: Any
    rows: NDArray[np.int64]
    groups: list[str] | None
    faults: tuple[Fault, ...]
    done: float
    raw: Any = None
    ids: Any = None
    ids_name: str = ""
    unknown: tuple[tuple[str, int], ...] = ()


def chunks(
    task: Form,
    path: Path,
    *,
    labels: bool = False,
    group: str | None = None,
    ident: str | None = None,
) -> Iterator[Chunk]:
    """The rows of a file or folder in the task's encoding; TaskError, one line, if it has none.

    Without `labels` a label column is not looked at, so that rows without labels fit. `ident` names
    the column that is carried along, else `id` of the site's `source.toml`. Rows of the wrong form
    are faults like wrong values are.
    """
    if task.read is not None:
        if group not in (None, "site"):
            raise TaskError(f"group must be site where a task reads its own files, got {group!r}")
        yield from own_chunks(task.read(_there(path), labels), ident, by_site=group is not None)
        return
    cut = Cut.of(task, path, labels=labels, group=group, ident=ident)
    first = 1
    with cut.named(), closing(ahead(cut.parts())) as coming:
        for part in coming:
            yield cut.encoded(part, first)
            first += part.rows
        check_rows(path, first - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A file or folder in parts, each of which can be encoded by itself, here or elsewhere.

    `ident` is the column that is carried along, "" for none; `is_array` is a source without text.
    """

    task: Form
    path: Path
    labels: bool
    group: str | None
    ident: str
    is_array: bool
    wanted: Wanted
    options: Options

    @classmethod
    def of(
        cls,
        task: Form,
        path: Path,
        *,
        labels: bool = False,
        group: str | None = None,
        ident: str | None = None,
    ) -> "Cut":
        """A source as `chunks` has it; TaskError where there is none."""
        try:
            is_other = not is_table(_there(path)) and path.suffix != ".toml"
            if is_other and arrays(task, path, ROWS) is not None:
                none = task.wanted, Options()
                return cls(task, path, labels, group, ident or "", True, *none)
        except (ArraysError, *BROKEN) as error:
            raise _refusal(path, error) from error
        options = options_of(path)
        name = ident or options.id
        more = tuple(one for one in (group, name) if one)
        optional = tuple(one for one in task.wanted.optional if labels or one != task.label)
        required = (*task.wanted.required, *more)
        wanted = replace(task.wanted, required=required, optional=optional)
        return cls(task, path, labels, group, name, False, wanted, options)

    def sent(self) -> tuple[Any, ...]:
        """All but the task, for another process: what encoding needs, and not where rows are."""
        options = replace(
            self.options,
            rename={},
            columns=dict(self.options.columns),
            files=(),
            database="",
            query="",
            password_file=None,
            password_env="",
        )
        facts = (self.path, self.labels, self.group, self.ident, self.is_array)
        return *facts, self.wanted, options

    def parts(self) -> Iterator[Part]:
        """The source in parts, in its order."""
        pieces = arrays(self.task, self.path, ROWS) if self.is_array else None
        if pieces is not None:
            yield from _array_parts(self.path, pieces)
        else:
            yield from parts(self.path, self.wanted, self.options, lenient=True)

    def encoded(self, part: Part, first: int) -> Chunk:
        """The rows of a part whose first one is row `first` of the source."""
        rows = batch(part, first, self.wanted, self.options)
        ident = self.ident if self.ident in rows.table.column_names else ""
        return _encoded(self.task, rows, self.labels, self.group, ident)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name the source in what is refused of it."""
        try:
            yield
        except (ArraysError, TaskError, *BROKEN) as error:
            raise _refusal(self.path, error) from error


def _there(path: Path) -> Path:
    if not path.exists():
        raise TaskError(f"{path}: expected a file or a folder, found none")
    return path


def _refusal(path: Path, error: Exception) -> TaskError:
    if not isinstance(error, ArraysError | TaskError):
        return TaskError(f"{path}: expected a whole file, got a damaged one")
    known = str(error).startswith(str(path))
    return TaskError(str(error) if known else f"{path}: {error}")


def _array_parts(
    path: Path, pieces: Iterator[tuple[Any, float, Sequence[str] | None]]
) -> Iterator[Part]:
    """Parts of a source without lines: rows are known by number, files by name."""
    before = 0
    for table, done, names in pieces:
        place = partial(row_place, before) if names is None else names.__getitem__
        yield Part(Piece(table, (), place, done, table.num_rows), path, False, done)
        before += table.num_rows


def own_chunks(
    parts: Iterator[tuple[Rows, Any]], ident: str | None, *, by_site: bool = False
) -> Iterator[Chunk]:
    """The rows of a task that reads its files itself; `id` is what its encoding names them."""
    for rows, part in parts:
        numbers = part.arrays.get("number", np.zeros(0, np.int64)) + 1
        faults = tuple(_own_fault(one) for one in part.faults)
        names = part.texts.get("id")
        y = rows.y if "y" in part.arrays else None
        ids = pa.chunked_array([pa.array(names)]) if names is not None else None
        yield Chunk(
            rows.x,
            y,
            numbers,
            _sites(rows) if by_site else None,
            faults,
            0.0,
            None,
            ids,
            (ident or "id") if names is not None else "",
        )


def _sites(rows: Rows) -> list[str]:
    if rows.site is None and len(rows):
        raise TaskError("group must be left out: the rows of this task name no site")
    return list(rows.site or ())


def _own_fault(fault: Mapping[str, Any]) -> Fault:
    row = int(fault.get("row", 0)) + 1
    expected = f"a row that encode takes ({str(fault.get('kind', 'Error'))[:60]})"
    return Fault(
        row,
        str(fault.get("place", f"row {row}")),
        str(fault.get("column", "task.py")),
        str(fault.get("expected", expected)),
    )


def _encoded(task: Form, batch: Batch, labels: bool, group: str | None, ids: str) -> Chunk:
    table = batch.table
    if task.label in table.column_names and not labels and task.label not in task.inputs:
        table = table.drop_columns([task.label])
    encoded = task.encode(table)
    if labels and encoded.y is None:
        raise TaskError(f"expected a column of labels named {task.label!r}, found none")
    indices = pa.array(encoded.index)
    groups = None
    if group is not None:
        if group not in table.column_names:
            raise TaskError(f"expected a column named {group!r} to group by, found none")
        values = texts(table.column(group).take(indices))
        groups = ["" if value is None else str(value).strip() for value in values]
    faults = [Fault(number, batch.place(number), "", expected) for number, expected in batch.faults]
    for misfit in encoded.misfits:
        number = int(batch.numbers[misfit.row])
        column = f"column {misfit.column}"
        faults.append(Fault(number, batch.place(number), column, misfit.expected))
    faults.sort(key=lambda fault: fault.row)
    rows = batch.numbers[encoded.index]
    carried = None
    if ids:
        carried = table.column(ids)
        if len(indices) < table.num_rows:
            carried = carried.take(indices)
    return Chunk(
        encoded.x,
        encoded.y,
        rows,
        groups,
        tuple(faults),
        batch.done,
        encoded.raw,
        carried,
        ids,
        encoded.unknown,
    )
