"""A file's rows for training: all that fit, each judged by itself, and a word on the others.

Which rows are trained on, and which are held out, follows from each row alone: a row more or less
in the file changes the training rows by that row. Nothing here depends on how many rows there are.
"""

import hashlib
import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from client.data.reader import Batch, read
from client.data.source import Options, options_of
from client.data.values import ABSENT, UNREADABLE, distinct, ident
from client.data.wanted import Wanted
from client.tasks.rows import Encoded, NoRows, Omission, Reading, Rows, TaskError, added

if TYPE_CHECKING:
    from torch import Tensor

SPILL: Final = 256 * 2**20
"""Bytes of one array of rows that stay in memory; longer ones go to a file without a name."""


Told = dict[tuple[str, str], tuple[int, str]]
"""Rows left out: column and expectation -> how many, and where the first of them stands."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The columns that are not learnt from: the person, the site, and the key that holds out."""

    subject: str = ""
    site: str = ""
    key: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Those that there are."""
        return tuple(name for name in (self.subject, self.site, self.key) if name)


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """Rows, and each row's key [n] where the schema has one."""

    rows: Rows
    key: NDArray[np.int64] | None = None


_row_by_row: ContextVar[bool] = ContextVar("row_by_row", default=False)


@contextmanager
def row_by_row() -> Iterator[None]:
    """Within it `load` leaves out a row that has not its file's form, as any that does not fit.

    So is read what a round trains on: one broken row takes no other with it. Elsewhere it is
    refused with its line, since somebody is there who can mend it.
    """
    token = _row_by_row.set(True)
    try:
        yield
    finally:
        _row_by_row.reset(token)


def load(
    path: Path,
    wanted: Wanted,
    encode: Callable[[Any], Encoded],
    roles: Roles = Roles(),
) -> Loaded:
    """All rows of a source that fit; TaskError where it cannot be read, or none of them fits."""
    options = options_of(path)
    needed = (name for name in (roles.subject, roles.key) if name)
    wanted = replace(wanted, required=(*wanted.columns, *needed), optional=roles.names)
    with ExitStack() as stack:
        growing = [stack.enter_context(closing(Growing())) for _ in range(4)]
        return _loaded(path, options, wanted, encode, roles, *growing)


def _loaded(
    path: Path,
    options: Options,
    wanted: Wanted,
    encode: Callable[[Any], Encoded],
    roles: Roles,
    x: "Growing",
    y: "Growing",
    subject: "Growing",
    key: "Growing",
) -> Loaded:
    import torch  # an exported model predicts without it

    sites: list[str] = []
    reasons: Told = {}
    rows = lines = left_out = 0
    unknown: tuple[tuple[str, int], ...] = ()
    for batch in read(path, wanted, options=options, by_line=_row_by_row.get()):
        for number, expected in batch.faults:
            count, at = reasons.get(("", expected), (0, batch.place(number)))
            reasons["", expected] = count + 1, at
        encoded, texts, lost = _encoded(path, batch, encode, roles, reasons)
        x.add(encoded.x.numpy())
        if encoded.y is None:
            raise TaskError(f"{path}: expected a column of labels, found none")
        y.add(encoded.y.numpy())
        for name, column in ((roles.subject, subject), (roles.key, key)):
            if name:
                column.add(_numbers(*texts[name])[encoded.index])
        if roles.site in texts:
            values, index = texts[roles.site]
            sites += [values[i] for i in index[encoded.index].tolist()]
        rows += batch.table.num_rows + len(batch.faults)
        lines += batch.lines
        left_out += lost + len(batch.faults)
        unknown = added(unknown, encoded.unknown)
    omissions = tuple(
        Omission(*why, count, first)
        for why, (count, first) in sorted(reasons.items(), key=lambda item: -item[1][0])
    )
    reading = Reading(rows, lines, left_out, omissions, unknown)
    if left_out == rows:
        raise NoRows(f"{path}: expected rows that fit, got none among {reading}")
    result = Rows(
        torch.from_numpy(x.whole()),
        torch.from_numpy(y.whole()),
        tuple(sites) if sites else None,
        torch.from_numpy(subject.whole()) if roles.subject else None,
        reading,
    )
    return Loaded(result, key.whole() if roles.key else None)


def _encoded(
    path: Path,
    batch: Batch,
    encode: Callable[[Any], Encoded],
    roles: Roles,
    reasons: Told,
) -> tuple[Encoded, dict[str, tuple[list[str], NDArray[np.integer[Any]]]], int]:
    """A batch's rows that fit, its roles' values, and how many rows do not fit."""
    texts = {}
    present = np.ones(batch.table.num_rows, dtype=bool)
    for name in roles.names:
        if name in batch.table.column_names:
            values, index = _texts(name, batch.table.column(name))
            gone = np.array([not value for value in values], dtype=bool)[index]
            _tell(reasons, batch, (name, "a value"), np.flatnonzero(gone & present))
            present &= ~gone
            texts[name] = (values, index)
    try:
        encoded = encode(batch.table)
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from None
    last, wrong = -1, dict[tuple[str, str], list[int]]()
    for misfit in encoded.misfits:
        if misfit.row != last and present[misfit.row]:
            wrong.setdefault((misfit.column, misfit.expected), []).append(misfit.row)
        last = misfit.row
    for why, rows in wrong.items():
        _tell(reasons, batch, why, rows)
    mask = present[encoded.index]
    if not mask.all():
        import torch

        y = None if encoded.y is None else encoded.y[torch.from_numpy(mask)]
        x = encoded.x[torch.from_numpy(mask)]
        encoded = replace(encoded, x=x, y=y, index=encoded.index[mask])
    return encoded, texts, batch.table.num_rows - len(encoded.index)


def _tell(reasons: Told, batch: Batch, why: tuple[str, str], rows: Sequence[int] | Any) -> None:
    """Count rows that are left out, and remember where the first of them stands."""
    if len(rows):
        count, first = reasons.get(why, (0, ""))
        reasons[why] = count + len(rows), first or batch.place(int(batch.numbers[rows[0]]))


def _texts(name: str, column: Any) -> tuple[list[str], NDArray[np.integer[Any]]]:
    """The distinct texts of a column, "" for one that names nobody, and each row's position."""
    try:
        texts, index = distinct(column)
    except TaskError as error:
        raise TaskError(f"column {name}: {error}") from None
    names = ["" if text is None else ident(text) for text in texts]
    return ["" if name in ABSENT or UNREADABLE in name else name for name in names], index


def _numbers(values: list[str], index: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Each text's number, from the text alone: the same in every file."""
    numbers = [
        int.from_bytes(hashlib.sha256(value.encode()).digest()[:8], "little", signed=True)
        for value in values
    ]
    each: NDArray[np.int64] = np.array(numbers, dtype=np.int64)
    return each.take(index)


def held_out(loaded: Loaded, fraction: float) -> NDArray[np.bool_]:
    """Which rows are held out, by what each row is: its person, else its key, else its content.

    Rows of the same content are told apart by their order among themselves alone, so that one of
    them less is the last of them less.
    """
    rows = loaded.rows
    if rows.subject is not None:
        return chosen(rows.subject.numpy().view(np.uint64), fraction)
    if loaded.key is not None:
        return chosen(loaded.key.view(np.uint64), fraction)
    digest, occurrence = contents(rows)
    return chosen(digest + occurrence * np.uint64(0xD1342543DE82EF95), fraction)


def chosen(units: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Which units a public hash (splitmix64, Steele et al. 2014) puts below `fraction`."""
    return (_mixed(units) >> np.uint64(11)).astype(np.float64) / 2.0**53 < fraction


def of_people(rows: Rows, part: str, fraction: float) -> Rows:
    """The rows of the people of "train", "test" or "all": a person is held out whole."""
    if part == "all" or rows.subject is None:
        return rows
    held = chosen(rows.subject.numpy().view(np.uint64), fraction)
    return rows.take(np.flatnonzero(held == (part == "test")))


def _mixed(units: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = units + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)


def contents(rows: Rows) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """A number of each row's content [n], and how many equal rows come before it [n].

    The number is no proof of equality: rows of one number are compared, and told apart if they
    differ, for a crafted file could have many of them.
    """
    x = rows.x.reshape(len(rows), -1).numpy()
    y = rows.y.numpy()
    sites = np.broadcast_to(np.int64(0), len(rows))
    if rows.site is not None:
        names, index = np.unique(np.array(rows.site, dtype=object), return_inverse=True)
        sites = _numbers(list(names), index)
    factors = _mixed(np.arange(x.shape[1] + 2, dtype=np.uint64)) | np.uint64(1)
    digest = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), 65536):
        part = slice(start, start + 65536)
        bits = np.ascontiguousarray(x[part]).view(np.uint32)
        total = np.zeros(len(bits), np.uint64)
        for column in range(bits.shape[1]):
            total += bits[:, column].astype(np.uint64) * factors[column]
        label = y[part].view(np.uint32) if y.dtype == np.float32 else y[part]
        total += label.astype(np.uint64) * factors[-2]
        total += sites[part].view(np.uint64) * factors[-1]
        digest[part] = _mixed(total)
        release(rows.x)
    order = np.argsort(digest, kind="stable")
    ranked = digest[order]
    fresh = np.ones(len(rows), dtype=bool)
    fresh[1:] = ranked[1:] != ranked[:-1]
    del ranked
    occurrence = np.zeros(len(rows), np.uint64)
    last = 0
    for start in range(0, len(rows), 65536):
        at = np.arange(start, min(start + 65536, len(rows)))
        first = np.maximum.accumulate(np.where(fresh[at], at, last))
        last = int(first[-1])
        later = at > first
        if not later.any():
            continue
        a, b = order[at[later]], order[first[later]]
        equal = (x[a].view(np.uint32) == x[b].view(np.uint32)).all(1)
        if not (equal & (y[a] == y[b]) & (sites[a] == sites[b])).all():
            return _told_apart(x, y, sites, digest)
        occurrence[a] = (at - first)[later].astype(np.uint64)
        release(rows.x)
    return digest, occurrence


def _told_apart(
    x: NDArray[Any], y: NDArray[Any], sites: NDArray[np.int64], digest: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The same with a cryptographic digest a row, where the quick one is not enough."""
    seen: Counter[bytes] = Counter()
    occurrence = np.empty(len(digest), np.uint64)
    for row in range(len(digest)):
        content = x[row].tobytes() + y[row].tobytes() + sites[row].tobytes()
        name = hashlib.blake2b(content, digest_size=32).digest()
        digest[row] = int.from_bytes(name[:8], "little")
        occurrence[row] = seen[name]
        seen[name] += 1
    return digest, occurrence


@dataclass(eq=False)
class Growing:
    """An array that grows by rows, in memory up to `SPILL` bytes and then in a file of its own.

    The file has no name: it is gone when the array is.
    """

    shape: tuple[int, ...] = ()
    kind: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))
    rows: int = 0
    buffer: bytearray = field(default_factory=bytearray)
    file: IO[bytes] | None = None

    def add(self, part: NDArray[Any]) -> None:
        """Add rows at the end."""
        self.shape, self.kind = part.shape[1:], part.dtype
        self.rows += len(part)
        content = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        if self.file is None and len(self.buffer) + len(content) > SPILL:
            self.file = tempfile.TemporaryFile(prefix="tacit-")  # noqa: SIM115
            self.file.write(self.buffer)
            self.buffer = bytearray()
        if self.file is not None:
            self.file.write(content)
        else:
            self.buffer += content  # grows in place, where copies of parts would be twice the size

    def whole(self) -> NDArray[Any]:
        """All rows; changes to them reach no file."""
        shape = (self.rows, *self.shape)
        if self.file is None:
            return np.frombuffer(self.buffer, self.kind).reshape(shape)
        self.file.flush()
        os.posix_fadvise(self.file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return mapped(np.memmap(self.file, dtype=self.kind, mode="c", shape=shape))

    def close(self) -> None:
        """Let go of the file; arrays made of it stay."""
        if self.file is not None:
            self.file.close()


_MAPPED: Final[WeakValueDictionary[int, Any]] = WeakValueDictionary()
"""Mapped arrays by their address, since a tensor does not say what it is made of."""


def mapped(array: Any) -> NDArray[Any]:
    """A mapped array that nobody writes to, so that `release` knows it."""
    _MAPPED[array.ctypes.data] = array
    return np.asarray(array)


def release(tensor: "Tensor") -> None:
    """Let go of the memory of a mapped array's rows; whoever draws them again has them again.

    Without it a pass over an array longer than memory would fill the memory.
    """
    array = _MAPPED.get(tensor.data_ptr())
    if array is not None and isinstance(array.base, mmap.mmap):
        array.base.madvise(mmap.MADV_DONTNEED)


def part(rows: Rows, mask: NDArray[np.bool_]) -> Rows:
    """The rows of a mask; those of long arrays stay in a file."""
    import torch

    at = np.flatnonzero(mask)
    if rows.x.nbytes <= SPILL:
        return rows.take(at)
    with closing(Growing()) as x:
        for start in range(0, len(at), 65536):
            x.add(rows.x.numpy()[at[start : start + 65536]])
            release(rows.x)
        whole = torch.from_numpy(x.whole())
    site = None if rows.site is None else tuple(rows.site[i] for i in at.tolist())
    chosen_ = torch.from_numpy(at)
    subject = None if rows.subject is None else rows.subject[chosen_]
    return Rows(whole, rows.y[chosen_], site, subject, rows.reading)
