"""Which layers are on the GPU when, and which one is computing: one panel per offload mode.

    draw_schedules({"model": visits, "sequential": more_visits}, {"text encoder": 16, "transformer": 48, "VAE": 8})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Protocol

from helpers.charts import svg
from helpers.charts.table import Picture

PALE = "#a9cfe8"


class Visit(Protocol):
    """Layers on the GPU together: they arrive from tick `copy` on, compute from `start`, and leave at `end`."""

    copy: int
    start: int
    end: int
    layers: Sequence[int]  # in the order in which they compute; a layer may compute more than once


def draw_schedules(modes: Mapping[str, Sequence[Visit]], components: Mapping[str, int]) -> Picture:
    """A panel per mode: ticks to the right, layers downwards, pale while on the GPU, dark while computing.

    `components` gives each component's number of layers, in order; layer 0 is the first one's first.
    """
    layers, longest = sum(components.values()), max(visits[-1].end for visits in modes.values())
    what = f"{layers} layers down, {longest} ticks right; pale: on the GPU, dark: computing"
    most = {mode: _most_at_once(visits) for mode, visits in modes.items()}
    body = [
        svg.text(14, 22, "What is on the GPU, and when", size=13, weight="bold"),
        svg.text(14, 39, what, fill=svg.GREY),
    ]
    for panel, (mode, visits) in enumerate(modes.items()):
        frame = svg.Frame(204, 52 + 96 * panel, 626, 134 + 96 * panel, x_top=longest, y_top=layers)
        body.append(svg.rect(frame.left, frame.top, 422, 82, fill="#fff", stroke=svg.GRID))
        body += [shape for visit in visits for shape in _visit(visit, frame, layers)]
        for (name, count), end in zip(components.items(), accumulate(components.values()), strict=True):
            y = frame.y(layers - end)
            body.append(svg.text(199, frame.y(layers - end + count / 2) + 3, name, size=9, anchor="end", fill=svg.GREY))
            body.append(svg.line(frame.left, y, frame.right, y, stroke=svg.GRID))
        body.append(svg.text(14, frame.top + 34, mode, size=12, weight="bold"))
        body.append(svg.text(14, frame.top + 51, f"at most {most[mode]} · {visits[-1].end} ticks", size=10))
    text = "\n".join(f"{mode}: at most {count} of {layers} layers on the GPU" for mode, count in most.items())
    return Picture(svg.document(body, width=640, height=64 + 96 * len(modes), label=text), text)


def _visit(visit: Visit, frame: svg.Frame, layers: int) -> list[str]:
    """The pale area of one visit, and a dark line for each run of layers that compute one after another."""
    left, right = frame.x(visit.copy), frame.x(visit.end)
    top, bottom = frame.y(layers - min(visit.layers)), frame.y(layers - 1 - max(visit.layers))
    shapes = [svg.rect(left, top, right - left, bottom - top, fill=PALE)]
    ticks = (visit.end - visit.start) / len(visit.layers)
    first = 0
    for index, layer in enumerate(visit.layers, 1):
        if index == len(visit.layers) or visit.layers[index] != layer + 1:
            begins = (frame.x(visit.start + ticks * first), frame.y(layers - visit.layers[first]))
            ends = (frame.x(visit.start + ticks * index), frame.y(layers - 1 - layer))
            shapes.append(svg.polyline([begins, ends], stroke=svg.INK, width=1.8))
            first = index
    return shapes


def _most_at_once(visits: Sequence[Visit]) -> int:
    spans = [(visit.copy, visit.end, len(set(visit.layers))) for visit in visits]
    return max(sum(count for begin, end, count in spans if begin <= tick < end) for tick in range(visits[-1].end))
