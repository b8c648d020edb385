"""`source.toml`: how a site's files are written, which is the site's business alone.

It lies beside the data, is read by this site only and enters no digest of any plan: what it says
turns the site's own spelling into the columns and values of the public schema.
"""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from client.data.formats.dialect import Dialect
from client.tasks.rows import TaskError
from privacy.files import DocumentError, Limits, read_toml

FILE: Final = "source.toml"
_LIMITS: Final = Limits(size=16 * 2**20, count=2**20)
_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Spelling:
    """How one column's values are written: its missing codes, and its values' public names."""

    missing: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=lambda: _EMPTY)


@dataclass(frozen=True, slots=True)
class Options:
    """A `source.toml`, read; without one, plain CSV with commas, or whatever the file's kind says.

    `rename` gives the schema's name of each column of the file that has another; `files` are the
    files of the data, relative to the folder that it lies in; `database` and `query` name rows of
    a database instead (`client.data.formats.sql`).
    """

    dialect: Dialect = field(default_factory=Dialect)
    declared: frozenset[str] = frozenset()
    thousands: str = ""
    date_format: str = ""
    missing: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    columns: Mapping[str, Spelling] = field(default_factory=lambda: _EMPTY)
    header: tuple[str, ...] = ()
    id: str = ""
    files: tuple[Path, ...] = ()
    database: str = ""
    query: str = ""
    password_file: Path | None = None
    password_env: str = ""
    folder: Path = field(default_factory=Path)

    def spelled(self, column: str) -> Spelling:
        """How a column of the schema is written."""
        return self.columns.get(column, Spelling())


def options_of(path: Path) -> Options:
    """The options for a data file or folder, from the `source.toml` beside (or in) it, if any.

    `path` may be the `source.toml` itself, where it names files or a database.
    """
    if path.suffix == ".toml":
        options = parse(path)
        if not options.files and not options.query:
            raise TaskError(f"{path}: files or query: expected where the rows are, got neither")
        return options
    beside = (path if path.is_dir() else path.parent) / FILE
    if not beside.is_file():
        return Options()
    options = parse(beside)
    if options.files and not path.is_dir() and path.absolute() not in options.files:
        return Options()
    return options if path.is_dir() else replace(options, files=(), database="", query="")


def parse(path: Path) -> Options:
    """Read a `source.toml`; TaskError names the key, and what was expected of it."""
    try:
        given = read_toml(path, _LIMITS)
    except DocumentError as error:
        raise TaskError(str(error)) from None
    except OSError as error:
        raise TaskError(f"{path}: expected a file that can be read ({error.strerror})") from None
    try:
        return _options(given, path.absolute().parent)
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from None


_TEXTS: Final = ("delimiter", "quote", "escape", "encoding", "decimal", "thousands")
_KEYS: Final = {
    *_TEXTS,
    *("multiline", "date_format", "missing", "rename", "columns", "header", "id"),
    *("files", "database", "query", "password_file", "password_env"),
}


def _options(given: Mapping[str, Any], folder: Path) -> Options:
    for key in given:
        if key not in _KEYS:
            raise TaskError(f"{key}: expected one of {', '.join(sorted(_KEYS))}")
    for key in (*_TEXTS, "date_format", "id", "database", "query", "password_file", "password_env"):
        if not isinstance(given.get(key, ""), str):
            raise TaskError(f"{key}: expected a text")
    for key in ("delimiter", "decimal"):
        if key in given and len(given[key].encode()) != 1:
            raise TaskError(f"{key}: expected one ASCII character")
    for key in ("quote", "escape", "thousands"):
        if len(given.get(key, "").encode()) > (2 if key == "thousands" else 1):
            raise TaskError(f'{key}: expected one ASCII character, or "" for none')
    encoding = given.get("encoding", "utf-8")
    try:
        codecs.lookup(encoding)
        "".encode(encoding)
    except (LookupError, TypeError):
        raise TaskError('encoding: expected the name of a text encoding, such as "latin-1"')  # noqa: B904
    multiline = given.get("multiline", False)
    if not isinstance(multiline, bool):
        raise TaskError("multiline: expected true or false")
    dialect = Dialect(
        delimiter=given.get("delimiter", ","),
        quote=given.get("quote", '"'),
        escape=given.get("escape", ""),
        encoding=encoding,
        decimal=given.get("decimal", "."),
        multiline=multiline,
    )
    thousands = given.get("thousands", "")
    marks = [dialect.delimiter, dialect.quote, dialect.escape, dialect.decimal]
    if dialect.delimiter in (*marks[1:3], "\r", "\n") or dialect.decimal == thousands:
        raise TaskError("delimiter: expected other characters for quote, escape and decimal mark")
    query, database = given.get("query", ""), given.get("database", "")
    if bool(query) != bool(database):
        raise TaskError("query: expected together with database")
    password = given.get("password_file", "")
    return Options(
        dialect=dialect,
        declared=frozenset(given),
        thousands=thousands,
        date_format=given.get("date_format", ""),
        missing=_codes("missing", given.get("missing", [])),
        rename=_names("rename", given.get("rename", {})),
        columns=_spellings(given.get("columns", {})),
        header=_texts("header", given.get("header", [])),
        id=given.get("id", ""),
        files=tuple((folder / name).absolute() for name in _texts("files", given.get("files", []))),
        database=database,
        query=query,
        password_file=folder / password if password else None,
        password_env=given.get("password_env", ""),
        folder=folder,
    )


def text_of(value: object) -> str:
    """A TOML value as the text that a file would hold."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _codes(key: str, given: object) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(v, str | int | float) for v in given):
        raise TaskError(f"{key}: expected a list of texts or numbers")
    return tuple(text_of(value) for value in given)


def _texts(key: str, given: object) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(v, str) and v for v in given):
        raise TaskError(f"{key}: expected a list of texts")
    if len(set(given)) < len(given):
        raise TaskError(f"{key}: expected distinct texts")
    return tuple(given)


def _names(key: str, given: object) -> Mapping[str, str]:
    if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
        raise TaskError(f"{key}: expected a table of names: the file's = the schema's")
    if len(set(given.values())) < len(given):
        raise TaskError(f"{key}: expected a new name for one column each")
    return MappingProxyType(dict(given))


def _spellings(given: object) -> Mapping[str, Spelling]:
    if not isinstance(given, dict):
        raise TaskError("columns: expected a table [columns.NAME] for each column")
    spellings = {}
    for name, entry in given.items():
        if not isinstance(entry, dict) or set(entry) - {"missing", "values"}:
            raise TaskError(f"columns.{name}: expected a table with missing or values")
        values = entry.get("values", {})
        if not isinstance(values, dict):
            raise TaskError(f"columns.{name}.values: expected a table: the file's = the schema's")
        missing = _codes(f"columns.{name}.missing", entry.get("missing", []))
        mapped = {key.strip(): text_of(value) for key, value in values.items()}
        spellings[name] = Spelling(missing, MappingProxyType(mapped))
    return MappingProxyType(spellings)
