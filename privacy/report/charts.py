"""Charts as SVG text: pure functions of figures, for paper, colour-blind eyes and screen readers.

Every chart has a title and a description; series differ by colour and dash, and carry their name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

COLOURS: Final = ("#0b5394", "#b45309", "#0f766e", "#9d174d", "#5b21b6", "#4d5b00")
DASHES: Final = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 4")
LIMIT: Final = "#b00020"
_FONT: Final = 'font-family="system-ui, sans-serif" font-size="12"'


@dataclass(frozen=True, slots=True)
class Series:
    """A line: its name and its points (x, y), x ascending; `spread` is each point's error bar."""

    name: str
    points: tuple[tuple[float, float], ...]
    spread: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """The plotting area in an SVG, and the ranges that it shows."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: int = 640
    height: int = 300
    left: int = 58
    right: int = 20
    top: int = 16
    bottom: int = 46

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a value lies in the SVG."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return (
            self.left + across * (self.width - self.left - self.right),
            self.height - self.bottom - up * (self.height - self.top - self.bottom),
        )


def grouped(series: Sequence[Series], most: int = 6) -> list[Series]:
    """Equal lines drawn once under all their names; beyond `most`, those that end highest."""
    same: dict[tuple[tuple[tuple[float, float], ...], tuple[float, ...]], list[str]] = {}
    for one in series:
        if one.points:
            same.setdefault((one.points, one.spread), []).append(one.name)
    groups = [Series(_names(names), points, spread) for (points, spread), names in same.items()]
    if len(groups) <= most:
        return groups
    groups.sort(key=lambda s: s.points[-1][1], reverse=True)
    return groups[:most]


def _names(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} … {names[-1]} ({len(names)} alike)"


def lines(
    series: Sequence[Series],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    limit: tuple[str, float] | None = None,
    unit_square: bool = False,
    from_zero: bool = True,
    most: int = 6,
) -> str:
    """A line chart of at most `most` lines; `limit` is a named horizontal line.

    `unit_square` shows 0 to 1 on both axes.
    """
    shown = grouped(series, most)
    xs = [x for s in shown for x, _ in s.points]
    ys = [y for s in shown for _, y in s.points] + ([limit[1]] if limit else [])
    for one in shown:
        ends = zip(one.points, one.spread, strict=False)  # a line may have none
        ys += [end for (_, y), spread in ends for end in (y - spread, y + spread)]
    if unit_square:
        frame = Frame((0.0, 1.0), (0.0, 1.0), width=420, height=330)
    else:
        low, high = (0.0 if from_zero else min(ys)), max(ys)
        ticks = nice(low, high if high > low else low + 1)
        edge = 0.5 if len(set(xs)) == 1 else 0.0
        frame = Frame((min(xs) - edge, max(xs) + edge), (ticks[0], ticks[-1]))
    parts = [_axes(frame, x_label, y_label, whole=not unit_square)]
    if limit:
        parts.append(_limit(frame, *limit))
    for index, one in enumerate(shown):
        parts.append(_line(frame, one, index))
    if len(shown) > 1 or not unit_square:
        legend, extra = _legend(frame, [s.name for s in shown])
        parts.append(legend)
    else:
        extra = 0
    return _svg(frame.width, frame.height + extra, title, description, "".join(parts))


def bars(
    rows: Sequence[tuple[str, Sequence[tuple[str, float]], tuple[str, float] | None]],
    *,
    title: str,
    description: str,
    x_label: str,
) -> str:
    """Stacked horizontal bars: (name, parts (label, size), limit (label, value) or None) each."""
    totals = [sum(size for _, size in parts) for _, parts, _ in rows]
    highest = max([*totals, *(limit[1] for _, _, limit in rows if limit)], default=1.0)
    ticks = nice(0.0, highest or 1.0)
    height = 62 + 30 * len(rows)
    frame = Frame((0.0, ticks[-1]), (0.0, 1.0), height=height, left=150, top=8, bottom=42)
    out = [_ticks_below(frame, ticks, x_label)]
    labels = list(dict.fromkeys(label for _, parts, _ in rows for label, _ in parts))
    for index, (name, parts, limit) in enumerate(rows):
        y = frame.top + 6 + 30 * index
        short = name if len(name) <= 22 else name[:21] + "…"
        out.append(
            f'<text x="{frame.left - 8}" y="{y + 14}" text-anchor="end">{escape(short)}</text>'
        )
        start = 0.0
        for label, size in parts:
            left, right = frame.at(start, 0)[0], frame.at(start + size, 0)[0]
            place = labels.index(label)
            out.append(
                f'<rect x="{left:.1f}" y="{y}" width="{max(right - left, 0):.1f}" height="20" '
                f'fill="{_fill(label, place)}" stroke="#333" stroke-width=".6">'
                f"<title>{escape(f'{name}: {label} {size:.3g}')}</title></rect>"
            )
            if right - left > 34 and label != "left":
                out.append(
                    f'<text x="{(left + right) / 2:.1f}" y="{y + 14}" text-anchor="middle" '
                    f'fill="#fff">{size:.3g}</text>'
                )
            start += size
        if limit:
            x = frame.at(limit[1], 0)[0]
            out.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 3}" y2="{y + 23}" stroke="{LIMIT}" '
                f'stroke-width="2.5"><title>{escape(limit[0])} {limit[1]:.3g}</title></line>'
            )
    keys = [(label, _fill(label, i)) for i, label in enumerate(labels)]
    if any(limit for _, _, limit in rows):
        keys.append((next(limit[0] for _, _, limit in rows if limit), LIMIT))
    x = float(frame.left)
    for label, colour in keys:
        out.append(
            f'<rect x="{x:.0f}" y="{height}" width="12" height="12" fill="{colour}" '
            'stroke="#333" stroke-width=".6"/>'
            f'<text x="{x + 17:.0f}" y="{height + 10}">{escape(label)}</text>'
        )
        x += 30 + 7.0 * len(label)
    return _svg(frame.width, height + 20, title, description, "".join(out))


def intervals(
    rows: Sequence[tuple[str, float, float, float]], *, title: str, description: str, x_label: str
) -> str:
    """A dot with its error bar for each row: (name, value, low, high); the axis begins at 0."""
    most = max((high for *_, high in rows), default=1.0)
    least = min((low for _, _, low, _ in rows), default=0.0)
    ticks = nice(min(0.0, least), most if most > 0 else 1.0)
    step = 16
    height = 58 + step * len(rows)
    frame = Frame((ticks[0], ticks[-1]), (0.0, 1.0), height=height, left=170, top=8, bottom=42)
    out = [_ticks_below(frame, ticks, x_label)]
    for index, (name, value, low, high) in enumerate(rows):
        y = frame.top + 8 + step * index
        short = name if len(name) <= 26 else name[:25] + "…"
        left, dot, right = (frame.at(one, 0)[0] for one in (low, value, high))
        told = escape(f"{name}: {value:.4g} ({low:.4g} to {high:.4g})")
        out.append(
            f'<text x="{frame.left - 8}" y="{y + 4}" text-anchor="end">{escape(short)}</text>'
            f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}" stroke="{COLOURS[0]}" '
            f'stroke-width="2.4"><title>{told}</title></line>'
            f'<circle cx="{dot:.1f}" cy="{y}" r="3.2" fill="{COLOURS[0]}">'
            f"<title>{told}</title></circle>"
        )
    return _svg(frame.width, height, title, description, "".join(out))


def nice(low: float, high: float, about: int = 5) -> list[float]:
    """Round tick values from at or below `low` to at or above `high`.

    >>> nice(0, 2.7)
    [0.0, 1.0, 2.0, 3.0]
    """
    span = high - low
    raw = span / about
    magnitude = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _fill(label: str, index: int) -> str:
    return "#ffffff" if label == "left" else COLOURS[index % len(COLOURS)]


def _svg(width: int, height: int, title: str, description: str, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg" '
        f'style="max-width:{width}px" {_FONT}><title>{escape(title)}</title>'
        f"<desc>{escape(description)}</desc>{body}</svg>"
    )


def _axes(frame: Frame, x_label: str, y_label: str, *, whole: bool) -> str:
    out = []
    for tick in nice(*frame.y):
        if not frame.y[0] - 1e-9 <= tick <= frame.y[1] + 1e-9:
            continue
        x, y = frame.at(frame.x[0], tick)
        out.append(
            f'<line x1="{x:.1f}" x2="{frame.width - frame.right}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="#d4d4d4" stroke-width=".8"/>'
            f'<text x="{x - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    span = nice(*frame.x, about=8)
    ticks = [t for t in span if frame.x[0] <= t <= frame.x[1] and (not whole or t == round(t))]
    out.append(_ticks_below(frame, ticks or [frame.x[1]], x_label))
    middle = (frame.top + frame.height - frame.bottom) / 2
    out.append(
        f'<text transform="rotate(-90 14 {middle:.0f})" x="14" y="{middle:.0f}" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    return "".join(out)


def _ticks_below(frame: Frame, ticks: Sequence[float], label: str) -> str:
    base = frame.height - frame.bottom
    out = [
        f'<line x1="{frame.left}" x2="{frame.width - frame.right}" y1="{base}" y2="{base}" '
        'stroke="#333"/>'
    ]
    for tick in ticks:
        x = frame.at(tick, 0)[0]
        out.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 5}" stroke="#333"/>'
            f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{tick:g}</text>'
        )
    middle = (frame.left + frame.width - frame.right) / 2
    out.append(
        f'<text x="{middle:.0f}" y="{base + 36}" text-anchor="middle">{escape(label)}</text>'
    )
    return "".join(out)


def _limit(frame: Frame, name: str, value: float) -> str:
    x, y = frame.at(frame.x[0], value)
    above = y - 5 if y - 5 > frame.top + 8 else y + 14
    return (
        f'<line x1="{x:.1f}" x2="{frame.width - frame.right}" y1="{y:.1f}" y2="{y:.1f}" '
        f'stroke="{LIMIT}" stroke-width="1.8" stroke-dasharray="8 4"/>'
        f'<text x="{x + 6:.1f}" y="{above:.1f}" fill="{LIMIT}">{escape(name)} {value:.4g}</text>'
    )


def _line(frame: Frame, one: Series, index: int) -> str:
    colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
    places = [frame.at(x, y) for x, y in one.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>'
        for x, y in (places if len(places) <= 40 else places[-1:])
    )
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
        f'stroke-dasharray="{dash}"><title>{escape(one.name)}</title></polyline>{dots}'
        + "".join(
            _error_bar(frame, x, y, spread, colour)
            for (x, y), spread in zip(one.points, one.spread, strict=False)
        )
    )


def _error_bar(frame: Frame, x: float, y: float, spread: float, colour: str) -> str:
    across, top = frame.at(x, y + spread)
    bottom = frame.at(x, y - spread)[1]
    ends = "".join(f"M{across - 4:.1f} {at:.1f}h8" for at in (top, bottom))
    return (
        f'<path d="M{across:.1f} {top:.1f}V{bottom:.1f}{ends}" stroke="{colour}" '
        f'stroke-width="1.4" fill="none"><title>{y:.4g} ± {spread:.2g}</title></path>'
    )


def _legend(frame: Frame, names: Sequence[str]) -> tuple[str, int]:
    """The series' names below the chart, in as many rows as they need; the height it takes."""
    out: list[str] = []
    x, y = float(frame.left), frame.height + 10
    for index, name in enumerate(names):
        needed = 44 + 6.6 * len(name)
        if x > frame.left and x + needed > frame.width:
            x, y = float(frame.left), y + 18
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        out.append(
            f'<line x1="{x:.0f}" x2="{x + 26:.0f}" y1="{y}" y2="{y}" stroke="{colour}" '
            f'stroke-width="2.4" stroke-dasharray="{dash}"/>'
            f'<text x="{x + 32:.0f}" y="{y + 4}">{escape(name)}</text>'
        )
        x += needed
    return "".join(out), y + 12 - frame.height
