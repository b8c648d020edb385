"""Try mutations in copies of the tree: each must fail one of its tests. See `make mutants`.

    python -m tests.mutants.run [--random N] [--seed S] [--only TEXT] [--jobs J] [--minutes M]

A mutation counts as killed only by a test that passes without it. Exit 1 where a planted mutation
survives. Random survivors are listed: some change nothing that anybody was promised (speed, a
message, a looser bound), and a person has to say which.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.mutants.mutant import Mutant, planted
from tests.mutants.operators import drawn
from tests.mutants.workers import Verdict, Workers, copied


def main() -> int:
    """Try them all; whether planted ones survive decides the exit status."""
    words = argparse.ArgumentParser(description="Mutations that break a promise must fail a test.")
    words.add_argument("--random", type=int, default=20, help="how many random ones beside")
    words.add_argument("--seed", type=int, default=0, help="which random ones")
    words.add_argument("--only", default="", help="those planted whose name holds this text")
    words.add_argument("--jobs", type=int, default=2, help="how many at a time")
    words.add_argument("--minutes", type=float, default=60.0, help="no new one is begun after")
    words.add_argument("--each", type=float, default=300.0, help="seconds for one mutation")
    given = words.parse_args()
    chosen = [one for one in planted() if given.only in one.name]
    by_chance = drawn(given.random, given.seed)
    with tempfile.TemporaryDirectory() as folder:
        trees = [copied(Path(folder) / f"tree-{number}") for number in range(given.jobs)]
        workers = Workers(trees, given.each, end=time.monotonic() + 60 * given.minutes)
        verdicts = dict(workers.verdicts((*chosen, *by_chance)))
    _summary("planted", chosen, verdicts)
    _summary("random", by_chance, verdicts)
    return 0 if all(one in verdicts and verdicts[one].killed for one in chosen) else 1


def _summary(kind: str, mutants: Sequence[Mutant], found: Mapping[Mutant, Verdict]) -> None:
    tried = [(one, found[one]) for one in mutants if one in found]
    if not tried:
        return
    killed = sum(verdict.killed for _, verdict in tried)
    left = f", {len(mutants) - len(tried)} not tried" if len(tried) < len(mutants) else ""
    print(f"{kind}: {killed} of {len(tried)} killed ({killed / len(tried):.0%}){left}")
    for one, verdict in tried:
        if not verdict.killed:
            print(f"  survived: {one.name} ({verdict.reason})\n{one.difference()}")


if __name__ == "__main__":
    sys.exit(main())
