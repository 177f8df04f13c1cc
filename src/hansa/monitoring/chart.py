"""Small charts as inline SVG: lines over rounds or time, bars over parties, histograms. Pure functions from numbers to text.

Colours follow the page: axes take its text colour, series those of :data:`STYLE`, which knows a light and a dark scheme and
paper. Series differ by dashes too, for print and for eyes that see no colours.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, final

WIDTH: Final = 440
"""Width of the drawing's coordinates; on the page it is as wide as its place."""

HEIGHT: Final = 240

POINTS: Final = 400
"""Points drawn of one series; of longer ones the least and the greatest of each stretch."""

ROWS: Final = 60
"""Bars drawn in rows; more parties want a histogram."""

LARGEST: Final = 1e100
"""Values beyond are not drawn: their differences leave the floating-point range, and no eye tells them apart."""

COLOURS: Final = 6

_LIGHT: Final = ("#0b6bb5", "#c4460a", "#1a7f4b", "#a3348f", "#8a6a00", "#4d5866")
_DARK: Final = ("#5cb3f2", "#f58a55", "#55c98d", "#e07fcf", "#d9b534", "#a9b4c0")
_DASHES: Final = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 2 1 2")


def _scheme(colours: Sequence[str], marked: str) -> str:
    return "".join(f"--series-{place}: {colour}; " for place, colour in enumerate(colours)) + f"--marked: {marked};"


STYLE: Final = f"""
:root {{ {_scheme(_LIGHT, "#c4460a")} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_scheme(_DARK, "#f58a55")} }} }}
svg.chart {{ display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; overflow: visible; }}
svg.chart text {{ fill: currentColor; }}
svg.chart .title {{ font-size: 13px; font-weight: 600; }}
svg.chart .grid {{ stroke: currentColor; stroke-opacity: 0.15; }}
svg.chart .axis {{ stroke: currentColor; stroke-opacity: 0.6; }}
svg.chart .minor {{ fill-opacity: 0.75; }}
svg.chart .marked {{ fill: var(--marked); }}
svg.chart .bar {{ fill: var(--series-0); }}
""" + "".join(
    f"svg.chart .s{place} {{ stroke: var(--series-{place}); fill: none; stroke-width: 2; stroke-linejoin: round;"
    f" stroke-dasharray: {dash or 'none'}; }}\nsvg.chart .p{place} {{ fill: var(--series-{place}); }}\n"
    for place, dash in enumerate(_DASHES)
)
"""The style sheet that the charts need, once a page."""


@final
@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        name: what the legend calls it.
        points: (x, y) in the order of x; a y that is None or not finite breaks the line.
    """

    name: str
    points: Sequence[tuple[float, float | None]]


@final
@dataclass(frozen=True)
class _Frame:
    """Where data lies on the drawing."""

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)


def lines(title: str, series: Sequence[Series], x_label: str, whole: bool = False) -> str:
    """A line chart.

    Args:
        title: above the chart, and what a screen reader says.
        series: drawn in this order; one without a finite value is named in the legend and has no line.
        x_label: what x counts, with its unit.
        whole: x counts something whole, such as rounds.

    >>> picture = lines("accuracy", [Series("test", [(0, 0.1), (1, 0.8)])], "round", whole=True)
    >>> picture.startswith("<svg") and "polyline" in picture
    True
    """
    drawn = [[(x, y) for x, y in one.points if _drawable(x) and y is not None and _drawable(y)] for one in series]
    xs = [x for points in drawn for x, _ in points]
    ys = [y for points in drawn for _, y in points]
    if not xs:
        return _svg(title, 60, ['<text x="0" y="44" class="minor">no finite value to draw</text>'])
    legend, top = _legend([one.name for one in series])
    x_ticks = ticks(min(xs), max(xs), 6, whole)
    y_ticks = ticks(min(ys), max(ys), 5, whole=all(float(y).is_integer() for y in ys))
    names = [number(value, y_ticks) for value in y_ticks]
    left = 12 + _text_width(max(names, key=len))
    x_range = (min(xs), max(xs)) if max(xs) > min(xs) else (xs[0] - max(1.0, abs(xs[0])), xs[0] + max(1.0, abs(xs[0])))
    frame = _Frame(left, top + 10, WIDTH - 12, top + HEIGHT - 60, x_range, (y_ticks[0], y_ticks[-1]))
    parts = [legend, *_y_axis(frame, y_ticks, names), *_x_axis(frame, x_ticks, x_label)]
    for place, one in enumerate(series):
        parts += _line(frame, one.points, place % COLOURS)
    return _svg(title, int(frame.bottom + 40), parts)


def bars(title: str, values: Mapping[str, float], marked: frozenset[str] = frozenset()) -> str:
    """A bar a name, from the top down, in the order given; the bars start at 0.

    Args:
        title: above the chart.
        values: by name; one that is not finite has no bar and says so.
        marked: the names whose bars stand out.
    """
    finite = [value for value in values.values() if _drawable(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    high = high if high > low else low + 1
    fractions = any(not float(value).is_integer() for value in finite) and 1e-3 <= max(high, -low) < 1e4
    label = min(150.0, 10 + max((_text_width(shorten(name, 24)) for name in values), default=0.0))
    step, room = 17, 52
    frame = _Frame(label, 24, WIDTH - room, 24 + step * len(values), (low, high), (0, 1))
    parts = []
    for row, (name, value) in enumerate(values.items()):
        middle = 24 + row * step + step / 2
        said = f"{value:,.4f}" if _drawable(value) and fractions else number(value)
        parts.append(
            f'<text x="{label - 6:.1f}" y="{middle + 4:.1f}" text-anchor="end">'
            f"<title>{text(name)}</title>{text(shorten(name, 24))}</text>"
        )
        end = frame.right
        if _drawable(value):
            start, end = sorted((frame.at(0, 0)[0], frame.at(value, 0)[0]))
            kind = "marked" if name in marked else "bar"
            parts.append(
                f'<rect class="{kind}" x="{start:.1f}" y="{middle - 6:.1f}" width="{max(end - start, 0.5):.1f}" height="12"/>'
            )
        else:
            end = frame.at(0, 0)[0]
        parts.append(f'<text class="minor" x="{end + 4:.1f}" y="{middle + 4:.1f}">{said}</text>')
    return _svg(title, 30 + step * len(values), parts)


def histogram(title: str, values: Sequence[float], marked: Sequence[float], x_label: str, bins: int = 20) -> str:
    """How many values lie where; the part of each bar that ``marked`` fills stands out.

    Args:
        title: above the chart.
        values: those that are not finite are left out.
        marked: some of the values.
        x_label: what the values are.
        bins: how many bars.
    """
    kept = [value for value in values if _drawable(value)]
    if not kept:
        return _svg(title, 60, ['<text x="0" y="44" class="minor">no finite value to draw</text>'])
    low, high = min(kept), max(kept)
    if not high > low:
        margin = max(abs(low) * 0.5, 0.5)
        low, high = low - margin, high + margin
    width = (high - low) / bins

    def counted(some: Sequence[float]) -> list[int]:
        counts = [0] * bins
        for value in some:
            if _drawable(value):
                counts[max(0, min(bins - 1, int((value - low) / width)))] += 1
        return counts

    whole, part = counted(kept), counted(marked)
    y_ticks = ticks(0, max(whole), 4, whole=True)
    names = [number(value, y_ticks) for value in y_ticks]
    frame = _Frame(12 + _text_width(max(names, key=len)), 30, WIDTH - 12, HEIGHT - 40, (low, high), (0, y_ticks[-1]))
    x_ticks = [tick for tick in ticks(low, high, 6) if low <= tick <= high]
    parts = [*_y_axis(frame, y_ticks, names), *_x_axis(frame, x_ticks, x_label)]
    for place, (count, special) in enumerate(zip(whole, part, strict=True)):
        for kind, height in (("bar", count), ("marked", special)):
            x, y = frame.at(low + place * width, height)
            across = (frame.right - frame.left) / bins
            if height:
                parts.append(
                    f'<rect class="{kind}" x="{x + 0.5:.1f}" y="{y:.1f}" width="{across - 1:.1f}" '
                    f'height="{frame.bottom - y:.1f}"/>'
                )
    return _svg(title, HEIGHT, parts)


def ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``, evenly spaced by 1, 2 or 5 times a power of ten.

    >>> ticks(0.13, 0.94, 5)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(0, 3, 6, whole=True)
    [0.0, 1.0, 2.0, 3.0]
    """
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # equal, or only their last bits differ
        margin = max(abs(low) * 0.1, 1.0 if whole else 1e-3)
        low, high = low - margin, high + margin
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 1e-300 else 1e-300
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1.0, float(round(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]


def number(value: float, among: Sequence[float] = ()) -> str:
    """A number as short as it can be read; among the ticks of an axis, all with the same decimals.

    >>> number(0.91234), number(1234567), number(1.5e-7), number(float("nan")), number(0.2, [0, 0.2, 0.25])
    ('0.9123', '1,234,567', '1.5e-07', 'not finite', '0.20')
    """
    if not math.isfinite(value):
        return "not finite"
    size = max((abs(tick) for tick in among), default=abs(value))
    if size >= 1e9 or 0 < size < 1e-3:
        return f"{value:.4g}"
    if among:
        gap = min((b - a for a, b in pairwise(among) if b > a), default=1.0)
        decimals = max(0, min(6, -math.floor(math.log10(gap) + 1e-9)))
        if any(abs(round(tick, decimals) - tick) > gap * 1e-3 for tick in among):
            decimals += 1
        return f"{value:,.{decimals}f}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4f}" if size < 100 else f"{value:,.1f}"


def text(value: object) -> str:
    """Text that is safe in HTML, in attributes too; characters that no page may hold are replaced."""
    return html.escape(_FORBIDDEN.sub("�", str(value)), quote=True)


# Control characters, lone surrogates, and the marks that turn the direction of the text around them.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def shorten(value: str, length: int) -> str:
    """At most ``length`` characters, the middle left out: names often differ at their ends.

    >>> shorten("client-000123", 9)
    'clie…0123'
    """
    if len(value) <= length:
        return value
    tail = (length - 1) // 2
    return value[: length - 1 - tail] + "…" + value[len(value) - tail :]


def _drawable(value: float) -> bool:
    return math.isfinite(value) and abs(value) < LARGEST


def _text_width(value: str) -> float:
    """About how wide text of 11 px is, in the drawing's units."""
    return 6.3 * len(value)


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    head = f'<text class="title" x="0" y="13">{text(shorten(title, 60))}</text>'
    return (
        f'<svg class="chart" role="img" aria-label="{text(title)}" viewBox="0 0 {WIDTH} {height}" '
        f'xmlns="http://www.w3.org/2000/svg">{head}{"".join(parts)}</svg>'
    )


def _legend(names: Sequence[str]) -> tuple[str, float]:
    """The legend, and where the chart below it begins."""
    parts, x, y = [], 0.0, 30.0
    for place, name in enumerate(names):
        short = shorten(name, 40)
        wide = 34 + _text_width(short)
        if x > 0 and x + wide > WIDTH:
            x, y = 0.0, y + 16
        parts.append(
            f'<line class="s{place % COLOURS}" x1="{x:.1f}" x2="{x + 22:.1f}" y1="{y - 4:.1f}" y2="{y - 4:.1f}"/>'
            f'<text x="{x + 27:.1f}" y="{y:.1f}">{text(short)}</text>'
        )
        x += wide + 8
    return "".join(parts), y + 4


def _y_axis(frame: _Frame, values: Sequence[float], names: Sequence[str]) -> list[str]:
    parts = []
    for value, name in zip(values, names, strict=True):
        y = frame.at(frame.x[0], value)[1]
        parts.append(
            f'<line class="grid" x1="{frame.left:.1f}" x2="{frame.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{frame.left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{name}</text>'
        )
    return parts


def _x_axis(frame: _Frame, values: Sequence[float], label: str) -> list[str]:
    parts = [
        f'<line class="axis" x1="{frame.left:.1f}" x2="{frame.right:.1f}" y1="{frame.bottom:.1f}" y2="{frame.bottom:.1f}"/>'
    ]
    for value in values:
        if not frame.x[0] <= value <= frame.x[1]:
            continue
        x = frame.at(value, frame.y[0])[0]
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.bottom:.1f}" y2="{frame.bottom + 4:.1f}"/>'
            f'<text x="{x:.1f}" y="{frame.bottom + 16:.1f}" text-anchor="middle">{number(value, values)}</text>'
        )
    middle = (frame.left + frame.right) / 2
    parts.append(
        f'<text class="minor" x="{middle:.1f}" y="{frame.bottom + 32:.1f}" text-anchor="middle">{text(label)}</text>'
    )
    return parts


def _line(frame: _Frame, points: Sequence[tuple[float, float | None]], colour: int) -> list[str]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if _drawable(x) and y is not None and _drawable(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    parts = []
    for run in filter(None, runs):
        places = [frame.at(x, y) for x, y in _thinned(run)]
        if len(places) == 1:
            parts.append(f'<circle class="p{colour}" cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3.5"/>')
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(f'<polyline class="s{colour}" points="{path}"/>')
    return parts


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most about :data:`POINTS` points, the extremes of each stretch among them, and the first and the last."""
    if len(points) <= POINTS:
        return points
    stretch = math.ceil(2 * len(points) / POINTS)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), stretch):
        places = range(start, min(start + stretch, len(points)))
        kept.add(min(places, key=lambda place: points[place][1]))
        kept.add(max(places, key=lambda place: points[place][1]))
    return [points[place] for place in sorted(kept)]
