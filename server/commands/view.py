"""What an operator sees of a coordinator that runs: one line an event, for people or as JSON."""

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privacy.accounting.rounding import spent_text
from privacy.event_log import EventLog


class View:
    """Events go to stderr; complete rounds and the end of a foreground run go to stdout."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self.log = EventLog(as_json=as_json, stream=sys.stderr)

    def on_round(self, line: Mapping[str, Any]) -> None:
        """A complete round."""
        with contextlib.suppress(OSError):
            print(json.dumps(line) if self._json else _round(line), flush=True)

    def end(self, summary: Mapping[str, Any], path: Path) -> None:
        """How a run in the foreground ended."""
        with contextlib.suppress(OSError):
            if self._json:
                print(json.dumps({**summary, "run": str(path)}), flush=True)
                return
            detail = f": {summary['detail']}" if summary["detail"] else ""
            rounds = f"after {summary['rounds']} rounds"
            print(f"{summary['reason']}{detail} {rounds}; kept in {path}", flush=True)


def _round(line: Mapping[str, Any]) -> str:
    epsilons = " ".join(
        f"{site}={spent_text(entry['epsilon'], 3)}" for site, entry in line["sites"].items()
    )
    metrics = " ".join(f"{name}={value:.4f}" for name, value in line["metrics"].items())
    return f"round {line['round']}  {metrics}  epsilon {epsilons}"
