"""What a task package costs beside a built-in task: the same model of the same rows, both whole.

`TACIT_DATA=FOLDER python benchmarks/packages.py --turns 5`: heart-disease as it is shipped and as a
package, both from the command line to the result, in turns; CPU seconds of all their processes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from table import interleaved, ratios

_ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(_ROOT))  # the package itself stands in the tests


def main() -> None:
    from tests.support.public_kinds import HEART, HEART_MANIFEST
    from tests.support.task_packages import package

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    data = Path(os.environ["TACIT_DATA"]) / "heart_disease"
    with tempfile.TemporaryDirectory() as place:
        folder, plan = Path(place) / "task", Path(place) / "heart.toml"
        package(folder, HEART, HEART_MANIFEST)
        shipped = (_ROOT / "privacy" / "plans" / "heart-disease.toml").read_text()
        plan.write_text(shipped.replace('task = "heart-disease"', 'task = "heart"'))
        rounds = ("--set", f"rounds={options.rounds}", "--data", str(data), "--json")
        times = interleaved(
            {
                "built-in": _command(place, "heart-disease", *rounds),
                "package": _command(place, str(plan), "--task", str(folder), *rounds),
            },
            options.turns,
            clock=_cpu,
        )
    for name, (low, middle, high) in ratios(times, "built-in").items():
        seconds = " ".join(f"{one:.2f}" for one in times[name])
        print(f"{name}: {middle:.3f} ({low:.3f} to {high:.3f}) of the built-in; CPU s {seconds}")


def _cpu() -> float:
    """CPU seconds of all processes that have ended."""
    now = os.times()
    return now.children_user + now.children_system


def _command(place: str, *words: str) -> Callable[[], None]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}

    def run() -> None:
        command = [sys.executable, "-m", "simulations", *words]
        subprocess.run(command, check=True, capture_output=True, cwd=place, env=environment)

    return run


if __name__ == "__main__":
    main()
