"""Our own benchmarks, one after the other: `make bench`, at most twelve minutes on two idle cores.

    python benchmarks/all.py [--full] [--only step,reading]

The short form takes fewer turns and seeds, and no peers (they need environments of their own); each
part has so many seconds beside what earlier ones left, and is ended when they are over. `--full`
takes what benchmarks/README.md reports, without an end.
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
    "step": (190, ("--turns", "2", "--no-opacus", "--cpu", "--threads", "1", "--seconds", "140")),
    "large": (40, ("--rounds", "2")),
    "dashboard": (15, ()),
    "reading": (35, ("--rows", "200000", "--turns", "2", "--narrow")),
    "starts": (60, ()),
    "engines": (40, ("--turns", "1", "--rounds", "3", "--only", "vector")),
    "utility": (45, ("--seeds", "1", "--only", "digits")),
    "inference": (60, ("--seconds", "3", "--rounds", "3")),
    "peers": (70, ("--peers", "", "--turns", "3")),
    "network": (75, ("--cases", "idle,many", "--rounds", "3")),
    "relays": (40, ("--sites", "8", "--rounds", "2")),
    "scaling": (45, ("--turns", "1", "--a-round", "10,100")),
}
"""Seconds of each part, 715 in all, and its options; what a part leaves the next ones may use."""


def main() -> int:
    """Run each in its own process; the worst exit status is ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default=",".join(SHORT))
    chosen = parser.parse_args()
    worst, lines, left = 0, [], 0.0
    for name in chosen.only.split(","):
        seconds, options = SHORT[name]
        left += seconds
        command = [sys.executable, str(HERE / f"{name}.py"), *(() if chosen.full else options)]
        print(f"\n== {' '.join([Path(command[1]).name, *command[2:]])}", flush=True)
        began, before = time.monotonic(), cpu()
        code = ended(command, None if chosen.full else left)
        worst = max(worst, abs(code))
        how = {0: "", -signal.SIGKILL: f"  ended: its {left:.0f} s were over"}.get(code, "  failed")
        spent = time.monotonic() - began
        left = max(0.0, left - spent)
        lines.append(f"{name:<10} {spent:6.1f} s  {cpu() - before:6.1f} CPU s{how}")
    print("\n" + "\n".join(lines), flush=True)
    return worst


def ended(command: list[str], seconds: float | None) -> int:
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
