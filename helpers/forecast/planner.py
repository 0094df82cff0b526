"""Which offload mode to take for a card, and how far the video can grow in each.

    plan("wan22_i2v_a14b", vram_budget_gb=12, width=1280, height=720, num_frames=81)

`controls()` puts the forecasts behind sliders and pickers, in JupyterLab and Colab.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers import svg
from helpers.architecture import Architecture
from helpers.cards import CARDS, DEFAULT_CARD, Card
from helpers.charts import Picture, Table
from helpers.checks import OFFLOAD_MODES
from helpers.forecast import forecasts
from helpers.forecast_result import CONTEXT_GIB, Forecast, Forecasts
from helpers.models import MODELS
from helpers.stages import Request, stages

MOST_FRAMES = 257  # the search for the largest number of frames ends here: more than ten seconds
MOST_WIDTH = 1920  # and that for the largest size here


@dataclass(frozen=True, repr=False)
class Plan:
    """The fastest mode within the budgets, and how far each mode goes.

    Attributes:
        best: The fastest forecast that fits both budgets, or `None` if none does.
        all: The forecasts of all modes.
        most_frames: The largest number of frames at this size that fits, by mode, or `None`.
        largest_size: The largest (width, height) of this shape that fits at this number of frames, by mode, or `None`.
        reasons: A sentence for each mode.
    """

    best: Forecast | None
    all: Forecasts
    most_frames: dict[str, int | None]
    largest_size: dict[str, tuple[int, int] | None]
    reasons: dict[str, str]

    def _table(self) -> Table:
        columns = ["offload", "", "why", "most frames", "largest size"]
        rows = []
        for mode, reason in self.reasons.items():
            size = self.largest_size[mode]
            frames = self.most_frames[mode]
            chosen = "take this" if self.best is not None and self.best.offload == mode else ""
            longest = "" if frames is None else _at_least(frames, MOST_FRAMES)
            rows.append([mode, chosen, reason, longest, "" if size is None else "{}x{}".format(*size)])
        if not any(row[3] or row[4] for row in rows):  # not searched for, or nothing fits
            columns, rows = columns[:3], [row[:3] for row in rows]
        return Table("Plan", columns, rows)

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return self._table()._repr_mimebundle_()


def plan(
    checkpoint: str | Path,
    *,
    vram_budget_gb: float = 12.0,
    ram_budget_gb: float | None = None,
    card: str | Card = DEFAULT_CARD,
    width: int,
    height: int,
    num_frames: int,
    grow: bool = True,
    **options,
) -> Plan:
    """The fastest mode that fits both budgets, and the largest number of frames and size that fit in each mode.

    Args:
        vram_budget_gb, ram_budget_gb: GiB to stay within; `None` for no limit of RAM.
        card: For the estimated seconds.
        grow: Whether to search for the largest number of frames and size, which takes some forecasts more.
        options: More options of `helpers.forecast.forecasts`.

    Raises: as `helpers.forecast.forecasts`.
    """

    def at(width: int, height: int, frames: int) -> Forecasts:
        return forecasts(checkpoint, width=width, height=height, num_frames=frames, card=card, **options)

    asked = at(width, height, num_frames)
    fitting = [one for one in asked.values() if one.fits(vram_budget_gb, ram_budget_gb)]
    best = _fastest(fitting)
    reasons = {mode: _reason(one, vram_budget_gb, ram_budget_gb) for mode, one in asked.items()}
    frames, sizes = dict.fromkeys(asked), dict.fromkeys(asked)
    if grow:
        steps = stages(Architecture(checkpoint), Request(width, height, num_frames))
        step = steps.frames_multiple or 1
        lengths = range(1, max(MOST_FRAMES, num_frames) + 1, step)
        shapes = _shapes(width, height, steps.size_multiple)
        for mode, one in asked.items():
            if one.fails:
                continue

            def excess(result: Forecasts, mode: str = mode) -> float:
                over = result[mode].peak_vram_gib + CONTEXT_GIB - vram_budget_gb
                return over if ram_budget_gb is None else max(over, result[mode].peak_ram_gib - ram_budget_gb)

            frames[mode] = _last(lengths, num_frames, lambda length: at(width, height, length), excess)
            if _free_size(steps):
                sizes[mode] = _last(shapes, (width, height), lambda shape: at(*shape, num_frames), excess)
    return Plan(best, asked, frames, sizes, reasons)


def _reason(one: Forecast, vram: float, ram: float | None) -> str:
    if one.fails:
        return f"fails: {one.fails}"
    peak = one.peak_stage
    need = (
        f"{one.peak_vram_gib:.1f} GiB at {one.request.num_frames} frames: {peak.weights_gib:.1f} of weights, "
        f"{peak.activations_gib:.1f} of activations"
    )
    speed = f"{one.step_seconds / one.resident_step_seconds:.2f} of the fastest step"
    if not one.fits(vram):
        return f"too much for the card: {need}, and {CONTEXT_GIB:g} for the CUDA context"
    if not one.fits(vram, ram):
        return f"too much RAM: {one.peak_ram_gib:.1f} GiB ({max(one.ram, key=one.ram.get)}); {need}"
    return f"fits: {need}; {speed}"


def _free_size(steps) -> bool:
    config = steps.denoiser.config
    return not getattr(config, "use_learned_positional_embeddings", False)


def _shapes(width: int, height: int, multiple: int) -> list[tuple[int, int]]:
    """Sizes of about the same shape, each side a multiple of `multiple` pixels, by their area."""
    found = set()
    for w in range(multiple, max(MOST_WIDTH, width) + 1, multiple):
        h = multiple * round(w * height / width / multiple)
        if h and abs(h * width / (w * height) - 1) < 0.07:
            found.add((w, h))
    return sorted(found | {(width, height)}, key=lambda shape: shape[0] * shape[1])


def _last(candidates: Sequence, asked: object, at: Callable, excess: Callable[[Forecasts], float]):
    """The last of `candidates` that fits, where all before it do, or `None`.

    `excess` is how far a forecast lies above its budget. It grows almost evenly with frames and pixels, so a straight
    line through what is known leads to the place in two or three forecasts, each of which can take seconds.
    """
    known: dict[int, float] = {}
    low, high = -1, len(candidates)  # the last that fits, and the first that does not
    trial = candidates.index(asked)
    while high - low > 1:
        known[trial] = excess(at(candidates[trial]))
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


SIZES = ((512, 320), (640, 384), (768, 512), (832, 480), (1024, 576), (1280, 704), (1280, 720))


class Controls:
    """Sliders and pickers for the forecast, and the chart that follows them.

    The chart is an output of its own, so that it stays in the saved notebook, where widgets do not.

    Args:
        model_name: A name in `helpers.models.MODELS`.
        vram_budget_gb, ram_budget_gb: Where the budgets' sliders begin.
    """

    def __init__(self, model_name: str, vram_budget_gb: float = 12.0, ram_budget_gb: float = 64.0) -> None:
        import ipywidgets as widgets

        wide = widgets.Layout(width="30em")
        style = {"description_width": "7em"}
        pick = functools.partial(widgets.Dropdown, layout=wide, style=style)
        slide = functools.partial(widgets.SelectionSlider, layout=wide, style=style, continuous_update=False)
        models = [(one.title, one.name) for one in MODELS.values()]
        self.model = pick(options=models, value=model_name, description="model")
        self.size = pick(options=[""], description="size")
        self.frames = slide(options=[1], description="frames")
        self.mode = pick(options=["all modes", *OFFLOAD_MODES], description="offload")
        self.card = pick(options=list(CARDS), value=DEFAULT_CARD, description="card")
        vram = sorted({4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 80, vram_budget_gb})
        ram = sorted({12, 16, 24, 32, 48, 64, 96, 128, 192, ram_budget_gb})
        self.vram = slide(options=vram, value=vram_budget_gb, description="VRAM, GiB")
        self.ram = slide(options=ram, value=ram_budget_gb, description="RAM, GiB")
        self.status = widgets.Label()
        self._handle = None
        self._offer_sizes()
        self.model.observe(self._offer_sizes, "value")
        self.pickers = (self.model, self.size, self.frames, self.mode, self.card, self.vram, self.ram)
        for one in self.pickers:
            one.observe(self._redraw, "value")
        columns = widgets.HBox([widgets.VBox(self.pickers[:4]), widgets.VBox(self.pickers[4:])])
        self.box = widgets.VBox([columns, self.status])  # below both, for it is longer than one

    def show(self) -> None:
        """Show the controls, and the chart below them."""
        from IPython.display import display

        display(self.box)
        self._handle = display(self.chart(), display_id=True)

    def chart(self) -> object:
        """What the controls ask for now: all modes against the budget, or one mode over time; or the error's text."""
        width, height = self.size.value
        modes = OFFLOAD_MODES if self.mode.value == "all modes" else (self.mode.value,)
        try:
            result = forecasts(
                self.model.value, width=width, height=height, num_frames=self.frames.value,
                card=self.card.value, modes=modes,
            )  # fmt: skip
        except ValueError as error:
            self.status.value = "not possible"
            return Picture(svg.document([], width=10, height=10, label=str(error)), str(error))
        fitting = [one for one in result.values() if one.fits(self.vram.value, self.ram.value)]
        best = _fastest(fitting)
        budgets = f"{self.vram.value:g} GiB of VRAM and {self.ram.value:g} of RAM"
        fits = f"take {best.offload}: the fastest step that fits {budgets}" if best else f"nothing fits {budgets}"
        self.status.value = fits
        return result.chart(self.vram.value, note=fits) if len(modes) > 1 else result[modes[0]]

    def _offer_sizes(self, change: object = None) -> None:
        entry = MODELS[self.model.value]
        sizes = sorted({entry.nearest_size(*size) for size in SIZES})
        default = entry.defaults["pretrained"]
        with self.box_held():
            self.size.options = [(f"{width} x {height}", (width, height)) for width, height in sizes]
            self.size.value = (default.width, default.height)
            lengths = [default.num_frames] if entry.fixed_frames else range(5, 242, 1)
            self.frames.options = sorted({entry.nearest_frames(length) for length in lengths})
            self.frames.value = default.num_frames

    @contextmanager
    def box_held(self) -> Iterator[None]:
        """Change several controls at once, and draw once, at the end."""
        handle, self._handle = self._handle, None
        try:
            yield
        finally:
            self._handle = handle

    def _redraw(self, change: object) -> None:
        if self._handle is not None:
            self.status.value = "computing …"
            self._handle.update(self.chart())


def _fastest(fitting: Sequence[Forecast]) -> Forecast | None:
    """The fastest step; of equals the one with the simpler mode, which comes first in the list."""
    return min(fitting, key=lambda one: round(one.step_seconds / one.resident_step_seconds, 2), default=None)
