"""Rows of a database: one query, read only, streamed through ADBC (an extra: tacit[sql]).

`source.toml` says `database` and `query`; the password comes from a file or the environment and is
never in a message. SQLite and PostgreSQL are asked through their own ADBC drivers.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow as pa

from client.data.formats.columnar import check_types, chosen, numbered
from client.data.source import Options
from client.data.values import UNREADABLE
from client.data.wanted import Piece, Wanted
from client.tasks.rows import TaskError

KINDS: Final = ("sqlite", "postgresql")


def answer(path: Path, wanted: Wanted, options: Options, *, by_row: bool) -> Iterator[Piece]:
    """The wanted columns of the query's answer, under the schema's names.

    `by_row` puts U+FFFD in the place of bytes, so that they are no value of their own row alone.
    """
    with ExitStack() as opened:
        reader, before = _batch_stream(opened, wanted, options, by_row)
        columns = chosen(reader.schema.names, wanted, options)
        check_types(reader.schema, columns)
        tables = (
            pa.Table.from_batches([batch]).select(list(columns))
            for batch in _batches(reader, before)
        )
        yield from numbered(tables, columns, 0)


def _batches(reader: Any, before: int) -> Iterator[Any]:
    try:
        for batch in reader:
            yield batch.slice(before)
            before = 0
    except (pa.ArrowException, OSError) as error:
        raise _failed(error) from None


def _batch_stream(
    opened: ExitStack, wanted: Wanted, options: Options, by_row: bool
) -> tuple[Any, int]:
    """A stream of Arrow record batches, and how many rows of it are none of the answer's.

    TaskError without the driver's text, which tells values.
    """
    kind = urlsplit(options.database).scheme
    if kind not in KINDS:
        raise TaskError(f"database: expected sqlite:///PATH or postgresql://.., got {kind!r:.20}")
    try:
        connect, failure = _driver(kind)
    except ImportError:
        raise TaskError(f"database: {kind} needs an extra, pip install 'tacit[sql]'") from None
    uri = _sqlite(options) if kind == "sqlite" else _postgresql(options)
    try:
        connection = opened.enter_context(connect(uri))
        cursor = opened.enter_context(connection.cursor())
        query, before = options.query, 0
        if kind == "sqlite":
            cursor.execute("PRAGMA query_only = ON")
            query, before = _of_one_type(cursor, query, wanted, options, by_row)
        cursor.execute(query)
        return opened.enter_context(cursor.fetch_record_batch()), before
    except (failure, OSError) as error:
        raise _failed(error) from None


def _of_one_type(
    cursor: Any, query: str, wanted: Wanted, options: Options, by_row: bool
) -> tuple[str, int]:
    """The query, and how many rows before its answer give columns of SQLite a type.

    The driver takes a column's type from its first rows, and fails where later ones need another:
    a decimal after whole numbers, a text after nothing. One row of the widest values says it.
    """
    cursor.execute(query)
    with cursor.fetch_record_batch() as reader:
        columns = chosen(reader.schema.names, wanted, options)
    inner = query.strip().rstrip(";")
    asked = [f"max(typeof({_quoted(name)}) = '{kind}')" for name in columns for kind in _KINDS]
    cursor.execute(f"select {', '.join(asked)} from ({inner})")  # noqa: S608 - the owner's own
    facts = [bool(one) for one in cursor.fetchone()]
    first, names, mixed = list[str](), list[str](), False
    for index, (name, column) in enumerate(columns.items()):
        at = index * len(_KINDS)
        kinds = {
            kind for kind, here in zip(_KINDS, facts[at : at + len(_KINDS)], strict=True) if here
        }
        if "blob" in kinds and not by_row:
            raise TaskError(f"column {column}: expected text, numbers or dates, got binary ones")
        mixed = mixed or "blob" in kinds or (len(kinds) > 1 and kinds != {"integer", "null"})
        words = kinds & {"text", "blob"}
        value = "''" if words else "0.5" if "real" in kinds else "0"
        own = _quoted(name)
        first.append(f"{value} as {own}")
        none = f"case typeof({own}) when 'blob' then '{UNREADABLE}' else {own} end"
        names.append(none if "blob" in kinds else own)
    if not mixed:
        return query, 0
    rows = f"select {', '.join(names)} from ({inner})"  # noqa: S608
    return f"select {', '.join(first)} union all {rows}", 1


_KINDS: Final = ("blob", "text", "real", "integer", "null")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _driver(kind: str) -> tuple[Callable[[str], Any], type[Exception]]:
    """How to connect, and what the drivers raise."""
    import adbc_driver_manager

    failure: type[Exception] = adbc_driver_manager.Error
    if kind == "sqlite":
        import adbc_driver_sqlite.dbapi

        return adbc_driver_sqlite.dbapi.connect, failure
    import adbc_driver_postgresql.dbapi

    return adbc_driver_postgresql.dbapi.connect, failure


def _failed(error: Exception) -> TaskError:
    """What a database refuses, by its SQLSTATE alone: its texts repeat values and passwords."""
    state = str(getattr(error, "sqlstate", "") or "")[:5]
    why = _STATES.get(state[:2], "")
    code = f" (SQLSTATE {state})" if state else ""
    return TaskError(f"query: expected rows, the database refused it{why}{code}")


_STATES: Final = {
    "08": ": it cannot be reached",
    "28": ": user or password are wrong",
    "3D": ": there is no such database",
    "25": ": only reading is allowed",
    "42": ": a table, a column or the syntax is wrong, or access is denied",
}


def _sqlite(options: Options) -> str:
    name = options.database.removeprefix("sqlite:///")
    path = Path(name) if name.startswith("/") else options.folder / name
    if not path.is_file():
        raise TaskError(f"database: expected an SQLite file at {path}, found none")
    return f"file:{quote(str(path.absolute()))}?mode=ro"


def _postgresql(options: Options) -> str:
    """The address with the password, and a session that cannot write."""
    parts = urlsplit(options.database)
    if parts.password is not None:
        raise TaskError("database: expected no password in it, but password_file or password_env")
    password = _password(options)
    place = parts.netloc
    if password:
        user, at, host = place.rpartition("@")
        place = f"{user}:{quote(password, safe='')}{at or '@'}{host}"
    only = "options=" + quote("-c default_transaction_read_only=on")
    query = f"{parts.query}&{only}" if parts.query else only
    return urlunsplit((parts.scheme, place, parts.path, query, ""))


def _password(options: Options) -> str:
    if options.password_file is not None:
        try:
            return options.password_file.read_text(encoding="utf-8").strip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise TaskError(
                f"password_file: expected a file that can be read at {options.password_file}"
            ) from None
    if options.password_env:
        if options.password_env not in os.environ:
            raise TaskError(f"password_env: expected {options.password_env} in the environment")
        return os.environ[options.password_env]
    return ""
