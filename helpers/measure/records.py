"""The record of a run, run.json: what was asked for, what it needed, on which machine, and when.

    saved = record(settings, offload="model", modes=runs, chosen=run, meters={"generate": meter}, ...)
    save(saved, "outputs/ltx_video/run.json")
    records_table(load("outputs"))  # all records, newest first

Memory is in GiB (2**30 bytes), time in seconds. VRAM is None where there was no CUDA device to measure.
"""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from helpers.charts.table import MISSING, Table, figure
from helpers.files import replacing
from helpers.measure.comparison import ModeRun
from helpers.measure.meter import VRAMMeter

PACKAGES = ("torch", "diffusers", "transformers", "accelerate")
RECORD_KEYS = {"model", "offload", "peak_ram_gib", "stages", "date"}  # every record has these, other JSON does not


def record(
    settings: Any,
    *,
    offload: str,
    modes: Sequence[ModeRun],
    chosen: ModeRun,
    meters: Mapping[str, VRAMMeter | Mapping[str, object]],
    step_seconds: float | None,
    stages: Mapping[str, float],
    forecast: object = None,
    vram_cap_gib: float | None = None,
    **extra: object,
) -> dict:
    """Return the record of a run, ready for `save`.

    Args:
        settings: The lesson's settings; read are `model.name`, `weights`, `clip`, `prompt`, `width`, `height`,
            `num_frames`, `steps`, `guidance_scale` and `seed`. If `clip` is an absolute path, only the file's name is
            recorded, because records are shared.
        offload: The mode that made the clip.
        modes: The runs that were compared. The one called "none" gives `resident_step_seconds`.
        chosen: The two-step run of the mode that made the clip; its peaks become the record's.
        meters: Finished meters by stage ("encode_prompt", "generate", "decode"), or what their `as_dict` returned.
        step_seconds: Median seconds of a denoising step of the run that made the clip.
        stages: Seconds of each stage.
        forecast: What was forecast for it, in values that JSON can hold.
        vram_cap_gib: The VRAM cap set on the process in GiB, `None` for no cap.
        **extra: Further keys.

    Raises:
        ValueError: If `extra` contains one of the record's own keys.
    """
    equal = [run.latents_equal for run in modes if run.latents_equal is not None]
    result = {
        "model": settings.model.name,
        "weights": settings.weights,
        "offload": offload,
        "clip": Path(settings.clip).name if Path(settings.clip).is_absolute() else str(settings.clip),
        "prompt": settings.prompt,
        "width": settings.width,
        "height": settings.height,
        "num_frames": settings.num_frames,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "seed": settings.seed,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "vram_cap_gib": vram_cap_gib,
        "peak_allocated_gib": chosen.peak_allocated_gib,
        "peak_reserved_gib": chosen.peak_reserved_gib,
        "peak_device_gib": chosen.peak_device_gib,
        "peak_ram_gib": chosen.peak_ram_gib,
        "step_seconds": step_seconds,
        "resident_step_seconds": next((run.step_seconds for run in modes if run.offload == "none"), None),
        "stages": dict(stages),
        "forecast": forecast,
        "latents_equal": all(equal) if equal else None,
        "modes": [run.as_dict() for run in modes],
        "meters": {
            stage: dict(meter) if isinstance(meter, Mapping) else meter.as_dict() for stage, meter in meters.items()
        },
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if taken := result.keys() & extra.keys():
        raise ValueError(f"A record already has the keys {', '.join(sorted(taken))}: choose other names.")
    return {**result, **extra}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a measurement depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def save(record: Mapping[str, object], path: str | Path) -> Path:
    """Write `record` as JSON to `path`, completely or not at all, and create its folder if needed.

    Raises:
        TypeError, ValueError: If the record holds a value that JSON cannot, NaN included; nothing is written.
        OSError: If the file cannot be written.
    """
    content = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return Path(path)


def load(folder: str | Path) -> list[dict]:
    """Read every record in `folder`: each `run.json` at any depth, and each `*.json` directly in it.

    Files that cannot be read, and `run.json` files that are not records, are skipped with a warning. Other JSON is
    skipped silently. A folder that does not exist holds no records.
    """
    records = []
    for path in sorted({*Path(folder).rglob("run.json"), *Path(folder).glob("*.json")}):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            warnings.warn(f"{path} is skipped because it cannot be read: {error}", stacklevel=2)
            continue
        if isinstance(found, dict) and found.keys() >= RECORD_KEYS:
            records.append(found)
        elif path.name == "run.json":
            warnings.warn(f"{path} is skipped because it is not the record of a run.", stacklevel=2)
    return records


def records_table(records: Sequence[Mapping]) -> Table:
    """Return a table of all `records`, newest first."""
    asked = ["model", "width", "height", "num_frames", "offload", "device"]
    measured = ["peak_allocated_gib", "peak_ram_gib", "step_seconds"]
    rows = []
    for one in sorted(records, key=lambda one: str(one["date"]), reverse=True):
        cells = [str(one.get(key, MISSING)) for key in asked] + [figure(one.get(key)) for key in measured]
        rows.append([*cells, str(one["date"])])
    figures = ["peak VRAM (GiB)", "peak RAM (GiB)", "seconds per step"]
    columns = ["model", "width", "height", "frames", "mode", "device", *figures, "date"]
    return Table(f"{len(rows)} recorded runs", columns, rows)
