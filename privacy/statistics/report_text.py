"""What a report says in words about a run of statistics, in the places of training's sentences."""

from collections.abc import Mapping
from typing import Any

from privacy.contract.plan import Plan
from privacy.report.sources import Source
from privacy.statistics.fairness import RATES

Item = Mapping[str, str]


def releases(plan: Plan) -> list[Item]:
    """B: every output, who receives it, how often."""
    return [
        _output("noisy sums of all that was counted (noise added at the site)", "coordinator"),
        _output("the sites' noisy sums and what follows from them", "whom the coordinator tells"),
        _output("status and refusal code", "coordinator"),
    ]


def questions(plan: Plan) -> list[Item]:
    """What was asked, column by column."""
    requested = plan.statistics
    if requested is None:
        return []
    facts: list[Item] = []
    for name, words in sorted(requested.columns.items()):
        facts.append({"what": f"Column {name}", "value": ", ".join(words)})
    if requested.correlation:
        facts.append({"what": "Correlations", "value": ", ".join(requested.correlation)})
    return facts


def mechanism(plan: Plan) -> list[Item]:
    """F: what was done to the rows before the facts on noise and numbers."""
    each = "record" if plan.unit == "record" else "person"
    most = "" if plan.rows_per_subject is None else f" of at most {plan.rows_per_subject} rows"
    facts = [
        {
            "what": "Mechanism",
            "value": "Gaussian noise on one sum of bounded vectors, released once (statistics)",
        },
        {
            "what": "Bound of one contribution (L2 norm of all counts and moments together)",
            "value": "1, after division by the bound that follows from the questions",
        },
        {
            "what": "Sampling",
            "value": f"none: every {each} is in the sum; no amplification is claimed",
        },
        *questions(plan),
    ]
    if plan.unit == "subject":
        value = f"the mean of the vectors{most} of a person"
        facts.append({"what": "Contribution of a person", "value": value})
    return facts


def unprotected(plan: Plan) -> list[Item]:
    """E: what the guarantee does not cover, and what becomes of it."""
    return [
        _item(
            "Number of records of a site",
            "noised",
            "counted with everything else; the plan's nominal number is public, and bounds delta",
        ),
        _item(
            "Rows with missing or unknown values",
            "noised",
            "counted as such; a line that cannot be read as a row is left out by itself",
        ),
        _item("Ranges, categories and cells", "public", "of the task's schema and the plan"),
        _item(
            "Who took part, when, how long it took",
            "in clear",
            "the coordinator sees who answers and when; running time is not masked",
        ),
        _item("Refusals", "in clear", "a code that depends on budget and policy, not on records"),
        _item(
            "Choice of the questions",
            "not charged",
            "if these very records were used to choose them, that is not in ε",
        ),
    ]


def pitfalls(audited: bool) -> list[Item]:
    """O: the known ways in which private statistics go wrong, and what was done about each."""
    tested = "tested" if audited else "prevented"
    rows = [
        ("Cells chosen from the rows", "prevented", "cells are public, from schema and plan"),
        ("Several releases counted as one", "prevented", "one vector, one noise draw, one entry"),
        ("A record that counts more than its bound", tested, "vectors beyond it add nothing"),
        ("Missing or infinite values", tested, "a cell of their own; 0 in every moment"),
        ("Predictable or repeated noise", tested, "operating system's entropy"),
        ("Exact counts beside noisy ones", "prevented", "one exit; each field is paid or constant"),
        ("Clean-up that looks at the rows", "prevented", "it sees the noisy sums alone"),
        ("Forgetting earlier jobs", "prevented", "one ledger for the life of the data"),
        ("Retries that draw fresh noise for free", "prevented", "a stored reply or a new expense"),
        ("Timing", "accepted", "running time is not masked"),
    ]
    return [{"pitfall": name, "status": status, "how": how} for name, status, how in rows]


def _output(what: str, recipient: str) -> Item:
    return {"output": what, "recipient": recipient, "often": "once a site"}


def _item(quantity: str, status: str, how: str) -> Item:
    return {"quantity": quantity, "status": status, "how": how}


def fairness_of(source: Source) -> dict[str, Any]:
    """J: the rates of a model in groups, from a paid release of statistics, or why there are none.

    Rates are texts with their intervals; what cannot be read is said so, and shown as nothing.
    """
    words = "no group metrics on file: a plan of statistics with groups measures them, for a price"
    if source.fairness is None:
        return {"words": words, "groups": []}
    try:
        rows = [
            {
                "column": str(one["column"]),
                "group": str(group["group"]),
                "rows": _figures(group["rows"], 1, 0),
                **{name: _figures(group.get(name), 100, 1) for name in RATES},
            }
            for one in source.fairness["fairness"]
            for group in one["groups"]
        ]
        hidden = [
            f"{one['column']}: {name}"
            for one in source.fairness["fairness"]
            for name in one["suppressed"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return {"words": "fairness.json cannot be read", "groups": []}
    words = (
        "noisy counts over all sites, one paid release; in brackets what holds the true figure in "
        "95 of 100 releases. Per cent; calibration is the share that has the class less the mean "
        "score."
    )
    if hidden:
        words += f" Too small to be shown: {', '.join(hidden)}."
    return {"words": words, "groups": rows}


def _figures(interval: Mapping[str, Any] | None, scale: int, digits: int) -> str:
    if interval is None:
        return "–"
    value, low, high = (float(interval[key]) * scale for key in ("value", "low", "high"))
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
