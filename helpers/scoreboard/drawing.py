"""The charts of lesson 06: modes of many models side by side, peak against time, forecast against measured.

    rows = of_the_table(measured())
    grouped_bars("Peaks", by_set_up(rows, "peak_gib"), what="GiB", limit=12)
    trade_off(rows, limit=12)
    against(rows)

Each chart shows itself as SVG and describes itself as text. Colour is never the only distinction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from helpers.charts import svg
from helpers.charts.table import Picture, Table
from helpers.models.catalogue import OFFLOAD_MODES
from helpers.scoreboard.rows import Row

SHAPES = {  # the outline of each mode's mark, and its colour
    "none": ("M-4,-4 h8 v8 h-8 z", svg.INK),
    "model": ("M-5,0 a5,5 0 1,0 10,0 a5,5 0 1,0 -10,0", svg.BLUE),
    "sequential": ("M0,-5.5 5,4 -5,4 z", svg.ORANGE),
    "group_block": ("M-4.5,-4.5 4.5,4.5 M-4.5,4.5 4.5,-4.5", svg.PURPLE),
    "group_leaf": ("M0,-6 6,0 0,6 -6,0 z", svg.PURPLE),
}
LANE = 15  # pixels of a thin bar and its gap


def grouped_bars(
    title: str,
    groups: Mapping[str, Mapping[str, float | str]],
    *,
    what: str,
    limit: float | None = None,
    limit_name: str = "limit",
    doubling: bool = False,
) -> Picture:
    """Thin horizontal bars: a group per set-up, a bar per mode, and a word where a figure is missing.

    Args:
        what: The quantity and its unit.
        limit: Drawn as a dashed line; bars that exceed it are hollow.
        doubling: Whether the axis is logarithmic: it begins at 1, and each grid line is twice the one before.
    """

    def place(value: float) -> float:
        return math.log2(max(value, 1.0)) if doubling else value

    numbers = [value for modes in groups.values() for value in modes.values() if not isinstance(value, str)]
    top = 1.12 * max(place(max([*numbers, limit or 0.0])), 0.5)
    height = sum(LANE * len(modes) + 24 for modes in groups.values())
    frame = svg.Frame(104, 56, 600, 60 + height, x_top=top, y_top=1)
    body = [svg.text(14, 22, svg.fit(title, 612, size=13), size=13, weight="bold")]
    body.append(svg.text(14, 40, svg.fit(what, 612), fill=svg.GREY))
    for tick in range(int(top) + 1) if doubling else svg.ticks(top):
        x, name = frame.x(tick), f"{2**tick if doubling else tick:g}"
        body.append(svg.line(x, frame.top, x, frame.bottom, stroke=svg.GRID))
        body.append(svg.text(x, frame.bottom + 14, name, size=10, anchor="middle", fill=svg.GREY))
    y, ends = frame.top + 2.0, []
    for group, modes in groups.items():
        body.append(svg.text(14, y + 13, group, weight="bold", halo=True))
        y += 18
        for mode, value in modes.items():
            body.append(svg.text(frame.left - 8, y + 10, mode, size=10, anchor="end"))
            missing = isinstance(value, str)
            if not missing:
                over = limit is not None and value > limit
                width = max(frame.x(place(value)) - frame.left, 1.5)
                body.append(svg.rect(frame.left, y + 1, width, 10, fill="#fff" if over else svg.BLUE, stroke=svg.BLUE))
            end = frame.left if missing else frame.x(place(value))
            ends.append(svg.text(end + 5, y + 10, value if missing else f"{value:.2f}", size=10, halo=True))
            y += LANE
        y += 6
    if limit is not None:
        x = frame.x(place(limit))
        body.append(svg.line(x, frame.top - 2, x, frame.bottom, stroke=svg.INK, width=1.4, dash="10 4"))
        body.append(svg.text(x, frame.top - 5, f"{limit_name} {limit:g}", size=10, anchor="middle", halo=True))
    modes = list(dict.fromkeys(mode for one in groups.values() for mode in one))
    rows = [[group, *(_said(one.get(mode)) for mode in modes)] for group, one in groups.items()]
    text = repr(Table(f"{title}: {what}", ["set-up", *modes], rows))
    return Picture(svg.document([*body, *ends], width=640, height=int(frame.bottom) + 26, label=text), text)


def _said(value: float | str | None) -> str:
    return value if isinstance(value, str) else "" if value is None else f"{value:.2f}"


def trade_off(rows: Sequence[Row], limit: float, title: str = "Peak against time") -> Picture:
    """Peak VRAM in GiB over minutes per clip, one mark per mode; a line joins the modes of a set-up."""
    shown = [row for row in rows if row.peak_gib is not None and row.clip_minutes and not row.failed]
    low = math.floor(math.log10(min((row.clip_minutes for row in shown), default=1.0)))
    high = math.log10(1.6 * max((row.clip_minutes for row in shown), default=10.0))
    top = 1.12 * max([limit, *(row.peak_gib for row in shown)])
    frame = svg.Frame(46, 60, 620, 380, x_top=high - low, y_top=top)
    what = "peak VRAM in GiB over minutes to denoise a clip; lower left is better"
    body = [svg.text(14, 22, title, size=13, weight="bold"), svg.text(14, 40, what, fill=svg.GREY), *frame.y_axis()]
    for decade in range(low, math.ceil(high)):
        for minutes in (factor * 10.0**decade for factor in (1, 2, 5)):
            if (x := frame.x(math.log10(minutes) - low)) <= frame.right:
                body.append(svg.line(x, frame.top, x, frame.bottom, stroke=svg.GRID))
                body.append(svg.text(x, frame.bottom + 14, f"{minutes:g}", size=10, anchor="middle", fill=svg.GREY))
    y = frame.y(limit)
    body.append(svg.line(frame.left, y, frame.right, y, stroke=svg.INK, width=1.4, dash="10 4"))
    body.append(svg.text(frame.right, y - 5, f"budget {limit:g}", size=10, anchor="end", halo=True))
    marks, places, labels = [], [], []
    for set_up in dict.fromkeys(row.set_up for row in shown):
        own = [row for row in shown if row.set_up == set_up]
        points = [(frame.x(math.log10(row.clip_minutes) - low), frame.y(row.peak_gib)) for row in own]
        body.append(svg.polyline(sorted(points), stroke="#b8b8b8", width=1))
        marks += [mark(x, y, row.offload) for (x, y), row in zip(points, own, strict=True)]
        places += points
        labels.append((*min(points, key=lambda point: point[1]), set_up))
    body += [*_labels(labels, places, frame), *marks, *legend(60, 412)]
    text = _as_text(title, shown)
    return Picture(svg.document(body, width=640, height=428, label=text), text)


def _labels(
    labels: Sequence[tuple[float, float, str]], marks: Sequence[tuple[float, float]], frame: svg.Frame
) -> list[str]:
    """Labels above their points, moved up where they would overlap a mark or another label."""
    placed = [(x - 7, x + 7, y + 4) for x, y in marks]  # left, right, and the baseline of a label there
    body = []
    for x, y, text in sorted(labels):
        width = 10 * svg.LETTER_WIDTH * len(text)
        left = min(max(x - width / 2, frame.left), frame.right - width)
        y -= 9
        while any(abs(y - other) < 11 and left < end and start < left + width for start, end, other in placed):
            y -= 3
        placed.append((left, left + width, y))
        body.append(svg.text(left, y, text, size=10, halo=True))
    return body


def against(rows: Sequence[Row], title: str = "Forecast against measured") -> Picture:
    """The forecast peak of each run over the measured one; on the diagonal they agree."""
    shown = [row for row in rows if row.missed is not None]
    top = 1.08 * max((max(row.peak_gib, row.forecast_gib) for row in shown), default=1.0)
    frame = svg.Frame(46, 60, 446, 460, x_top=top, y_top=top)
    body = [
        svg.text(14, 22, title, size=13, weight="bold"),
        svg.text(14, 40, "peak VRAM of a whole run, GiB; dashed: 5 %", fill=svg.GREY),
        *frame.x_axis(), *frame.y_axis(),
        svg.text(frame.right, frame.bottom + 28, "measured", anchor="end", fill=svg.GREY),
        svg.text(frame.left + 4, frame.top + 12, "forecast", fill=svg.GREY),
    ]  # fmt: skip
    for slope, dash in ((1.0, ""), (0.95, "4 4"), (1.05, "4 4")):
        end = min(top, top / slope)
        points = [(frame.left, frame.bottom), (frame.x(end), frame.y(end * slope))]
        body.append(svg.polyline(points, stroke=svg.GREY if dash else svg.INK, width=1, dash=dash))
    body += [mark(frame.x(row.peak_gib), frame.y(row.forecast_gib), row.offload) for row in shown]
    missed = [row for row in shown if row.missed]
    for row in missed:
        x, y = frame.x(row.peak_gib), frame.y(row.forecast_gib)
        body.append(svg.text(x + 9, y + 12, f"{row.set_up}, {row.offload}", size=10, halo=True))
    for number, line in enumerate(OFFLOAD_MODES):
        body += [mark(474, 80 + 20 * number, line), svg.text(486, 84 + 20 * number, line)]
    text = _as_text(f"{title}: {len(shown) - len(missed)} of {len(shown)} within 5 % or 0.15 GiB", shown)
    return Picture(svg.document(body, width=640, height=500, label=text.splitlines()[0]), text)


def mark(x: float, y: float, mode: str) -> str:
    """The mark of a mode, centred at a point."""
    outline, colour = SHAPES[mode]
    at = f'transform="translate({x:.1f},{y:.1f})"'
    return f'<path d="{outline}" {at} fill="#fff" fill-opacity="0.6" stroke="{colour}" stroke-width="1.8"/>'


def legend(left: float, y: float) -> list[str]:
    """The mark of each mode, in one line."""
    body = []
    for number, mode in enumerate(OFFLOAD_MODES):
        x = left + 112 * number
        body += [mark(x, y, mode), svg.text(x + 11, y + 4, mode)]
    return body


def _as_text(title: str, rows: Sequence[Row]) -> str:
    def figure(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    cells = [
        [row.set_up, row.offload, figure(row.peak_gib), figure(row.forecast_gib), figure(row.clip_minutes)]
        for row in rows
    ]
    return repr(Table(title, ["set-up", "mode", "peak VRAM (GiB)", "forecast (GiB)", "min/clip"], cells))
