"""Plots as inline SVG: vector, without scripts, coloured by the page's style sheet, so they follow light and dark.

Series i has the classes `line{i}` or `fill{i}`; text and axes take the page's text colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 46
N_SERIES = 7
CHARACTER = 6.6  # mean width of a character of the 12-unit font


@dataclass(frozen=True)
class Scale:
    """From values to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def to(self, value: float) -> float:
        """The pixel of `value`, kept inside the frame."""
        low, high, v = self.low, self.high, value
        if self.log:
            low, high, v = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        share = (v - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Four to eight round values within the scale."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, (last - first) // 5)
            return [10.0**e for e in range(first, last + 1, step)]
        raw = (self.high - self.low) / 5 or 1.0
        magnitude = 10 ** math.floor(math.log10(raw))
        step_size = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
        first = math.ceil(self.low / step_size - 1e-9)
        return [k * step_size for k in range(first, math.floor(self.high / step_size + 1e-9) + 1)]


def scale_over(values: Sequence[float], start: float, end: float, *, log: bool = False, pad: float = 0.06) -> Scale:
    """A scale that holds `values` with a margin. On a log scale values of 0 and less are left aside."""
    if log:
        positive = [v for v in values if v > 0] or [1.0]
        first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)) + 1e-9)
        return Scale(10.0**first, 10.0 ** max(last, first + 1), start, end, log=True)
    low, high = min(values), max(values)
    margin = (high - low) * pad or abs(high) * pad or 1.0
    return Scale(low - margin, high + margin, start, end)


def x_scale(values: Sequence[float], *, log: bool = False) -> Scale:
    """A scale across the plot."""
    return scale_over(values, LEFT, WIDTH - RIGHT, log=log)


def y_scale(values: Sequence[float], *, height: int = HEIGHT) -> Scale:
    """A scale up the plot."""
    return scale_over(values, height - BOTTOM, TOP)


def fixed(low: float, high: float, *, up: bool = False, height: int = HEIGHT) -> Scale:
    """A scale with given ends."""
    return Scale(low, high, height - BOTTOM, TOP) if up else Scale(low, high, LEFT, WIDTH - RIGHT)


def figure(parts: Sequence[str], title: str, *, height: int = HEIGHT) -> str:
    """The whole picture. `title` is read out by screen readers."""
    return (f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
            f"<title>{escape(title)}</title>{''.join(parts)}</svg>")


def axes(x: Scale, y: Scale | None, x_label: str, y_label: str, *, height: int = HEIGHT) -> str:
    """Grid, ticks and labels. Without y only the x axis is drawn."""
    base = height - BOTTOM
    parts = []
    for tick in x.ticks():
        px = x.to(tick)
        parts.append(f'<line class="grid" x1="{px:.1f}" x2="{px:.1f}" y1="{TOP}" y2="{base}"/>')
        parts.append(text(px, base + 16, tick_text(tick), "middle"))
    for tick in y.ticks() if y else ():
        py = y.to(tick) if y else 0.0
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(text(LEFT - 6, py + 4, tick_text(tick), "end"))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, height - 8, x_label, "middle"))
    if y_label:
        middle = (TOP + base) / 2
        parts.append(f'<text transform="translate(14 {middle:.1f}) rotate(-90)" text-anchor="middle">'
                     f"{escape(y_label)}</text>")
    return "".join(parts)


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def polyline(points: Sequence[tuple[float, float]], series: int, extra: str = "") -> str:
    """A line through pixels."""
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    return f'<polyline class="line line{series % N_SERIES} {extra}" points="{path}"/>'


def bar(x0: float, x1: float, y: float, thickness: float, series: int, tip: str) -> str:
    """A horizontal bar between two pixels; `tip` is shown on hover."""
    return (f'<rect class="fill{series % N_SERIES}" x="{min(x0, x1):.1f}" y="{y:.1f}" width="{abs(x1 - x0):.1f}" '
            f'height="{thickness:.1f}"><title>{escape(tip)}</title></rect>')


def dot(x: float, y: float, series: int, tip: str) -> str:
    """A point; `tip` is shown on hover."""
    return (f'<circle class="fill{series % N_SERIES}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">'
            f"<title>{escape(tip)}</title></circle>")


def whisker(x0: float, y0: float, x1: float, y1: float, series: int) -> str:
    """An error bar."""
    ends = f'x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"'
    return f'<line class="line whisker line{series % N_SERIES}" {ends}/>'


def legend(names: Sequence[str], first: int = 0) -> str:
    """Names under each other, each with its colour and dash; the first one is series `first`."""
    x, y = LEFT + 8, TOP + 14
    return "".join(
        polyline([(x, y + 15 * i - 4), (x + 22, y + 15 * i - 4)], i + first) + text(x + 28, y + 15 * i, name)
        for i, name in enumerate(names)
    )


def tick_text(value: float) -> str:
    """A short number: 0.001, 12, 1.5k."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:g}"
