"""The forecast's charts as SVG text: one mode over time, the peaks of all modes, and all modes over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from helpers.charts import svg
from helpers.charts.bar_charts import Bar, bars
from helpers.charts.timelines import Series, thin, timeline
from helpers.forecast.stage import Stage, bands, joined

WEIGHTS_FILL = "#f3c9a5"
PANEL_HEIGHT = 72  # pixels


def over_time(title: str, stages: Sequence[Stage], *, facts: str, gpu_name: str, gpu_gib: float) -> str:
    """One mode's weights, and weights and activations, in GiB over the seconds of its stages.

    If the seconds are unknown, a panel without a time axis takes the chart's place, with the GPU's memory as budget.
    """
    peak = max(stage.peak_gib for stage in stages)
    if stages[0].seconds is None:
        label = f"{title}: forecast for {gpu_name}. {facts}"
        return panels(f"{title}: {gpu_name}", {"one step": stages}, budget_gib=gpu_gib, label=label)
    points = joined(stages)
    weights = [(time, held) for time, held, _ in points]
    return timeline(
        title,
        [
            Series("weights", weights, svg.ORANGE, 1.8, "7 3"),
            Series("all", [(time, both) for time, _, both in points]),
        ],
        state=f"forecast, {gpu_name}",
        facts=facts,
        bands=bands(stages),
        limits=[("card", gpu_gib)] if gpu_gib < 3 * peak else [],
    )


def peaks(
    title: str,
    rows: Sequence[tuple[str, float | None, Sequence[str], bool]],
    *,
    what: str,
    budget_gib: float,
    label: str,
) -> str:
    """A bar per mode.

    Args:
        rows: (mode, peak VRAM in GiB, cells for VRAM, RAM and seconds, whether it fits the budget); the peak is `None`
            for a mode that cannot work.
        what: The quantity, below the title.
        label: For screen readers.
    """
    drawn = [
        Bar(mode, 0.0 if peak is None else peak, cells, hollow=peak is not None and not fits)
        for mode, peak, cells, fits in rows
    ]
    return bars(title, drawn, what=what, columns=["VRAM", "RAM", "s/step"], budget=budget_gib, label=label)


def panels(
    title: str,
    modes: Mapping[str, Sequence[Stage]],
    *,
    failing: Sequence[str] = (),
    budget_gib: float,
    label: str,
) -> str:
    """A panel per mode over the same GiB: weights as an area, weights and activations as a line.

    Args:
        modes: Successive stages by the panel's name.
        failing: Modes without a panel, named below the title.
        budget_gib: A dashed line.
        label: For screen readers.
    """
    curves = {
        mode: thin([(time, both, weights) for time, weights, both in joined(stages)]) for mode, stages in modes.items()
    }
    peak = {mode: max(stage.peak_gib for stage in stages) for mode, stages in modes.items()}
    fails = "".join(f"; {mode} fails" for mode in failing)
    legend = f"GiB: shaded weights, line with activations, dashed the budget{fails}"
    body = [
        svg.text(14, 22, svg.fit(title, 612, size=13), size=13, weight="bold"),
        svg.text(14, 39, legend, fill=svg.GREY),
    ]
    top = 56
    for mode, curve in curves.items():
        frame = svg.Frame(
            126, top, 626, top + PANEL_HEIGHT, x_top=curve[-1][0], y_top=1.08 * max(budget_gib, *peak.values())
        )
        body += _panel(frame, curve, budget_gib)
        body.append(svg.text(14, top + 28, svg.fit(mode, 108, size=12), size=12, weight="bold"))
        body.append(svg.text(14, top + 44, f"peak {peak[mode]:.1f} GiB", size=10))
        top += PANEL_HEIGHT + 10
    for name, start, width in bands(modes[mode]):  # below the last panel
        left, right = frame.x(start), frame.x(start + width)
        name = svg.fit(name, right - left, size=9)
        body.append(svg.text((left + right) / 2, frame.bottom + 14, name, size=9, anchor="middle", fill=svg.GREY))
    return svg.document(body, width=640, height=int(frame.bottom) + 26, label=label)


def _panel(frame: svg.Frame, curve: Sequence[tuple[float, float, float]], budget_gib: float) -> list[str]:
    """The grid, the area, the line and the budget; `curve` has (time, weights and activations, weights)."""
    edge = [(frame.x(time), frame.y(weights)) for time, _, weights in curve]
    area = [(frame.left, frame.bottom), *edge, (frame.right, frame.bottom)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in area)
    y = frame.y(budget_gib)
    return [
        *frame.y_axis(),
        f'<polygon points="{path}" fill="{WEIGHTS_FILL}"/>',
        svg.polyline([(frame.x(time), frame.y(both)) for time, both, _ in curve], stroke=svg.BLUE),
        svg.line(frame.left, y, frame.right, y, stroke=svg.INK, width=1.2, dash="10 4"),
    ]
