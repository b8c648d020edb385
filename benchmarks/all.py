"""Our own benchmarks, one after the other: `make bench`, under ten minutes on two cores.

    python benchmarks/all.py [--full]

The short form takes fewer turns and seeds, and no peers (they need environments of their own);
`--full` takes what benchmarks/README.md reports.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHORT = (
    ("step.py", "--turns", "5", "--no-opacus"),
    ("inference.py", "--seconds", "5", "--rounds", "5"),
    ("scaling.py", "--turns", "2"),
    ("reading.py", "--rows", "200000", "--turns", "2"),
    ("peers.py", "--peers", "", "--turns", "5"),
    ("utility.py", "--seeds", "2", "--only", "digits"),
    ("dashboard.py",),
    ("engines.py", "--turns", "2", "--only", "vector"),
    ("network.py", "--cases", "idle,many,large", "--rounds", "3"),
)
FULL = tuple(
    (f"{name}.py",)
    for name in (
        "step",
        "inference",
        "reading",
        "scaling",
        "peers",
        "utility",
        "dashboard",
        "engines",
        "network",
    )
)


def main() -> int:
    """Run each in its own process; the worst exit status is ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    chosen = parser.parse_args()
    worst = 0
    for name, *options in FULL if chosen.full else SHORT:
        print(f"\n== {name} {' '.join(options)}", flush=True)
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        ended = subprocess.run([sys.executable, HERE / name, *options], env=environment)
        worst = max(worst, abs(ended.returncode))
    return worst


if __name__ == "__main__":
    sys.exit(main())
