"""The report as one self-contained page: no script, no outside resource, made for paper (A4)."""

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from privacy.report.figures import audit_picture, gauge, life_picture, pictures
from privacy.report.languages.translation import numerals, translator

_TABLES: Final = 12


def to_html(content: Mapping[str, Any]) -> str:
    """Render `Report.content`; everything that is shown comes from it."""
    runs = [
        {**run, "pictures": _safe(pictures(run)), "tables": tables(run)} for run in content["runs"]
    ]
    return _rendered("report.html", content, runs, "en", _safe(across(content)))


def first_page(content: Mapping[str, Any], language: str) -> str:
    """The first page of `to_html` by itself, in one of `LANGUAGES`."""
    images = _safe(_gauge(content, language))
    return _rendered("first_page_alone.html", content, content["runs"], language, images)


def _rendered(
    name: str,
    content: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    language: str,
    images: Mapping[str, Markup],
) -> str:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_template),
    )
    numbers = {"figure": figure, "percent": percent, "one_in": one_in}
    environment.filters.update({k: _written(form, language) for k, form in numbers.items()})
    environment.filters.update(short=short, small=small)
    return environment.get_template(name).render(
        **{"acts": [], **content, "runs": runs},
        t=translator(language),
        language=language,
        lead=next((run for run in runs if run.get("trust")), runs[0] if runs else None),
        across=images,
        most_tables=_TABLES,
    )


def _template(name: str) -> str:
    return files("privacy").joinpath("report", name).read_text("utf-8")


def _gauge(content: Mapping[str, Any], language: str) -> dict[str, str]:
    plain = content["plain"]
    if plain["at_most"] is None:
        return {}
    return {"gauge": gauge(plain, _written(percent, language), translator(language))}


def _written(form: Callable[..., str], language: str) -> Callable[..., str]:
    """What a function writes, its numbers as a language has them."""
    return lambda *given: numerals(form(*given), language)


def across(content: Mapping[str, Any]) -> dict[str, str]:
    """The pictures of the report as a whole."""
    images = _gauge(content, "en")
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


def one_in(value: float) -> str:
    """The n of a probability that is 1 in n."""
    return f"{round(1 / value):,}"


def short(value: object, length: int = 16) -> str:
    """The head of a digest."""
    text = str(value)
    return text if len(text) <= length else text[:length] + "…"


def _safe(parts: Mapping[str, str]) -> dict[str, Markup]:
    """SVG text of our own, in which every outside text was escaped where it was put in."""
    return {name: Markup(text) for name, text in parts.items()}  # noqa: S704
