"""What a round costs in each engine: 100 sites, models of 650 and of 7,060 numbers.

    python benchmarks/engines.py [--turns 5] [--rounds 6] [--sites 100] [--only vector]

Every turn is a whole simulation of each engine; a round's seconds are those from one round's end to
the next one's, with messages, ledgers, evaluation and checkpoint. The first round, which opens the
ledgers, is told apart. Ratios are serial's seconds over the engine's, turn by turn.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from privacy.runtime import prepare

prepare()

import torch
from sklearn.datasets import load_digits
from table import quartiles, save, show, versions

from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from simulations.run import simulate

ENGINES = ("serial", "processes", "vector")
TARGET = 3.0
HIDDEN = 94  # 64 x 94 + 94 + 94 x 10 + 10 = 7,060 numbers
LOCAL = {
    "1 step, whole batch": ("rate=1.0", "steps=1"),
    "1 epoch, 10 steps": ("rate=0.1", "steps=10"),
}


def main() -> int:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--only", choices=ENGINES, help="this engine beside serial")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    engines = [e for e in ENGINES if chosen.only in (None, e) or e == "serial"]
    rows: list[Sequence[str]] = []
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (source, data) in models(Path(folder)).items():
            for local, sets in LOCAL.items():
                fixed = [*sets, f"rounds={chosen.rounds}", f"sites={chosen.sites}"]
                plans = {e: load_plan(source, [*fixed, f"simulation.engine={e}"]) for e in engines}
                found = measure(plans, data, chosen.turns)
                result[f"{name}, {local}"] = found
                rows += lines(name, local, found)
    columns = ("model", "each site", "engine", "first round", "a round", "faster", "target")
    show(f"{chosen.sites} sites a round", columns, rows, "seconds; medians (quartiles of turns)")
    save("engines", {"cases": result, "versions": versions("torch", "opacus", "flwr")})
    return 0


def models(folder: Path) -> dict[str, tuple[str, Path | None]]:
    """Plan and data of each model: digits' own, and a table of digits under a hidden layer."""
    images, labels = load_digits(return_X_y=True)
    names = [f"p{i}" for i in range(64)]
    cells = [[*map(int, row), int(label)] for row, label in zip(images, labels, strict=True)]
    text = "\n".join(",".join(map(str, line)) for line in [[*names, "digit"], *cells])
    for part in ("rows.csv", "test.csv"):
        (folder / part).write_text(text + "\n")
    numbers = "".join(f'[columns.{n}]\ntype = "number"\nmin = 0\nmax = 16\n' for n in names)
    classes = ", ".join(f'"{digit}"' for digit in range(10))
    (folder / "schema.toml").write_text(
        f'label = "digit"\nhidden = [{HIDDEN}]\ntest = "test.csv"\n{numbers}'
        f'[columns.digit]\ntype = "category"\nvalues = [{classes}]\n'
    )
    plan = folder / "plan.toml"
    plan.write_text(
        'task = "table"\nschema = "schema.toml"\nsites = 100\nrounds = 6\nrate = 1.0\n'
        'rows = "actual"\nlr = 0.5\nclip = 1.0\nepsilon = 3.0\ndelta = 3.48e-4\n'
    )
    return {"650": ("digits", None), "7,060": (str(plan), folder / "rows.csv")}


def measure(
    plans: Mapping[str, Plan], data: Path | None, turns: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of the first and of a later round of every engine, in turns after one unmeasured."""
    found: dict[str, dict[str, list[float]]] = {e: {"first": [], "round": []} for e in plans}
    for turn in range(-1, turns):
        for engine, plan in plans.items():
            ends = [time.perf_counter()]
            with tempfile.TemporaryDirectory() as runs:
                simulate(
                    plan,
                    Path(runs) / "run",
                    data=data,
                    on_round=lambda _, ends=ends: ends.append(time.perf_counter()),
                )
            if turn >= 0:
                seconds = [b - a for a, b in itertools.pairwise(ends)]
                found[engine]["first"].append(seconds[0])
                found[engine]["round"].append(statistics.median(seconds[1:]))
    return found


def lines(
    name: str, local: str, found: Mapping[str, Mapping[str, list[float]]]
) -> list[Sequence[str]]:
    """The table's lines of one case."""
    made = []
    for engine, times in found.items():
        pairs = zip(found["serial"]["round"], times["round"], strict=True)
        low, middle, high = quartiles([serial / own for serial, own in pairs])
        made.append(
            (
                name,
                local,
                engine,
                f"{statistics.median(times['first']):.2f}",
                f"{statistics.median(times['round']):.4f}",
                f"{middle:.2f} ({low:.2f}-{high:.2f})",
                f"{TARGET:g}" + ("" if middle >= TARGET else ", missed")
                if engine == "vector"
                else "",
            )
        )
    return made


if __name__ == "__main__":
    sys.exit(main())
