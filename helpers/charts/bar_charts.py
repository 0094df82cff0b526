"""Horizontal bars with figures beside them.

    bars("Modes", [Bar("none", 14.2, ["14.20"])], what="peak, GiB", columns=["GiB"], label="none 14.2")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helpers.charts import svg
from helpers.charts.timelines import LIMIT_STYLES


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its value, the figures written beside it, and a value to mark on it (a forecast).

    A hollow bar marks a run that failed or does not fit: its value is not a result.
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
