"""The report: what was spent on whom, computed from ledgers, history and plan at this moment.

`build` is pure. What does not fit makes the report unsound, and is said first: a chain that does
not verify, accountants that disagree, a trained round without an entry, a stated epsilon that the
events do not give, a lower bound above its claim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from privacy.accounting.segments import Budget
from privacy.contract.plan import Plan
from privacy.files import canonical_json
from privacy.report import tables
from privacy.report.audit_findings import findings
from privacy.report.recount import Reckoning, lives, reckon
from privacy.report.site_runs import by_run, site_limit
from privacy.report.sources import FEDERATION, SITE, Problem, ReportError, Source
from privacy.report.text import (
    GLOSSARY,
    mechanism,
    not_covered,
    pitfalls,
    releases,
    security,
    trust,
    tuning,
    unit_words,
    unprotected,
)
from privacy.statistics.report_text import fairness_of

VERSION: Final = 1
VIEWS: Final = {
    "simulation": "a simulation: all ledgers were read and verified",
    FEDERATION: "the federation's view, from the coordinator: sites under pseudonyms, no counts; "
    "the sites' epsilons follow from the plan and the counter-signed heads and are not "
    "re-derived from the sites' own ledgers, which stay with them",
    SITE: "the site's own view, complete; it is meant to stay at the site",
}


@dataclass(frozen=True, slots=True)
class Report:
    """A report as values: `content` holds nothing that JSON cannot."""

    content: Mapping[str, Any]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Why it is not sound; empty where it is."""
        return tuple(Problem(**one) for one in self.content["verdict"]["problems"])

    @property
    def sound(self) -> bool:
        return not self.content["verdict"]["problems"]

    def to_json(self) -> str:
        """The canonical text: sorted keys, no blanks, one newline at the end."""
        return canonical(self.content)


def canonical(value: object) -> str:
    """The one spelling of a JSON value that is hashed and signed."""
    return canonical_json(value) + "\n"


def build(sources: Sequence[Source], filing: Mapping[str, Any]) -> Report:
    """The report on one or several folders. `filing`: when, by which software, for which signer.

    Several sources tell the life of their data's budget beside each run. ReportError for folders of
    different views, which have different readers.
    """
    kinds = {source.kind for source in sources}
    if len(kinds) != 1:
        raise ReportError(
            f"expected folders of one kind, got {', '.join(sorted(kinds)) or 'none'}: "
            "a site's view stays at the site"
        )
    (kind,) = kinds
    runs: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for source in sources:
        for part in by_run(source) if kind == SITE else (source,):
            reckoning = reckon(part)
            problems += reckoning.problems
            runs.append(_run(part, reckoning))
        if source.audit is not None:
            problems += findings(source).problems
    problems += [p for s in sources if kind == SITE for p in s.damage]
    unique = tuple(dict.fromkeys(problems))
    life = _life(sources)
    content = {
        "v": VERSION,
        "what": "tacit privacy report",
        "view": kind,
        "view_words": VIEWS[kind],
        "verdict": {"sound": not unique, "problems": [p.to_dict() for p in unique]},
        "filing": dict(filing),
        "plain": _plain(runs, life),
        "runs": runs,
        "life": life,
        "checks": [findings(source).content for source in sources],
        "glossary": [{"term": term, "meaning": text} for term, text in GLOSSARY],
    }
    acts = [
        {"source": s.name, **s.acts} for s in sources if s.acts.get("acts") or s.acts.get("problem")
    ]
    return Report(content | {"acts": acts} if acts else content)


def _run(source: Source, reckoning: Reckoning) -> dict[str, Any]:
    """All sections about one run, under the names that a filing needs."""
    plan = source.plan
    common = {
        "name": source.name,
        "identity": _identity(source),
        "provenance": _provenance(source),
        "notes": list(reckoning.notes),
    }
    if plan is None:
        return common | {"plan": None, "guarantee": None, "trust": None, "risk": []}
    rows = plan.rows if isinstance(plan.rows, int) and source.kind != FEDERATION else None
    subject = int((source.policy or {}).get("records_per_subject", 1))
    promise = tables.guarantee(plan, reckoning, rows, subject=subject)
    audited = source.audit is not None
    return common | {
        "plan": plan.to_json() if source.kind != FEDERATION else None,
        "releases": releases(plan, source.kind),
        "trust": trust(
            plan, source.kind, promise["federation"].get("epsilon_colluding") if promise else None
        ),
        "guarantee": promise,
        "unprotected": unprotected(plan, source.kind),
        "mechanism": mechanism(plan),
        "accounting": {
            "accountant": "PLD: privacy loss distributions (dp-accounting), connect-the-dots",
            "second_accountant": "RDP: Rényi differential privacy; must not fall below PLD",
            "amplification": "by Poisson sampling of records inside a site; none from sampling "
            "sites",
            "tables": [
                {
                    "account": account.name,
                    "covers": list(account.covers),
                    "rounds": tables.table(account, _limit(source, plan, account.name)),
                }
                for account in reckoning.accounts
            ],
        },
        "policy": _policy(source, plan),
        "tuning": tuning(plan),
        "utility": tables.utility(source.history) | {"fairness": fairness_of(source)},
        "security": security(source.kind),
        "risk": not_covered(plan, bool(promise and promise["groups"])),
        "pitfalls": pitfalls(plan, audited),
    }


def _identity(source: Source) -> dict[str, Any]:
    """A: which run this is."""
    plan, summary = source.plan, source.summary
    last = source.history[-1]["round"] if source.history else 0
    if source.kind == SITE:
        mine = [e for book in source.books.values() for e in book.entries if e.run == source.run_id]
        last = len({entry.round for entry in mine})
    return {
        "run": source.run_id,
        "created": source.run.get("created"),
        "task": plan.task if plan else None,
        "purpose": (plan.purpose or None) if plan else None,
        "unit": plan.unit if plan else None,
        "unit_words": unit_words(plan.unit) if plan else None,
        "sites": len({s for line in source.history for s in line["sites"]} or source.books),
        "rounds_planned": plan.rounds if plan else None,
        "rounds_done": last,
        "ended": summary.get("exit_reason", summary.get("reason")),
        "versions": summary.get("versions", {}),
        "reproducible_noise": bool(source.run.get("insecure")),
    }


def _provenance(source: Source) -> dict[str, Any]:
    """M: what everything rests on, by digest."""
    return {
        "plan": source.plan_digest,
        "ledgers": {name: book.digest for name, book in sorted(source.books.items())},
        "heads": {
            name: {"n": rows[-1].get("n"), "digest": rows[-1].get("digest")}
            for name, rows in sorted(source.heads.items())
            if rows
        },
        "originals": dict(source.origin.get("files", {})),
        "model": source.origin.get("model"),
    }


def _policy(source: Source, plan: Plan) -> dict[str, Any]:
    """H: who limited the spending, to what, and what was refused."""
    refused: dict[tuple[str, str], list[int]] = {}
    for line in source.history:
        for site, answer in line["sites"].items():
            if answer["status"] != "trained":
                reason = f"{answer['status']}: {answer.get('reason') or 'no reason given'}"
                refused.setdefault((site, reason), []).append(line["round"])
    policy = source.policy or {}
    return {
        "limit": tables.budget(plan.nominal_limit()),
        "set_by": "the site's own policy" if source.policy else "the plan of the run",
        "policy": {
            k: v for k, v in sorted(policy.items()) if isinstance(v, str | int | float | bool)
        },
        "refusals": [
            {"site": site, "reason": reason, "rounds": rounds}
            for (site, reason), rounds in sorted(refused.items())
        ],
        "ledger_notes": [
            {"ledger": name, **note}
            for name, book in sorted(source.books.items())
            for note in book.notes
        ],
    }


def _limit(source: Source, plan: Plan, account: str) -> Budget | None:
    return site_limit(source) if source.kind == SITE else plan.limit_of(account)


def _plain(runs: Sequence[Mapping[str, Any]], lives: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first page's figures: the worst over every run and every ledger's life."""
    accounts = [a for run in runs if run["guarantee"] for a in run["guarantee"]["accounts"]]
    accounts += lives
    units = {run["name"]: run["identity"]["unit"] for run in runs}
    chances = [a["attack"]["by_the_guarantee"] for a in accounts]
    exact = [a["attack"]["by_the_mechanism"] for a in accounts]
    epsilons = [a["epsilon"] for a in accounts]
    known = [e for e in epsilons if isinstance(e, int | float)]
    return {
        "prior": 0.5,
        "at_most": max((c for c in chances if c is not None), default=None),
        "exactly": max((c for c in exact if c is not None), default=None),
        "epsilon": "infinite" if len(known) < len(epsilons) else max(known, default=None),
        "delta": max(accounts, key=_epsilon)["delta"] if accounts else None,
        "without_any_guarantee": sorted(n for n, unit in units.items() if unit == "none"),
        "open_to_the_coordinator": sorted(
            run["name"]
            for run in runs
            if run["identity"]["unit"] == "client" and not _is_secure(run)
        ),
    }


def _is_secure(run: Mapping[str, Any]) -> bool:
    return bool(run["guarantee"]) and "epsilon_colluding" in run["guarantee"]["federation"]


def _epsilon(account: Mapping[str, Any]) -> float:
    epsilon = account["epsilon"]
    return float(epsilon) if isinstance(epsilon, int | float) else float("inf")


def _life(sources: Sequence[Source]) -> list[dict[str, Any]]:
    """Each ledger's whole life; several runs on one data set add up here."""
    rows: list[dict[str, Any]] = []
    for name, entries in sorted(lives(sources).items()):
        plans = [p for s in sources for p in (s.plan, *s.plans.values()) if p is not None]
        deltas = [plan.delta for plan in plans if plan.delta]
        limit = next((site_limit(s) for s in sources if site_limit(s) is not None), None)
        if limit is None:
            limits = [s.plan.limit_of(name) for s in sources if s.plan is not None]
            limit = min((b for b in limits if b is not None), key=lambda b: b.epsilon, default=None)
        if entries:
            delta = min(deltas, default=limit.delta if limit is not None else 1e-5)
            rows.append(tables.life(name, entries, delta, limit, [name]))
    return rows
