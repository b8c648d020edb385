"""Predictions to a file, row after row: CSV, Parquet or JSON lines, complete or absent.

Columns: `row` (from 1 through the file), `prediction`, `probability` (empty in a regression).
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as parquet

from client.inference.predictor import Predictions

COLUMNS: Final = ("row", "prediction", "probability")
FORMATS: Final = (".csv", ".parquet", ".jsonl", ".ndjson")

Write = Callable[[Predictions], None]


class WritingError(ValueError):
    """A place or a form that predictions cannot be written to."""


def records(part: Predictions) -> list[tuple[int, Any, float | None]]:
    """Each row's number, prediction and probability (six digits)."""
    found: Sequence[float | None] = [None] * len(part.rows)
    if part.probability is not None:
        found = [round(value, 6) for value in part.probability.tolist()]
    return list(zip(part.rows.tolist(), part.prediction, found, strict=True))


def csv_lines(part: Predictions) -> str:
    """The rows as lines of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(records(part))
    return text.getvalue()


def json_lines(part: Predictions) -> Iterator[str]:
    """Each row as one JSON object."""
    for record in records(part):
        yield json.dumps(dict(zip(COLUMNS, record, strict=True)))


@contextmanager
def writing(path: Path, regression: bool) -> Iterator[Write]:
    """A function that adds predictions to `path`; the file appears when all are written."""
    if path.suffix not in FORMATS:
        raise WritingError(f"out: expected a name that ends with {', '.join(FORMATS)}, got {path}")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with ExitStack() as opened:
            if path.suffix == ".parquet":
                yield _parquet(opened, part, regression)
            else:
                yield _text(opened.enter_context(part.open("w", encoding="utf-8")), path.suffix)
        part.replace(path)
    except OSError as error:
        raise WritingError(f"{path}: expected a place to write to, got {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _text(file: IO[str], suffix: str) -> Write:
    if suffix == ".csv":
        file.write(",".join(COLUMNS) + "\n")

        def lines(part: Predictions) -> None:
            file.write(csv_lines(part))

        return lines

    def write(part: Predictions) -> None:
        file.writelines(line + "\n" for line in json_lines(part))

    return write


def _parquet(opened: ExitStack, path: Path, regression: bool) -> Write:
    kind = pa.float64() if regression else pa.string()
    schema = pa.schema(zip(COLUMNS, (pa.int64(), kind, pa.float32()), strict=True))
    writer = opened.enter_context(parquet.ParquetWriter(path, schema))

    def write(part: Predictions) -> None:
        columns = [pa.array(part.rows), pa.array(part.prediction, kind), part.probability]
        if columns[2] is None:
            columns[2] = pa.nulls(len(part.rows), pa.float32())
        writer.write_table(pa.table([*columns[:2], pa.array(columns[2])], schema=schema))

    return write
