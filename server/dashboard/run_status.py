"""What a run's folder tells a person who looks on: pure reading, tolerant of a file half written.

Only plan.toml, run.json, history.jsonl and summary.json are read; the keys, the ledgers and the
checkpoints that lie beside them are never opened.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import load_plan
from server.dashboard.run_history import RunHistory, figure, unheard


def runs_in(folder: Path) -> list[Path]:
    """The run folders that a folder is or holds, the one written last first."""
    if (folder / "plan.toml").is_file():
        return [folder]
    folders = [
        path.parent
        for pattern in ("*/plan.toml", "runs/*/plan.toml")
        for path in folder.glob(pattern)
        if not path.parent.name.startswith(".")
    ]
    return sorted(folders, key=_written, reverse=True)


def _written(run: Path) -> float:
    for name in ("history.jsonl", "plan.toml"):
        try:
            return (run / name).stat().st_mtime
        except OSError:
            continue
    return 0.0


class Runs:
    """The runs of a folder, looked at again and again: each look reads what is new.

    One thread at a time may look.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run: _Run | None = None

    def state(self, name: str = "", since: str = "") -> dict[str, Any]:
        """The runs' names, and one run: by name, or the latest.

        `since` is the `cursor` of an earlier state: of that very run only what came later is told,
        the rounds and sites after its first `after` rounds.
        """
        runs = runs_in(self._folder)
        chosen = next((run for run in runs if run.name == name), runs[0] if runs else None)
        if chosen is not None and (self._run is None or self._run.path != chosen):
            self._run = _Run(chosen)
        return {
            "runs": [run.name for run in runs],
            "run": None if chosen is None or self._run is None else self._run.described(since),
        }


class _Run:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin(None)

    def _begin(self, plan_file: tuple[int, ...] | None) -> None:
        self._history = RunHistory(self.path / "history.jsonl")
        self._plan_file = plan_file
        self._plan: Plan | None = None

    def _read_plan(self) -> Plan:
        """The plan, read again where its file has changed."""
        path = self.path / "plan.toml"
        status = path.stat()
        plan_file = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._plan_file != plan_file:
            self._begin(plan_file)
        if self._plan is None:
            self._plan = load_plan(path)
        return self._plan

    def described(self, since: str) -> dict[str, Any]:
        try:
            plan = self._read_plan()
        except (PlanError, OSError) as error:
            return {"name": self.path.name, "error": str(error)}
        history = self._history
        history.look()
        after = history.after(since)
        last = history.rounds[-1] if history.rounds else {"round": 0, "epsilon": None}
        summary = _object(self.path / "summary.json")
        # A run that was resumed after its end keeps the old summary until it ends again.
        has_ended = figure(summary.get("rounds"), 0.0) >= last["round"]
        ended = summary.get("reason") if has_ended else None
        return {
            "name": self.path.name,
            "task": plan.task,
            "purpose": plan.purpose,
            "unit": plan.unit,
            "insecure": bool(_object(self.path / "run.json").get("insecure")),
            "delta": plan.delta,
            "rounds": plan.rounds,
            "done": last["round"],
            "ended": ended,
            "detail": summary.get("detail") if ended else None,
            "idle": round(max(0.0, time.time() - _written(self.path)), 1),
            "epsilon": last["epsilon"],
            "unreadable": history.unreadable,
            "cursor": history.cursor,
            "after": after,
            "history": history.rounds[after:],
            "sites": _sites(plan, history, after),
        }


def _sites(plan: Plan, history: RunHistory, after: int) -> list[dict[str, Any]]:
    """Each site's account, limit and plan; after the first look of those that answered since."""
    number = history.rounds[after - 1]["round"] if after else 0
    accounts = {name: one for name, one in history.sites.items() if one["last"] > number}
    if not after:
        accounts = dict.fromkeys(plan.site, unheard()) | accounts
    return [_site(plan, history, name, accounts[name], after) for name in sorted(accounts)]


def _site(
    plan: Plan, history: RunHistory, name: str, account: Mapping[str, Any], after: int
) -> dict[str, Any]:
    limit = plan.limit_of(name)
    return {
        "name": name,
        **account,
        "epsilons": history.new_epsilons(account, after),
        "limit": limit.epsilon if limit is not None and math.isfinite(limit.epsilon) else None,
        "planned": (plan.site_overrides(name).epsilon or plan.epsilon) if plan.private else None,
    }


def _object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
