"""The chart of memory over time that the meter and the forecasts share.

    timeline("model offload", [Series("allocated", [(0.0, 0.1), (1.0, 1.6)])], limits=[("budget", 12.0)])

Measured and forecast charts are drawn alike, so that you can lay them side by side. Colour is never the only
distinction: lines differ in dash and width, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from helpers.charts import svg

LIMIT_STYLES = {"budget": (svg.INK, "10 4"), "card": (svg.INK, "10 4"), "forecast": (svg.PURPLE, "2 4 8 4")}
MOST_POINTS = 200  # per line of a timeline; more are indistinguishable at its width


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
        series: the lines, each with at least one point; the last is the main one, whose peak is marked.
        state: a few words for the upper right corner.
        facts: one line below the title.
        bands: named spans of time as (name, start, seconds), shaded in turn.
        limits: horizontal dashed lines as (name, GiB), with names from `LIMIT_STYLES`.
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

    labels = []  # (y, text, colour) of the label at the right end of each line
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


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS` of `points`: the highest of each run of neighbours, so that no peak is lost."""
    stride = math.ceil(len(points) / MOST_POINTS)
    runs = (points[start : start + stride] for start in range(0, len(points), stride))
    return [max(run, key=lambda point: point[1]) for run in runs]
