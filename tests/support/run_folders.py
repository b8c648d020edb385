"""Run folders as a run leaves them: plan, history, ledgers, spent through the real ledger."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from privacy.accounting.epsilon import spent
from privacy.contract.plan import Plan
from privacy.contract.plan_file import parse
from privacy.ledger.heads import GENESIS, fold
from privacy.ledger.ledger import Ledger

BASE: Mapping[str, Any] = {
    "task": "digits",
    "purpose": "Recognise hand-written digits.",
    "sites": 3,
    "rounds": 4,
    "steps": 2,
    "rate": 1.0,
    "rows": 300,
    "lr": 1.0,
    "clip": 1.0,
    "sigma": 8.0,
    "delta": 1e-4,
}


def make_plan(**changes: Any) -> Plan:
    """A small valid plan with changes; None takes a key away."""
    table = {k: v for k, v in {**BASE, **changes}.items() if v is not None}
    return parse(table)


def run_folder(
    path: Path,
    plan: Plan | None = None,
    *,
    run: str = "0123456789abcdef",
    sites: Sequence[str] = ("site-0", "site-1", "site-2"),
    absent: Mapping[str, Sequence[int]] | None = None,
    federation: bool = False,
) -> Path:
    """A finished run; `absent` says in which rounds a site declined."""
    plan = plan or make_plan()
    absent = absent or {}
    (path / "checkpoints").mkdir(parents=True)
    (path / "plan.toml").write_text(plan.to_toml(), encoding="utf-8")
    about = {"id": run, "plan": plan.digest, "seed": plan.seed, "created": "2026-01-02T03:04:05Z"}
    (path / "run.json").write_text(json.dumps(about), encoding="utf-8")
    (path / "ledgers").mkdir()
    names = ["coordinator"] if plan.unit == "client" else sites if plan.private else []
    books = {
        name: Ledger.create(
            path / "ledgers" / f"{name}.jsonl", population=f"people-of-{name}", durable=False
        )
        for name in names
    }
    lines: list[dict[str, Any]] = []
    for number in range(1, plan.rounds + 1):
        said = {}
        for name, book in books.items():
            if number not in absent.get(name, ()):
                book.spend_all(
                    plan.events_of_round(name), None, run=run, round=number, plan=plan.digest
                )
        for site in sites:
            out = number in absent.get(site, ())
            said[site] = _said(plan, books, site, number, out, lines)
        totals = [one["epsilon"] for one in said.values() if one["epsilon"] is not None]
        metrics = {"accuracy": round(1 - 0.7 * 0.8**number, 4), "loss": round(2 * 0.8**number, 4)}
        line = {
            "round": number,
            "metrics": metrics,
            "sites": said,
            "epsilon": max(totals) if plan.private else None,
            "seconds": 0.5,
            "bytes_up": 3000,
            "bytes_down": 3000,
        }
        lines.append(line)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "history.jsonl").write_text(text, encoding="utf-8")
    summary = {"task": plan.task, "reason": "done", "versions": {"torch": "2.13.0"}}
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return path


def _said(
    plan: Plan,
    books: Mapping[str, Ledger],
    site: str,
    number: int,
    out: bool,
    lines: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    said: dict[str, Any] = {
        "status": "declined" if out else "trained",
        "reason": "budget-exhausted" if out else None,
    }
    keys = ("epsilon_round", "epsilon", "delta", "sigma")
    if not plan.private:
        return said | dict.fromkeys(keys) | {"rate": plan.rate, "steps": plan.steps}
    book = books["coordinator"] if plan.unit == "client" else books[site]
    epsilon = spent(book.events(), plan.required_delta)
    before = lines[-1]["sites"][site]["epsilon"] if lines else 0.0
    event = plan.events_of_round(site)[0]
    return said | {
        "epsilon_round": epsilon - before,
        "epsilon": epsilon,
        "delta": plan.required_delta,
        "sigma": event.sigma,
        "rate": event.rate,
        "steps": 0 if out else event.steps,
    }


def with_heads(path: Path) -> Path:
    """The same run as a coordinator keeps it: heads in place of ledgers."""
    (path / "heads").mkdir()
    for ledger in sorted((path / "ledgers").glob("*.jsonl")):
        head, lines = GENESIS, list[dict[str, Any]]()
        for line in ledger.read_text("utf-8").splitlines():
            entry = json.loads(line)
            base, head = head, fold(head, [entry["digest"]])
            lines.append(
                {"v": 1, "site": ledger.stem, "run": entry["run"], "round": entry["round"]}
                | {
                    "base": base.to_dict(),
                    "leaves": [entry["digest"]],
                    "events": [{**entry["event"], "count": len(lines) + 1}],
                }
                | {"acknowledged": False, **head.to_dict(), "signature": "00"}
            )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / "heads" / ledger.name).write_text(text, "utf-8")
    for file in (path / "ledgers").iterdir():
        file.unlink()
    (path / "ledgers").rmdir()
    return path


def edited(path: Path, old: str, new: str) -> None:
    """Replace the first occurrence of `old` in a file; it must be there."""
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def more_noise(plan: Plan, factor: float) -> Plan:
    """The same plan with `factor` times the noise."""
    return replace(plan, sigma=(plan.sigma or 1.0) * factor)
