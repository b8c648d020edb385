"""The report as one self-contained page: no script, no outside resource, made for paper (A4)."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from privacy.report.figures import audit_picture, gauge, life_picture, pictures

_TABLES: Final = 12


def to_html(content: Mapping[str, Any]) -> str:
    """Render `Report.content`; everything that is shown comes from it."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(figure=figure, percent=percent, short=short, small=small)
    source = files("privacy").joinpath("report", "report.html").read_text("utf-8")
    template = environment.from_string(source)
    runs = [
        {**run, "pictures": _safe(pictures(run)), "tables": tables(run)} for run in content["runs"]
    ]
    return template.render(
        **{"acts": [], **content, "runs": runs},
        lead=next((run for run in runs if run.get("trust")), runs[0] if runs else None),
        across=_safe(across(content)),
        most_tables=_TABLES,
    )


def across(content: Mapping[str, Any]) -> dict[str, str]:
    """The pictures of the report as a whole."""
    images: dict[str, str] = {}
    if content["plain"]["at_most"] is not None:
        images["gauge"] = gauge(content["plain"])
    if any(len(book["runs"]) > 1 for book in content["life"]):
        images["life"] = life_picture(content["life"])
    for check in content["checks"]:
        if check["audit"] is not None and check["audit"]["bounds"]:
            images["audit"] = audit_picture(check["audit"])
    return images


def tables(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The accounts' tables, those that agree in every line drawn once under all their names."""
    merged: list[dict[str, Any]] = []
    for table in (run.get("accounting") or {"tables": ()})["tables"]:
        for other in merged:
            if other["rounds"] == table["rounds"]:
                other["names"].append(table["account"])
                break
        else:
            merged.append({"names": [table["account"]], "rounds": table["rounds"]})
    return merged


def figure(value: object, digits: int = 4) -> str:
    """A figure for people; None is a dash."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return "∞" if value == "infinite" else value
    if isinstance(value, int | float):
        return f"{value:.{digits}g}"
    return str(value)


def percent(value: object, digits: int = 1) -> str:
    """A share as per cent, rounded up: a bound must not look better than it is."""
    if not isinstance(value, int | float):
        return "–"
    scale = 10**digits
    up = -(-round(value * 100 * scale, 6) // 1) / scale
    return f"{min(up, 100.0):.{digits}f}"


def small(value: object) -> str:
    """A small probability in words as one in so many."""
    if not isinstance(value, int | float) or value <= 0:
        return "–"
    return f"1 in {round(1 / value):,}"


def short(value: object, length: int = 16) -> str:
    """The head of a digest."""
    text = str(value)
    return text if len(text) <= length else text[:length] + "…"


def _safe(parts: Mapping[str, str]) -> dict[str, Markup]:
    """SVG text of our own, in which every outside text was escaped where it was put in."""
    return {name: Markup(text) for name, text in parts.items()}  # noqa: S704
