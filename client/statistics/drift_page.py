"""A comparison of recent rows with a reference as one page, for the site alone."""

from typing import Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from client.statistics.drift import Drift, worst
from privacy.report.charts import bars

_PAGE: Final = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>Drift</title><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1a1a1a;background:#fff}table{border-collapse:collapse}td,th{padding:.2rem .6rem;
text-align:right;border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}
.scroll{overflow-x:auto}.moved{background:#fde8e0}.note{color:#555}svg{max-width:100%;height:auto}
</style></head><body><h1>{{ "These rows have drifted" if drift.drifted else "No drift was found" }}
</h1><p>{{ drift.rows }} recent rows against {{ drift.reference }}.</p>
<p class="note">The figures come from private rows and are not protected: this page is for the site
alone. Rows that are alike are said to have drifted once in a hundred such pages. A column that
drifted need not harm the model, and a model can fail without drift: measure it on labelled rows
(evaluate).</p>{% if drift.calibration %}<h2>Calibration</h2><p>On {{ drift.calibration.rows }}
labelled rows the model was {{ "%.1f"|format(100 * drift.calibration.confidence) }} % sure and
{{ "%.1f"|format(100 * drift.calibration.accuracy) }} % right (calibration error
{{ "%.3f"|format(drift.calibration.error) }}):
<b>{{ "it is not calibrated any more" if drift.calibration.drifted else "within chance" }}</b>.</p>
{% endif %}<h2>Inputs</h2>{{ picture }}<div class="scroll"><table><tr><th scope="col">column</th>
<th scope="col">distance</th><th scope="col">p</th><th scope="col"></th></tr>
{% for one in columns %}<tr{% if one.drifted %} class="moved"{% endif %}>
<th scope="row">{{ one.column }}</th>
<td>{{ "-" if one.distance is none else "%.3f"|format(one.distance) }}</td>
<td>{{ "-" if one.p is none else "%.2g"|format(one.p) }}</td>
<td>{{ "drifted" if one.drifted else "cannot be told" if one.p is none else "" }}</td></tr>
{% endfor %}</table></div>
<p class="note">The distance is the share of rows that would have to move to another cell.</p>
</body></html>"""
_SHOWN: Final = 20


def to_html(drift: Drift) -> str:
    """The page; it loads nothing from elsewhere."""
    columns = worst(drift.columns)
    rows = [
        (one.column, [("distance", one.distance)], None)
        for one in columns[:_SHOWN]
        if one.distance is not None
    ]
    picture = bars(
        rows,
        title="How far each column moved",
        description="The total variation distance of recent rows and the reference",
        x_label="distance",
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    safe = Markup(picture)  # noqa: S704 - drawn here, every text escaped
    return environment.from_string(_PAGE).render(drift=drift, columns=columns, picture=safe)
