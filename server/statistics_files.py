"""The results of a run of statistics: read from its last checkpoint, written beside it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from privacy.files import write_atomic
from privacy.statistics.columns import Column
from privacy.statistics.page import to_html
from privacy.statistics.results import NAME, Release, Results
from server.rounds.aggregation import State
from server.rounds.run_folder import RunFolder

PAGE = "statistics.html"
FAIRNESS = "fairness.json"


def write_results(run: RunFolder, columns: Sequence[Column]) -> Path | None:
    """Write `statistics.json` and `statistics.html`; None where no site has answered.

    Both follow from the checkpoint and the history alone: writing them again costs nothing.
    """
    last, plan = run.resume(), run.plan()
    if last is None or plan.statistics is None:
        return None
    state, line = State.from_arrays(*last), run.history()[-1]
    sites = {
        name: Release(np.asarray(sums, np.float64), float(line["sites"][name]["sigma"]))
        for name, sums in state.sites.items()
    }
    results = Results(run.id, plan, tuple(columns), sites, run.insecure)
    content = results.content()
    write_atomic(run.path / NAME, results.to_json().encode())
    write_atomic(run.path / PAGE, to_html(content).encode())
    if plan.statistics.groups:
        write_atomic(run.path / FAIRNESS, results.fairness_json().encode())
    return run.path / PAGE
