"""The result of a forecast: one offload mode in detail, or several modes side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from helpers.charts.table import MISSING, Picture, ShownAsTable, Table
from helpers.forecast import drawing
from helpers.forecast.gpus import GPU, UNKNOWN_RATES
from helpers.forecast.pipelines.base import Request
from helpers.forecast.stage import STAGES, Stage, joined

RAM_MARGIN = 1.1  # measured RAM was up to 10 % above its forecast (data/measurements/ram_h100.json)
CONTEXT_GIB = 0.5  # the CUDA context and the driver: GPU memory that PyTorch did not allocate, but that is not free
# The order of speed if the GPU's rates are unknown: a mode copies more, or waits more often, than those before it.
FASTEST_FIRST = ("none", "model", "group_block", "group_leaf", "sequential")
VERBS = {"encode_image": "encoding the image", "denoise": "denoising", "decode": "decoding"}


@dataclass(frozen=True, repr=False)
class Forecast:
    """What one offload mode needs.

    Attributes:
        model: The model's title, or the folder's name.
        checkpoint: The model or folder as given.
        quantization: GGUF type of the denoisers' matrices, or `None`.
        stages: `Stage` by name: encode_image, denoise (one step, guidance included), decode.
        ram: RAM of the process at each moment by name, in GiB.
        moved_gib: Weights copied to the GPU in one denoising step, GiB.
        tflops: 10^12 floating-point operations in one step.
        step_seconds, resident_step_seconds: Estimates with this mode's copies, and with all weights on the GPU; `None`
            if the GPU's rates are unknown.
        fails: Why this mode cannot work at all, or "".
        left_out: What the forecast does not cover, one sentence each.
        swap_seconds: Estimated seconds to swap two experts on the GPU, once per clip; 0 if there is nothing to swap.
    """

    model: str
    checkpoint: str
    offload: str
    request: Request
    gpu: GPU
    quantization: str | None
    stages: Mapping[str, Stage]
    ram: Mapping[str, float]
    moved_gib: float
    tflops: float
    step_seconds: float | None
    resident_step_seconds: float | None
    fails: str = ""
    left_out: tuple[str, ...] = ()
    swap_seconds: float = 0.0

    @property
    def name(self) -> str:
        """The model's title, with the type of its weights if they are quantized."""
        return f"{self.model} in {self.quantization}" if self.quantization else self.model

    @property
    def peak_vram_gib(self) -> float:
        """The highest peak of all stages."""
        return max(stage.peak_gib for stage in self.stages.values())

    @property
    def needs_vram_gib(self) -> float:
        """The highest peak, and the CUDA context."""
        return self.peak_vram_gib + CONTEXT_GIB

    @property
    def needs_ram_gib(self) -> float:
        """The highest RAM, and a margin."""
        return RAM_MARGIN * self.peak_ram_gib

    @property
    def denoising_peak_gib(self) -> float:
        """The highest peak before decoding: of encoding the image and of denoising."""
        return max(self.stages[name].peak_gib for name in ("encode_image", "denoise"))

    @property
    def peak_stage(self) -> Stage:
        return max(self.stages.values(), key=lambda stage: stage.peak_gib)

    @property
    def peak_ram_gib(self) -> float:
        return max(self.ram.values())

    @property
    def peak_ram_moment(self) -> str:
        """When RAM is at its peak: "load", for example."""
        return max(self.ram, key=lambda moment: self.ram[moment])

    @property
    def slowdown(self) -> float | None:
        """Step time over the step time with all weights on the GPU; `None` if the GPU's rates are unknown."""
        return None if self.step_seconds is None else self.step_seconds / self.resident_step_seconds

    def minutes(self, steps: int) -> float | None:
        """Minutes for a clip: encoding the image, `steps` denoising steps, swapping experts, and decoding.

        Encoding the prompt, loading and downloading are not included. `None` if the GPU's rates are unknown.
        """
        if self.step_seconds is None:
            return None
        others = sum(stage.seconds for name, stage in self.stages.items() if name != "denoise")
        return (others + steps * self.step_seconds + self.swap_seconds) / 60

    def fits(self, vram_budget_gb: float | None = None, ram_budget_gb: float | None = None) -> bool:
        """Whether the mode works and stays within the budgets in GiB.

        Of VRAM it is the peak that PyTorch *allocates*, and `CONTEXT_GIB` for the CUDA context. What PyTorch reserves
        beyond that are gaps of its allocator, which it gives up when memory is short: lessons that reserved 9.9 GiB of
        12 allocated 8.2. Of RAM it is the forecast and 10 % more (`RAM_MARGIN`).
        """
        return (
            not self.fails
            and (vram_budget_gb is None or self.needs_vram_gib <= vram_budget_gb)
            and (ram_budget_gb is None or self.needs_ram_gib <= ram_budget_gb)
        )

    def timeline(self) -> list[tuple[float, float, float]]:
        """(time, weights, weights and activations) through all stages, with one denoising step; GiB.

        Time is in seconds, or if the GPU's rates are unknown, each stage is 1 wide and its operations evenly spaced.
        """
        return joined(self.stages.values())

    def __repr__(self) -> str:
        if self.fails:
            return f"{self.name}, {self.offload}: does not work: {self.fails}"
        peak, copied = self.peak_stage, f"{self.moved_gib:.2f} GiB of weights to the GPU"
        lines = [
            f"{self._title}: forecast for {self.gpu.name}",
            f"  peak VRAM {self.peak_vram_gib:.2f} GiB while {VERBS[peak.name]}: {peak.weights_gib:.2f} weights + "
            f"{peak.activations_gib:.2f} activations ({peak.operation} in {peak.module or 'the pipeline'})",
            *(
                f"  {STAGES[one.name]:<18}{one.peak_gib:7.2f} GiB  {_about(one.seconds)}"
                for one in self.stages.values()
            ),
            f"  peak RAM {self.peak_ram_gib:.1f} GiB ({self.peak_ram_moment})",
            f"  a step: {self.tflops:,.0f} TFLOP and {copied}, {_about(self.step_seconds)}"
            + ("" if self.slowdown is None else f" (all weights on the GPU: {self.resident_step_seconds:.3g} s)"),
        ]
        if self.step_seconds is None:
            lines.append(f"  {UNKNOWN_RATES}")
        return "\n".join([*lines, *(f"  not counted: {note}" for note in self.left_out)])

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        if self.fails:
            return {"text/plain": repr(self)}
        peak = self.peak_stage
        facts = f"peak: {peak.weights_gib:.2f} GiB of weights + {peak.activations_gib:.2f} of activations"
        chart = drawing.over_time(
            self._title,
            list(self.stages.values()),
            facts=f"{facts} · RAM {self.peak_ram_gib:.1f} GiB",
            gpu_name=self.gpu.name,
            gpu_gib=self.gpu.vram_gib,
        )
        return {"text/plain": repr(self), "image/svg+xml": chart}

    @property
    def _title(self) -> str:
        return f"{self.name}, {self.offload}, {self.request.size_text}"


class Forecasts(ShownAsTable, Mapping):
    """Forecasts of one model and size by offload mode. They show themselves as a table; `chart` draws the peaks."""

    def __init__(self, by_mode: Mapping[str, Forecast]) -> None:
        self._by_mode = dict(by_mode)

    def __getitem__(self, offload: str) -> Forecast:
        return self._by_mode[offload]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_mode)

    def __len__(self) -> int:
        return len(self._by_mode)

    @property
    def first(self) -> Forecast:
        return next(iter(self.values()))

    def fastest(self, vram_budget_gb: float | None = None, ram_budget_gb: float | None = None) -> Forecast | None:
        """The fastest mode that fits the budgets in GiB, or `None`.

        Of modes within 1 %, it is one that copies nothing during a step, and else the one that needs least VRAM.
        """
        fitting = [one for one in self.values() if one.fits(vram_budget_gb, ram_budget_gb)]
        if not fitting or self.first.step_seconds is None:
            return min(fitting, key=lambda one: FASTEST_FIRST.index(one.offload), default=None)

        def order(one: Forecast) -> tuple:
            copies = one.offload not in ("none", "model")
            return round(one.slowdown, 2), copies, one.peak_vram_gib if copies else FASTEST_FIRST.index(one.offload)

        return min(fitting, key=order)

    def lighter(self, offload: str, vram_budget_gb: float | None = None) -> list[str]:
        """The modes to try if `offload` runs out of memory: those that need less VRAM and fit, fastest first.

        If none fits, all that need less, the lightest first. Empty if no mode needs less.
        """
        most = self[offload].peak_vram_gib
        less = {mode: one for mode, one in self.items() if not one.fails and one.peak_vram_gib < most}
        fitting = [mode for mode, one in less.items() if one.fits(vram_budget_gb)]
        if not fitting:
            return sorted(less, key=lambda mode: less[mode].peak_vram_gib)
        if self.first.step_seconds is None:
            return sorted(fitting, key=FASTEST_FIRST.index)
        return sorted(fitting, key=lambda mode: less[mode].step_seconds)

    def advice(self, offload: str, vram_budget_gb: float | None = None) -> str:
        """What to do if `offload` runs out of memory, and whether the forecast expected it, in a sentence or two."""
        one = self[offload]
        budget = "" if vram_budget_gb is None else f", and the budget is {vram_budget_gb:g} GiB"
        text = f"The forecast for offload={offload!r} is {one.peak_vram_gib:.2f} GiB{budget}"
        if vram_budget_gb is not None and one.fits(vram_budget_gb):
            text += ", so it should have fit: check what else is using the GPU"
        if not (modes := self.lighter(offload, vram_budget_gb)):
            return f"{text}. No other mode needs less: use fewer frames or a smaller size."
        return f"{text}. Next mode to try: {modes[0]!r}, forecast {self[modes[0]].peak_vram_gib:.2f} GiB."

    def table(self) -> Table:
        """One row per mode: peaks in GiB by stage, RAM in GiB, a step's seconds, and those relative to the baseline's.

        The baseline is the mode "none": all weights on the GPU.
        """
        rows = []
        for mode, one in self.items():
            if one.fails:
                rows.append((mode, "fails", *[""] * 6))
                continue
            peaks = [f"{peak:.2f}" for peak in (one.peak_vram_gib, *(one.stages[name].peak_gib for name in STAGES))]
            slowdown = MISSING if one.slowdown is None else f"{one.slowdown:.2f}"
            rows.append((mode, *peaks, f"{one.peak_ram_gib:.1f}", _seconds(one.step_seconds), slowdown))
        columns = ("offload", "peak VRAM, GiB", "encode image", "denoise", "decode", "RAM, GiB", "s/step", "x baseline")
        return Table(f"{self._title} for {self.first.gpu.name}", columns, rows)

    def __repr__(self) -> str:
        notes = {f"{mode} fails: {one.fails}" for mode, one in self.items() if one.fails}
        notes |= {f"not counted: {note}" for one in self.values() for note in one.left_out}
        if self.first.step_seconds is None:
            notes.add(f"not counted: step time, because {UNKNOWN_RATES}")
        return "\n".join([repr(self.table()), *sorted(notes)])

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {**super()._repr_mimebundle_(), "text/plain": repr(self)}

    def chart(self, vram_budget_gb: float = 12.0, note: str = "") -> Picture:
        """Bars of peak VRAM against the budget, with RAM and seconds per step beside them.

        `note` is written below the title in place of the bars' explanation.
        """
        rows = [
            (mode, None, ["fails", "", ""], False)
            if one.fails
            else (
                mode,
                one.peak_vram_gib,
                [f"{one.peak_vram_gib:.2f}", f"{one.peak_ram_gib:.1f}", _seconds(one.step_seconds)],
                one.fits(vram_budget_gb),
            )
            for mode, one in self.items()
        ]
        times = "step time unknown for" if self.first.step_seconds is None else "seconds on"
        legend = f"(hollow: too much for {vram_budget_gb:g}); {times} {self.first.gpu.name}"
        what = f"peak VRAM, GiB; {note}" if note else f"peak VRAM, GiB {legend}"
        svg = drawing.peaks(self._title, rows, what=what, budget_gib=vram_budget_gb, label=repr(self))
        return Picture(svg, repr(self))

    def timelines(self, vram_budget_gb: float = 12.0) -> Picture:
        """One panel per mode with the same axes: weights as an area, weights and activations as a line."""
        working = {mode: list(one.stages.values()) for mode, one in self.items() if not one.fails}
        failing = [mode for mode in self if mode not in working]
        svg = drawing.panels(self._title, working, failing=failing, budget_gib=vram_budget_gb, label=repr(self))
        return Picture(svg, repr(self))

    def as_json(self) -> dict:
        """What `--json` prints: peaks in GiB, `None` for unknown seconds. A mode that cannot work has only `fails`."""
        one = self.first
        return {
            "model": one.checkpoint,
            "width": one.request.width,
            "height": one.request.height,
            "num_frames": one.request.num_frames,
            "gpu": one.gpu.name,
            "quantization": one.quantization,
            "modes": {mode: _as_json(each) for mode, each in self.items()},
        }

    @property
    def _title(self) -> str:
        return f"{self.first.name}, {self.first.request.size_text}: forecast"


def _as_json(one: Forecast) -> dict:
    if one.fails:
        return {"fails": one.fails}
    return {
        "peak_vram_gib": one.peak_vram_gib,
        "peak_ram_gib": one.peak_ram_gib,
        "step_seconds": one.step_seconds,
        "resident_step_seconds": one.resident_step_seconds,
        "moved_gib": one.moved_gib,
        "stages": {name: stage.peak_gib for name, stage in one.stages.items()},
        "ram": dict(one.ram),
        "left_out": list(one.left_out),
    }


def _seconds(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"


def _about(seconds: float | None) -> str:
    return "seconds unknown" if seconds is None else f"about {seconds:.3g} s"
