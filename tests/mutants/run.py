"""Try mutations in a copy of the tree: each must fail one of its tests. See `make mutants`.

    python -m tests.mutants.run [--random N] [--seed S] [--only TEXT]

Exit 1 where a planted mutation survives. Random survivors are listed: some change nothing that
anybody was promised (speed, a message, a looser bound), and a person has to say which.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.mutant import ROOT, Mutant, planted
from tests.mutants.operators import drawn

_SECONDS = 600.0
FAILED, NO_TEST = 1, 5


def main() -> int:
    """Try them all; how many planted ones survived decides the exit status."""
    words = argparse.ArgumentParser(description="Mutations that break a promise must fail a test.")
    words.add_argument("--random", type=int, default=0, help="how many random ones beside")
    words.add_argument("--seed", type=int, default=0, help="which random ones")
    words.add_argument("--only", default="", help="those alone whose name holds this text")
    given = words.parse_args()
    every = [one for one in planted() if given.only in one.name]
    chosen = drawn(given.random, given.seed)
    survived: dict[bool, list[str]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        tree = copied(Path(folder) / "tree")
        for number, one in enumerate((*every, *chosen), 1):
            began = time.monotonic()
            killed = is_killed(one, tree)
            print(
                f"{number}/{len(every) + len(chosen)} {'killed' if killed else 'SURVIVED'} "
                f"{one.name} ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
            if not killed:
                survived[one in every].append(one.name)
    for kind, many in ((True, every), (False, list(chosen))):
        if many:
            lost = len(survived[kind])
            share = 1 - lost / len(many)
            name = "planted" if kind else "random"
            print(f"{name}: {len(many) - lost} of {len(many)} killed ({share:.0%})")
            print("".join(f"  survived: {one}\n" for one in survived[kind]), end="")
    return 1 if survived[True] else 0


def copied(tree: Path) -> Path:
    """A copy of the files under version control, and of those that are to be added."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    return tree


def is_killed(mutant: Mutant, tree: Path) -> bool:
    """Whether the mutant's tests notice it; the tree is as before afterwards."""
    path = tree / mutant.file
    before = path.read_text(encoding="utf-8")
    path.write_text(mutant.applied_to(before), encoding="utf-8")
    try:
        return _fails(mutant.tests, tree)
    finally:
        path.write_text(before, encoding="utf-8")


def _fails(tests: tuple[str, ...], tree: Path) -> bool:
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    try:
        ran = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:  # it hangs: that is noticed too
        return True
    if ran.returncode == NO_TEST:
        raise RuntimeError(f"no test was run by {' '.join(command)}")
    return ran.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
