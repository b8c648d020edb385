"""From a file of rows to a file of predictions, part by part, with nothing dropped unseen."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from client.data.input_files import chunks, own_chunks
from client.data.reader import check_rows
from client.scoring.output_files import Formatted, form_of, formatted, held_back, writing
from client.scoring.predictions import Ready
from client.scoring.tally import PredictingError, Progress, Tally
from client.tasks.rows import TaskError
from privacy.files import write_atomic
from privacy.task_package.archive import Package

if TYPE_CHECKING:  # an exported model predicts without torch
    from client.scoring.ordered import Engine
    from client.scoring.work import Work

Start = Callable[["Work"], "Engine"]
"""How workers are started for a work, before anything is read."""


def run(
    ready: Ready,
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
    start: Start | None = None,
    package: Package | None = None,
) -> Tally:
    """Predict every row of `data` into `out`, or onto stdout (CSV, or a JSON object's beginning).

    Nothing is written where a row does not fit, unless such rows are to be skipped. `start` starts
    workers that share the parts of the file, in place of this process; they may need the model's
    `package`.
    """
    tally = Tally(explain, f"{data}: ")
    form = form_of(out, as_json=as_json)
    if start is None:
        source = tally.watch(chunks(ready.model.task, data, ident=ident), skip_bad, tell)
        predictions = ready.predict(source, every=every)
        parts: Iterator[Formatted] = (formatted(one, form) for one in predictions)
    else:
        from client.models.loading import Model
        from client.scoring.work import Output, Work

        if not isinstance(ready.model, Model):
            raise TypeError("workers need a whole model")
        output = Output(form, every, skip_bad)
        parts = _shared(Work(ready.model, data, ident, output, package), start, tally, tell)
    if out is not None:
        with writing(out) as add:
            for part in parts:
                add(part)
        write_atomic(
            card_path(out), json.dumps(side_card(ready, data, tally), indent=1).encode() + b"\n"
        )
    else:
        with held_back(stdout, form=form, before='{"predictions": ') as add:
            for part in parts:
                add(part)
    return tally


def _shared(work: "Work", start: Start, tally: Tally, tell: Progress) -> Iterator[Formatted]:
    """The predictions of workers, in the order of the rows."""
    from client.scoring.ordered import ordered

    data, task = work.data, work.model.task
    if task.read is not None and not data.exists():
        raise TaskError(f"{data}: expected a file or a folder, found none")
    cut, rows = work.cut, 0
    with closing(start(work)) as engine:
        if cut is not None:
            source: Iterator[Any] = cut.parts()
        elif task.read is not None:
            source = own_chunks(task.read(data, False), work.ident)
        for scored in ordered(engine, source, lambda: tally.wanted):
            tally.add(scored.counts, work.output.skip_bad)
            if scored.output is None:
                raise PredictingError(f"{data}: expected rows that fit")
            rows += scored.counts.rows + scored.counts.skipped
            yield scored.output
            tell(scored.counts.done)
    if cut is not None:
        check_rows(data, rows)


def card_path(out: Path) -> Path:
    """The side-car card of a file of predictions."""
    return out.with_name(out.name + ".card.json")


def side_card(ready: Ready, data: Path, tally: Tally) -> dict[str, Any]:
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
