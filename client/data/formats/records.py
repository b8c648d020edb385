"""The records of a text file, block after block: what a parser would swallow is refused first.

pyarrow and most others read an unclosed quote, text after a closing quote or a NUL without a word,
and rows vanish. Every block is looked through; only blocks with quotes cost more than a few
searches of bytes. A refusal names the line and what was expected, never a value.
"""

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from client.data.formats.dialect import Dialect, Malformed
from client.data.formats.quotes import Quotes, Spans, line_breaks, quotes
from client.tasks.rows import TaskError

BLOCK: Final = 2 * 2**20
"""Bytes of a file parsed at once: few enough that memory is used again instead of asked for."""
_COLUMN: Final = 4096
"""Bytes of one column of a block, at least: so that wide tables come in few blocks."""
LONGEST: Final = 64 * 2**20
"""Bytes of the longest record, quoted line breaks included."""
_OPEN: Final = b"\0open"
_LONG: Final = b"\0long"
"""What stands for a line with an open quote, and for one that is too long, where they are noted."""
_UNKNOWN: Final = "\ufffd".encode()
_BOMS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(eq=False)
class Block:
    """Whole records of a file as UTF-8, the line of its first one, and its quoted parts."""

    content: bytes
    line: int
    quoted: Quotes | Spans | None
    delimiter: bytes
    multiline: bool = False
    bad: dict[int, str] = field(default_factory=dict)

    @cached_property
    def lines(self) -> int:
        """How many line breaks it has."""
        quoted, size = self.quoted, len(self.content)
        return quoted.lines(size) if isinstance(quoted, Quotes) else line_breaks(self.content)

    @cached_property
    def spans(self) -> Spans | None:
        """Its quoted parts, found where somebody asks."""
        quoted = self.quoted
        return quoted.spans.before(len(self.content)) if isinstance(quoted, Quotes) else quoted

    @cached_property
    def records(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each record that is not empty starts and ends."""
        breaks = np.flatnonzero(np.frombuffer(self.content, np.uint8) == 10)
        if self.spans is not None:
            breaks = self.spans.outside(breaks)
        if not self.content.endswith(b"\n"):
            breaks = np.append(breaks, len(self.content))
        starts = np.concatenate([[0], breaks[:-1] + 1])
        sizes = breaks - starts
        only_cr = sizes == 1
        only_cr[only_cr] = [self.content[at] == 13 for at in starts[only_cr].tolist()]
        full = (sizes > 0) & ~only_cr
        return starts[full], breaks[full]

    def line_of(self, record: int) -> int:
        """The line on which a record starts."""
        return self.line + self.content.count(b"\n", 0, int(self.records[0][record]))

    def at(self, position: int) -> int:
        """The line of a position."""
        return self.line + self.content.count(b"\n", 0, position)

    def ragged(self, columns: int) -> Iterator[tuple[int, int]]:
        """The records of another number of values, and their numbers."""
        starts, ends = self.records
        at = np.flatnonzero(np.frombuffer(self.content, np.uint8) == self.delimiter[0])
        if self.spans is not None:
            at = self.spans.outside(at)
        values = np.searchsorted(at, ends) - np.searchsorted(at, starts) + 1
        for record in np.flatnonzero(values != columns).tolist():
            yield record, int(values[record])

    def record_at(self, position: int) -> int:
        """The record that a position lies in."""
        return max(0, int(np.searchsorted(self.records[0], position, side="right")) - 1)

    def without(self, records: Sequence[int]) -> bytes:
        """The content less some records."""
        starts, ends = self.records
        parts, last = [], 0
        for record in sorted(records):
            parts.append(self.content[last : starts[record]])
            last = int(ends[record]) + 1
        return b"".join([*parts, self.content[last:]])


def utf8(stream: BinaryIO, encoding: str, *, by_line: bool = False) -> Iterator[bytes]:
    """The bytes of a file as UTF-8 without a byte order mark; TaskError names a wrong encoding.

    `by_line` puts U+FFFD in the place of bytes that a declared encoding does not have.
    """
    head = stream.read(4)
    plain = codecs.lookup(encoding).name in ("utf-8", "ascii", "utf-8-sig")
    if plain:
        for mark, name in _BOMS:
            if head.startswith(mark):
                raise TaskError(
                    f"expected UTF-8, got a file that begins like {name} (encoding = "
                    f'"{name}" in source.toml)'
                )
        yield head.removeprefix(codecs.BOM_UTF8) + stream.read(BLOCK)
        while more := stream.read(BLOCK):
            yield more
        return
    decoder = codecs.getincrementaldecoder(encoding)("replace" if by_line else "strict")
    line = 1
    more = head
    while True:
        try:
            text = decoder.decode(more, final=not more)
        except UnicodeError as error:
            before = error.object[: error.start] if isinstance(error, UnicodeDecodeError) else b""
            lines = before.decode(encoding, "ignore").count("\n") if before else 0
            raise Malformed(line + lines, f"expected text in {encoding}, got other bytes") from None
        line += text.count("\n")
        if text:
            yield text.removeprefix("\ufeff").encode()
        if not more:
            return
        more = stream.read(BLOCK)


def blocks(
    chunks: Iterator[bytes],
    dialect: Dialect,
    line: int,
    columns: int,
    *,
    lenient: bool,
    by_line: bool = False,
) -> Iterator[Block]:
    """Blocks of whole records, looked through; Malformed where a record cannot be told.

    `lenient` notes bytes that are no text for their record alone. With `by_line` a record is one
    line, unless the dialect is `multiline`, and whatever is wrong with it is noted for it alone: an
    open quote takes no other record with it.
    """
    rest, coming = b"", next(chunks, b"")
    least = min(_COLUMN * columns, LONGEST // 2)
    lenient, strict_ends = lenient or by_line, not by_line
    by_line = by_line and not dialect.multiline
    final = False
    while not final:
        while rest == _LONG and coming and b"\n" not in coming:
            coming = next(chunks, b"")
        if rest == _LONG:
            coming = coming[coming.find(b"\n") :] if coming else b""
        parts, size = list[bytes | memoryview]([rest]), len(rest)
        while coming and (len(parts) == 1 or size < least):
            parts.append(coming)
            size += len(coming)
            coming = next(chunks, b"")
        final = not coming
        tail = b"" if final or len(parts) < 2 else _cut(parts)
        rest = b"".join(parts)
        if b"\n" not in rest and b"\r" in rest[:-1]:
            rest = rest.replace(b"\r", b"\n")  # lines that end as on old Macs
        if by_line:
            lines, rest = _whole_lines(rest, final)
            lines, quoted, multiline = _scanned_by_line(lines, dialect)
            rest, end = lines + rest, len(lines)
        else:
            end, quoted, multiline = _scanned(rest, dialect, line, final)
        if end:
            block = Block(rest[:end], line, quoted, dialect.delimiter.encode(), multiline)
            _check_text(block, dialect, lenient=lenient, strict_ends=strict_ends)
            if multiline and not dialect.multiline:
                _check_spans(block, columns)
            yield block
            line += block.lines
            rest = rest[end:]
        rest += tail
        if len(rest) > LONGEST:
            if not by_line:
                raise Malformed(
                    line, f"expected records of at most {LONGEST} bytes, got a longer one"
                )
            rest = _LONG


def _cut(parts: list[bytes | memoryview]) -> bytes:
    """Take what follows the last line break off the last of the parts.

    What is looked through is then most often a whole block, which need not be copied out of it.
    """
    last = bytes(parts[-1])
    end = last.rfind(b"\n") + 1
    if not end:
        return b""
    parts[-1] = memoryview(last)[:end]
    return last[end:]


def _whole_lines(rest: bytes, final: bool) -> tuple[bytes, bytes]:
    end = len(rest) if final else rest.rfind(b"\n") + 1
    return rest[:end], rest[end:]


def _scanned_by_line(lines: bytes, dialect: Dialect) -> tuple[bytes, Quotes | Spans | None, bool]:
    """Whole lines, with `_OPEN` in the place of each in which a quote stays open; their quotes."""
    closed, quoted, multiline = _closed(lines, dialect)
    if closed:
        return lines, quoted, multiline
    quote = dialect.quote.encode()
    each = lines.split(b"\n")
    for i, one in enumerate(each):
        if quote in one and not _closed(one, dialect)[0]:
            each[i] = _OPEN
    lines = b"\n".join(each)
    _, quoted, multiline = _scanned(lines, dialect, 1, final=True)
    return lines, quoted, multiline


def _closed(text: bytes, dialect: Dialect) -> tuple[bool, Quotes | Spans | None, bool]:
    """Whether every quote in a text is closed in its line; and what `_scanned` says of it."""
    try:
        _, quoted, multiline = _scanned(text, dialect, 1, final=True)
    except Malformed:
        return False, None, False
    if isinstance(quoted, Quotes):
        return not multiline, quoted, multiline
    if quoted is None:
        return True, None, multiline
    breaks = np.flatnonzero(np.frombuffer(text, np.uint8) == 10)
    return len(quoted.outside(breaks)) == len(breaks), quoted, multiline


def _scanned(
    rest: bytes, dialect: Dialect, line: int, final: bool
) -> tuple[int, Quotes | Spans | None, bool]:
    """Where the last whole record ends, the quoted parts before it, and if one has line breaks."""
    if not dialect.quote or rest.find(dialect.quote.encode()) < 0:
        return (len(rest) if final else rest.rfind(b"\n") + 1), None, False
    quoted = None if dialect.escape else quotes(rest, dialect.quote, dialect.delimiter)
    if quoted is None:
        return _scanned_by_value(rest, dialect, line, final)
    if quoted.unclosed is not None and final:
        raise _open_quote(rest, line, quoted.unclosed)
    end = len(rest) if final else quoted.end()
    return end, quoted, quoted.multiline(end)


def _scanned_by_value(
    rest: bytes, dialect: Dialect, line: int, final: bool
) -> tuple[int, Spans, bool]:
    spans, unclosed = _scan(rest, dialect, line)
    if unclosed is not None and final:
        raise _open_quote(rest, line, unclosed)
    end = len(rest) if unclosed is None else unclosed
    if not final:
        while (end := rest.rfind(b"\n", 0, end) + 1) > 0:
            span = int(np.searchsorted(spans.starts, end - 1)) - 1
            if span < 0 or spans.ends[span] < end - 1:
                break
            end = int(spans.starts[span])
    return end, spans.before(end), True


def _open_quote(rest: bytes, line: int, at: int) -> Malformed:
    return Malformed(
        line + rest.count(b"\n", 0, at),
        "expected a closing quote, got an end of the file after an open one",
    )


def _scan(rest: bytes, dialect: Dialect, line: int) -> tuple[Spans, int | None]:
    """Value by value, for files with quotes inside of values; Malformed for one without an end."""
    quote, delimiter = re.escape(dialect.quote.encode()), re.escape(dialect.delimiter.encode())
    inner = rb"[^" + quote + rb"]*+(?:" + quote * 2 + rb"[^" + quote + rb"]*+)*+"
    if dialect.escape:
        escape = re.escape(dialect.escape.encode())
        inner = rb"(?:[^" + quote + escape + rb"]|" + escape + rb".|" + quote * 2 + rb")*+"
    begin = rb"(?:(?<=[" + delimiter + rb"\n\r])|\A)"
    starts, ends, unclosed = [], [], None
    for match in re.finditer(begin + quote + inner + rb"(" + quote + rb"?)", rest, re.DOTALL):
        if not match[1]:
            unclosed = match.start()
            break
        after = rest[match.end() : match.end() + 1]
        if after not in (b"", b"\n", b"\r", dialect.delimiter.encode()):
            at = line + rest.count(b"\n", 0, match.start())
            raise Malformed(
                at, "expected a delimiter or a line's end after a closing quote, got more text"
            )
        starts.append(match.start())
        ends.append(match.end() - 1)
    spans = Spans(np.array(starts, np.int64), np.array(ends, np.int64))
    for blank in re.finditer(begin + rb"[ \t]+" + quote, rest):
        if len(spans.outside(np.array([blank.end() - 1]))) and dialect.delimiter not in " \t":
            raise Malformed(
                line + rest.count(b"\n", 0, blank.start()),
                "expected a quote right after the delimiter, got blanks between them",
            )
    return spans, unclosed


def _check_spans(block: Block, columns: int) -> None:
    """Refuse a quoted value whose lines look like records: an unclosed quote swallowed them."""
    spans = block.spans
    if spans is None or columns < 2:
        return
    breaks = np.flatnonzero(np.frombuffer(block.content, np.uint8) == 10)
    first = np.searchsorted(breaks, spans.starts)
    last = np.searchsorted(breaks, spans.ends)
    for span in np.flatnonzero(last > first).tolist():
        start, end = int(spans.starts[span]), int(spans.ends[span])
        lines = block.content[start:end].split(b"\n")[1:]
        if columns == 2 and len(lines) < 2:
            continue
        if all(text.count(block.delimiter) >= columns - 1 for text in lines):
            raise Malformed(
                block.at(start),
                f"expected a closing quote, got a quoted value over {len(lines) + 1} lines that "
                "look like rows (multiline = true in source.toml, if they are none)",
            )


def _lone_returns(block: Block) -> NDArray[np.int64]:
    """Carriage returns outside of quotes that no line feed follows: other readers end a line."""
    content = block.content
    if b"\r" not in content:
        return np.zeros(0, np.int64)
    whole = np.frombuffer(content, np.uint8)
    alone = np.flatnonzero((whole[:-1] == 13) & (whole[1:] != 10))
    return alone if block.spans is None or not len(alone) else block.spans.outside(alone)


def _check_text(block: Block, dialect: Dialect, *, lenient: bool, strict_ends: bool) -> None:
    """Refuse a NUL and bytes that are no UTF-8; where `lenient`, note them for their record.

    `strict_ends` refuses a carriage return alone too.
    """
    wrong: list[tuple[int, str]] = []
    at = block.content.find(b"\0")
    while at >= 0:
        stands = block.content[at : at + len(_OPEN)]
        wrong.append((at, _WHY.get(stands, "text without a NUL byte")))
        at = block.content.find(b"\0", at + 1) if lenient else -1
    alone = _lone_returns(block)
    if not strict_ends:
        wrong += [(at, "no carriage return alone among line feeds") for at in alone.tolist()]
        at = block.content.find(_UNKNOWN) if dialect.encoding != "utf-8" else -1
        while at >= 0:
            wrong.append((at, f"text in {dialect.encoding}"))
            at = block.content.find(_UNKNOWN, at + 1)
    elif len(alone):
        raise Malformed(
            block.at(int(alone[0])),
            "expected lines that end in one way, got a carriage return alone among line feeds",
        )
    at = 0
    while not block.content.isascii():
        try:
            block.content[at:].decode() if at else block.content.decode()
            break
        except UnicodeDecodeError as error:
            wrong.append((at + error.start, "UTF-8 text (else: encoding in source.toml)"))
            at += error.end
            if not lenient:
                break
    if wrong and not lenient:
        at, expected = min(wrong)
        raise Malformed(block.at(at), f"expected {expected}, got other bytes")
    for at, expected in wrong:
        block.bad.setdefault(block.record_at(at), expected)


_WHY: Final = {
    _OPEN: "a closing quote in its line (multiline = true in source.toml, if values have several)",
    _LONG: f"a line of at most {LONGEST} bytes",
}
