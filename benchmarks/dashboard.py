"""What a look at a long run costs the dashboard: the first one, and every further one.

    python benchmarks/dashboard.py [--rounds 2000] [--sites 100]

A history file of that size is made up; CPU milliseconds and bytes of an answer, median of 20.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from table import save, show, versions

from privacy.contract.plan_file import load_plan
from server.dashboard.run_status import Runs


def line(number: int, sites: int) -> str:
    """A round as the history has it."""
    answer = {"status": "trained", "reason": None, "epsilon": 0.001 * number}
    row = {"round": number, "metrics": {"accuracy": 0.5}, "epsilon": 0.001 * number}
    row |= {"sites": {f"site-{i}": answer for i in range(sites)}}
    return json.dumps(row | {"seconds": 0.5, "bytes_up": 10, "bytes_down": 20}) + "\n"


def look(runs: Runs, since: str = "") -> tuple[float, int, str]:
    """CPU milliseconds and bytes of one answer, and its cursor."""
    began = time.process_time()
    state = runs.state("", since)
    size = len(json.dumps(state, allow_nan=False).encode())
    return 1000 * (time.process_time() - began), size, state["run"]["cursor"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--sites", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        (run / "plan.toml").write_text(load_plan("digits").to_toml(), encoding="utf-8")
        history = run / "history.jsonl"
        history.write_text(
            "".join(line(n, options.sites) for n in range(1, options.rounds + 1)), "utf-8"
        )
        runs = Runs(run)
        rows: dict[str, list[tuple[float, int, str]]] = {"first": [look(runs)]}
        cursor = rows["first"][0][2]
        for number in range(options.rounds + 1, options.rounds + 21):
            rows.setdefault("nothing new", []).append(look(runs, cursor))
            with history.open("a", encoding="utf-8") as file:
                file.write(line(number, options.sites))
            rows.setdefault("a new round", []).append(look(runs, cursor))
            cursor = rows["a new round"][-1][2]
    medians = {
        name: [statistics.median(one[0] for one in looks), statistics.median(x[1] for x in looks)]
        for name, looks in rows.items()
    }
    title = f"A look at {options.rounds} rounds of {options.sites} sites"
    cells = [(name, f"{ms:.2f}", f"{size:.0f}") for name, (ms, size) in medians.items()]
    show(title, ("look", "CPU ms", "bytes"), cells)
    save("dashboard", {"medians": medians, **vars(options), **versions()})


if __name__ == "__main__":
    main()
