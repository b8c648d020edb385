"""Blocks of records to columns, by pyarrow: numbers where all of a block are some, else text."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from client.data.formats.dialect import Dialect, Malformed
from client.data.formats.records import Block

DELIMITERS: Final = (",", ";", "\t", "|")
_PART: Final = 2**20
"""Bytes that one thread parses at once."""
_VALUES: Final = 2**11
"""Bytes of a column that it parses at once, at least: so that wide tables come in few pieces."""
_EMPTY: Final = re.compile(rb"[\r\n]*+")


@dataclass(eq=False)
class Parser:
    """Blocks to tables: the columns `wanted` of `names`, as numbers where they are `numbers`.

    A column that is no column of plain numbers comes as text from then on, so that what does not
    fit is found by the same rule whichever way a value came.
    """

    names: Sequence[str]
    wanted: Sequence[str]
    numbers: set[str]
    dialect: Dialect
    absent: Sequence[str]

    def table(self, block: Block, *, lenient: bool) -> Any:
        """A block's columns; its `bad` records are left out. Malformed for a ragged record."""
        content = block.content
        if block.bad:
            content = block.without(list(block.bad))
        try:
            return self._parsed(content, block)
        except pa.ArrowInvalid as error:
            ragged = dict(block.ragged(len(self.names)))
            if not ragged:
                raise Malformed(
                    block.line, f"expected a CSV file with {len(self.names)} columns, got another"
                ) from error
        if not lenient:
            record = min(ragged)
            raise Malformed(
                block.line_of(record), f"expected {len(self.names)} values, got {ragged[record]}"
            )
        for record, values in ragged.items():
            block.bad[record] = f"{len(self.names)} values, got {values}"
        return self._parsed(block.without(list(block.bad)), block)

    def _parsed(self, content: bytes, block: Block) -> Any:
        if _EMPTY.fullmatch(content):
            return pa.table({name: pa.array([], pa.string()) for name in self.wanted})
        broken = block.multiline
        try:
            table = self._read(content, broken, max(_PART, _VALUES * len(self.names)))
        except pa.ArrowInvalid as error:
            if "conversion" in str(error):
                table = self._as_text(content, broken)
            elif "straddl" in str(error):
                table = self._read(content, broken, len(content) + 1)
            else:
                raise
        # "nan(..)" is a number for pyarrow, and for nobody else.
        numbers = sorted(self.numbers) if b"(" in content else []
        odd = [name for name in numbers if not _plain(table.column(name))]
        if odd:
            self.numbers -= set(odd)
            table = self._read(content, broken, len(content) + 1)
        return table

    def _as_text(self, content: bytes, broken: bool) -> Any:
        """Again as text: columns of numbers become such where all of their values are some."""
        numbers, self.numbers = self.numbers, set()
        table = self._read(content, broken, len(content) + 1)
        for name in sorted(numbers):
            column = _cast(table.column(name), self.dialect.decimal, self.absent)
            if column is not None:
                table = table.set_column(table.column_names.index(name), name, column)
                self.numbers.add(name)
        return table

    def _read(self, content: bytes, broken: bool, size: int) -> Any:
        dialect, wanted = self.dialect, list(self.wanted)
        types = {n: pa.float64() if n in self.numbers else pa.string() for n in wanted}
        return pacsv.read_csv(
            pa.BufferReader(content),
            read_options=pacsv.ReadOptions(column_names=list(self.names), block_size=size),
            parse_options=pacsv.ParseOptions(
                delimiter=dialect.delimiter,
                quote_char=dialect.quote or False,
                double_quote=True,
                escape_char=dialect.escape or False,
                newlines_in_values=broken,
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=types,
                include_columns=wanted,
                null_values=list(self.absent),
                strings_can_be_null=False,
                decimal_point=dialect.decimal,
            ),
        )


def _cast(column: Any, decimal: str, absent: Sequence[str]) -> Any | None:
    """A column of text as numbers, if all of it are some or missing."""
    text = pc.utf8_trim_whitespace(column)
    text = pc.if_else(pc.is_in(text, pa.array(absent, pa.string())), None, text)
    if decimal != ".":
        text = pc.replace_substring(pc.replace_substring(text, ".", "x"), decimal, ".")
    try:
        return pc.cast(text, pa.float64())
    except pa.ArrowInvalid:
        return None


def _plain(column: Any) -> bool:
    """Whether a column of numbers has finite ones alone, where it has any."""
    for chunk in column.chunks:
        values = np.frombuffer(chunk.buffers()[1], np.float64)[chunk.offset :][: len(chunk)]
        if chunk.null_count:
            values = values[chunk.is_valid().to_numpy(zero_copy_only=False)]
        if not np.isfinite(values).all():
            return False
    return True


def split_header(record: bytes, dialect: Dialect, delimiter: str) -> list[str]:
    """The names of a header line by a delimiter."""
    text = record.decode("utf-8", "replace").rstrip("\r\n")
    quoting: dict[str, Any] = {"quotechar": dialect.quote or None}
    if not dialect.quote:
        quoting["quoting"] = csv.QUOTE_NONE
    try:
        return next(csv.reader([text], delimiter=delimiter, **quoting), [])
    except csv.Error:
        return []
