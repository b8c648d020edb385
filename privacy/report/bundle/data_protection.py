"""Two papers of the GDPR as drafts: an impact assessment (art. 35), a processing record (art. 30).

What the report knows is filled in; what only the controller knows is marked. Both are Markdown, to
be edited: neither is evidence, and no figure in them is new.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from privacy.files import DocumentError, parse_json, parse_toml
from privacy.report.html import percent

FILL_IN: Final = "**TO BE FILLED IN by the controller**"
_MARKUP: Final = re.compile(r"([\\`*_{}\[\]<>#|~])")
_COLUMNS: Final = 40
_HEAD: Final = (
    "A draft, made from report.json and the plan. It states what the programs did; it is not legal "
    "advice, and no assessment until the controller has completed it and consulted the data "
    "protection officer."
)

Section = tuple[str, list[str]]


def impact_assessment(content: Mapping[str, Any]) -> str:
    """The draft of a data protection impact assessment, in the order of GDPR art. 35(7)."""
    runs = content["runs"]
    sections: list[Section] = [
        ("1. The processing and its purposes (art. 35(7)(a))", list(_description(content))),
        (
            "2. Necessity and proportionality (art. 35(7)(b))",
            [
                f"Legal basis, and that of special categories (art. 6, 9): {FILL_IN}",
                f"Why the purpose cannot be reached with less data: {FILL_IN}",
                "Data minimisation: rows stay at the site; what leaves it is listed in section 1.",
                *(f"Preprocessing: {text(run['tuning']['preprocessing'])}" for run in _told(runs)),
                f"Information of the people, and their rights (art. 12 to 22): {FILL_IN}. One "
                "person's rows can be deleted at the site at any time; a model that was released "
                "before is not changed by that, and need not be as far as the bound of section 3 "
                "is accepted.",
            ],
        ),
        ("3. Risks to the people in the data (art. 35(7)(c))", list(_risks(content))),
        ("4. Measures (art. 35(7)(d))", list(_measures(content))),
        (
            "5. Consultation and review (art. 35(2), (9), (11), art. 36)",
            [
                f"Advice of the data protection officer: {FILL_IN}",
                f"Views of the people concerned or their representatives: {FILL_IN}",
                f"Remaining risk, and whether the authority must be consulted: {FILL_IN}",
                "Review: with each new run on the same people's data, since the spent epsilon "
                "grows; with each new recipient of the model.",
            ],
        ),
    ]
    return _document("Data protection impact assessment (draft)", content, sections)


def processing_record(content: Mapping[str, Any]) -> str:
    """The draft of an entry of the records of processing activities, GDPR art. 30(1)."""
    about = [run["identity"] for run in content["runs"]]
    columns = [name for run in content["runs"] for name in columns_of(run)]
    sections: list[Section] = [
        (
            "Controller (a)",
            [
                f"Name and contact of the controller, representative and officer: {FILL_IN}",
                f"Joint controllers (the other sites, the coordinator), art. 26: {FILL_IN}",
            ],
        ),
        (
            "Purposes (b)",
            [
                text(one.get("purpose") or "") or f"Purpose of the training: {FILL_IN}"
                for one in about
            ],
        ),
        (
            "Categories of people and of data (c)",
            [
                f"Whose data: {FILL_IN}",
                "Data: " + (", ".join(map(text, columns[:_COLUMNS])) + _more(columns) or FILL_IN),
            ],
        ),
        ("Recipients (d)", [*_outputs(content)]),
        ("Transfers to third countries (e)", [f"Where coordinator and sites are: {FILL_IN}"]),
        (
            "Time limits for erasure (f)",
            [
                f"Rows: {FILL_IN}",
                "Ledgers: as long as the data, since they hold what was spent on them.",
                f"Models and reports: {FILL_IN}",
            ],
        ),
        ("Technical and organisational measures (g)", list(_measures(content))),
    ]
    return _document("Record of processing activities (draft)", content, sections)


def columns_of(run: Mapping[str, Any]) -> list[str]:
    """The columns that the plan's schema names; none where it has no schema."""
    plan = run.get("plan")
    try:
        schema = parse_json(plan).get("schema") if isinstance(plan, str) else None
        tables = parse_toml(schema) if isinstance(schema, str) else {}
    except (DocumentError, AttributeError):
        return []
    columns = tables.get("columns")
    label = tables.get("label")
    names = list(columns) if isinstance(columns, Mapping) else []
    named = label.get("column", label.get("name")) if isinstance(label, Mapping) else label
    return list(dict.fromkeys(name for name in [*names, named] if isinstance(name, str)))


def text(value: object) -> str:
    """An outside text as one line of Markdown that means nothing but itself."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return _MARKUP.sub(r"\\\1", line)


def _document(title: str, content: Mapping[str, Any], sections: list[Section]) -> str:
    names = ", ".join(text(run["name"]) for run in content["runs"])
    lines = [f"# {title}", "", f"Runs: {names}. {_HEAD}", ""]
    if not content["verdict"]["sound"]:
        lines += ["**The report is not sound: do not rely on the figures below.**", ""]
    for heading, items in sections:
        lines += [f"## {heading}", "", *(f"* {item}" for item in items), ""]
    return "\n".join(lines)


def _told(runs: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [run for run in runs if run.get("tuning")]


def _description(content: Mapping[str, Any]) -> Iterator[str]:
    for run in content["runs"]:
        one = run["identity"]
        yield (
            f"{text(run['name'])}: {text(one.get('purpose') or '') or f'purpose: {FILL_IN}'} "
            f"Task {text(one.get('task') or 'unknown')}; {one.get('sites', '?')} sites; "
            f"{one.get('rounds_done', 0)} rounds of federated training."
        )
        if run.get("trust"):
            yield f"{text(run['trust']['setting'])} {text(run['trust']['noise'])}"
        if columns := columns_of(run):
            yield f"Columns: {', '.join(map(text, columns[:_COLUMNS]))}{_more(columns)}."
    yield from _outputs(content)
    yield f"Systematic evaluation or decisions about people with the model: {FILL_IN}"


def _outputs(content: Mapping[str, Any]) -> Iterator[str]:
    outputs = {
        (one["output"], one["recipient"], one["often"]): None
        for run in content["runs"]
        for one in run.get("releases") or ()
    }
    for output, recipient, often in outputs:
        yield f"{text(output)}: to {text(recipient)}, {text(often)}"


def _risks(content: Mapping[str, Any]) -> Iterator[str]:
    plain = content["plain"]
    if plain["at_most"] is not None:
        yield (
            f"Singling out, membership: an attacker who knows all else goes from 50 % to at most "
            f"{percent(plain['at_most'])} % certainty (epsilon {plain['epsilon']:.4g}, delta "
            f"{plain['delta']:.4g}, over the life of the ledgers)."
        )
    for name in plain["without_any_guarantee"]:
        yield f"{text(name)}: NO bound; whatever was learnt may be about single people."
    for name in plain["open_to_the_coordinator"]:
        yield f"{text(name)}: no protection against the coordinator."
    risks = {one: None for run in content["runs"] for one in run.get("risk") or ()}
    for one in risks:
        yield f"Not covered: {text(one)}"
    yield f"Severity and likelihood for the people concerned: {FILL_IN}"


def _measures(content: Mapping[str, Any]) -> Iterator[str]:
    facts = {
        (one["what"], one["value"]): None
        for run in content["runs"]
        for part in ("mechanism", "security")
        for one in run.get(part) or ()
    }
    for what, value in facts:
        yield f"{text(what)}: {text(value)}"
    for book in content["life"]:
        if book["limit"]:
            yield (
                f"Budget of {text(book['name'])}: epsilon {book['limit']['epsilon']:.4g} for life, "
                f"{book['epsilon']:.4g} spent; the site declines what would pass it."
            )
    yield "Each expense is written to a chained ledger before the data are touched."
    audited = any(check["audit"] is not None for check in content["checks"])
    yield f"Audit of the installed code: {'on file' if audited else 'none on file'}."
    yield f"Organisation (roles, access, training, backups): {FILL_IN}"


def _more(columns: list[str]) -> str:
    return f" and {len(columns) - _COLUMNS} more" if len(columns) > _COLUMNS else ""
