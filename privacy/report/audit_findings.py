"""J: what was tried against the guarantee, and whether it held: conformance and canaries.

An audit gives lower bounds. One above its claim makes the report unsound; none on file is said so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from privacy.report.sources import Problem, Source


@dataclass(frozen=True, slots=True)
class Findings:
    """What the audit on file says, and what of it contradicts the claims."""

    content: Mapping[str, Any]
    problems: tuple[Problem, ...]


def findings(source: Source) -> Findings:
    """Read `audit.json`: its verdict is not taken for granted, the bounds are compared again."""
    audit = source.audit
    if audit is None:
        return Findings({"source": source.name, "audit": None, "said": "no audit on file"}, ())
    claimed, bounds = _number(audit.get("claimed")), _bounds(audit)
    where, problems = f"{source.name}/audit.json", []
    for bound in bounds:
        if claimed is None or bound["epsilon"] > claimed:
            message = (
                f"{bound['name']}: lower bound {bound['epsilon']:.4g} at confidence "
                f"{bound['confidence']:g} exceeds the claimed epsilon {claimed}"
            )
            problems.append(Problem("bound-exceeds-claim", where, message))
    checks = [c for c in audit.get("checks", ()) if isinstance(c, dict)]
    for check in checks:
        if check.get("passed") is False:
            problems.append(
                Problem("check-failed", where, f"conformance check {check.get('name')} failed")
            )
    content = {
        "source": source.name,
        "audit": {
            "claimed": claimed,
            "delta": _number(audit.get("delta")),
            "bounds": bounds,
            "checks": checks,
            "verdict": audit.get("verdict"),
            "membership": _membership(audit.get("membership")),
        },
        "said": "violation found" if problems else "no violation found",
    }
    return Findings(content, tuple(problems))


def _bounds(audit: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": str(bound.get("name")),
            "epsilon": float(bound["epsilon"]),
            "confidence": float(bound.get("confidence", 0.95)),
        }
        for bound in audit.get("bounds", ())
        if isinstance(bound, dict) and _number(bound.get("epsilon")) is not None
    ]


def _membership(value: object) -> list[dict[str, Any]]:
    """How well records of training are told from others, for the reader's intuition; no bound."""
    if not isinstance(value, dict):
        return []
    return [
        {"trained": name.replace("_", " "), **{k: _number(v) for k, v in sorted(figures.items())}}
        for name, figures in sorted(value.items())
        if isinstance(figures, dict)
    ]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)
