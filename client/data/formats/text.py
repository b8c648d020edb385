"""A text file's header and records: which delimiter, which columns, and where each row stands."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa

from client.data.formats.columnar import require
from client.data.formats.csv import DELIMITERS, Parser, split_header
from client.data.formats.dialect import Dialect, Malformed
from client.data.formats.quotes import Spans
from client.data.formats.records import LONGEST, Block, blocks, utf8
from client.data.source import Options
from client.data.values import ABSENT, plain
from client.data.wanted import Piece, Wanted
from client.tasks.rows import TaskError

_PACKED: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bz2"),
    (b"SQLite format 3", ""),
)


@dataclass(frozen=True, slots=True, eq=False)
class Unparsed:
    """A block of a text file that is looked through and not parsed yet, here or elsewhere.

    `before` are the lines before it, `done` is the part of the file read so far.
    """

    parser: Parser
    block: Block
    lenient: bool
    done: float
    before: int

    @property
    def rows(self) -> int:
        """How many records it has, not looked for one by one unless some lines are empty."""
        block, content, quoted = self.block, self.block.content, self.block.quoted
        gaps = content[:1] in (b"\n", b"\r") or b"\n\n" in content or b"\n\r" in content
        if gaps or isinstance(quoted, Spans):
            return len(block.records[0])
        ends = block.lines if quoted is None else quoted.lines_outside(len(content))
        return ends + (not content.endswith(b"\n"))

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which finds again what was found on the way if it needs it."""
        block = replace(self.block)
        return Unparsed, (self.parser, block, self.lenient, self.done, self.before)

    def piece(self) -> Piece:
        """Its wanted columns, numbers as float64 where all of them are some."""
        block = self.block
        table = self.parser.table(block, lenient=self.lenient)
        bad, last = tuple(sorted(block.bad.items())), block.line + block.lines - 1
        return Piece(table, bad, _Places(block), self.done, last - self.before)


def text_blocks(
    path: Path, wanted: Wanted, options: Options, *, lenient: bool, by_line: bool
) -> Iterator[Unparsed]:
    """The blocks of a CSV file, of which the wanted columns are to be parsed."""
    size = max(path.stat().st_size, 1)
    with path.open("rb") as raw, unpacked(raw) as stream:
        dialect = dialect_of(path, wanted, options)
        chunks = utf8(stream, dialect.encoding, by_line=by_line)
        header, rest, line = first_record(chunks, dialect, wanted.comment)
        names, headed = _names(header, dialect, wanted, options, by_line=by_line)
        wanted_names = set(wanted.columns)
        columns = [name for name in names if name in wanted_names]
        more = chain(filter(None, [rest if headed else header + rest]), chunks)
        first = line if headed else line - header.count(b"\n")
        parser = Parser(
            [name or f" {i}" for i, name in enumerate(names)],
            columns,
            _fast(wanted, options) & set(columns),
            dialect,
            sorted(ABSENT | set(options.missing)),
        )
        before = first - 1
        how = {"lenient": lenient, "by_line": by_line}
        for block in blocks(more, dialect, first, len(names), **how):
            done = min(1.0, raw.tell() / size)
            yield Unparsed(parser, block, lenient or by_line, done, before)
            before = block.line + block.lines - 1


class _Places:
    """The line of a record of one block, found only if somebody asks."""

    def __init__(self, block: Block) -> None:
        self.block = block

    def __call__(self, record: int) -> str:
        return f"line {self.block.line_of(record)}"


@contextmanager
def unpacked(raw: BinaryIO) -> Iterator[Any]:
    """A file's bytes, those of a packed one unpacked; TaskError for a database."""
    head = raw.read(16)
    raw.seek(0)
    for magic, kind in _PACKED:
        if head.startswith(magic):
            if not kind:
                raise TaskError(
                    "expected a table, got an SQLite database (database and query in source.toml)"
                )
            with pa.CompressedInputStream(pa.PythonFile(raw, "r"), kind) as stream:
                yield stream
            return
    yield raw


def dialect_of(path: Path, wanted: Wanted, options: Options) -> Dialect:
    """How a file is written: as its site says, else as the schema says, else as its name does."""
    dialect = options.dialect
    if wanted.quote is not None and "quote" not in options.declared:
        dialect = replace(dialect, quote=wanted.quote)
    if "delimiter" in options.declared:
        return dialect
    named = path.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".bz2")
    default = "\t" if named.endswith(".tsv") else ","
    return replace(dialect, delimiter=wanted.delimiter or default)


def first_record(
    chunks: Iterator[bytes], dialect: Dialect, comment: str
) -> tuple[bytes, bytes, int]:
    """The first record that is no comment, what was read after it, and the next line's number."""
    buffer, line, final = b"", 1, False
    quote = dialect.quote.encode()
    while True:
        end = buffer.find(b"\n")
        while end >= 0 and quote and buffer.count(quote, 0, end) % 2:
            end = buffer.find(b"\n", end + 1)
        if end < 0 and not final:
            more = next(chunks, None)
            final = more is None
            buffer += more or b""
            if b"\n" not in buffer and b"\r" in buffer[:-1]:
                buffer = buffer.replace(b"\r", b"\n")
            if len(buffer) > LONGEST:
                raise Malformed(line, f"expected a header line of at most {LONGEST} bytes")
            continue
        record, rest = (buffer, b"") if end < 0 else (buffer[: end + 1], buffer[end + 1 :])
        line += record.count(b"\n")
        skipped = comment and record.startswith(comment.encode())
        if not skipped and (record.strip() or (final and end < 0)):
            return record, rest, line
        buffer = rest


def _names(
    header: bytes, dialect: Dialect, wanted: Wanted, options: Options, *, by_line: bool
) -> tuple[list[str], bool]:
    """The columns of a file under the schema's names, and whether its first record says them."""
    if options.header and by_line:  # the first record is a row like any other
        return [options.rename.get(name, name) for name in options.header], False
    if wanted.names and by_line and not _names_all(header, dialect, wanted, options):
        return list(wanted.names), False
    if b"\0" in header or not header.strip():
        raise TaskError("expected a header line of column names, found none")
    try:
        header.decode()
    except UnicodeDecodeError:
        raise Malformed(
            1, "expected UTF-8 text, got other bytes (encoding in source.toml)"
        ) from None
    columns = set(wanted.columns)

    def split(delimiter: str) -> list[str]:
        titles = [name.strip() for name in split_header(header, dialect, delimiter)]
        known = [options.rename.get(name, name) for name in titles]
        return [name if name in columns else plain(name) for name in known]

    names = split(dialect.delimiter)
    hits = len(columns & set(names))
    if options.header:
        if len(names) != len(options.header):
            raise Malformed(1, f"expected {len(options.header)} values, got {len(names)}")
        return [options.rename.get(name, name) for name in options.header], False
    if not hits and wanted.names and len(names) == len(wanted.names):
        return list(wanted.names), False
    if hits < len(wanted.required):
        other = max(DELIMITERS, key=lambda mark: len(columns & set(split(mark))))
        if len(columns & set(split(other))) > hits:
            raise TaskError(
                f"expected the delimiter {dialect.delimiter!r}, got a header that fits {other!r} "
                f"(delimiter = {other!r} in source.toml)"
            )
    counts = Counter(names)
    doubled = next((name for name in names if name and counts[name] > 1), None)
    if doubled is not None:
        known = doubled in columns  # a name that nobody asked for may be a value
        which = repr(doubled) if known else f"that of column {names.index(doubled) + 1}"
        raise TaskError(f"expected distinct column names, got {which} twice")
    require(set(names), wanted, names)
    return names, True


def _names_all(header: bytes, dialect: Dialect, wanted: Wanted, options: Options) -> bool:
    """Whether a first record names every column that is needed; else it is a row like any other."""
    titles = split_header(header.replace(b"\0", b""), dialect, dialect.delimiter)
    names = [options.rename.get(one, one) for one in map(str.strip, titles)]
    return set(wanted.required) <= {*names, *map(plain, names)}


def _fast(wanted: Wanted, options: Options) -> set[str]:
    """The columns of numbers that need no look at their text."""
    if options.thousands:
        return set()
    spelled = {name for name, how in options.columns.items() if how.missing or how.values}
    return set(wanted.numbers) - set(wanted.dates) - spelled
