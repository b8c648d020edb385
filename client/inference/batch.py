"""From a file of rows to a file of predictions, piece by piece, with nothing dropped unseen."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

from torch import Tensor

from client.data.input_files import Chunk, Fault, chunks
from client.dpsgd.trees import cut, mapped
from client.inference.output_files import held_back, writing
from client.inference.predictor import Predictor, predict
from client.tasks.rows import added
from privacy.files import write_atomic

SHOWN: Final = 20
"""Faults that are told one by one; the others are counted."""
Progress = Callable[[float], None]


class PredictingError(ValueError):
    """Rows that do not fit, told one by one; nothing was written."""


@dataclass(slots=True)
class Tally:
    """What went through: rows predicted, rows skipped, the first faults, the rows to explain.

    `unknown` counts, by column, values that are none of the public ones and stand as "other".
    """

    explain: int = 0
    name: str = ""
    rows: int = 0
    skipped: int = 0
    faults: list[Fault] = field(default_factory=list)
    first: list[Any] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    unknown: tuple[tuple[str, int], ...] = ()

    def watch(self, source: Iterator[Chunk], skip_bad: bool, tell: Progress) -> Iterator[Chunk]:
        """Count what passes; stop at rows that do not fit unless they are to be skipped."""
        for chunk in source:
            self.rows += len(chunk.rows)
            self.unknown = added(self.unknown, chunk.unknown)
            self.skipped += len({fault.row for fault in chunk.faults})
            self.faults += chunk.faults[: max(0, SHOWN + 1 - len(self.faults))]
            if chunk.faults and not skip_bad:
                raise PredictingError(f"{self.name}{refusal(self.faults)}")
            wanted = self.explain - len(self.numbers)
            if wanted > 0 and len(chunk.rows):
                shown = chunk.x if chunk.raw is None else chunk.raw
                self.first.append(mapped(Tensor.clone, cut(shown, slice(wanted))))
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
    stdout: TextIO,
    *,
    skip_bad: bool = False,
    explain: int = 0,
    as_json: bool = False,
    ident: str | None = None,
    every: bool = False,
    tell: Progress = lambda done: None,
) -> Tally:
    """Predict every row of `data` into `out`, or onto stdout (CSV, or a JSON object's beginning).

    Nothing is written where a row does not fit, unless such rows are to be skipped.
    """
    tally = Tally(explain, f"{data}: ")
    task = ready.model.task
    source = tally.watch(chunks(task, data, ident=ident), skip_bad, tell)
    predicted = predict(ready, source, every=every)
    if out is not None:
        with writing(out) as add:
            for part in predicted:
                add(part)
        write_atomic(
            card_path(out), json.dumps(side_card(ready, data, tally), indent=1).encode() + b"\n"
        )
    else:
        with held_back(stdout, as_csv=not as_json, before='{"predictions": ') as add:
            for part in predicted:
                add(part)
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
        "unknown": dict(tally.unknown),
        "engine": ready.engine,
        "card": model.card.to_dict(),
    }
