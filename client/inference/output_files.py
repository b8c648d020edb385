"""Predictions to a file, row after row: CSV, Parquet or JSON lines, complete or absent.

Columns: `row` (from 1 through the file), `prediction`, `probability` (empty in a regression).
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as parquet

from client.inference.predictor import Predictions
from privacy.files import open_atomic

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
    try:
        with open_atomic(path) as file:
            if path.suffix == ".parquet":
                with _writer(file, regression) as writer:
                    yield _parquet(writer)
            else:
                text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=False)
                yield _text(text, path.suffix)
                text.flush()
                text.detach()
    except OSError as error:
        raise WritingError(f"cannot write to {path} ({error.strerror})") from error


def _text(file: IO[str], suffix: str) -> Write:
    if suffix == ".csv":
        file.write(",".join(COLUMNS) + "\n")

        def lines(part: Predictions) -> None:
            file.write(csv_lines(part))

        return lines

    def write(part: Predictions) -> None:
        file.writelines(line + "\n" for line in json_lines(part))

    return write


def _writer(file: IO[bytes], regression: bool) -> parquet.ParquetWriter:
    kind = pa.float64() if regression else pa.string()
    schema = pa.schema(zip(COLUMNS, (pa.int64(), kind, pa.float32()), strict=True))
    return parquet.ParquetWriter(file, schema)


def _parquet(writer: parquet.ParquetWriter) -> Write:
    schema = writer.schema
    kind = schema.field("prediction").type

    def write(part: Predictions) -> None:
        columns = [pa.array(part.rows), pa.array(part.prediction, kind), part.probability]
        if columns[2] is None:
            columns[2] = pa.nulls(len(part.rows), pa.float32())
        writer.write_table(pa.table([*columns[:2], pa.array(columns[2])], schema=schema))

    return write
