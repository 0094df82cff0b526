"""The record of a run: what each offload mode needed, and how the modes compare.

    run = ModeRun.from_meter("model", meter, latents=latents, reference=plain_latents)
    comparison = Comparison([plain_run, run], budget_gb=12)  # shows itself as a table
    comparison.chart(forecasts={"model": 8.1})  # the same as bars
    save(record(model="ltx_video", ..., chosen=run), "outputs/ltx_video/run.json")
    table(load("outputs"))  # all records, the newest first

Memory is in GiB (2**30 bytes), time in seconds. VRAM is None where there was no CUDA device to measure.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from helpers.charts import Bar, Picture, Table, bars
from helpers.meter import VRAMMeter

SAME_LATENTS = 1e-5  # an offload mode only moves weights; this allows for another order of summation
PACKAGES = ("torch", "diffusers", "transformers", "accelerate")
RECORD_KEYS = {"model", "offload", "peak_ram_gib", "stages", "date"}  # what tells a record from other JSON
MISSING = "–"


@dataclass(frozen=True)
class ModeRun:
    """One offload mode, measured.

    `step_seconds` is one denoising step, `seconds` the whole block, `stages` the seconds of each phase.
    `latents_difference` is the largest absolute difference to the plain run's latents, None if not compared.
    `failed` says what went wrong, None if nothing did. `forecast_gib` is the VRAM peak that was forecast for it.
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

    @classmethod
    def from_meter(
        cls,
        offload: str,
        meter: VRAMMeter,
        *,
        step_seconds: float | None = None,
        latents: torch.Tensor | None = None,
        reference: torch.Tensor | None = None,
        failed: str | None = None,
    ) -> ModeRun:
        """Takes the figures from a finished `meter`.

        Args:
            latents, reference: this mode's and the plain run's latents, of any one shape, dtype and device.
            failed: why the mode failed; by default the type of the exception that left the meter's block.

        Raises:
            ValueError: if the latents' shapes differ, or the meter's block has not ended.
        """
        if meter.state in ("not started", "running"):
            raise ValueError(f"The meter {meter.title!r} is {meter.state}: read it after its with block.")
        stages: dict[str, float] = {}
        for phase in meter.phases:
            stages[phase.name] = stages.get(phase.name, 0.0) + phase.seconds
        return cls(
            offload=offload,
            peak_allocated_gib=meter.peak_allocated_gib,
            peak_reserved_gib=meter.peak_reserved_gib,
            peak_device_gib=meter.peak_device_gib,
            peak_ram_gib=meter.peak_ram_gib,
            step_seconds=step_seconds,
            seconds=meter.seconds,
            stages=stages,
            latents_difference=_difference(latents, reference),
            failed=failed or meter.error,
            forecast_gib=meter.forecast_gib,
        )

    @property
    def latents_equal(self) -> bool | None:
        """Whether the latents are the plain run's, to within `SAME_LATENTS`; None if not compared."""
        return None if self.latents_difference is None else self.latents_difference <= SAME_LATENTS


class StepTimer:
    """Times the denoising steps of a diffusers pipeline.

        timer = StepTimer()
        pipe(..., callback_on_step_end=timer)
        timer.step_seconds

    The clock starts at construction; `start()` starts it anew. The first duration therefore holds everything
    before the first step ends, such as encoding, and `step_seconds` leaves it out.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.durations: list[float] = []
        self._last = self._now()

    def __call__(self, pipe: object, step: int, timestep: object, callback_kwargs: dict) -> dict:
        now = self._now()
        self.durations.append(now - self._last)
        self._last = now
        return callback_kwargs

    @property
    def step_seconds(self) -> float | None:
        """Median seconds of the steps after the first: with streamed group offload, the first forward only
        traces the order of the layers, and is slower. Of a single step its duration; None before any."""
        return statistics.median(self.durations[1:] or self.durations) if self.durations else None

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels run on after their launch returns
        return time.perf_counter()


@dataclass(repr=False)
class Comparison:
    """The offload modes of one lesson side by side: shows itself as a table, and `chart()` draws it.

    Args:
        runs: one for each mode, in the order to show.
        budget_gb: the VRAM budget in GiB.
        title: caption of the table and heading of the chart.
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
            rows.append([run.offload, *map(_figure, figures), _verdict(run)])
        budget = "" if self.budget_gb is None else f", VRAM budget {self.budget_gb:g} GiB"
        return Table(self.title + budget, ["mode", *memory, "seconds per step", "same latents?"], rows)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return self.table()._repr_mimebundle_()

    def chart(self, forecasts: Mapping[str, float] | None = None) -> Picture:
        """Bars of the peak allocated VRAM or, measured without CUDA, of the peak RAM.

        Args:
            forecasts: forecast VRAM peak in GiB by mode. Marked on the bars only where those are VRAM too.
        """
        forecasts = forecasts or {}
        on_gpu = any(run.peak_allocated_gib is not None for run in self.runs)
        what = "peak allocated VRAM, GiB" if on_gpu else "peak RAM, GiB (no GPU here)"
        columns = ["GiB", "s/step"]
        if forecasts:
            columns.append("◇ forecast" if on_gpu else "GPU forecast")
        rows = []
        for run in self.runs:
            peak = run.peak_allocated_gib if on_gpu else run.peak_ram_gib
            forecast = forecasts.get(run.offload)
            cells = [_figure(peak), "failed" if run.failed else _figure(run.step_seconds), _figure(forecast)]
            mark = forecast if on_gpu else None
            rows.append(Bar(run.offload, peak or 0.0, cells[: len(columns)], mark, hollow=bool(run.failed)))
        cells = [[row.name, *row.cells] for row in rows]
        text = repr(Table(f"{self.title}: {what}", ["mode", *columns], cells))
        budget = self.budget_gb if on_gpu else None
        return Picture(bars(self.title, rows, what=what, columns=columns, budget=budget, label=text), text)


def record(
    *,
    model: str,
    weights: str,
    offload: str,
    clip: str | Path,
    prompt: str | None,
    width: int,
    height: int,
    num_frames: int,
    steps: int,
    guidance_scale: float,
    seed: int,
    vram_cap_gib: float | None,
    mode_runs: Sequence[ModeRun],
    chosen: ModeRun,
    step_seconds: float | None,
    stages: Mapping[str, float],
    forecast: object = None,
    extra: Mapping[str, object] | None = None,
) -> dict:
    """The record of a run, ready for `save`: what was asked, what it needed, on which machine, and when.

    Args:
        clip: name or path of the clip. Of an absolute path only the file's name is kept: a record is shared.
        vram_cap_gib: the cap set on the process in GiB, None for no cap.
        mode_runs: the modes that were compared. The one called "none" gives `resident_step_seconds`.
        chosen: the two-step run in the mode that made the video, whose peaks become the record's.
        step_seconds: a median step of the run that made the video.
        stages: seconds of each phase.
        forecast: what was forecast for it, as JSON-able values.
        extra: more keys of your own.

    Raises:
        ValueError: if `extra` has a key that the record has already.
    """
    equal = [run.latents_equal for run in mode_runs if run.latents_equal is not None]
    result = {
        "model": model,
        "weights": weights,
        "offload": offload,
        "clip": Path(clip).name if Path(clip).is_absolute() else str(clip),
        "prompt": prompt,
        "width": width,
        "height": height,
        "num_frames": num_frames,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "vram_cap_gib": vram_cap_gib,
        "peak_allocated_gib": chosen.peak_allocated_gib,
        "peak_reserved_gib": chosen.peak_reserved_gib,
        "peak_device_gib": chosen.peak_device_gib,
        "peak_ram_gib": chosen.peak_ram_gib,
        "step_seconds": step_seconds,
        "resident_step_seconds": next((run.step_seconds for run in mode_runs if run.offload == "none"), None),
        "stages": dict(stages),
        "forecast": forecast,
        "latents_equal": all(equal) if equal else None,
        "modes": [{**asdict(run), "latents_equal": run.latents_equal} for run in mode_runs],
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if taken := result.keys() & (extra or {}).keys():
        raise ValueError(f"extra may not replace the record's own keys: {', '.join(sorted(taken))}.")
    return {**result, **(extra or {})}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a measurement depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def save(record: Mapping[str, object], path: str | Path) -> Path:
    """Writes `record` as JSON to `path`, whole or not at all, and makes its folder if need be."""
    path = Path(path)
    content = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load(folder: str | Path) -> list[dict]:
    """Reads every record that is a `run.json` anywhere below `folder`, or any `*.json` directly in it.

    A file that cannot be read, or a `run.json` that is no record, is named in a warning and left out; other
    JSON is passed over. A folder that does not exist holds no records.
    """
    records = []
    for path in sorted({*Path(folder).rglob("run.json"), *Path(folder).glob("*.json")}):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            warnings.warn(f"{path} is left out, it cannot be read: {error}", stacklevel=2)
            continue
        if isinstance(found, dict) and found.keys() >= RECORD_KEYS:
            records.append(found)
        elif path.name == "run.json":
            warnings.warn(f"{path} is left out, it is not the record of a run.", stacklevel=2)
    return records


def table(records: Sequence[Mapping]) -> Table:
    """All `records` in a table, the newest first."""
    asked = ["model", "width", "height", "num_frames", "offload", "device"]
    measured = ["peak_allocated_gib", "peak_ram_gib", "step_seconds"]
    rows = []
    for one in sorted(records, key=lambda one: str(one["date"]), reverse=True):
        cells = [str(one.get(key, MISSING)) for key in asked] + [_figure(one.get(key)) for key in measured]
        rows.append([*cells, str(one["date"])])
    figures = ["peak VRAM (GiB)", "peak RAM (GiB)", "seconds per step"]
    columns = ["model", "width", "height", "frames", "mode", "device", *figures, "date"]
    return Table(f"{len(rows)} recorded runs", columns, rows)


def _difference(latents: torch.Tensor | None, reference: torch.Tensor | None) -> float | None:
    """The largest absolute difference, in fp32 on the CPU; None if either is missing.

    NaN equals NaN. A NaN in only one of them counts as the largest fp32 number (JSON has no infinity).
    """
    if latents is None or reference is None:
        return None
    if latents.shape != reference.shape:
        raise ValueError(
            f"The latents have shape {tuple(latents.shape)} and the reference {tuple(reference.shape)}: "
            "compare runs of the same size and number of frames."
        )
    ours, plain = latents.detach().float().cpu(), reference.detach().float().cpu()
    same = (ours == plain) | (ours.isnan() & plain.isnan())
    difference = (ours - plain).abs().nan_to_num(nan=torch.finfo(torch.float32).max)
    return difference.masked_fill(same, 0.0).max().item()


def _verdict(run: ModeRun) -> str:
    if run.failed:
        return f"failed: {run.failed}"
    if run.latents_difference is None:
        return MISSING
    if run.latents_equal:
        return f"yes, {run.latents_difference:.1g}" if run.latents_difference else "yes, 0.0"
    return f"max diff {run.latents_difference:.1g}"


def _figure(value: float | None) -> str:
    if value is None:
        return MISSING
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"  # a miniature's step takes a few hundredths
