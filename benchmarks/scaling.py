"""What a simulated round costs as federations grow: clients a round, and clients registered.

Clients of 100 rows each learn a softmax regression of 650 numbers: next to nothing, so that what is
measured is the product's own work a client (messages, plan, ledger, accounting, history). The sizes
take turns, a round each.

    python benchmarks/scaling.py [--turns 5] [--engine serial]
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from contenders.running import Contender
from table import quartiles, save, show, versions

HERE = Path(__file__).resolve().parent
REGISTERED = (100, 1000, 10_000)
COHORT = 10


def main() -> None:
    """Two tables and their JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--engine", default="serial")
    parser.add_argument("--a-round", default="10,100,1000", help="clients a round, of 1,000")
    asked = parser.parse_args()
    found = {"versions": versions("torch", "opacus", "flwr", "numpy")}
    found["versions"]["engine"] = asked.engine
    result: dict[str, Any] = dict(found)
    title = "1,000 registered clients of 100 rows: clients a round"
    result["clients a round"] = measure(
        title,
        [(1000, int(cohort)) for cohort in asked.a_round.split(",")],
        asked.turns,
        asked.engine,
    )
    title = "10 clients a round: registered clients of 100 rows"
    result["registered"] = measure(
        title, [(count, COHORT) for count in REGISTERED], 4 * asked.turns, asked.engine
    )
    print(save("scaling", result))


def measure(
    title: str, sizes: list[tuple[int, int]], turns: int, engine: str
) -> dict[str, dict[str, Any]]:
    """Play every size in turns, and show each beside the smallest."""
    script = str(HERE / "contenders" / "crowd.py")
    runs = {
        size: Contender(
            f"crowd {size[0]} {size[1]}",
            [sys.executable, script, *map(str, size), engine, str(turns + 2)],
        )
        for size in sizes
    }
    try:
        early = {}
        for size, one in runs.items():
            one.start()
            one.turn()
            early[size] = one.megabytes
        for _ in range(turns):
            for one in runs.values():
                one.turn()
        for one in runs.values():
            one.measure()
    finally:
        for one in runs.values():
            one.end()
    lines, found = [], {}
    base = runs[sizes[0]].seconds[1:]
    for size, one in runs.items():
        own = one.seconds[1:]
        over = quartiles([t / b for t, b in zip(own, base, strict=True)])
        found[f"{size[0]}/{size[1]}"] = {
            "seconds": own,
            "over smallest": over,
            "first round began": one.began,
            "megabytes": {"after two rounds": early[size], "at the end": one.megabytes},
        }
        lines.append(
            [
                f"{size[0]:,} / {size[1]:,}",
                f"{quartiles(own)[1]:.4f}",
                f"{quartiles(own)[1] / size[1] * 1e3:.2f}",
                f"{over[1]:.2f} ({over[0]:.2f}-{over[2]:.2f})",
                f"{one.began:.1f}",
                f"{early[size]:.0f}",
                f"{one.megabytes:.0f}",
            ]
        )
    columns = ["registered / a round", "s a round", "ms a client", "/ smallest"]
    show(title, [*columns, "first round, s", "MB early", "MB most"], lines, "medians (quartiles)")
    return found


if __name__ == "__main__":
    main()
