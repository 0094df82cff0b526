"""Sliders and pickers for the forecast, in JupyterLab and Colab, with a chart that follows them.

    Controls("wan22_i2v_a14b", vram_budget_gb=12).show()
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.charts import svg
from helpers.charts.table import Picture
from helpers.forecast.forecasting import forecasts
from helpers.forecast.gpus import DEFAULT_GPU, GPUS
from helpers.forecast.planning.planner import SLICES
from helpers.forecast.result import Forecast
from helpers.models.catalogue import MODELS, OFFLOAD_MODES
from helpers.units import duration

SIZES = ((512, 320), (640, 384), (768, 512), (832, 480), (1024, 576), (1280, 704), (1280, 720))
VRAM_GIB = (4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 80)
RAM_GIB = (12, 16, 24, 32, 48, 64, 96, 128, 192)
ALL_MODES = "all modes"


class Controls:
    """Sliders and pickers for the forecast, and a chart that follows them.

    The chart is an output separate from the widgets, so that it stays in the saved notebook, which the widgets do not.

    Args:
        model_name: A name in `helpers.models.MODELS`.
        vram_budget_gb, ram_budget_gb: First values of the budgets' sliders, in GiB.
        delay: Seconds to wait for the next change before the chart is redrawn, so that a slider dragged over many
            values costs one forecast; 0 redraws at once.
    """

    def __init__(
        self, model_name: str, vram_budget_gb: float = 12.0, ram_budget_gb: float = 64.0, delay: float = 0.3
    ) -> None:
        import ipywidgets as widgets

        wide = widgets.Layout(width="30em")
        style = {"description_width": "7em"}
        pick = functools.partial(widgets.Dropdown, layout=wide, style=style)
        slide = functools.partial(widgets.SelectionSlider, layout=wide, style=style, continuous_update=False)
        models = [(one.title, one.name) for one in MODELS.values()]
        self.model = pick(options=models, value=model_name, description="model")
        self.size = pick(options=[""], description="size")
        self.frames = slide(options=[1], description="frames")
        self.mode = pick(options=[ALL_MODES, *OFFLOAD_MODES], description="offload")
        self.slices = pick(options=[("off", 0), *((f"{n:,} tokens", n) for n in SLICES if n)], description="slices")
        self.gpu = pick(options=list(GPUS), value=DEFAULT_GPU, description="GPU")
        vram, ram = sorted({*VRAM_GIB, vram_budget_gb}), sorted({*RAM_GIB, ram_budget_gb})
        self.vram = slide(options=vram, value=vram_budget_gb, description="VRAM, GiB")
        self.ram = slide(options=ram, value=ram_budget_gb, description="RAM, GiB")
        self.status = widgets.Label()
        self._delay, self._timer, self._drawing = delay, None, threading.Lock()
        self._handle = None
        self._offer_sizes()
        self.model.observe(self._offer_sizes, "value")
        self.pickers = (
            self.model, self.size, self.frames, self.mode, self.slices, self.gpu, self.vram, self.ram
        )  # fmt: skip
        for one in self.pickers:
            one.observe(self._redraw, "value")
        pickers = widgets.HBox([widgets.VBox(self.pickers[:5]), widgets.VBox(self.pickers[5:])])
        self.box = widgets.VBox([pickers, self.status])  # the status is longer than one column

    def show(self) -> None:
        """Show the controls, and the chart below them."""
        from IPython.display import display

        display(self.box)
        self._handle = display(self.chart(), display_id=True)

    def chart(self) -> Picture | Forecast:
        """The current request: all modes against the budget, or one mode over time; or the error's text."""
        width, height = self.size.value
        try:
            every = forecasts(
                self.model.value, width=width, height=height, num_frames=self.frames.value, gpu=self.gpu.value,
                quantization=MODELS[self.model.value].quantization, slice_tokens=self.slices.value or None,
            )  # fmt: skip
        except ValueError as error:
            self.status.value = "not possible"
            return Picture(svg.document([], width=10, height=10, label=str(error)), str(error))
        budgets = f"{self.vram.value:g} GiB of VRAM, {self.ram.value:g} of RAM"
        best = every.fastest(self.vram.value, self.ram.value)
        note = f"use {best.offload}, the fastest in {budgets}" if best else f"nothing fits {budgets}"
        if best:
            note += self._minutes(best)
        if self.mode.value == ALL_MODES:
            self.status.value = note
            return every.chart(self.vram.value, note=note)
        picked = every[self.mode.value]
        if picked is not best:
            fits = "fits, too" if picked.fits(self.vram.value, self.ram.value) else "does not fit"
            note += f"; {picked.offload} {fits}{self._minutes(picked)}"
        self.status.value = note
        return picked

    def _minutes(self, one: Forecast) -> str:
        """How long a clip takes in this mode, in parentheses, or "" if it is unknown."""
        minutes = None if one.fails else one.minutes(MODELS[self.model.value].defaults["pretrained"].steps)
        return "" if minutes is None else f" ({duration(60 * minutes)} per clip)"

    def _offer_sizes(self, change: object = None) -> None:
        entry = MODELS[self.model.value]
        sizes = sorted({entry.nearest_size(*size) for size in SIZES})
        default = entry.defaults["pretrained"]
        with self._chart_held():
            self.size.options = [(f"{width} x {height}", (width, height)) for width, height in sizes]
            self.size.value = (default.width, default.height)
            lengths = [default.num_frames] if entry.fixed_frames else range(5, 242)
            self.frames.options = sorted({entry.nearest_frames(length) for length in lengths})
            self.frames.value = default.num_frames

    @contextmanager
    def _chart_held(self) -> Iterator[None]:
        """Change several controls without redrawing the chart."""
        handle, self._handle = self._handle, None
        try:
            yield
        finally:
            self._handle = handle

    def _redraw(self, change: object) -> None:
        if self._handle is None:
            return
        self.status.value = "computing …"
        if self._timer is not None:
            self._timer.cancel()
        if self._delay:
            self._timer = threading.Timer(self._delay, self._update)
            self._timer.daemon = True
            self._timer.start()
        else:
            self._update()

    def _update(self) -> None:
        with self._drawing:  # a chart that takes long is finished before the next one begins
            self._handle.update(self.chart())
