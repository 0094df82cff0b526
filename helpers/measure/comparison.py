"""Offload modes, measured and set side by side.

    run = ModeRun.from_meter("model", meter, latents=latents, baseline=baseline_run.latents)
    comparison = Comparison([baseline_run, run], budget_gb=12)  # shows itself as a table
    comparison.chart(forecasts("ltx_video", ...))               # the same as bars

Memory is in GiB (2**30 bytes), time in seconds. VRAM is None where there was no CUDA device to measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any

import torch

from helpers.charts.bar_charts import Bar, bars
from helpers.charts.table import MISSING, Picture, ShownAsTable, Table, figure
from helpers.measure.meter import VRAMMeter

SAME_LATENTS = 1e-5  # an offload mode only moves weights; this allows for another order of summation


@dataclass(frozen=True)
class ModeRun:
    """One offload mode, measured.

    Attributes:
        offload: The mode.
        peak_allocated_gib, peak_reserved_gib, peak_device_gib, peak_ram_gib: Peaks of what was measured.
        step_seconds: Seconds of one denoising step.
        seconds: Seconds of what was measured.
        stages: Seconds of each phase of the meter's block.
        latents_difference: Largest absolute difference to the baseline run's latents, `None` if not compared.
        failed: What went wrong, `None` if nothing did.
        forecast_gib: The VRAM peak that was forecast.
        latents: The latents, to compare later runs with; not part of the record.
    """

    offload: str
    peak_allocated_gib: float | None
    peak_reserved_gib: float | None
    peak_device_gib: float | None
    peak_ram_gib: float
    step_seconds: float | None
    seconds: float
    stages: dict[str, float]
    latents_difference: float | None = None
    failed: str | None = None
    forecast_gib: float | None = None
    latents: torch.Tensor | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_meter(
        cls,
        offload: str,
        meter: VRAMMeter,
        *,
        phase: str | None = None,
        step_seconds: float | None = None,
        latents: torch.Tensor | None = None,
        baseline: torch.Tensor | None = None,
        failed: str | None = None,
    ) -> ModeRun:
        """Take the figures from a finished `meter`.

        Args:
            phase: Take the peaks and seconds of this phase alone, "denoise" for example; `None` for the whole block. If
                the block failed before it reached the phase, they are those of the whole block.
            step_seconds: Seconds of one denoising step.
            latents, baseline: This run's and the baseline run's latents, of any shape, dtype and device; both must have
                the same shape.
            failed: Why the mode failed; by default the type of the exception that left the meter's block.

        Raises:
            ValueError: If the latents' shapes differ, if the meter's block has not ended, or if it ended without an
                error and has no such phase.
        """
        if meter.state in ("not started", "running"):
            raise ValueError(f"The meter {meter.title!r} is {meter.state}: read it after its with block.")
        stages: dict[str, float] = {}
        for one in meter.phases:
            stages[one.name] = stages.get(one.name, 0.0) + one.seconds
        readout = meter.readout()
        if phase is not None and (phase in stages or meter.error is None):
            readout = readout.of_phase(phase)
        return cls(
            offload=offload,
            peak_allocated_gib=readout.peak_allocated_gib,
            peak_reserved_gib=readout.peak_reserved_gib,
            peak_device_gib=readout.peak_device_gib,
            peak_ram_gib=readout.peak_ram_gib,
            step_seconds=step_seconds,
            seconds=readout.seconds,
            stages=stages,
            latents_difference=_difference(latents, baseline),
            failed=failed or meter.error,
            forecast_gib=meter.forecast_gib,
            latents=latents,
        )

    @property
    def latents_equal(self) -> bool | None:
        """Whether the latents equal the baseline run's to within `SAME_LATENTS`; `None` if not compared."""
        return None if self.latents_difference is None else self.latents_difference <= SAME_LATENTS

    def as_dict(self) -> dict:
        """Return all figures and `latents_equal`, ready for JSON. The latents themselves are left out."""
        figures = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "latents"}
        return {**figures, "stages": dict(self.stages), "latents_equal": self.latents_equal}


@dataclass(repr=False)
class Comparison(ShownAsTable):
    """The offload modes of one lesson side by side. Shows itself as a table; `chart()` draws it.

    Attributes:
        runs: One for each mode, in the order to show.
        budget_gb: The VRAM budget in GiB.
        title: Caption of the table and heading of the chart.
    """

    runs: Sequence[ModeRun]
    _: KW_ONLY
    budget_gb: float | None = None
    title: str = "Offload modes"

    def table(self) -> Table:
        memory = ["peak allocated (GiB)", "peak reserved (GiB)", "peak RAM (GiB)"]
        rows = []
        for run in self.runs:
            figures = (run.peak_allocated_gib, run.peak_reserved_gib, run.peak_ram_gib, run.step_seconds)
            rows.append([run.offload, *map(figure, figures), _verdict(run)])
        budget = "" if self.budget_gb is None else f", VRAM budget {self.budget_gb:g} GiB"
        return Table(self.title + budget, ["mode", *memory, "seconds per step", "same latents?"], rows)

    def chart(self, forecasts: Mapping[str, Any] | None = None) -> Picture:
        """Draw the peak allocated VRAM as bars or, if there was no CUDA device, the peak RAM.

        Args:
            forecasts: Forecasts by mode, of which `denoising_peak_gib` is shown. It is marked on the bars only if they
                show VRAM too.
        """
        expected = {mode: None if one.fails else one.denoising_peak_gib for mode, one in (forecasts or {}).items()}
        on_gpu = any(run.peak_allocated_gib is not None for run in self.runs)
        what = "peak allocated VRAM, GiB" if on_gpu else "peak RAM, GiB (no GPU here)"
        columns = ["GiB", "s/step"]
        if expected:
            columns.append("◇ forecast" if on_gpu else "GPU forecast")
        rows = []
        for run in self.runs:
            peak = run.peak_allocated_gib if on_gpu else run.peak_ram_gib
            forecast = expected.get(run.offload)
            cells = [figure(peak), "failed" if run.failed else figure(run.step_seconds), figure(forecast)]
            mark = forecast if on_gpu else None
            rows.append(Bar(run.offload, peak or 0.0, cells[: len(columns)], mark, hollow=bool(run.failed)))
        cells = [[row.name, *row.cells] for row in rows]
        text = repr(Table(f"{self.title}: {what}", ["mode", *columns], cells))
        budget = self.budget_gb if on_gpu else None
        return Picture(bars(self.title, rows, what=what, columns=columns, budget=budget, label=text), text)


def _difference(latents: torch.Tensor | None, baseline: torch.Tensor | None) -> float | None:
    """The largest absolute difference, in fp32 on the CPU; None if either is missing.

    NaN equals NaN. A NaN in only one of them counts as the largest fp32 number (JSON has no infinity).
    """
    if latents is None or baseline is None:
        return None
    if latents.shape != baseline.shape:
        raise ValueError(
            f"The latents have shape {tuple(latents.shape)} and the baseline {tuple(baseline.shape)}: "
            "compare runs of the same size and number of frames."
        )
    ours, theirs = latents.detach().float().cpu(), baseline.detach().float().cpu()
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    difference = (ours - theirs).abs().nan_to_num(nan=torch.finfo(torch.float32).max)
    return difference.masked_fill(same, 0.0).max().item()


def _verdict(run: ModeRun) -> str:
    if run.failed:
        return f"failed: {run.failed}"
    if run.latents_difference is None:
        return MISSING
    if run.latents_equal:
        return f"yes, {run.latents_difference:.1g}" if run.latents_difference else "yes, 0.0"
    return f"max diff {run.latents_difference:.1g}"
