"""The two kinds of chart and the table that the lessons show: memory over time, bars, rows and columns.

    timeline("model offload", [Series("allocated", [(0.0, 0.1), (1.0, 1.6)])], limits=[("budget", 12.0)])
    bars("Modes", [Bar("none", 14.2, ["14.20"])], what="peak, GiB", columns=["GiB"], label="none 14.2")

`VRAMMeter`, the forecasts and the comparison of runs all draw with these, so that a measured and a forecast
chart can be laid side by side. Nothing is told apart by colour alone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from helpers import svg

LIMIT_STYLES = {"budget": (svg.INK, "10 4"), "card": (svg.INK, "10 4"), "forecast": (svg.PURPLE, "2 4 8 4")}
MOST_POINTS = 200  # per line of a timeline; more could not be told apart at its width


@dataclass(frozen=True)
class Picture:
    """A finished chart that shows itself in a notebook; `text` says the same where no picture is shown."""

    svg: str
    text: str

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": self.text}


@dataclass(frozen=True)
class Table:
    """A table that shows itself in a notebook, as HTML and as text; the first column names its row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self._html(), "text/plain": repr(self)}

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (self.columns, *self.rows)
        ]
        return "\n".join([self.caption, *lines])

    def _html(self) -> str:
        # Without a style of its own a notebook sets all columns flush right, which is for figures only.
        columns = zip(self.columns, *self.rows, strict=True)
        styles = [' style="text-align: left"' if _of_words(cells) else "" for _, *cells in columns]
        head = "".join(
            f'<th scope="col"{style}>{html.escape(name)}</th>'
            for name, style in zip(self.columns, styles, strict=True)
        )
        body = ""
        for first, *others in self.rows:
            cells = "".join(
                f"<td{style}>{html.escape(cell)}</td>" for cell, style in zip(others, styles[1:], strict=True)
            )
            body += f'<tr><th scope="row"{styles[0]}>{html.escape(first)}</th>{cells}</tr>\n'
        caption = f"<caption>{html.escape(self.caption)}</caption>"
        return f"<table>\n{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"


def _of_words(cells: Sequence[str]) -> bool:
    """Whether most of a column's cells begin with no figure; a dash stands for a missing one."""
    filled = [cell for cell in cells if cell]
    return sum(cell[0] not in "0123456789.+-–<>" for cell in filled) > len(filled) / 2


@dataclass(frozen=True)
class Series:
    """One line of a timeline: its label, its points as (seconds, GiB), and how it is drawn."""

    label: str
    points: Sequence[tuple[float, float]]
    stroke: str = svg.BLUE
    width: float = 2.2
    dash: str = ""


def timeline(
    title: str,
    series: Sequence[Series],
    *,
    state: str = "",
    facts: str = "",
    bands: Sequence[tuple[str, float, float]] = (),
    limits: Sequence[tuple[str, float]] = (),
) -> str:
    """Memory in GiB over time in seconds, 640 x 220 pixels.

    Args:
        series: the lines, each of at least one point; the last is the main one, whose peak is marked.
        state: a few words for the upper right corner.
        facts: one line below the title.
        bands: named spans of time as (name, start, seconds), shaded in turn.
        limits: horizontal dashed lines as (name, GiB), the names out of `LIMIT_STYLES`.
    """
    duration = max(*(seconds for one in series for seconds, _ in one.points), 0.1)
    highest = max(*(gib for one in series for _, gib in one.points), *(gib for _, gib in limits), 0.01)
    frame = svg.Frame(46, 64, 520, 192, x_top=duration, y_top=1.12 * highest)
    body = [
        svg.text(14, 22, svg.fit(title, 390, size=13), size=13, weight="bold"),
        svg.text(626, 22, state, anchor="end", fill=svg.GREY),
        svg.text(14, 40, svg.fit(facts, 612, size=10.5), size=10.5, fill=svg.GREY),
        svg.text(14, 58, "GiB", size=10, fill=svg.GREY),
        svg.text(frame.right + 8, frame.bottom + 14, "seconds", size=10, fill=svg.GREY),
    ]
    for index, (name, start, seconds) in enumerate(bands):
        left, right = frame.x(start), frame.x(min(start + seconds, duration))
        if index % 2 == 0:
            body.append(svg.rect(left, 49, right - left, frame.bottom - 49, fill=svg.BAND))
        label = svg.fit(name, right - left - 4, size=10)
        body.append(svg.text((left + right) / 2, 59, label, size=10, anchor="middle", fill=svg.GREY))
    body += frame.x_axis() + frame.y_axis()

    labels = []  # (y, text, colour) of what stands at the right end of each line
    for name, gib in limits:
        stroke, dash = LIMIT_STYLES[name]
        y = frame.y(gib)
        body.append(svg.line(frame.left, y, frame.right, y, stroke=stroke, width=1.4, dash=dash))
        labels.append((y, f"{name} {gib:.2f}", stroke))
    for one in series:
        points = [(frame.x(seconds), frame.y(gib)) for seconds, gib in thin(one.points)]
        body.append(svg.polyline(points, stroke=one.stroke, width=one.width, dash=one.dash))
        labels.append((points[-1][1], f"{one.label} {one.points[-1][1]:.2f}", one.stroke))
    places = svg.spread([y for y, _, _ in labels], gap=13, limit=frame.bottom)
    for y, (_, label, colour) in zip(places, labels, strict=True):
        body.append(svg.text(frame.right + 8, y + 3.5, label, fill=colour))

    seconds, gib = max(series[-1].points, key=lambda point: point[1])
    x, y, stroke = frame.x(seconds), frame.y(gib), series[-1].stroke
    anchor = "start" if x < frame.left + 50 else "end" if x > frame.right - 50 else "middle"
    body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{stroke}" stroke="#fff"/>')
    peak = f"peak {gib:.2f} GiB"
    body.append(svg.text(x, y - 7, peak, anchor=anchor, weight="bold", fill=stroke, halo=True))
    return svg.document(body, width=640, height=220, label=f"{title}: {state}. {facts}")


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its value, the figures written beside it, and a value to mark on it (a forecast).

    A hollow bar says that the value is only how far a failed run came.
    """

    name: str
    value: float
    cells: Sequence[str]
    mark: float | None = None
    hollow: bool = False


def bars(
    title: str,
    bars: Sequence[Bar],
    *,
    what: str,
    columns: Sequence[str],
    budget: float | None = None,
    label: str,
) -> str:
    """Horizontal bars, 640 pixels wide, with up to three `columns` of figures beside them.

    `what` names the bars' quantity and unit; `budget` is drawn as a vertical dashed line; `label` is what a
    screen reader says.
    """
    edges = (464, 532, 626)  # the right edge of each column
    marks = [bar.mark for bar in bars if bar.mark is not None]
    highest = max(*(bar.value for bar in bars), *marks, budget or 0.0, 0.01)
    frame = svg.Frame(126, 70, 404, 74 + 28 * len(bars), x_top=1.08 * highest, y_top=1)
    body = [
        svg.text(14, 22, svg.fit(title, 600, size=13), size=13, weight="bold"),
        svg.text(14, 40, svg.fit(what, 600), fill=svg.GREY),
        *frame.x_axis(),
    ]
    for name, x in zip(columns, edges, strict=False):
        body.append(svg.text(x, 60, name, size=10, anchor="end", fill=svg.GREY))
    for index, bar in enumerate(bars):
        y = frame.top + 5 + 28 * index
        length, fill = frame.x(bar.value) - frame.left, "#fff" if bar.hollow else svg.BLUE
        body.append(svg.text(frame.left - 8, y + 14, svg.fit(bar.name, 108), anchor="end"))
        body.append(svg.rect(frame.left, y, length, 18, fill=fill, stroke=svg.BLUE, rx=2))
        if bar.mark is not None:
            x = frame.x(bar.mark)
            diamond = f"M{x - 6:.1f},{y + 9} l6,-6 l6,6 l-6,6 z"
            body.append(f'<path d="{diamond}" fill="#fff" stroke="{svg.PURPLE}" stroke-width="2"/>')
        for cell, x in zip(bar.cells, edges, strict=False):
            body.append(svg.text(x, y + 14, cell, anchor="end"))
    if budget is not None:
        x, (stroke, dash) = frame.x(budget), LIMIT_STYLES["budget"]
        body.append(svg.line(x, frame.top - 4, x, frame.bottom, stroke=stroke, width=1.4, dash=dash))
        body.append(svg.text(x, 60, f"budget {budget:g}", size=10, anchor="middle"))
    return svg.document(body, width=640, height=int(frame.bottom) + 26, label=label)


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` of `points`: of each run of neighbours the highest, so that peaks are kept."""
    stride = math.ceil(len(points) / MOST_POINTS)
    runs = (points[start : start + stride] for start in range(0, len(points), stride))
    return [max(run, key=lambda point: point[1]) for run in runs]
