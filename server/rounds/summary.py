"""The end of a run as one value: what was reached, at which cost, on which versions."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from privacy.contract.plan import Plan
from server.rounds.loop import Outcome


def summarise(
    plan: Plan, outcome: Outcome, seconds: float, *, insecure: bool = False
) -> dict[str, Any]:
    """What a run reached and what it cost, for summary.json."""
    last = outcome.history[-1] if outcome.history else None
    epsilons: dict[str, float | None] = {}
    by_site: dict[str, tuple[int, float | None]] = {}  # what each site's last answer said
    for line in outcome.history:
        epsilons |= {name: answer["epsilon"] for name, answer in line["sites"].items()}
        for name, answer in line["sites"].items():
            if "records_per_person" in answer:
                by_site[name] = answer["records_per_person"], answer["epsilon_person"]
    persons = list(by_site.values())
    epsilons |= outcome.epsilons
    private = plan.private and not insecure
    worst = max(outcome.epsilons.values(), default=0.0)
    person: dict[str, Any] = {}
    if persons:
        known = [epsilon for _, epsilon in persons if epsilon is not None]
        person["records_per_person"] = max(records for records, _ in persons)
        person["epsilon_person"] = max(known) if len(known) == len(persons) else None
    return {
        "task": plan.task,
        "unit": plan.unit,
        "private": private,
        "insecure": insecure,
        "rounds": last["round"] if last else 0,
        "planned_rounds": plan.rounds,
        "metrics": last["metrics"] if last else {},
        "epsilon": worst if plan.private else None,
        **person,
        "delta": plan.delta,
        "sites": {name: {"epsilon": epsilon} for name, epsilon in sorted(epsilons.items())},
        "seconds": round(seconds, 3),
        "versions": versions(),
        "reason": outcome.reason,
        "detail": outcome.detail,
    }


def versions() -> dict[str, str]:
    """The versions of what took part, for the record."""
    packages = {}
    for name in ("tacit", "flwr", "torch", "opacus", "dp-accounting", "numpy", "cryptography"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "absent"
    return packages
