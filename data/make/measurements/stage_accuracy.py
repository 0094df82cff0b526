"""How accurate the forecasts are: measured stages beside today's forecasts, as text and as a chart."""

from pathlib import Path

from helpers.charts import svg
from helpers.forecast import GPU, STAGES, Placement, forecasts
from helpers.models import Architecture


def compare(row: dict, configs: Path, gpu: GPU) -> dict:
    """Add the forecast of the same run, and its errors, to a measured row.

    `step_seconds` was measured between the ends of the two steps. If a model has two experts, each makes one of the
    steps, so the second step includes swapping them in model offload. The forecast does so as well.

    Args:
        row: From `stage_runs`.
        configs: The folder of the models' configs.
        gpu: The GPU that the row was measured on.
    """
    one = forecasts(
        configs / row["model"], width=row["width"], height=row["height"], num_frames=row["num_frames"], gpu=gpu,
        modes=(row["offload"],), offload_vae=row.get("offload_vae", False),  # early rows kept it
        tiling=True, decode_alone=False,  # the pipelines decode with their other components in place
    )[row["offload"]]  # fmt: skip
    if "failed" in row or one.fails:
        return row | {"forecast_fails": one.fails}
    expected = {name: stage.peak_gib for name, stage in one.stages.items()}
    missed = {name: expected[name] - peak for name, peak in row["peaks"].items() if peak is not None}
    arch = Architecture(configs / row["model"])
    placement = Placement({name: arch.component(name) for name in arch.on_gpu}, row["offload"])
    return row | {
        "forecast_peaks": expected, "missed_gib": missed, "forecast_ram_gib": one.peak_ram_gib,
        "forecast_step_seconds": one.step_seconds + placement.swap_seconds(one.gpu.rates),
    }  # fmt: skip


def peak_misses(row: dict) -> dict[str, str]:
    """A line for each stage of the row whose forecast is neither within 5 % nor within 0.15 GiB, by stage."""
    forecast, measured = row.get("forecast_peaks", {}), row.get("peaks", {})
    return {
        stage: f"{_run(row)} {stage}: forecast {forecast[stage]:.2f}, measured {measured[stage]:.2f} GiB"
        for stage, miss in row.get("missed_gib", {}).items()
        if abs(miss) > max(0.15, 0.05 * measured[stage])
    }


def step_miss(row: dict) -> str:
    """A line about the row's denoising step if its forecast is not within 25 %, else ""."""
    expected = row.get("forecast_step_seconds")
    if expected is None or abs(expected / row["step_seconds"] - 1) <= 0.25:
        return ""
    return f"{_run(row)} step: forecast {expected:.2f}, measured {row['step_seconds']:.2f} s"


def _run(row: dict) -> str:
    return f"{row['model']} {row['width']}x{row['height']}x{row['num_frames']} {row['offload']}"


def table(rows: list[dict]) -> str:
    """The rows as text: forecast / measured GiB of each stage and seconds of a step."""
    lines = [f"{'forecast / measured':<42}" + "".join(f"{stage + ', GiB':>20}" for stage in STAGES) + "      step, s"]
    for row in rows:
        if "missed_gib" not in row:
            lines.append(f"{_run(row):<42}  {'fails, as forecast' if row['forecast_fails'] else 'failed'}")
            continue
        peaks = [f"{row['forecast_peaks'][stage]:.2f} / {row['peaks'][stage]:.2f}" for stage in row["missed_gib"]]
        step = f"{row['forecast_step_seconds']:.2f} / {row['step_seconds']:.2f}"
        lines.append(f"{_run(row):<42}" + "".join(f"{peak:>20}" for peak in peaks) + f"{step:>13}")
    return "\n".join(lines)


def summary(rows: list[dict]) -> str:
    """How many stages are within 5 % or 0.15 GiB and how many steps within 25 %, and a line for each that is not."""
    count = sum(len(row.get("missed_gib", ())) for row in rows)
    timed = sum("forecast_step_seconds" in row for row in rows)
    peaks = [text for row in rows for text in peak_misses(row).values()]
    steps = list(filter(None, map(step_miss, rows)))
    near = (
        f"{count - len(peaks)} of {count} stages within 5 % or 0.15 GiB; "
        f"{timed - len(steps)} of {timed} steps within 25 %"
    )
    return "\n".join([near, *peaks, *steps])


SHAPES = {  # outline and colour of the points
    "encode_image": ("M-4,0 4,0 M0,-4 0,4", svg.ORANGE),
    "denoise": ("M-3.5,-3.5 h7 v7 h-7 z", svg.BLUE),
    "decode": ("M0,-5 5,4 -5,4 z", svg.PURPLE),
    "step": ("M-4,-4 4,4 M-4,4 4,-4", svg.BLUE),
}


def chart(rows: list[dict], gpu: str) -> str:
    """An SVG of the forecasts against the measured values. Points on the diagonal are accurate forecasts."""
    rows = [row for row in rows if "missed_gib" in row]
    peaks = [(row["peaks"][stage], row["forecast_peaks"][stage], stage) for row in rows for stage in row["missed_gib"]]
    steps = [(row["step_seconds"], row["forecast_step_seconds"], "step") for row in rows]
    body = [
        svg.text(14, 22, f"Forecast against measured, on {gpu}", size=13, weight="bold"),
        *_panel(14, "peak allocated of each stage, GiB; dashed: 5 %", peaks, 0.05),
        *_panel(514, "seconds of a step; dashed: 25 %", steps, 0.25),
    ]
    for index, (stage, name) in enumerate(STAGES.items()):
        y = 428 + 16 * index
        body += [_point(348, y - 4, stage), svg.text(360, y, name)]
    return svg.document(body, width=996, height=524, label=summary(rows))


def _panel(left: float, title: str, points: list[tuple[float, float, str]], share: float) -> list[str]:
    """Points (measured, forecast, shape) around the diagonal, with lines `share` above and below it."""
    top = 1.05 * max((max(one[:2]) for one in points), default=1.0)
    frame = svg.Frame(left + 42, 60, left + 462, 480, x_top=top, y_top=top)
    body = [
        svg.text(left, 40, title, fill=svg.GREY), *frame.x_axis(), *frame.y_axis(),
        svg.text(frame.right, frame.bottom + 30, "measured", anchor="end", fill=svg.GREY),
        svg.text(frame.left + 4, frame.top - 4, "forecast", fill=svg.GREY),
    ]  # fmt: skip
    for slope, dash in ((1.0, ""), (1 - share, "4 4"), (1 + share, "4 4")):
        end = min(top, top / slope)
        line = (frame.left, frame.bottom, frame.x(end), frame.y(end * slope))
        body.append(svg.line(*line, stroke=svg.GREY if dash else svg.INK, dash=dash))
    return body + [_point(frame.x(measured), frame.y(forecast), shape) for measured, forecast, shape in points]


def _point(x: float, y: float, shape: str) -> str:
    outline, colour = SHAPES[shape]
    at = f'transform="translate({x:.1f},{y:.1f})"'
    return f'<path d="{outline}" {at} fill="none" stroke="{colour}" stroke-width="1.6"/>'
