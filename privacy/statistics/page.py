"""The results of statistics as one self-contained page: no script, no outside resource."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from privacy.report.charts import intervals

_MOST_BARS = 80


def to_html(content: Mapping[str, Any], *, noiseless: bool = False) -> str:
    """Render `Results.content()`, or with `noiseless` an owner's look at the same figures."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(share=share, number=number, count=count)
    source = files("privacy").joinpath("statistics", "statistics.html").read_text("utf-8")
    places = [("all sites together", content["all"])] if content.get("all") else []
    places += sorted(content["sites"].items())
    columns = [
        {
            "name": one["column"],
            "kind": one["kind"],
            "by_place": [(name, figures["columns"][i]) for name, figures in places],
            "picture": _picture(one),
        }
        for i, one in enumerate(places[0][1]["columns"])
    ]
    return environment.from_string(source).render(
        content=content, places=places, columns=columns, noiseless=noiseless
    )


def share(interval: Mapping[str, Any] | None) -> str:
    """A share in per cent with its interval."""
    if interval is None:
        return "lost in the noise"
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return f"{value:.1f} %" if low == high else f"{value:.1f} % ({low:.1f} to {high:.1f})"


def number(interval: Mapping[str, Any] | None) -> str:
    """A value of a column with its interval; a date is a text already."""
    if interval is None:
        return "lost in the noise"
    value, low, high = (_figure(interval[key]) for key in ("value", "low", "high"))
    return value if low == high else f"{value} ({low} to {high})"


def count(interval: Mapping[str, Any] | None) -> str:
    """A number of rows with its interval."""
    if interval is None:
        return "lost in the noise"
    value, low, high = (round(interval[key]) for key in ("value", "low", "high"))
    return f"{value:,}" if low == high else f"{value:,} ({low:,} to {high:,})"


def _figure(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, int | float) else str(value)


def _picture(column: Mapping[str, Any]) -> Markup | None:
    """The column's shares with their error bars, of all sites together."""
    rows: list[tuple[str, Mapping[str, Any] | None]] = []
    for one in column.get("frequencies", ()):
        rows.append((one["value"] if one["value"] is not None else "any other value", one["share"]))
    for one in column.get("histogram", ()):
        ends = (_figure(one["from"]), _figure(one["to"]))
        rows.append((ends[0] if ends[0] == ends[1] else " to ".join(ends), one["share"]))
    shown = [(name, s["value"], s["low"], s["high"]) for name, s in rows if s is not None]
    if not shown or len(shown) > _MOST_BARS:
        return None
    return _safe(shown, column["column"])


def _safe(rows: Sequence[tuple[str, float, float, float]], name: str) -> Markup:
    """SVG text of our own, in which every outside text is escaped where it is put in."""
    per_cent = [(label, 100 * v, 100 * low, 100 * high) for label, v, low, high in rows]
    text = intervals(
        per_cent,
        title=f"{name}: share of rows",
        description="estimates with intervals that hold the true share in 95 of 100 releases",
        x_label="per cent of rows",
    )
    return Markup(text)  # noqa: S704
