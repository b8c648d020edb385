"""Our own benchmarks, one after the other: `make bench`, at most twelve minutes on two idle cores.

    python benchmarks/all.py [--full] [--only step,reading]

The short form takes fewer turns and seeds, and no peers (they need environments of their own); each
part has so many seconds, and is ended when they are over. `--full` takes what benchmarks/README.md
reports, without an end.
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHORT: dict[str, tuple[int, tuple[str, ...]]] = {
    "starts": (25, ()),
    "step": (235, ("--turns", "3", "--no-opacus", "--cpu", "--threads", "1", "--seconds", "150")),
    "large": (50, ("--rounds", "2")),
    "inference": (50, ("--seconds", "5", "--rounds", "5")),
    "scaling": (75, ("--turns", "2")),
    "reading": (40, ("--rows", "200000", "--turns", "2", "--narrow")),
    "peers": (55, ("--peers", "", "--turns", "5")),
    "utility": (40, ("--seeds", "2", "--only", "digits")),
    "dashboard": (25, ()),
    "engines": (30, ("--turns", "2", "--only", "vector")),
    "network": (60, ("--cases", "idle,many,large", "--rounds", "3")),
    "relays": (30, ("--sites", "8", "--rounds", "2")),
}
"""Seconds of each part, 715 in all, and its options."""


def main() -> int:
    """Run each in its own process; the worst exit status is ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default=",".join(SHORT))
    chosen = parser.parse_args()
    worst, lines = 0, []
    for name in chosen.only.split(","):
        seconds, options = SHORT[name]
        command = [sys.executable, str(HERE / f"{name}.py"), *(() if chosen.full else options)]
        print(f"\n== {' '.join([Path(command[1]).name, *command[2:]])}", flush=True)
        began, before = time.monotonic(), cpu()
        code = ended(command, None if chosen.full else seconds)
        worst = max(worst, abs(code))
        how = {0: "", -signal.SIGKILL: f"  ended: its {seconds} s were over"}.get(code, "  failed")
        spent = time.monotonic() - began
        lines.append(f"{name:<10} {spent:6.1f} s  {cpu() - before:6.1f} CPU s{how}")
    print("\n" + "\n".join(lines), flush=True)
    return worst


def ended(command: list[str], seconds: int | None) -> int:
    """The exit status of a part; after so many seconds it is killed with all that it started."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    with subprocess.Popen(command, env=environment, start_new_session=True) as part:
        try:
            return part.wait(seconds)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            os.killpg(part.pid, signal.SIGKILL)
            if isinstance(error, KeyboardInterrupt):
                raise
            return part.wait()


def cpu() -> float:
    """CPU seconds of all parts that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
