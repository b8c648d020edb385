"""Pages to look at, each one HTML file that loads nothing: evaluations and explanations."""

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from jinja2 import DictLoader, Environment, select_autoescape
from markupsafe import Markup
from numpy.typing import NDArray

from client.inference.attribution import Explanation
from client.inference.evaluation import Bin, Evaluation
from client.inference.importance import Importance
from client.models.loading import Model

_STYLE: Final = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1a1a1a;background:#fff}table{border-collapse:collapse}td,th{padding:.2rem .6rem;
text-align:right;border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}
.scroll{overflow-x:auto}.behind{background:#fde8e0}.note{color:#555}svg text{font:12px system-ui}
figure{display:inline-block;margin:0 1rem 1rem 0;vertical-align:top}
"""
_BASE: Final = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>{{ title }}</title>
<style>{{ style }}</style></head><body><h1>{{ title }}</h1>
<p>Model {{ card.model[:16] }} of task {{ card.task }}, run {{ card.run }}, round {{ card.round }};
{{ card.privacy }}. {{ origin }}.</p>{% block body %}{% endblock %}</body></html>"""
_EVALUATION: Final = """{% extends "base" %}{% block body %}
<p class="note">Measured on {{ evaluation.rows }} labelled rows of this site
{%- if evaluation.skipped %}
 ({{ evaluation.skipped }} rows that did not fit were skipped){% endif %}.
These figures come from private rows and are not protected: this page is for the site alone.</p>
<h2>Overall</h2><table>{% for name, value in evaluation.metrics.items() %}
<tr><th scope="row">{{ name }}</th><td>{{ "%.4f"|format(value) }}</td></tr>{% endfor %}</table>
{% if evaluation.groups or evaluation.suppressed %}<h2>By group</h2><div class="scroll"><table>
<tr><th scope="col">group</th><th scope="col">rows</th>
{% for name in evaluation.metrics %}<th scope="col">{{ name }}</th>{% endfor %}</tr>
{% for group in evaluation.groups %}<tr{% if group.behind %} class="behind"{% endif %}>
<th scope="row">{{ group.name }}{% if group.behind %} (behind the others){% endif %}</th>
<td>{{ group.rows }}</td>{% for name in evaluation.metrics %}
<td>{{ "%.4f"|format(group.metrics[name]) if name in group.metrics else "-" }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% if evaluation.suppressed %}
<p class="note">{{ evaluation.suppressed }} small groups are not shown.</p>
{% endif %}{% endif %}
{% if evaluation.confusion %}<h2>Confusion</h2><div class="scroll">{{ confusion }}</div>{% endif %}
{% if evaluation.bins %}<h2>Reliability</h2>{{ reliability }}
<p class="note">On the diagonal, a stated probability is the true frequency; below it, the model is
surer than it is right. ECE
{{ "%.3f"|format(evaluation.metrics.ece) }}.</p>{% endif %}{% endblock %}"""
_EXPLANATIONS: Final = """{% extends "base" %}{% block body %}
<p class="note">Blue speaks for the prediction, red against it, compared with a blank picture, or a
row in the middle of the task's public bounds. Attributions describe the model, not the world: see
docs/explanations.md.
</p>{% for one, picture in pictures %}<h2>Row {{ one.row }}: {{ one.prediction }}
{%- if one.probability is not none %} ({{ "%.1f"|format(100 * one.probability) }} %){% endif %}</h2>
{{ picture }}{% endfor %}{% endblock %}"""
_IMPORTANCE: Final = """{% extends "base" %}{% block body %}
<p class="note">The mean size of what each column added to the predictions of {{ found.rows }} rows
of this site, by the model of round {{ found.rounds[-1] }}. These figures come from private rows and
are not protected: this page is for the site alone. They describe the model, not the world: see
docs/explanations.md.</p>{% if found.rounds|length > 1 %}<p>Rounds compared:
{{ found.rounds|join(", ") }}; {{ "%.1f"|format(100 * found.alike) }} % of the rows are predicted
alike by all of them. A column whose contributions change by more than half of their size rests
mostly on noise.</p>{% endif %}<div class="scroll"><table><tr><th scope="col">column</th>
<th scope="col">importance</th><th scope="col">share</th><th scope="col">change</th>
<th scope="col"></th></tr>{% for one in found.columns %}
<tr{% if one.changes %} class="behind"{% endif %}><th scope="row">{{ one.column }}</th>
<td>{{ "%.4f"|format(one.importance) }}</td><td>{{ "%.1f"|format(100 * one.share) }} %</td>
<td>{{ "-" if one.change is none else "%.0f %%"|format(100 * one.change) }}</td>
<td>{{ "changes" if one.changes else "" }}</td></tr>{% endfor %}</table></div>{% endblock %}"""
_PAGES: Final = {
    "base": _BASE,
    "evaluation": _EVALUATION,
    "explanations": _EXPLANATIONS,
    "importance": _IMPORTANCE,
}


def evaluation_page(model: Model, evaluation: Evaluation) -> str:
    """An evaluation as one page: metrics, groups, confusion matrix and reliability plot."""
    return _render(
        "evaluation",
        model,
        title=f"Evaluation: {model.task.name}",
        evaluation=evaluation,
        confusion=_drawn(confusion_svg(evaluation.confusion, evaluation.classes)),
        reliability=_drawn(reliability_svg(evaluation.bins)),
    )


def explanation_page(model: Model, explanations: Sequence[Explanation]) -> str:
    """Explanations as one page: heat maps for images, bars for the columns of tables."""
    pictures = [(one, _drawn(picture(one))) for one in explanations]
    return _render(
        "explanations", model, title=f"Explanations: {model.task.name}", pictures=pictures
    )


def importance_page(model: Model, found: Importance) -> str:
    """The importance of all columns as one page, with what changes between the rounds marked."""
    return _render("importance", model, title=f"Importance: {model.task.name}", found=found)


def _render(name: str, model: Model, **values: object) -> str:
    environment = Environment(loader=DictLoader(_PAGES), autoescape=select_autoescape(default=True))
    style = Markup(_STYLE)  # noqa: S704 - a constant
    return environment.get_template(name).render(
        card=model.card, origin=model.origin.words, style=style, **values
    )


def _drawn(svg: str) -> Markup:
    """A picture made here, whose every text has been escaped by `_text`."""
    return Markup(svg)  # noqa: S704


def _text(value: object) -> str:
    return str(Markup.escape(str(value)))


def confusion_svg(table: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """The confusion matrix: true classes down, predicted across, shaded by share of the row."""
    cell, left, top = 44, 130, 30
    size = cell * len(table)
    parts = [
        f'<svg role="img" aria-label="confusion matrix" width="{left + size + 10}" '
        f'height="{top + size + 34}" viewBox="0 0 {left + size + 10} {top + size + 34}">'
    ]
    for i, row in enumerate(table):
        total = sum(row) or 1
        y = top + i * cell
        name = _text(classes[i][:16])
        parts.append(f'<text x="{left - 8}" y="{y + 27}" text-anchor="end">{name}</text>')
        parts.append(
            f'<text x="{left + i * cell + cell / 2}" y="{top - 8}" text-anchor="middle">'
            f"{_text(classes[i][:6])}</text>"
        )
        for j, count in enumerate(row):
            share = count / total
            ink = "#fff" if share > 0.5 else "#1a1a1a"
            x = left + j * cell
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" stroke="#eee" '
                f'fill="rgba(31,95,191,{share:.3f})"/><text x="{x + cell / 2}" y="{y + 27}" '
                f'text-anchor="middle" fill="{ink}">{count}</text>'
            )
    parts.append(f'<text x="{left}" y="{top + size + 22}">predicted (across), true (down)</text>')
    return "".join([*parts, "</svg>"])


def reliability_svg(bins: Sequence[Bin]) -> str:
    """Accuracy against confidence; the size of a point is its share of the rows."""
    side, pad = 300, 40
    total = sum(b.rows for b in bins) or 1
    parts = [
        f'<svg role="img" aria-label="reliability plot" width="{side + 2 * pad}" '
        f'height="{side + 2 * pad}"><rect x="{pad}" y="{pad}" width="{side}" height="{side}" '
        f'fill="none" stroke="#999"/><line x1="{pad}" y1="{pad + side}" x2="{pad + side}" '
        f'y2="{pad}" stroke="#999" stroke-dasharray="4"/>'
    ]
    for b in bins:
        x, y = pad + side * b.confidence, pad + side * (1 - b.accuracy)
        radius = 3 + 12 * math.sqrt(b.rows / total)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="#1f5fbf" fill-opacity=".7">'
            f"<title>{b.rows} rows: confidence {b.confidence:.2f}, accuracy {b.accuracy:.2f}"
            "</title></circle>"
        )
    parts.append(
        f'<text x="{pad + side / 2}" y="{side + 2 * pad - 10}" text-anchor="middle">confidence'
        f'</text><text x="14" y="{pad + side / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {pad + side / 2})">accuracy</text>'
    )
    return "".join([*parts, "</svg>"])


def picture(one: Explanation) -> str:
    """The picture of an explanation: a heat map where the row is an image, bars otherwise."""
    side = _image_side(one)
    return heat_svg(one, *side) if side else bars_svg(one.columns)


def _image_side(one: Explanation) -> tuple[int, int] | None:
    if one.x is None:
        return None
    shape = one.x.shape
    if len(shape) == 3 and shape[0] == 1:
        return shape[1], shape[2]
    if len(shape) == 2:
        return shape[0], shape[1]
    side = math.isqrt(one.x.size)
    pixels = all(name.startswith("pixel") for name in one.columns)
    return (side, side) if side * side == one.x.size and side > 3 and pixels else None


def heat_svg(one: Explanation, height: int, width: int) -> str:
    """The image in grey beside its contributions: blue for, red against."""
    if one.x is None or one.contributions is None:
        return bars_svg(one.columns)
    cell = max(3, 224 // max(height, width))
    image = _scaled(one.x.reshape(height, width))
    heat = one.contributions.reshape(height, width)
    heat = heat / (float(np.abs(heat).max()) or 1.0)
    return "".join(
        f'<figure><svg role="img" aria-label="{label}" width="{cell * width}" '
        f'height="{cell * height}" shape-rendering="crispEdges">{_cells(values, cell, colour)}'
        f"</svg><figcaption>{label}</figcaption></figure>"
        for label, values, colour in (("input", image, _grey), ("contributions", heat, _signed))
    )


def _cells(values: NDArray[np.float32], cell: int, paint: Callable[[float], str]) -> str:
    return "".join(
        f'<rect x="{j * cell}" y="{i * cell}" width="{cell}" height="{cell}" '
        f'fill="{paint(float(values[i, j]))}"/>'
        for i, j in np.ndindex(*values.shape)
    )


def _scaled(image: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = float(image.min()), float(image.max())
    return np.asarray((image - low) / ((high - low) or 1.0), np.float32)


def _grey(value: float) -> str:
    level = round(255 * (1 - value))
    return f"#{level:02x}{level:02x}{level:02x}"


def _signed(value: float) -> str:
    fade = round(255 * (1 - min(abs(value), 1.0)))
    return f"#{fade:02x}{fade:02x}ff" if value > 0 else f"#ff{fade:02x}{fade:02x}"


def bars_svg(columns: dict[str, float], most: int = 15) -> str:
    """The columns with the largest contributions, as bars to the right (for) and left (against)."""
    order = sorted(columns.items(), key=lambda item: -abs(item[1]))[:most]
    largest = max((abs(value) for _, value in order), default=0.0) or 1.0
    row, left, half = 24, 200, 180
    middle = left + half
    parts = [f'<svg role="img" aria-label="contributions" width="660" height="{row * len(order)}">']
    for i, (name, value) in enumerate(order):
        length = half * abs(value) / largest
        x, colour = (middle, "#1f5fbf") if value > 0 else (middle - length, "#c23b22")
        parts.append(
            f'<text x="{left - 8}" y="{row * i + 16}" text-anchor="end">{_text(name[:28])}</text>'
            f'<rect x="{x:.1f}" y="{row * i + 4}" width="{length:.1f}" height="16" '
            f'fill="{colour}"/><text x="{middle + half + 8}" y="{row * i + 16}">{value:+.4f}</text>'
        )
    return "".join([*parts, "</svg>"])
