"""Recorded runs as rows: one row per offload mode of a set-up on a device."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from helpers.charts.table import MISSING
from helpers.measure.records import load
from helpers.models.catalogue import MODELS

# Records from before this day counted mapped files as RAM, which a process does not hold (helpers.measure.ram).
RAM_COUNTED_SINCE = "2026-11-26"
DATA = Path(__file__).resolve().parents[2] / "data"
MEASUREMENTS = DATA / "measurements"


@dataclass(frozen=True)
class Row:
    """One offload mode of one set-up on one device.

    `peak_gib` is the highest allocated VRAM of encoding the frame, denoising and decoding, or `None` where nothing was
    measured; `forecast_gib` is its forecast. `swap` says that the timed step includes the swap of the two experts. A
    whole clip needs that swap only once, and `ratio` and `clip_minutes` count it once.
    """

    source: str
    model: str
    width: int
    height: int
    num_frames: int | None
    offload: str
    device: str
    peak_gib: float | None = None
    reserved_gib: float | None = None
    ram_gib: float | None = None
    step_seconds: float | None = None
    resident_step_seconds: float | None = None
    forecast_gib: float | None = None
    same_latents: bool | None = None
    failed: str = ""
    swap: bool = False
    minutes: float | None = field(default=None, compare=False)  # per clip, as its author states

    @property
    def set_up(self) -> str:
        frames = "" if self.num_frames is None else f"x{self.num_frames}"
        title = MODELS[self.model].short_title if self.model in MODELS else self.model
        return f"{title} {self.width}x{self.height}{frames}"

    @property
    def overflowed(self) -> bool:
        """Whether it ran out of memory."""
        return "outofmemory" in self.failed.lower().replace(" ", "")

    @property
    def steps(self) -> int:
        """Denoising steps per clip that the model's authors recommend."""
        return MODELS[self.model].defaults["pretrained"].steps

    @property
    def ratio(self) -> float | None:
        """Time of a step over that of the baseline."""
        if self.step_seconds is None or not self.resident_step_seconds:
            return None
        ratio = self.step_seconds / self.resident_step_seconds
        return 1 + (ratio - 1) / self.steps if self.swap else ratio

    @property
    def usual_step_seconds(self) -> float | None:
        """Seconds of a step, with its share of a swap of the experts if the timed step includes one."""
        counted_once = self.swap and self.ratio is not None
        return self.resident_step_seconds * self.ratio if counted_once else self.step_seconds

    @property
    def clip_minutes(self) -> float | None:
        """Minutes to denoise a clip in the recommended number of steps, or as stated."""
        if self.minutes is not None or self.usual_step_seconds is None:
            return self.minutes
        return self.steps * self.usual_step_seconds / 60

    @property
    def missed(self) -> bool | None:
        """Whether the forecast is off by more than both 5 % and 0.15 GiB; `None` without a forecast."""
        if self.peak_gib is None or self.forecast_gib is None:
            return None
        return abs(self.forecast_gib - self.peak_gib) > max(0.15, 0.05 * self.peak_gib)


def seed(folder: Path = MEASUREMENTS) -> dict:
    """The blogger's table and claims, as quoted in seed_table.json."""
    return json.loads((folder / "seed_table.json").read_text(encoding="utf-8"))


def seed_rows(folder: Path = MEASUREMENTS) -> list[Row]:
    """The rows of the blogger's table. His peaks are in GB; here they are in GiB."""
    table = seed(folder)
    return [
        Row(
            "blogger", row["model"], row["width"], row["height"], row.get("num_frames"), row["offload"],
            table["device"], minutes=row["minutes"],
            peak_gib=row["peak_gb"] * 1e9 / 2**30 if "peak_gb" in row else None,
        )
        for row in table["rows"]
    ]  # fmt: skip


def published_forecasts(data: Path = DATA) -> dict[tuple, dict]:
    """Today's forecasts of the six set-ups, by (model, width, height, frames): {mode: {"peak_vram_gib": ...}}."""
    every = json.loads((data / "forecasts.json").read_text(encoding="utf-8"))
    return {(one["model"], one["width"], one["height"], one["num_frames"]): one["modes"] for one in every.values()}


def measured(data: Path = DATA) -> list[Row]:
    """Measurements at full size: from lessons' records where there are any, else from records of single stages."""
    forecasts = published_forecasts(data)
    found = _stages(data, forecasts)
    for path in sorted((data / "measurements").glob("lessons_*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for row in lesson_rows(record, "measured", forecasts):
            found[_key(row)] = _uncapped(row, found)
    return list(found.values())


def _stages(data: Path, forecasts: Mapping) -> dict[tuple, Row]:
    """The records of single stages, which were measured without a cap, by `_key`."""
    found = {}
    for path in sorted((data / "measurements").glob("stages_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found |= {_key(row): row for row in _stage_rows(record, forecasts)}
    return found


def _key(row: Row) -> tuple[str, str, str]:
    return row.device, row.set_up, row.offload


def _uncapped(row: Row, stages: Mapping[tuple, Row]) -> Row:
    """A row, or if it ran out of memory under a cap, what the same GPU needed without one, if that was measured."""
    return replace(stages[_key(row)], source=row.source) if row.overflowed and _key(row) in stages else row


def _stage_rows(record: Mapping, forecasts: Mapping) -> list[Row]:
    baselines = {_size(row): row.get("step_seconds") for row in record["rows"] if row["offload"] == "none"}
    rows = []
    for row in record["rows"]:
        # Early rows kept the VAE on the GPU in the group modes; the forecast stored with them is of that.
        then = row["offload"].startswith("group") and not row.get("offload_vae")
        known = forecasts.get(_size(row), {}).get(row["offload"], {}).get("peak_vram_gib")
        if row.get("forecast_peaks") and (then or known is None):
            known = max(row["forecast_peaks"].values())
        rows.append(Row(
            "measured", *_size(row), row["offload"], record["device"],
            peak_gib=max(row["peaks"].values()) if row.get("peaks") else None,
            step_seconds=row.get("step_seconds"), resident_step_seconds=baselines.get(_size(row)),
            forecast_gib=known, failed=row.get("failed", ""),
            swap=_swaps(row["model"], row["offload"]),
        ))  # fmt: skip
    return rows


def lesson_rows(record: Mapping, source: str, forecasts: Mapping) -> list[Row]:
    """The modes in a lesson's record. Lessons decode with only the VAE loaded, so that peak counts for every mode."""
    decode = _finished(record, "decode")
    published = forecasts.get(_size(record), {}) if decode else {}
    # In model offload the VAE is alone on the GPU while it decodes, as in the lessons.
    decoding = published["model"]["stages"]["decode"] if published else None
    rows = []
    for mode in record.get("modes", ()):
        both = [mode, *decode] if mode["peak_allocated_gib"] and not mode["failed"] else []
        rows.append(Row(
            source, *_size(record), mode["offload"], record["device"],
            peak_gib=_highest(one["peak_allocated_gib"] for one in both),
            reserved_gib=_highest(one["peak_reserved_gib"] for one in both),
            ram_gib=_ram(record, mode["peak_ram_gib"]), step_seconds=mode["step_seconds"],
            resident_step_seconds=record.get("resident_step_seconds"),
            forecast_gib=None if decode and decoding is None else _highest([mode.get("forecast_gib"), decoding]),
            same_latents=mode["latents_equal"], failed=mode["failed"] or "",
            swap=_swaps(record["model"], mode["offload"]),
        ))  # fmt: skip
    return rows


def yours(out_dir: str | Path) -> list[Row]:
    """The modes in your own records below `out_dir`: the newest run of each set-up and device.

    Anything that cannot be read as a lesson's record is named in a warning and left out.
    """
    forecasts, newest = published_forecasts(), {}
    stages = _stages(DATA, forecasts)
    for record in sorted(load(out_dir), key=lambda one: str(one["date"])):
        try:
            rows = [_uncapped(row, stages) for row in lesson_rows(record, "yours", forecasts)]
            newest[_size(record), record["device"]] = rows
        except (KeyError, TypeError, AttributeError) as error:
            what = f"no lesson writes this format ({type(error).__name__}: {error})"
            warnings.warn(f"a record of {record['model']} is left out: {what}", stacklevel=2)
    return [row for rows in newest.values() for row in rows]


def _size(row: Mapping) -> tuple[str, int, int, int]:
    return row["model"], row["width"], row["height"], row["num_frames"]


def _finished(record: Mapping, *stages: str) -> list[Mapping]:
    """What the meters of these stages saw, where the stage ran to its end."""
    meters = record.get("meters", {})
    return [meters[stage] for stage in stages if stage in meters and meters[stage]["state"] == "done"]


def _swaps(model: str, offload: str) -> bool:
    # Two steps with two experts: the second step waits until they have been swapped.
    return model == "wan22_i2v_a14b" and offload == "model"


def _ram(record: Mapping, gib: float | None) -> float | None:
    return gib if str(record["date"]) >= RAM_COUNTED_SINCE else None


def _highest(values) -> float | None:
    return max((value for value in values if value is not None), default=None)


def of_the_table(rows: Sequence[Row], device: str | None = None) -> list[Row]:
    """The rows of the six set-ups on one device, by default the one with the most rows.

    A set-up that was not measured at its own number of frames is represented by its rows with the most frames.
    """
    devices = [row.device for row in rows]
    device = device or max(devices, key=devices.count, default=None)
    found = []
    for *size, frames in published_forecasts():
        own = [row for row in rows if row.device == device and [row.model, row.width, row.height] == size]
        frames = max((row.num_frames for row in own if row.num_frames <= frames), default=frames)
        found += [row for row in own if row.num_frames == frames]
    return found


def by_set_up(rows: Sequence[Row], value: str) -> dict[str, dict[str, float | str]]:
    """{set-up: {mode: figure}} of an attribute of the rows; "fails" or "out of memory" where there is no figure."""
    groups: dict[str, dict[str, float | str]] = {}
    for row in rows:
        reason = "out of memory" if row.overflowed else "fails" if row.failed else MISSING
        found = getattr(row, value)
        groups.setdefault(row.set_up, {})[row.offload] = reason if found is None or row.failed else found
    return groups


def whole_runs(data: Path = DATA) -> list[dict]:
    """The run that made the clip, from each lesson's record: encoding the prompt, all steps, and decoding.

    Keys: set_up, offload, device, peak_allocated_gib, peak_reserved_gib, peak_ram_gib (`None` in records from before
    `RAM_COUNTED_SINCE`), prompt_seconds, step_seconds, decode_seconds, same_latents (a count, as text), swap (whether a
    step includes the swap of the two experts), and failed.
    """
    found = []
    for path in sorted((data / "measurements").glob("lessons_*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if len(_finished(record, "generate", "decode")) < 2 or not record.get("modes"):
            continue
        meters = _finished(record, "encode_prompt", "generate", "decode")
        compared = [mode["latents_equal"] for mode in record["modes"] if mode["latents_equal"] is not None]
        found.append({
            "set_up": Row("", *_size(record), record["offload"], "").set_up, "offload": record["offload"],
            "device": record["device"], "failed": record.get("failed"), "step_seconds": record["step_seconds"],
            "prompt_seconds": record["stages"].get("encode_prompt"), "decode_seconds": record["stages"].get("decode"),
            "same_latents": f"{sum(compared)} of {len(compared)} modes",
            "swap": record.get("steps") == 2 and _swaps(record["model"], record["offload"]),
            **{peak: _highest(meter[peak] for meter in meters)
               for peak in ("peak_allocated_gib", "peak_reserved_gib")},
            "peak_ram_gib": _ram(record, _highest(meter["peak_ram_gib"] for meter in meters)),
        })  # fmt: skip
    order = [Row("", *size, "", "").set_up for size in published_forecasts(data)]
    return sorted(found, key=lambda one: order.index(one["set_up"]) if one["set_up"] in order else len(order))


