"""Reading and predicting long files, against plain programs of pyarrow and ONNX Runtime.

`python benchmarks/reading.py [--rows N] [--turns N] [--only CASES] [--threads N] [--json]`. Turns
alternate, and each is compared with its own base in CPU seconds of all threads, which do not depend
on what else the machine does.
"""

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as parquet
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from table import quartiles, save, show, versions

from client.inference.export import public_rows
from client.inference.onnx_export import to_onnx
from client.inference.onnx_runtime import onnxruntime
from client.inference.predictor import predictor
from client.models.loading import find
from client.models.loading import load as load_model
from client.models.provenance import Trust
from client.scoring.batch import run
from client.tasks.registry import task
from client.tasks.task import Task
from tests.support.models import own_key, plan_for, release, shaken

CITIES = ("Oslo", "Bergen", "Tromso", "Bodo")
NUMBERS = tuple(f"n{i}" for i in range(8))
WIDE = (20_000, 400)
"""Columns and rows of the wide table."""
NARROW = ("load csv", "load parquet", "predict csv", "predict parquet")
PART = 250_000
"""Rows made at once."""


def schema() -> str:
    """Eight numbers, a category and the label."""
    lines = ['label = "ill"']
    lines += [f'[columns.{name}]\ntype = "number"\nmin = -4\nmax = 4' for name in NUMBERS]
    lines.append(f'[columns.city]\ntype = "category"\nvalues = {json.dumps(CITIES)}')
    lines.append('[columns.ill]\ntype = "category"\nvalues = ["no", "yes"]')
    return "\n".join(lines)


def wide_schema() -> str:
    """Numbers alone, and the label."""
    return (
        f'label = "ill"\n[columns."g*"]\ntype = "number"\nmin = -4\nmax = 4\nto = {WIDE[0]}\n'
        '[columns.ill]\ntype = "category"\nvalues = ["no", "yes"]'
    )


def parts(rows: int) -> Iterator[Any]:
    """Made-up rows, some at a time."""
    random = np.random.default_rng(0)
    for start in range(0, rows, PART):
        count = min(PART, rows - start)
        columns: dict[str, Any] = {
            name: np.round(random.standard_normal(count), 4) for name in NUMBERS
        }
        columns["city"] = pa.array(CITIES).take(pa.array(random.integers(0, 4, count)))
        columns["ill"] = pa.array(["no", "yes"]).take(pa.array(random.integers(0, 2, count)))
        yield pa.table(columns)


def write(folder: Path, rows: int, only: str) -> None:
    """The same rows as CSV and as Parquet, and a wide table where it is asked for."""
    first = next(parts(1))
    with (
        pacsv.CSVWriter(folder / "rows.csv", first.schema) as csv,
        parquet.ParquetWriter(folder / "rows.parquet", first.schema) as packed,
    ):
        for part in parts(rows):
            csv.write_table(part)
            packed.write_table(part)
    if only and "wide" not in only:
        return
    random = np.random.default_rng(1)
    columns, count = WIDE
    with (folder / "wide.csv").open("w") as file:
        file.write(",".join([*(f"g{i + 1}" for i in range(columns)), "ill"]) + "\n")
        for _ in range(count):
            values = ",".join(f"{value:.4f}" for value in random.standard_normal(columns))
            file.write(f"{values},{'yes' if random.random() < 0.5 else 'no'}\n")


def used() -> float:
    """CPU seconds of this process so far."""
    times = resource.getrusage(resource.RUSAGE_SELF)
    return times.ru_utime + times.ru_stime


def plainly(batches: Iterator[Any], scores: Callable[[Any], Any], out: Path, packed: bool) -> None:
    """What anybody would write: encode, score, take the best class, write."""
    writer: Any = None
    names, first = pa.array(["no", "yes"]), 1
    for batch in batches:
        x = np.empty((batch.num_rows, len(NUMBERS) + len(CITIES) + 1), np.float32)
        for i, name in enumerate(NUMBERS):
            values = batch.column(name).to_numpy(zero_copy_only=False)
            x[:, i] = np.clip(values, -4, 4) / 4
        city = pc.index_in(batch.column("city"), pa.array(CITIES)).fill_null(len(CITIES))
        x[:, len(NUMBERS) :] = np.eye(len(CITIES) + 1, dtype=np.float32)[city.to_numpy()]
        logits = scores(x)
        powers = np.exp(logits - logits.max(1, keepdims=True))
        shares = powers / powers.sum(1, keepdims=True)
        best = shares.argmax(1)
        found = pa.table(
            {
                "row": pa.array(np.arange(first, first + len(best))),
                "prediction": names.take(pa.array(best)),
                "probability": pa.array(
                    np.round(shares[np.arange(len(best)), best].astype(np.float64), 6)
                ),
            }
        )
        first += len(best)
        if writer is None:
            make = parquet.ParquetWriter if packed else pacsv.CSVWriter
            writer = make(out, found.schema)
        writer.write_table(found)
    writer.close()


def session(table: Task, threads: int) -> Callable[[Any], Any]:
    """The model as ONNX Runtime has it, of arrays [rows, features]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    graph = to_onnx(shaken(table), public_rows(table)).SerializeToString()
    running = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda x: running.run(None, {"x": x})[0]


def cases(folder: Path, threads: int) -> dict[str, dict[str, Callable[[], object]]]:
    """Each case: its base, and ours."""
    table, wide = task("table", schema()), task("table", wide_schema())
    torch.set_num_threads(threads)
    model = folder / "model"
    release(
        model, plan=plan_for("table", schema=schema()), network=shaken(table), key=own_key(model)
    )
    ready = predictor(load_model(find(str(model)), Trust()), threads=threads)
    scores = session(table, threads)
    csv, packed = folder / "rows.csv", folder / "rows.parquet"

    def ours(data: Path, out: str) -> Callable[[], object]:
        return lambda: run(ready, data, folder / out, sys.stdout)

    def load(learning: Task, data: Path) -> Callable[[], object]:
        return lambda: learning.load(data, "all")

    return {
        "load csv": {
            "pyarrow": lambda: pacsv.read_csv(csv),
            "tacit": load(table, csv),
        },
        "load parquet": {
            "pyarrow": lambda: parquet.read_table(packed),
            "tacit": load(table, packed),
        },
        "load wide csv": {
            "pyarrow": lambda: pacsv.read_csv(folder / "wide.csv"),
            "tacit": load(wide, folder / "wide.csv"),
        },
        "predict csv": {
            "plain": lambda: plainly(pacsv.open_csv(csv), scores, folder / "plain.csv", False),
            "tacit": ours(csv, "tacit.csv"),
        },
        "predict parquet": {
            "plain": lambda: plainly(
                parquet.ParquetFile(packed).iter_batches(), scores, folder / "plain.parquet", True
            ),
            "tacit": ours(packed, "tacit.parquet"),
        },
    }


def main() -> None:
    """Measure the cases and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--narrow", action="store_true", help="all but the wide table")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.narrow:
        options.only = ",".join(NARROW)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), options.rows, options.only)
        for case, ways in cases(Path(place), options.threads).items():
            if options.only and case not in options.only.split(","):
                continue
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(-1, options.turns):
                for name, way in ways.items():
                    before = used()
                    way()
                    if turn >= 0:
                        seconds[name].append(used() - before)
            base, own = ways
            ratios = [a / b for a, b in zip(seconds[own], seconds[base], strict=True)]
            found[case] = {
                "base": round(quartiles(seconds[base])[1], 3),
                "own": round(quartiles(seconds[own])[1], 3),
                "ratio": [round(value, 2) for value in quartiles(ratios)],
            }
    save("reading", found | {"rows": options.rows, "versions": versions("pyarrow", "onnxruntime")})
    if options.json:
        print(json.dumps(found))
        return
    rows = [
        (
            case,
            f"{one['base']:.2f}",
            f"{one['own']:.2f}",
            "{1:.2f} ({0:.2f}-{2:.2f})".format(*one["ratio"]),
        )
        for case, one in found.items()
    ]
    show(
        f"{options.rows:,} rows, CPU seconds", ("case", "plain", "tacit", "ratio (quartiles)"), rows
    )


if __name__ == "__main__":
    main()
