"""Choose an offload mode for a GPU, and find how many frames and pixels fit in each mode.

    plan("wan22_i2v_a14b", vram_budget_gb=12, width=1280, height=720, num_frames=81)
    plan("ltx_video", width=768, height=512, num_frames=121, steps=8, guidance=False, minutes=5)  # and in five minutes
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from helpers.charts.table import ShownAsTable, Table
from helpers.forecast.forecasting import forecasts
from helpers.forecast.gpus import DEFAULT_GPU, GPU
from helpers.forecast.pipelines import stages
from helpers.forecast.pipelines.base import Request, RequestError
from helpers.forecast.recording.recorder import architecture
from helpers.forecast.result import CONTEXT_GIB, RAM_MARGIN, Forecast, Forecasts
from helpers.models.architecture import Architecture
from helpers.models.catalogue import MODELS

SLICES = (None, 8192, 4096, 2048, 1024)  # tokens at a time, the fastest first
MOST_FRAMES = 257  # the search for the largest number of frames ends here: more than ten seconds
MOST_WIDTH = 1920  # and the search for the largest size here
SAME_SHAPE = 0.07  # sizes whose aspect ratio differs by less count as the same shape

Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class Way:
    """What makes a model fit where no mode does by itself: a forecast, and the options of `forecasts` to switch on."""

    forecast: Forecast
    options: dict[str, object]

    @property
    def how(self) -> str:
        """A lesson's parameters for it, as its command line takes them."""
        own = {"offload": self.forecast.offload} | self.options
        return "in a lesson: " + " ".join(f"-p {name} {value}" for name, value in own.items())

    @property
    def text(self) -> str:
        """The options in words: "slice_tokens=4096, encode=layer_by_layer"."""
        return ", ".join(name if value is True else f"{name}={value}" for name, value in self.options.items())


def find_way(
    checkpoint: str | Path, *, vram_budget_gb: float | None, ram_budget_gb: float | None = None, **options
) -> Way | None:
    """The fastest way to fit the budgets with slices and with less RAM, or `None`; the plain modes are not tried.

    `options` are those of `forecasts`, the size among them. What lowers RAM is tried in the order of `ram_savings`.
    """
    arch = architecture(checkpoint, options.get("quantization"), options.get("dtype"))
    savings = [{}] if ram_budget_gb is None else ram_savings(arch)
    chunks: list[dict[str, object]] = [{}]
    if arch.family == "StableVideoDiffusion" and "decode_chunk_size" not in options:
        chunks += [{"decode_chunk_size": frames} for frames in (4, 2, 1)]
    given = options.get("slice_tokens")
    for slice_tokens in SLICES if given is None else (given,):
        sliced = {} if slice_tokens is None else {"slice_tokens": slice_tokens}
        for chunk, saving in itertools.product(chunks, savings):
            switched = sliced | chunk | saving
            every = forecasts(checkpoint, **(options | switched)) if switched else Forecasts({})
            if "one_expert_at_a_time" in saving:  # lessons hold one expert in the group modes only
                every = Forecasts({mode: one for mode, one in every.items() if mode.startswith("group")})
            if (best := every.fastest(vram_budget_gb, ram_budget_gb)) is not None:
                return Way(best, switched)
    return None


def ram_savings(arch: Architecture) -> list[dict[str, object]]:
    """What lowers RAM for this model: nothing, and then one option more each time."""
    steps = [{"encode": "layer_by_layer"}] if arch.text_encoder else []
    steps += [{"one_expert_at_a_time": True}] if len(arch.denoisers) > 1 else []
    return list(itertools.accumulate([*steps, {"low_cpu_mem_usage": True}], operator.or_, initial={}))


@dataclass(frozen=True, repr=False)
class Plan(ShownAsTable):
    """The fastest mode within the budgets, and how far each mode goes.

    Attributes:
        best: The fastest forecast that fits both budgets, or `None` if none does.
        all: The forecasts of all modes.
        most_frames: The largest number of frames at this size that fits, by mode, or `None`.
        largest_size: The largest (width, height) of this shape that fits at this number of frames, by mode, or `None`.
        reasons: Why each mode fits or not, a sentence each.
        way: What makes it fit if no mode does by itself, or `None`.
    """

    best: Forecast | None
    all: Forecasts
    most_frames: dict[str, int | None]
    largest_size: dict[str, tuple[int, int] | None]
    reasons: dict[str, str]
    way: Way | None = None

    def table(self) -> Table:
        """One row per mode; the columns of frames and sizes only if there is something in them."""
        columns = ["offload", "", "why", "most frames", "largest size"]
        rows = []
        for mode, reason in self.reasons.items():
            chosen = "use this" if self.best is not None and self.best.offload == mode else ""
            frames, size = self.most_frames[mode], self.largest_size[mode]
            longest = "" if frames is None else _at_least(frames, MOST_FRAMES)
            rows.append([mode, chosen, reason, longest, "" if size is None else "{}x{}".format(*size)])
        if self.way is not None:
            need = f"{self.way.forecast.peak_vram_gib:.1f} GiB of VRAM, {self.way.forecast.peak_ram_gib:.1f} of RAM"
            rows.append([self.way.forecast.offload, "use this", f"fits with {self.way.text}: {need}", "", ""])
        if not any(row[3] or row[4] for row in rows):  # not searched for, or nothing fits
            columns, rows = columns[:3], [row[:3] for row in rows]
        return Table("Plan", columns, rows)


def plan(
    checkpoint: str | Path,
    *,
    vram_budget_gb: float = 12.0,
    ram_budget_gb: float | None = None,
    gpu: str | GPU = DEFAULT_GPU,
    width: int,
    height: int,
    num_frames: int,
    grow: bool = True,
    minutes: float | None = None,
    steps: int | None = None,
    **options,
) -> Plan:
    """Find the fastest mode that fits the budgets, or with slices if none does by itself, and how far each mode goes:
    the largest number of frames and the largest size.

    If the GPU's rates are unknown, the modes' usual order of speed decides (`helpers.forecast.result.FASTEST_FIRST`).

    Args:
        vram_budget_gb, ram_budget_gb: GiB to stay within; `None` for no limit of RAM.
        gpu: For the estimated seconds.
        grow: Whether to search for the largest number of frames and size, which takes some more forecasts.
        minutes: Minutes per clip to stay within, `None` for no limit.
        steps: Denoising steps; by default those of the model.
        options: More options of `helpers.forecast.forecasts`. `quantization` is by default that of the file that the
            lesson downloads.

    Raises: as `helpers.forecast.forecasts`, and a RequestError if minutes are limited, but cannot be estimated.
    """

    if str(checkpoint) in MODELS:
        steps = steps or MODELS[checkpoint].defaults["pretrained"].steps
        options.setdefault("quantization", MODELS[checkpoint].quantization)

    def forecasts_at(width: int, height: int, frames: int) -> Forecasts:
        return forecasts(checkpoint, width=width, height=height, num_frames=frames, gpu=gpu, **options)

    requested = forecasts_at(width, height, num_frames)
    if minutes is not None and (steps is None or requested.first.step_seconds is None):
        raise RequestError("minutes cannot be estimated: give a GPU of the table, and the number of steps.")
    best = fastest = requested.fastest(vram_budget_gb, ram_budget_gb)
    reasons = {mode: _reason(one, vram_budget_gb, ram_budget_gb) for mode, one in requested.items()}
    if minutes is not None:
        for mode, one in requested.items():
            if one.fits(vram_budget_gb, ram_budget_gb):
                reasons[mode] += f"; {one.minutes(steps):.1f} minutes with {steps} steps"
        if fastest is not None and fastest.minutes(steps) > minutes:  # and so are all slower modes
            best = None
    frames, sizes = dict.fromkeys(requested), dict.fromkeys(requested)
    if grow:
        arch = architecture(checkpoint, options.get("quantization"), options.get("dtype"))
        rules = stages(arch, Request(width, height, num_frames))
        lengths = range(1, max(MOST_FRAMES, num_frames) + 1, rules.frames_multiple or 1)
        shapes = _shapes(width, height, rules.size_multiple)
        for mode, one in requested.items():
            if one.fails:
                continue

            def excess(result: Forecasts, mode: str = mode) -> float:
                over = [result[mode].needs_vram_gib - vram_budget_gb]
                over += [] if ram_budget_gb is None else [result[mode].needs_ram_gib - ram_budget_gb]
                over += [] if minutes is None else [result[mode].minutes(steps) - minutes]
                return max(over)

            frames[mode] = _last_that_fits(
                lengths, num_frames, lambda length: excess(forecasts_at(width, height, length))
            )
            if rules.fixed_size is None:
                sizes[mode] = _last_that_fits(
                    shapes, (width, height), lambda shape: excess(forecasts_at(*shape, num_frames))
                )
    wanted = dict(options, width=width, height=height, num_frames=num_frames, gpu=gpu)
    budgets = {"vram_budget_gb": vram_budget_gb, "ram_budget_gb": ram_budget_gb}
    way = find_way(checkpoint, **budgets, **wanted) if fastest is None else None
    if way is not None and minutes is not None and way.forecast.minutes(steps) > minutes:
        way = None
    return Plan(best, requested, frames, sizes, reasons, way)


def _reason(one: Forecast, vram_gib: float, ram_gib: float | None) -> str:
    if one.fails:
        return f"fails: {one.fails}"
    peak = one.peak_stage
    need = (
        f"{one.peak_vram_gib:.1f} GiB at {one.request.num_frames} frames: {peak.weights_gib:.1f} of weights, "
        f"{peak.activations_gib:.1f} of activations"
    )
    if not one.fits(vram_gib):
        return f"not enough VRAM: needs {need}, and {CONTEXT_GIB:g} for the CUDA context"
    if not one.fits(vram_gib, ram_gib):
        more = f"and {100 * (RAM_MARGIN - 1):.0f} % more to be safe"
        return f"not enough RAM: needs {one.peak_ram_gib:.1f} GiB ({one.peak_ram_moment}), {more}; VRAM {need}"
    if one.slowdown is None:
        return f"fits: {need}; step time unknown"
    return f"fits: {need}; {one.slowdown:.2f} times the step time with all weights on the GPU"


def _shapes(width: int, height: int, multiple: int) -> list[tuple[int, int]]:
    """Sizes of about the same shape, each side a multiple of `multiple` pixels, by their area."""
    found = set()
    for w in range(multiple, max(MOST_WIDTH, width) + 1, multiple):
        h = multiple * round(w * height / width / multiple)
        if h and abs(h * width / (w * height) - 1) < SAME_SHAPE:
            found.add((w, h))
    return sorted(found | {(width, height)}, key=lambda shape: shape[0] * shape[1])


def _last_that_fits(
    candidates: Sequence[Candidate], first_guess: Candidate, excess: Callable[[Candidate], float]
) -> Candidate | None:
    """The last of `candidates` that fits, where all before it do, or `None`.

    `excess` is how far a candidate's forecast exceeds its budget. It grows almost linearly with frames and pixels, so a
    straight line through known values finds the place in two or three forecasts, each of which can take seconds.
    """
    known: dict[int, float] = {}
    low, high = -1, len(candidates)  # the last that fits, and the first that does not
    trial = candidates.index(first_guess)
    while high - low > 1:
        known[trial] = excess(candidates[trial])
        if known[trial] <= 0:
            low = max(low, trial)
        else:
            high = min(high, trial)
        if len(known) == 1:
            trial = trial // 2 if known[trial] > 0 else min(2 * trial + 1, len(candidates) - 1)
            trial = min(max(trial, low + 1), high - 1)
            continue
        (x0, y0), (x1, y1) = sorted(sorted(known.items(), key=lambda point: abs(point[1]))[:2])
        guess = x1 if y1 == y0 else x0 - y0 * (x1 - x0) / (y1 - y0)
        trial = min(max(int(guess), low + 1), high - 1)
    return candidates[low] if low >= 0 else None


def _at_least(value: int, most: int) -> str:
    return f"{value} or more" if value + 8 > most else str(value)
