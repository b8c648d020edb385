"""From a file of rows to a file of predictions, piece by piece, with nothing dropped unseen."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import torch

from client.data.input_files import Chunk, Fault, chunks
from client.inference.output_files import csv_lines, json_lines, writing
from client.inference.predictor import Predictions, Predictor, predict
from privacy.files import write_atomic

SHOWN: Final = 20
"""Faults that are told one by one; the others are counted."""
Progress = Callable[[float], None]


class PredictingError(ValueError):
    """Rows that do not fit, told one by one; nothing was written."""


@dataclass(slots=True)
class Tally:
    """What went through: rows predicted, rows skipped, the first faults, the rows to explain."""

    explain: int = 0
    rows: int = 0
    skipped: int = 0
    faults: list[Fault] = field(default_factory=list)
    first: list[torch.Tensor] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def watch(self, source: Iterator[Chunk], skip_bad: bool, tell: Progress) -> Iterator[Chunk]:
        """Count what passes; stop at rows that do not fit unless they are to be skipped."""
        for chunk in source:
            self.rows += len(chunk.rows)
            self.skipped += len({fault.row for fault in chunk.faults})
            self.faults += chunk.faults[: max(0, SHOWN + 1 - len(self.faults))]
            if chunk.faults and not skip_bad:
                raise PredictingError(refusal(self.faults))
            wanted = self.explain - len(self.numbers)
            if wanted > 0:
                shown = chunk.x if chunk.raw is None else chunk.raw
                self.first.append(shown[:wanted].clone())
                self.numbers += chunk.rows[:wanted].tolist()
            yield chunk
            tell(chunk.done)


def refusal(faults: list[Fault]) -> str:
    """Rows that do not fit, in one line: where each stands and what was expected, never a value."""
    shown = "; ".join(str(fault) for fault in faults[:SHOWN])
    more = "; and more" if len(faults) > SHOWN else ""
    return f"{shown}{more} (--skip-bad leaves such rows out)"


def run(
    ready: Predictor,
    data: Path,
    out: Path | None,
    stdout: IO[str],
    *,
    skip_bad: bool = False,
    explain: int = 0,
    as_json: bool = False,
    ident: str | None = None,
    tell: Progress = lambda done: None,
) -> Tally:
    """Predict every row of `data` into `out`, or onto stdout (CSV, or a JSON list of rows)."""
    tally = Tally(explain)
    task = ready.model.task
    source = tally.watch(chunks(task, data, ident=ident), skip_bad, tell)
    predicted = predict(ready, source)
    if out is not None:
        with writing(out, task.kind == "regression") as add:
            for part in predicted:
                add(part)
        write_atomic(
            card_path(out), json.dumps(side_card(ready, data, tally), indent=1).encode() + b"\n"
        )
    elif as_json:
        _json_list(predicted, stdout)
    else:
        stdout.write("row,prediction,probability\n")
        for part in predicted:
            stdout.write(csv_lines(part))
    return tally


def card_path(out: Path) -> Path:
    """The side-car card of a file of predictions."""
    return out.with_name(out.name + ".card.json")


def side_card(ready: Predictor, data: Path, tally: Tally) -> dict[str, Any]:
    """Which model predicted which file: its digest stands here once, not in every row."""
    model = ready.model
    return {
        "model": model.digest,
        "origin": model.origin.words,
        "data": data.name,
        "rows": tally.rows,
        "skipped": tally.skipped,
        "engine": ready.engine,
        "card": model.card.to_dict(),
    }


def _json_list(predicted: Iterator[Predictions], stdout: IO[str]) -> None:
    """The value of "predictions", written as it comes: memory never holds all of it."""
    separator = ""
    stdout.write("[")
    for part in predicted:
        for line in json_lines(part):
            stdout.write(separator + line)
            separator = ",\n"
    stdout.write("]")
