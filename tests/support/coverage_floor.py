"""coverage_floor.py COVERAGE.json PERCENT: fail where less of a module's lines is covered."""

import json
import sys
from pathlib import Path


def main() -> int:
    report, floor = json.loads(Path(sys.argv[1]).read_text()), float(sys.argv[2])
    below = {
        name: file["summary"]["percent_covered"]
        for name, file in report["files"].items()
        if file["summary"]["num_statements"] and file["summary"]["percent_covered"] < floor
    }
    for name, percent in sorted(below.items(), key=lambda pair: pair[1]):
        print(f"{percent:5.1f} %  {name}")
    return int(bool(below))


if __name__ == "__main__":
    sys.exit(main())
