"""The audit's picture: the accounted epsilon, and how much of it the attacks proved."""

from collections.abc import Mapping
from html import escape
from typing import Any, Final

_WIDTH: Final = 640
_LEFT: Final = 250
_BAR: Final = 22
_ROW: Final = 40
_TOP: Final = 48


def bounds_svg(audit: Mapping[str, Any]) -> str:
    """The claimed epsilon above the lower bounds, as one self-contained SVG image."""
    claimed = float(audit["claimed"])
    bars = [("accounted: at most", claimed, "#3b6ea5")]
    for bound in audit["bounds"]:
        colour = "#b3261e" if bound["epsilon"] > claimed else "#6b8f3d"
        bars.append((f"{bound['name'].split(' (')[0]}: at least", bound["epsilon"], colour))
    most = max(value for _, value, _ in bars) or 1.0
    scale = (_WIDTH - _LEFT - 70) / most
    height = _TOP + _ROW * len(bars) + 34
    title = f"Audit: {audit['verdict']}"
    said = "; ".join(f"{name} {value:.2f}" for name, value, _ in bars)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" font-family="sans-serif" font-size="14">',
        f"<title>{escape(title)}</title><desc>{escape(said)}</desc>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="26" font-size="16" fill="#1b1b1b">{escape(title)}</text>',
    ]
    for i, (name, value, colour) in enumerate(bars):
        y = _TOP + _ROW * i
        width = max(1.0, value * scale)
        parts.append(
            f'<text x="{_LEFT - 10}" y="{y + 16}" text-anchor="end" fill="#1b1b1b">{escape(name)}'
            f'</text><rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" '
            f'fill="{colour}"/><text x="{_LEFT + width + 8:.1f}" y="{y + 16}" fill="#1b1b1b">'
            f"{value:.2f}</text>"
        )
    mark = _LEFT + claimed * scale
    foot = height - 34
    parts.append(
        f'<line x1="{mark:.1f}" y1="{_TOP - 8}" x2="{mark:.1f}" y2="{foot}" stroke="#3b6ea5" '
        f'stroke-dasharray="4 3"/><text x="12" y="{height - 12}" font-size="12" fill="#555555">'
        f"epsilon at delta = {audit['delta']:g}; a lower bound right of the dashed line "
        "contradicts the claim</text></svg>"
    )
    return "".join(parts) + "\n"
