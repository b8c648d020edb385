"""Which chart shows which figures of a report."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from privacy.report.charts import COLOURS, LIMIT, Series, bars, lines


def pictures(run: Mapping[str, Any]) -> dict[str, str]:
    """A run's charts by name; one without figures is left out, and the page says so in words."""
    images: dict[str, str] = {}
    promise = run.get("guarantee")
    if promise:
        if spending := spending_picture(run):
            images["spending"] = spending
        if budget := budget_picture(promise["accounts"]):
            images["budget"] = budget
        if curve := curve_picture(promise["accounts"]):
            images["curve"] = curve
    if quality := quality_picture(run.get("utility") or {"lead": None}):
        images["quality"] = quality
    return images


def spending_picture(run: Mapping[str, Any]) -> str | None:
    """Epsilon after each round, a line an account, against the limit or the plan's aim."""
    series = [
        Series(
            table["account"],
            tuple((r["round"], r["epsilon"]) for r in table["rounds"] if _is(r["epsilon"])),
        )
        for table in run["accounting"]["tables"]
    ]
    if not any(s.points for s in series):
        return None
    accounts = run["guarantee"]["accounts"]
    limits = [a["limit"]["epsilon"] for a in accounts if a["limit"]]
    aims = [a["planned"] for a in accounts if _is(a["planned"])]
    limit = ("limit", min(limits)) if limits else ("planned", max(aims)) if aims else None
    return lines(
        series,
        title="Privacy spent (ε) after each round",
        description="For each site, the total ε of this run after every round"
        + (f"; the {limit[0]} is {limit[1]:.3g}" if limit else ""),
        x_label="round",
        y_label="ε so far",
        limit=limit,
    )


def quality_picture(utility: Mapping[str, Any]) -> str | None:
    """The leading metric after each round."""
    name = utility["lead"]
    if name is None:
        return None
    points = tuple((r["round"], r[name]) for r in utility["rounds"] if r.get(name) is not None)
    if not points:
        return None
    return lines(
        [Series(name, points)],
        title=f"Quality of the model ({name}) after each round",
        description=f"{name} from {points[0][1]:.3g} after round {points[0][0]} to "
        f"{points[-1][1]:.3g} after round {points[-1][0]}",
        x_label="round",
        y_label=name,
        from_zero=min(y for _, y in points) >= 0,
    )


def budget_picture(accounts: Sequence[Mapping[str, Any]]) -> str | None:
    """What was spent before this run, in it, and what is left of the limit."""
    rows = []
    for a in _distinct(accounts):
        if not (_is(a["life"]) and _is(a["earlier"])):
            continue
        parts = [("earlier runs", a["earlier"]), ("this run", a["life"] - a["earlier"])]
        limit = None
        if a["limit"]:
            parts.append(("left", max(0.0, a["limit"]["epsilon"] - a["life"])))
            limit = ("limit", a["limit"]["epsilon"])
        rows.append((a["name"], [p for p in parts if p[1] > 0 or p[0] == "this run"], limit))
    if not rows:
        return None
    return bars(
        rows[:20],
        title="Budget before and after this run",
        description="; ".join(
            f"{name}: " + ", ".join(f"{label} {size:.3g}" for label, size in parts)
            for name, parts, _ in rows[:20]
        ),
        x_label="ε over the life of the data",
    )


def curve_picture(accounts: Sequence[Mapping[str, Any]]) -> str | None:
    """The trade-off of the account that spent most, beside guessing."""
    known = [a for a in accounts if a["attack"]["curve"]]
    if not known:
        return None
    worst = max(known, key=lambda a: a["epsilon"])
    guessing = Series("guessing", ((0.0, 1.0), (1.0, 0.0)))
    best = Series(f"best attacker ({worst['name']})", tuple(map(tuple, worst["attack"]["curve"])))
    share = worst["attack"]["found_at_1_percent_false_alarms"]
    return lines(
        [best, guessing],
        title="What the best attacker could achieve",
        description="For each share of false alarms the least share of misses that the best "
        f"attacker can have; at 1 % false alarms he finds at most {100 * share:.1f} % of the "
        "records that were used",
        x_label="false alarms (accused though not used)",
        y_label="misses (used, not noticed)",
        unit_square=True,
    )


def life_picture(books: Sequence[Mapping[str, Any]]) -> str:
    """Each run's part of a data set's budget, one bar a ledger."""
    rows = []
    for book in books[:20]:
        parts = [
            (f"run {i}", r["epsilon_added"])
            for i, r in enumerate(book["runs"], start=1)
            if _is(r["epsilon_added"])
        ]
        limit = ("limit", book["limit"]["epsilon"]) if book["limit"] else None
        if limit and _is(book["left"]):
            parts.append(("left", book["left"]))
        rows.append((book["name"], parts, limit))
    return bars(
        rows,
        title="The life of the budget",
        description="; ".join(
            f"{name}: " + ", ".join(f"{label} {size:.3g}" for label, size in parts)
            for name, parts, _ in rows
        ),
        x_label="ε over the life of the data",
    )


def audit_picture(audit: Mapping[str, Any]) -> str:
    """Claimed epsilon and the lower bounds that the attacks reached."""
    rows: list[tuple[str, Sequence[tuple[str, float]], tuple[str, float] | None]] = []
    claimed = audit["claimed"]
    limit = ("claimed ε", claimed) if claimed is not None else None
    for bound in audit["bounds"]:
        rows.append((bound["name"].partition(" (")[0], [("lower bound", bound["epsilon"])], limit))
    return bars(
        rows,
        title="Attacks against the claim",
        description="; ".join(
            f"{b['name']}: ε is at least {b['epsilon']:.3g} with confidence {b['confidence']:g}"
            for b in audit["bounds"]
        ),
        x_label="ε",
    )


def gauge(plain: Mapping[str, Any], percent: Callable[[float], str], t: Callable[..., str]) -> str:
    """From guessing to certainty: where the best attacker ends; `t` translates its words."""
    most = plain["at_most"]
    exact = plain["exactly"]

    def x(share: float) -> float:
        return 10 + (share - 0.5) * 2 * 600

    marks = "".join(
        f'<text x="{x(s):.0f}" y="58" text-anchor="{anchor}" font-size="12">{text}</text>'
        for s, text, anchor in (
            (0.5, t("50 %: guessing"), "start"),
            (0.75, "75 %", "middle"),
            (1.0, t("100 %: certainty"), "end"),
        )
    )
    inner = (
        f'<rect x="10" y="16" width="{x(exact) - 10:.1f}" height="24" fill="{COLOURS[0]}"/>'
        if exact is not None
        else ""
    )
    words = t("The best attacker is right at most {p} % of the time", p=percent(most))
    return (
        '<svg viewBox="0 0 620 64" role="img" xmlns="http://www.w3.org/2000/svg" '
        f'font-family="system-ui, sans-serif"><title>{words}</title>'
        '<rect x="10" y="16" width="600" height="24" fill="#eef0f3" stroke="#667"/>'
        f'<rect x="10" y="16" width="{x(most) - 10:.1f}" height="24" fill="#9dbbe0"/>{inner}'
        f'<line x1="{x(most):.1f}" x2="{x(most):.1f}" y1="9" y2="45" stroke="{LIMIT}" '
        f'stroke-width="3"/>{marks}</svg>'
    )


def _distinct(accounts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Accounts of equal budget under one name."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for a in accounts:
        limit = a["limit"]["epsilon"] if a["limit"] else None
        groups.setdefault((a["earlier"], a["life"], limit), []).append(dict(a))
    return [
        same[0] | {"name": same[0]["name"] if len(same) == 1 else _all(same)}
        for same in groups.values()
    ]


def _all(same: Sequence[Mapping[str, Any]]) -> str:
    names = [str(a["name"]) for a in same]
    joined = ", ".join(names)
    return joined if len(joined) <= 22 else f"{names[0]} … {names[-1]}"


def _is(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
