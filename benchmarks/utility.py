"""What accuracy costs: every shipped plan at its epsilons, the mean of several seeds.

    TACIT_DATA=FOLDER python benchmarks/utility.py [--seeds 5] [--first 0] [--only adult]

Each run is a whole simulation, as `tacit-simulate PLAN --set epsilon=E --seed S` makes it;
the metric is the last round's on the held-out rows (of natural sites: the mean of the sites').
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from privacy.runtime import prepare

prepare()

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from privacy.contract.plan_file import load_plan
from server.rounds.summary import versions
from simulations.run import simulate
from simulations.templates import drives, regions, windows

MADE: dict[str, Callable[[Path], Path]] = {
    "drives": drives.write,
    "regions": regions.write,
    "windows": windows.write,
}
"""Data that is made up, by name."""


@dataclass(frozen=True)
class Case:
    """One row of the table: a plan at an epsilon (None: without privacy), and what it should reach.

    Of an error or a perplexity the target is the most that it may be. `sets` are further keys.
    """

    plan: str
    folder: str | None
    epsilon: float | None
    target: float
    sets: tuple[str, ...] = ()
    metric: str = "accuracy"


def secure(sites: int) -> tuple[str, ...]:
    """Secure aggregation among so many sites, without masks: the sums are the same."""
    return (
        *(f"sites={sites}", "aggregation=secure", "weights=rows", "simulation.masks=false"),
        *("secure.dropouts=1", "secure.colluding=1"),
    )


CASES = (
    Case("digits", None, 3.0, 0.91),
    Case("digits", None, 1.0, 0.86),
    Case("digits", None, 1.0, 0.895, secure(10)),
    Case("digits", None, 0.5, 0.87, secure(10)),
    Case("digits", None, 1.0, 0.895, secure(50)),
    Case("heart-disease", "heart_disease", 1.0, 0.78),
    Case("heart-disease", "heart_disease", 5.0, 0.80),
    Case("adult", "adult", 1.0, 0.845),
    Case("fashion-mnist", "fashion_mnist", 3.0, 0.84),
    *(Case("sms-spam", "sms_spam", e, t) for e, t in ((8.0, 0.976), (3.0, 0.972), (1.0, 0.955))),
    *(
        Case("sms-spam", "sms_spam", e, t, metric="f1")
        for e, t in ((8.0, 0.90), (3.0, 0.88), (1.0, 0.81))
    ),
    Case("fashion-scattering", "fashion_mnist", 8.0, 0.885, ("lr=24",)),
    Case("fashion-scattering", "fashion_mnist", 3.0, 0.875),
    Case("fashion-scattering", "fashion_mnist", 1.0, 0.85, ("lr=4",)),
    Case("fashion-scattering", "fashion_mnist", 2.93, 0.89, ("sites=1", "lr=32")),
    Case("fashion-scattering", "fashion_mnist", None, 0.90, ("rounds=200", "lr=0.03")),
    Case("sms-spam", "sms_spam", None, 0.985, sets=("rounds=132", "lr=30")),
    Case("sms-spam", "sms_spam", None, 0.94, sets=("rounds=132", "lr=30"), metric="f1"),
    Case("sms-lora", "sms_spam", 3.0, 0.90),
    Case("sms-spam-small", "sms_spam", 3.0, 0.95),
    *(Case("spoken-digits", "fsdd", e, t) for e, t in ((8.0, 0.91), (3.0, 0.88))),
    Case("spoken-digits", "fsdd", 1.0, 0.78, ("lr=4",)),
    Case("spoken-digits", "fsdd", None, 0.97, ("rounds=300", "lr=20", "server_momentum=0.9")),
    Case("shakespeare", "tinyshakespeare", 8.0, 23.55, metric="perplexity"),
    Case("movielens", "movielens_latest_small", 4.0, 1.10, metric="rmse"),
    Case("driving", "drives", 3.0, 0.65, metric="r2"),
    Case("driving-stop", "drives", 3.0, 0.83),
    *(Case("activity", "windows", e, t) for e, t in ((8.0, 0.90), (3.0, 0.85), (1.0, 0.75))),
    *(Case("survival", "regions", e, 0.76, metric="c_index") for e in (8.0, 3.0)),
)


def measure(case: Case, seeds: range, sets: list[str], data: Path | None) -> dict[str, object]:
    """The accuracies of one case."""
    found = []
    seconds = []
    for seed in seeds:
        private = "unit=none" if case.epsilon is None else f"epsilon={case.epsilon}"
        plan = load_plan(case.plan, [private, f"seed={seed}", *case.sets, *sets])
        with tempfile.TemporaryDirectory() as runs:
            result = simulate(plan, Path(runs) / "run", data=data)
        found.append(float(result.summary["metrics"][case.metric]))
        seconds.append(float(result.summary["seconds"]))
    return {
        "plan": case.plan,
        "sets": list(case.sets),
        "epsilon": case.epsilon,
        "delta": plan.delta,
        "metric": case.metric,
        "target": case.target,
        "mean": float(np.mean(found)),
        "sd": float(np.std(found, ddof=1)) if len(found) > 1 else 0.0,
        "seconds": float(np.median(seconds)),
        "values": found,
    }


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    root = os.environ.get("TACIT_DATA")
    table = Table("plan", "epsilon", "delta", "metric", "target", "mean", "sd", "s a run", box=None)
    rows = []
    for case in CASES:
        if not case.plan.startswith(chosen.only):
            continue
        if case.folder not in (None, *MADE) and root is None:
            print(f"{case.plan}: skipped, TACIT_DATA names no folder", file=sys.stderr)
            continue
        data = Path(root) / case.folder if root and case.folder else None
        if case.folder in MADE:
            data = Path(tempfile.gettempdir()) / f"tacit-{case.folder}-{os.getpid()}"
            if not data.exists():
                MADE[case.folder](data)
        row = measure(case, range(chosen.first, chosen.first + chosen.seeds), chosen.sets, data)
        rows.append(row)
        table.add_row(
            f"{case.plan}, {case.sets[0]}, secure" if "secure" in "".join(case.sets) else case.plan,
            "none" if case.epsilon is None else f"{case.epsilon:g}",
            "" if row["delta"] is None else f"{row['delta']:.3g}",
            case.metric,
            f"{case.target:.3f}",
            f"{row['mean']:.4f}",
            f"{row['sd']:.4f}",
            f"{row['seconds']:.1f}",
        )
    Console().print(table)
    if chosen.json:
        chosen.json.write_text(json.dumps({"rows": rows, "versions": versions()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
