"""What a meter has read, and how it shows: as a chart, as text, and as a dictionary for the record of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from helpers.charts import svg
from helpers.charts.mime import METER_JSON
from helpers.charts.timelines import Series, timeline
from helpers.units import duration


@dataclass
class Phase:
    """A named part of a metered block. VRAM peaks are exact, and None without CUDA; RAM peaks are sampled."""

    name: str
    start_s: float
    seconds: float = 0.0
    peak_allocated_gib: float | None = None
    peak_reserved_gib: float | None = None
    peak_ram_gib: float = 0.0


class Progress(NamedTuple):
    """How far the denoising is, and the estimated seconds until its last step; `None` before the second step."""

    step: int
    steps: int
    seconds_left: float | None = None

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", about {duration(self.seconds_left)} left"
        return f"step {self.step} of {self.steps}{left}"


class Sample(NamedTuple):
    """Memory in GiB, `seconds` after the meter's start. The VRAM figures are None without CUDA."""

    seconds: float
    ram: float
    allocated: float | None = None
    reserved: float | None = None
    device: float | None = None


@dataclass(frozen=True, repr=False)
class Readout:
    """The state of a meter at one moment. Shows itself as a chart in a notebook, and as text elsewhere.

    Attributes:
        title: What is measured.
        state: "not started", "running", "done" or "stopped by" an exception.
        phases, samples: What was read so far; both are empty before the start.
        on_gpu: Whether there is a CUDA device; without one, the chart shows the process's RAM.
        budget_gib, forecast_gib: The VRAM budget and the forecast VRAM peak, or `None`.
        baseline_ram_gib: The RAM when the meter started.
        progress: The last denoising step that a `StepTimer` reported, or `None`.
    """

    title: str
    state: str
    phases: Sequence[Phase]
    samples: Sequence[Sample]
    on_gpu: bool = False
    budget_gib: float | None = None
    forecast_gib: float | None = None
    baseline_ram_gib: float = 0.0
    progress: Progress | None = None

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def peak_allocated_gib(self) -> float | None:
        return _highest(phase.peak_allocated_gib for phase in self.phases)

    @property
    def peak_reserved_gib(self) -> float | None:
        return _highest(phase.peak_reserved_gib for phase in self.phases)

    @property
    def peak_device_gib(self) -> float | None:
        return _highest(sample.device for sample in self.samples)

    @property
    def peak_ram_gib(self) -> float:
        return _highest(phase.peak_ram_gib for phase in self.phases) or 0.0

    def of_phase(self, name: str) -> Readout:
        """Return a readout of the phases called `name` alone.

        Raises:
            ValueError: If there is none.
        """
        phases = [phase for phase in self.phases if phase.name == name]
        if not phases:
            names = ", ".join(dict.fromkeys(phase.name for phase in self.phases))
            raise ValueError(f"The meter {self.title!r} has no phase {name!r}: it has {names or 'none yet'}.")
        samples = [
            sample
            for sample in self.samples
            if any(0 < sample.seconds - phase.start_s <= phase.seconds for phase in phases)
        ]
        return replace(self, phases=phases, samples=samples)

    def as_dict(self) -> dict:
        """Return the figures, ready for JSON."""
        return {
            "title": self.title,
            "state": self.state,
            "seconds": self.seconds,
            "peak_allocated_gib": self.peak_allocated_gib,
            "peak_reserved_gib": self.peak_reserved_gib,
            "peak_device_gib": self.peak_device_gib,
            "peak_ram_gib": self.peak_ram_gib,
            "forecast_gib": self.forecast_gib,
            "phases": [
                {
                    "name": phase.name,
                    "seconds": phase.seconds,
                    "peak_allocated_gib": phase.peak_allocated_gib,
                    "peak_reserved_gib": phase.peak_reserved_gib,
                    "peak_ram_gib": phase.peak_ram_gib,
                }
                for phase in self.phases
            ],
        }

    def __repr__(self) -> str:
        if not self.samples:
            return f"{self.title}: {self.state}"
        lines = [f"{self.title}: {self._progress()}", *(f"  {fact}" for fact in self._facts())]
        lines += [f"  {name}: {gib:.2f} GiB" for name, gib in self._limits()]
        for phase in self.phases:
            peaks = f"RAM {phase.peak_ram_gib:.2f} GiB"
            if phase.peak_allocated_gib is not None:
                peaks = f"{phase.peak_allocated_gib:.2f} GiB allocated, {peaks}"
            lines.append(f"  {phase.name:<12} {phase.seconds:8.1f} s   {peaks}")
        return "\n".join(lines)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, object]:
        text = {"text/plain": repr(self)}
        if not self.samples:
            return text
        figures = self.as_dict() | {"progress": self.progress and self.progress._asdict()}
        return {"image/svg+xml": self._chart(), METER_JSON: figures, **text}

    def _chart(self) -> str:
        if self.on_gpu:
            styles = {
                "device": ("device-wide", svg.GREY, 1.5, "2 3"),
                "reserved": ("reserved", svg.ORANGE, 1.5, "7 3"),
                "allocated": ("allocated", svg.BLUE, 2.2, ""),
            }
        else:
            styles = {"ram": ("RAM", svg.BLUE, 2.2, "")}
        series = [
            Series(label, [(sample.seconds, getattr(sample, name)) for sample in self.samples], *style)
            for name, (label, *style) in styles.items()
        ]
        return timeline(
            self.title,
            series,
            state=self._progress(),
            facts=" · ".join(self._facts()),
            bands=[(phase.name, phase.start_s, phase.seconds) for phase in self.phases],
            limits=self._limits(),
        )

    def _progress(self) -> str:
        running = f", {self.progress}" if self.state == "running" and self.progress else ""
        return f"{self.state}, {self.seconds:.1f} s{running}"

    def _facts(self) -> list[str]:
        ram = f"peak {self.peak_ram_gib:.2f} GiB, {self.baseline_ram_gib:.2f} before"
        if self.on_gpu:
            vram = f"{self.peak_allocated_gib:.2f} GiB allocated, {self.peak_reserved_gib:.2f} reserved"
            return [f"VRAM: peak {vram}, {self.peak_device_gib:.2f} device-wide", f"RAM: {ram}"]
        facts = [f"RAM (no GPU here): {ram}"]
        if self.forecast_gib is not None:
            facts.append(f"forecast on a GPU: {self.forecast_gib:.2f} GiB")
        return facts

    def _limits(self) -> list[tuple[str, float]]:
        """The dashed lines of the chart. They are limits of VRAM, so none is drawn over RAM."""
        limits = {"budget": self.budget_gib, "forecast": self.forecast_gib} if self.on_gpu else {}
        return [(name, gib) for name, gib in limits.items() if gib is not None]


def _highest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
