"""The audit's picture: the accounted epsilon, and how much of it the attacks proved."""

from collections.abc import Mapping
from typing import Any

from privacy.report.charts import bars


def bounds_svg(audit: Mapping[str, Any]) -> str:
    """The claimed epsilon above the lower bounds, as one self-contained SVG image."""
    claimed = float(audit["claimed"])
    proved = [(bound["name"].split(" (")[0], float(bound["epsilon"])) for bound in audit["bounds"]]
    limit = ("claim", claimed)
    return (
        bars(
            [
                ("accountant", [("accounted: at most", claimed)], None),
                *((name, [("proved: at least", value)], limit) for name, value in proved),
            ],
            title=f"Audit: {audit['verdict']}",
            description="; ".join(f"{name} {value:.2f}" for name, value in (limit, *proved)),
            x_label=f"epsilon at delta = {audit['delta']:g}; a bound right of the line contradicts "
            "the claim",
        )
        + "\n"
    )
