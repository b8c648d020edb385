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

REASONS: Mapping[str, str] = {
    "budget-exhausted": "its privacy budget is spent",
    "plan-not-approved": "it has not approved this plan yet",
    "plan-denied": "its owner has denied this plan",
    "noise-too-low": "less noise than its policy asks for",
    "rate-too-high": "a larger sampling rate than its policy allows",
    "too-many-steps": "more steps a round than its policy allows",
    "too-many-rounds-today": "more rounds a day than its policy allows",
    "too-few-rows": "too few rows",
    "task-not-allowed": "its policy does not allow the task",
    "unit-not-allowed": "its policy asks for another unit of privacy",
    "no-subjects": "its data do not say whose a row is",
    "task-not-approved": "it has not approved this task package, or has other bytes",
    "schema-differs": "its data have another schema",
    "output-not-allowed": "its policy does not allow an output",
    "coordinator-not-trusted": "it does not trust the coordinator with un-noised updates",
    "ledger-untrusted": "its ledger and the coordinator's copy of its head do not agree",
    "model-refused": "the task's model or loss mixes examples, or cannot be followed by example",
    "bad-weights": "the weights it was sent are not usable",
    "no-answer": "no answer in time",
    "unpaid": "its update was not paid for in its ledger",
    "bad-reply": "its reply is not what was asked for",
    "bad-update": "its update is of another shape, or not of finite numbers",
    "too-quiet": "its update has less noise than the plan asks for",
    "too-loud": "its update is more than clipped sums and their noise can be",
    "old-reply": "it answered another round or run",
    "ledger-not-written": "its ledger cannot be written: its disk is full or broken",
    "paused": "its owner has paused it",
    "failed": "an error at the site",
}
"""The codes of refusals and failures in plain words."""


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


def state(folder: Path, name: str = "") -> dict[str, Any]:
    """Everything the page shows: the runs' names, and one run (by name, or the latest)."""
    runs = runs_in(folder)
    chosen = next((run for run in runs if run.name == name), runs[0] if runs else None)
    return {
        "runs": [run.name for run in runs],
        "run": describe(chosen) if chosen is not None else None,
    }


def describe(run: Path) -> dict[str, Any]:
    """One run as its folder tells it now."""
    history, unreadable = read_history(run / "history.jsonl")
    try:
        plan = load_plan(run / "plan.toml")
    except (PlanError, OSError) as error:
        return {"name": run.name, "error": str(error)}
    done = history[-1]["round"] if history else 0
    summary = _object(run / "summary.json")
    # A run that was resumed after its end keeps the old summary until it ends again.
    ended = summary.get("reason") if _figure(summary.get("rounds"), 0.0) >= done else None
    return {
        "name": run.name,
        "task": plan.task,
        "purpose": plan.purpose,
        "unit": plan.unit,
        "insecure": bool(_object(run / "run.json").get("insecure")),
        "delta": plan.delta,
        "rounds": plan.rounds,
        "done": done,
        "ended": ended,
        "detail": summary.get("detail") if ended else None,
        "idle": round(max(0.0, time.time() - _written(run)), 1),
        "epsilon": history[-1]["epsilon"] if history else None,
        "unreadable": unreadable,
        "history": [
            {key: value for key, value in line.items() if key != "sites"}
            | {
                "asked": len(line["sites"]),
                "trained": sum(s["status"] == "trained" for s in line["sites"].values()),
            }
            for line in history
        ],
        "sites": _sites(plan, history),
    }


def _sites(plan: Plan, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each site's last answer, its epsilons so far, its limit, and what it refused."""
    names = {*plan.site, *(name for line in history for name in line["sites"])}
    return [_site(plan, name, history) for name in sorted(names)]


def _site(plan: Plan, name: str, history: list[dict[str, Any]]) -> dict[str, Any]:
    limit = plan.limit_of(name)
    planned = (plan.site_overrides(name).epsilon or plan.epsilon) if plan.private else None
    one: dict[str, Any] = {
        "name": name,
        "status": "waiting",
        "reason": None,
        "epsilon": None,
        "last": 0,
        "epsilons": [],
        "trained": 0,
        "refusals": [],
        "limit": limit.epsilon if limit is not None and math.isfinite(limit.epsilon) else None,
        "planned": planned,
    }
    for line in history:
        answer = line["sites"].get(name)
        if answer is None:
            continue
        one |= {**answer, "last": line["round"]}
        one["epsilons"].append([line["round"], answer["epsilon"]])
        if answer["status"] == "trained":
            one["trained"] += 1
        else:
            _count(one["refusals"], answer["status"], answer["reason"], line["round"])
    return one


def _count(refusals: list[dict[str, Any]], status: str, reason: str | None, number: int) -> None:
    for one in refusals:
        if (one["status"], one["code"]) == (status, reason):
            one["times"] += 1
            one["last"] = number
            return
    words = REASONS.get(reason or "", "no reason given" if reason is None else "")
    refusals.append(
        {"status": status, "code": reason, "words": words, "times": 1}
        | {"first": number, "last": number}
    )


def read_history(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rounds that can be read, in order, and how many whole lines cannot be.

    A last line without its end is still being written: it is left for the next look.
    """
    try:
        lines = path.read_text("utf-8", errors="replace").split("\n")[:-1]
    except OSError:
        return [], 0
    rows: dict[int, dict[str, Any]] = {}
    wrong = 0
    for line in lines:
        row = _line(line)
        if row is None:
            wrong += 1
        else:
            rows[row["round"]] = row
    return [rows[number] for number in sorted(rows)], wrong


def _line(text: str) -> dict[str, Any] | None:
    """A line in the one shape that the page knows; None where it is none."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("round")) is not int or row["round"] < 1:
        return None
    sites, metrics = row.get("sites"), row.get("metrics")
    if not isinstance(sites, dict) or not isinstance(metrics, dict):
        return None
    if not all(isinstance(answer, dict) for answer in sites.values()):
        return None
    figures = ("epsilon", "seconds", "bytes_up", "bytes_down")
    return {
        "round": row["round"],
        "metrics": {name: _figure(value) for name, value in metrics.items()},
        "sites": {
            name: {
                "status": str(answer.get("status")),
                "reason": None if answer.get("reason") is None else str(answer["reason"]),
                "epsilon": _figure(answer.get("epsilon")),
            }
            for name, answer in sites.items()
        },
    } | {name: _figure(row.get(name)) for name in figures}


def _figure(value: Any, otherwise: Any = None) -> Any:
    """A finite number as it is, since JSON knows no other."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return otherwise
    return value


def _object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
