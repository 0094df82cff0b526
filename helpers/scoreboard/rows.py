"""The scoreboard of lesson 06: recorded runs as rows, and a table that sets them side by side.

    rows = measured() + yours("outputs")
    table(rows, sort_by="peak VRAM (GiB)")

Memory is in GiB (2**30 bytes). Nothing here computes on a model: figures come from records and published forecasts.
"""

from __future__ import annotations

import html
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from helpers import clips, runs
from helpers.charts import Table
from helpers.checks import one_of
from helpers.models import MODELS

DATA = Path(__file__).resolve().parent.parent / "data"
MEASUREMENTS = DATA / "measurements"
NAMES = {
    "ltx_video": "LTX-Video", "wan22_ti2v_5b": "TI2V-5B", "wan22_i2v_a14b": "A14B Q4", "svd_xt": "SVD XT",
    "cogvideox_5b_i2v": "CogVideoX-5B",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One offload mode of one set-up on one device.

    `peak_gib` is the highest allocated VRAM of encoding the frame, denoising and decoding; None where nothing was
    measured. `forecast_gib` is the forecast of the same. `exchange` says that the step that was timed contains the
    exchange of two experts. A whole clip has it only once, and so have `ratio` and `clip_minutes`.
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
    exchange: bool = False
    minutes: float | None = field(default=None, compare=False)  # of a clip, as its author states them

    @property
    def set_up(self) -> str:
        frames = "" if self.num_frames is None else f"x{self.num_frames}"
        return f"{NAMES.get(self.model, self.model)} {self.width}x{self.height}{frames}"

    @property
    def overflowed(self) -> bool:
        """Whether it failed for want of memory."""
        return "outofmemory" in self.failed.lower().replace(" ", "")

    @property
    def steps(self) -> int:
        """Denoising steps of a clip, as the model is published."""
        return MODELS[self.model].defaults["pretrained"].steps

    @property
    def ratio(self) -> float | None:
        """Time of a step over that of the plain run."""
        if self.step_seconds is None or not self.resident_step_seconds:
            return None
        ratio = self.step_seconds / self.resident_step_seconds
        return 1 + (ratio - 1) / self.steps if self.exchange else ratio

    @property
    def clip_minutes(self) -> float | None:
        """Minutes to denoise a clip in the published number of steps, or as stated."""
        if self.minutes is not None or self.step_seconds is None:
            return self.minutes
        plain = self.resident_step_seconds if self.exchange else None
        return self.steps * (self.step_seconds if plain is None else plain * self.ratio) / 60

    @property
    def missed(self) -> bool | None:
        """Whether the forecast is neither within 5 % nor within 0.15 GiB; None without one."""
        if self.peak_gib is None or self.forecast_gib is None:
            return None
        return abs(self.forecast_gib - self.peak_gib) > max(0.15, 0.05 * self.peak_gib)


def seed(folder: Path = MEASUREMENTS) -> dict:
    """The blogger's table and claims, as quoted in seed_table.json."""
    return json.loads((folder / "seed_table.json").read_text(encoding="utf-8"))


def seed_rows(folder: Path = MEASUREMENTS) -> list[Row]:
    """The rows of the blogger's table. Where he gives a peak it is in GB, here in GiB."""
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
    """What was measured at full size: the lessons' own records where there are, else those of the stages."""
    forecasts, found = published_forecasts(data), {}
    for path in sorted((data / "measurements").glob("stages_*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for row in _stage_rows(record, forecasts):
            found[row.device, row.set_up, row.offload] = row
    for path in sorted((data / "measurements").glob("lessons_*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for row in lesson_rows(record, "measured", forecasts):
            key = row.device, row.set_up, row.offload
            if row.overflowed and key in found:
                continue  # the lesson ran within the budget, and the stages did not: theirs is the full peak
            found[key] = row
    return list(found.values())


def _stage_rows(record: Mapping, forecasts: Mapping) -> list[Row]:
    plain = {_size(row): row.get("step_seconds") for row in record["rows"] if row["offload"] == "none"}
    rows = []
    for row in record["rows"]:
        # The first rows left the VAE on the card in the group modes: the forecast beside them is of that.
        then = row["offload"].startswith("group") and not row.get("vae_home")
        known = forecasts.get(_size(row), {}).get(row["offload"], {}).get("peak_vram_gib")
        if row.get("forecast_peaks") and (then or known is None):
            known = max(row["forecast_peaks"].values())
        rows.append(Row(
            "measured", *_size(row), row["offload"], record["device"],
            peak_gib=max(row["peaks"].values()) if row.get("peaks") else None,
            step_seconds=row.get("step_seconds"), resident_step_seconds=plain.get(_size(row)),
            forecast_gib=known, failed=row.get("failed", ""),
            exchange=_exchanges(row["model"], row["offload"]),
        ))  # fmt: skip
    return rows


def lesson_rows(record: Mapping, source: str, forecasts: Mapping) -> list[Row]:
    """The modes in a lesson's record. The lessons decode with the VAE alone, so that peak belongs to every mode."""
    decode = [meter for meter in record.get("meters", ()) if meter["cell"] == "decode" and meter["state"] == "done"]
    published = forecasts.get(_size(record), {}) if decode else {}
    # In model offload, too, the VAE is alone on the card while it decodes.
    decoding = published["model"]["stages"]["decode"] if published else None
    rows = []
    for mode in record.get("modes", ()):
        both = [mode, *decode] if mode["peak_allocated_gib"] and not mode["failed"] else []
        rows.append(Row(
            source, *_size(record), mode["offload"], record["device"],
            peak_gib=_highest(one["peak_allocated_gib"] for one in both),
            reserved_gib=_highest(one["peak_reserved_gib"] for one in both),
            ram_gib=mode["peak_ram_gib"], step_seconds=mode["step_seconds"],
            resident_step_seconds=record.get("resident_step_seconds"),
            forecast_gib=None if decode and decoding is None else _highest([mode.get("forecast_gib"), decoding]),
            same_latents=mode["latents_equal"], failed=mode["failed"] or "",
            exchange=_exchanges(record["model"], mode["offload"]),
        ))  # fmt: skip
    return rows


def yours(out_dir: str | Path) -> list[Row]:
    """The modes in the reader's own records below `out_dir`, the newest run of each set-up and device.

    What cannot be read as a lesson's record is named in a warning and left out.
    """
    forecasts, newest = published_forecasts(), {}
    for record in sorted(runs.load(out_dir), key=lambda one: str(one["date"])):
        try:
            newest[_size(record), record["device"]] = lesson_rows(record, "yours", forecasts)
        except (KeyError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            warnings.warn(f"a record of {record['model']} is left out: no lesson writes it so ({what})", stacklevel=2)
    return [row for rows in newest.values() for row in rows]


def _size(row: Mapping) -> tuple[str, int, int, int]:
    return row["model"], row["width"], row["height"], row["num_frames"]


def _exchanges(model: str, offload: str) -> bool:
    # Two steps of two experts: the second step waits until they have changed places.
    return model == "wan22_i2v_a14b" and offload == "model"


def _highest(values) -> float | None:
    return max((value for value in values if value is not None), default=None)


def of_the_table(rows: Sequence[Row], device: str | None = None) -> list[Row]:
    """The rows of the six set-ups, on one device: by default the one with most rows.

    Where a set-up was not measured at its number of frames, its rows with the most frames stand in for it.
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
    """{set-up: {mode: figure}} of one of the rows' attributes; "fails" or "out of memory" where there is none."""
    groups: dict[str, dict[str, float | str]] = {}
    for row in rows:
        reason = "out of memory" if row.overflowed else "fails" if row.failed else runs.MISSING
        found = getattr(row, value)
        groups.setdefault(row.set_up, {})[row.offload] = reason if found is None or row.failed else found
    return groups


# --- the table ---

COLUMNS = {  # heading: what it shows, and how
    "who": (lambda row: row.source, str),
    "set-up": (lambda row: row.set_up, str),
    "mode": (lambda row: row.offload, str),
    "device": (lambda row: row.device.removeprefix("NVIDIA "), str),
    "peak VRAM (GiB)": (lambda row: row.peak_gib, "{:.2f}".format),
    "forecast (GiB)": (lambda row: row.forecast_gib, "{:.2f}".format),
    "RAM (GiB)": (lambda row: row.ram_gib, "{:.1f}".format),
    "s/step": (lambda row: row.step_seconds, "{:.3g}".format),
    "x plain": (lambda row: row.ratio, "{:.2f}".format),
    "min/clip": (lambda row: row.clip_minutes, "{:.1f}".format),
    "notes": (lambda row: _notes(row), str),
}
# Sorts the table's rows by a column: by number where there is one, else by text; a second click turns it round.
SORT = (
    "const i=this.cellIndex,b=this.closest('table').tBodies[0],d=this.dataset.d=-(this.dataset.d||-1),"
    "k=r=>{const t=r.cells[i].textContent,n=parseFloat(t);return isNaN(n)?t:n};"
    "[...b.rows].sort((p,q)=>{const x=k(p),y=k(q);return typeof x!==typeof y?(typeof x==='number'?-1:1):"
    "(x>y?1:x<y?-1:0)*d}).forEach(r=>b.append(r))"
)


class SortableTable(Table):
    """A `Table` whose headings sort it when they are clicked, where the page may run scripts."""

    def _html(self) -> str:
        clickable = f'<th scope="col" onclick="{html.escape(SORT)}" title="sort by this column"'
        return super()._html().replace('<th scope="col"', clickable)


def table(rows: Sequence[Row], sort_by: str = "set-up", caption: str | None = None) -> SortableTable:
    """All rows, sorted by a heading of `COLUMNS`; what has no figure there comes last.

    Raises:
        helpers.checks.ParameterError: If there is no such heading.
    """
    key, _ = COLUMNS[one_of("sort_by", sort_by, tuple(COLUMNS))]
    order = sorted(rows, key=lambda row: (key(row) is None, 0 if key(row) is None else key(row)))
    shown = [list(COLUMNS), *([_cell(row, name) for name in COLUMNS] for row in order)]
    kept = [i for i, name in enumerate(COLUMNS) if name in ("who", "set-up") or _filled(shown, i)]
    cells = [[row[i] for i in kept] for row in shown]
    return SortableTable(caption or f"{len(rows)} rows, sorted by {sort_by}", cells[0], cells[1:])


def _cell(row: Row, name: str) -> str:
    key, show = COLUMNS[name]
    value = key(row)
    return runs.MISSING if value is None else show(value)


def _filled(cells: Sequence[Sequence[str]], column: int) -> bool:
    return any(row[column] not in ("", runs.MISSING) for row in cells[1:])


def _notes(row: Row) -> str:
    notes = ["out of memory" if row.overflowed else f"failed: {row.failed}"] if row.failed else []
    notes += ["the exchange of experts counts once a clip"] if row.exchange and not row.failed else []
    notes += ["OTHER LATENTS"] if row.same_latents is False else []
    return "; ".join(notes)


# --- whole runs, and what they made ---


def whole_runs(data: Path = DATA) -> list[dict]:
    """From each lesson's record the run that made its clip: the prompt encoded, all steps, and the decoding.

    Keys: set_up, offload, device, peak_allocated_gib, peak_reserved_gib, peak_ram_gib, prompt_seconds, step_seconds,
    decode_seconds, same_latents (a count, as text), exchange (whether a step waits for the two experts to change
    places), and failed.
    """
    found = []
    for path in sorted((data / "measurements").glob("lessons_*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        meters = {meter["cell"]: meter for meter in record.get("meters", ()) if meter["state"] == "done"}
        if "decode" not in meters or "generate" not in meters or not record.get("modes"):
            continue
        parts = [meters[cell] for cell in ("encode-prompt", "generate", "decode") if cell in meters]
        compared = [mode["latents_equal"] for mode in record["modes"] if mode["latents_equal"] is not None]
        found.append({
            "set_up": Row("", *_size(record), record["offload"], "").set_up, "offload": record["offload"],
            "device": record["device"], "failed": record.get("failed"), "step_seconds": record["step_seconds"],
            "prompt_seconds": record["stages"].get("encode_prompt"), "decode_seconds": record["stages"].get("decode"),
            "same_latents": f"{sum(compared)} of {len(compared)} modes",
            "exchange": record.get("steps") == 2 and _exchanges(record["model"], record["offload"]),
            **{peak: _highest(part[peak] for part in parts)
               for peak in ("peak_allocated_gib", "peak_reserved_gib", "peak_ram_gib")},
        })  # fmt: skip
    order = [Row("", *size, "", "").set_up for size in published_forecasts(data)]
    return sorted(found, key=lambda one: order.index(one["set_up"]) if one["set_up"] in order else len(order))


MOMENTS = (0.25, 0.5, 0.75, 1.0)  # seconds after the join that a contact sheet shows


def continuations(folders: Sequence[str | Path], clip: str = "excavator") -> dict[str, np.ndarray]:
    """What each model made of a clip, at `MOMENTS`: frames [T, H, W, 3] by the model's name, the newest run of each.

    Clips are found beside the run.json of the lessons' runs. Those of random weights are left out: they show noise.
    """
    newest = {}
    for path in (path for folder in folders for path in Path(folder).rglob("continued.mp4")):
        for record in runs.load(path.parent):
            usable = record.get("clip") == clip and record.get("weights") != "dummy" and record["model"] in NAMES
            if usable and record["date"] >= newest.get(record["model"], ("",))[0]:
                newest[record["model"]] = (record["date"], path, record["num_frames"])
    rows = {}
    for model in (name for name in NAMES if name in newest):
        _, path, frames = newest[model]
        try:
            longer = clips.read(path, max_seconds=(frames - 1) / MODELS[model].fps + 0.5)
        except clips.ClipError as error:
            warnings.warn(f"{path} is left out: {error}", stacklevel=2)
            continue
        new = longer.frames[-round((frames - 1) / MODELS[model].fps * longer.fps) :]
        rows[NAMES[model]] = new[[min(round(moment * longer.fps), len(new)) - 1 for moment in MOMENTS]]
    return rows
