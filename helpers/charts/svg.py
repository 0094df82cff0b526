"""The parts that our charts are drawn of, as SVG text, without a plotting library.

A notebook keeps SVG as a few kilobytes of text, shows it without any widget or script, and GitHub shows it
too. A drawing brings its own white background, so it reads the same in light and dark mode.

    body = [svg.text(12, 20, "Memory", weight="bold"), svg.polyline(points, stroke=svg.BLUE)]
    svg.document(body, width=640, height=220, label="Memory over time")

Lengths are pixels, and `y` grows downwards as in SVG itself. Text is escaped here, never by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax import saxutils

# Okabe and Ito's palette, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/), the
# orange and the purple darkened so that they can also be read as text on white.
BLUE = "#0072b2"
ORANGE = "#b85000"
PURPLE = "#8a3d76"
INK = "#222222"
GREY = "#5a5a5a"
GRID = "#e3e3e3"
BAND = "#eff4f9"

FONT = "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
LETTER_WIDTH = 0.56  # of the font size: a sans-serif font's mean, to judge whether a text will fit


@dataclass(frozen=True)
class Frame:
    """A plotting area: its edges in pixels, and the data values at its right and top; the others are 0."""

    left: float
    top: float
    right: float
    bottom: float
    x_top: float
    y_top: float

    def x(self, value: float) -> float:
        return self.left + (self.right - self.left) * value / self.x_top

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - self.top) * value / self.y_top

    def x_axis(self) -> list[str]:
        """Vertical grid lines, each with its value below."""
        body = []
        for value in ticks(self.x_top):
            x = self.x(value)
            body.append(line(x, self.top, x, self.bottom, stroke=GRID))
            body.append(text(x, self.bottom + 14, f"{value:g}", size=10, anchor="middle", fill=GREY))
        return body

    def y_axis(self) -> list[str]:
        """Horizontal grid lines, each with its value to the left."""
        body = []
        for value in ticks(self.y_top):
            y = self.y(value)
            body.append(line(self.left, y, self.right, y, stroke=GRID))
            body.append(text(self.left - 6, y + 3.5, f"{value:g}", size=10, anchor="end", fill=GREY))
        return body


def document(body: Iterable[str], *, width: int, height: int, label: str) -> str:
    """The whole SVG: `body` on a rounded white card; `label` is what a screen reader says."""
    card = rect(0.5, 0.5, width - 1, height - 1, fill="#fff", stroke="#d0d0d0", rx=6)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label={saxutils.quoteattr(_printable(label))} '
        f'font-family="{FONT}">'
    )
    return "\n".join([opening, card, *body, "</svg>"])


def text(
    x: float,
    y: float,
    content: str,
    *,
    size: float = 11,
    anchor: str = "start",
    weight: str = "normal",
    fill: str = INK,
    halo: bool = False,
) -> str:
    """Text with its baseline at `y`; `anchor` is start, middle or end; a white `halo` lifts it off a line."""
    outline = ' stroke="#fff" stroke-width="3" stroke-linejoin="round" paint-order="stroke"' if halo else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{fill}"{outline}>{saxutils.escape(_printable(content))}</text>'
    )


def line(x1: float, y1: float, x2: float, y2: float, *, stroke: str, width: float = 1, dash: str = "") -> str:
    return polyline([(x1, y1), (x2, y2)], stroke=stroke, width=width, dash=dash)


def polyline(points: Iterable[tuple[float, float]], *, stroke: str, width: float = 2, dash: str = "") -> str:
    """A line through `points`; `dash` is SVG's stroke-dasharray, such as "6 4"."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{width:g}"{dashes}/>'


def rect(
    x: float, y: float, width: float, height: float, *, fill: str, stroke: str = "none", rx: float = 0
) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{rx:g}" '
        f'fill="{fill}" stroke="{stroke}"/>'
    )


def ticks(top: float, *, at_most: int = 6) -> list[float]:
    """At most `at_most` round values from 0 to `top` (> 0), a step of 1, 2 or 5 x a power of ten apart."""
    power = 10 ** math.floor(math.log10(top))
    step = next(factor * power for factor in (0.1, 0.2, 0.5, 1, 2, 5) if top / (factor * power) < at_most)
    return [round(step * index, 10) for index in range(int(top / step) + 1)]


def spread(positions: Sequence[float], *, gap: float, limit: float) -> list[float]:
    """`positions`, in their order, moved apart to at least `gap`, none beyond `limit`.

    Labels at the ends of lines would overprint each other where the lines end close together.
    """
    placed = list(positions)
    order = sorted(range(len(placed)), key=placed.__getitem__)
    for before, index in pairwise(order):
        placed[index] = max(placed[index], placed[before] + gap)
    for index in reversed(order):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def fit(content: str, width: float, *, size: float = 11) -> str:
    """`content`, cut with an ellipsis where wider than `width` pixels, or nothing if hardly a letter fits."""
    letters = int(width / (size * LETTER_WIDTH))
    if len(content) <= letters:
        return content
    return content[: letters - 1].rstrip() + "…" if letters > 3 else ""


def _printable(content: str) -> str:
    # XML forbids control characters in any form, and one of them would cost the reader the whole chart.
    return "".join(character if character.isprintable() else " " for character in content)
