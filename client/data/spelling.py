"""A site's spelling of values turned into the schema's: missing codes, names, marks and dates."""

import re
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from client.data.source import Options
from client.data.values import ABSENT, distinct
from client.data.wanted import Wanted
from client.tasks.rows import TaskError


def respelled(table: Any, wanted: Wanted, options: Options) -> Any:
    """The table with the columns that the site writes in its own way as the schema has them."""
    marked = options.thousands or options.date_format or options.dialect.decimal != "."
    if not (options.missing or options.columns or marked):
        return table
    for name in table.column_names:
        how, column = options.spelled(name), table.column(name)
        number = name in wanted.numbers
        codes = set(how.missing) | set(options.missing)
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        marks = text and number and bool(options.thousands or options.dialect.decimal != ".")
        dated = text and name in wanted.dates and bool(options.date_format)
        if not (codes or how.values or marks or dated):
            continue
        if pa.types.is_floating(column.type) and not how.values:
            column = _without(column, codes)
        else:
            column = _mapped(name, column, codes, number, options, dated=dated)
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _without(column: Any, codes: set[str]) -> Any:
    """A column of floats whose missing codes are null."""
    for code in codes:
        try:
            value = float(code)
        except ValueError:
            continue
        column = pc.if_else(pc.equal(column, value), None, column)
    return column


def _mapped(
    name: str, column: Any, codes: set[str], number: bool, options: Options, *, dated: bool
) -> Any:
    try:
        texts, index = distinct(column)
    except TaskError as error:
        raise TaskError(f"column {name}: {error}") from None
    values = options.spelled(name).values
    cells: list[str | None] = []
    for text in texts:
        value = None if text is None else text.strip()
        if value is None or value in codes or same_number(value) in codes:
            cells.append(None)
        elif value in values:
            cells.append(values[value])
        elif same_number(value) in values:
            cells.append(values[same_number(value)])
        elif number:
            cells.append(_date(value, options) if dated else _number(value, options))
        else:
            cells.append(text)
    return pa.array(cells, pa.string()).take(pa.array(np.asarray(index)))


def same_number(text: str) -> str:
    """The shortest spelling of a whole number, so that 9 and 9.0 are the same code."""
    try:
        value = float(text)
    except ValueError:
        return text
    return str(int(value)) if np.isfinite(value) and value == int(value) else text


def _date(text: str, options: Options) -> str:
    """A date in the site's format as an ISO date; else as it is, which is no date."""
    try:
        moment = datetime.strptime(text, options.date_format).replace(tzinfo=UTC)
    except ValueError:
        return text if text in ABSENT else "no date"
    return moment.isoformat()


def _number(text: str, options: Options) -> str:
    """A number in the site's marks as the schema has them; else a text that is no number."""
    thousands, decimal = options.thousands, options.dialect.decimal
    if text in ABSENT:
        return text
    if thousands and thousands in text:
        grouped = rf"[+-]?\d{{1,3}}(?:{re.escape(thousands)}\d{{3}})+(?:{re.escape(decimal)}\d*)?"
        if not re.fullmatch(grouped, text):
            return "no number"
        text = text.replace(thousands, "")
    if decimal != ".":
        text = text.replace(".", "x").replace(decimal, ".")
    return text
