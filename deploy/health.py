"""Whether a coordinator or a site is alive in a folder: exit 0 or 1. For containers' health checks.

A running process holds a lock on its folder; a coordinator writes `status.json` every two seconds.
"""

import fcntl
import json
import sys
import time
from pathlib import Path

LOCKS = (".coordinator", ".running")
STALE_SECONDS = 30.0


def alive(folder: Path) -> bool:
    """Whether a process holds the folder, and a coordinator's status is not older than 30 s."""
    return any(_held(folder / lock) for lock in LOCKS) and _is_fresh(folder / "status.json")


def _held(lock: Path) -> bool:
    try:
        with lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _is_fresh(status: Path) -> bool:
    if not _held(status.with_name(".coordinator")):
        return True
    try:
        written = float(json.loads(status.read_text(encoding="utf-8"))["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return time.time() - written < STALE_SECONDS


if __name__ == "__main__":
    sys.exit(0 if alive(Path(sys.argv[1])) else 1)
