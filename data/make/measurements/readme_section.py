"""Write the tables of the page about the measurements, with its two charts, and the contact sheet of the clips.

python -m data.make.measurements.readme_section                  # the section between its markers, and two charts
python -m data.make.measurements.readme_section --check          # writes nothing and lists the files that are outdated
python -m data.make.measurements.readme_section --clips outputs  # data/pictures/scoreboard_clips.png, from the lessons'
                                                                 # runs in a folder
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data.make import ROOT
from helpers import clips
from helpers.models import OFFLOAD_MODES
from helpers.scoreboard import (
    Row,
    by_set_up,
    continuations,
    grouped_bars,
    measured,
    of_the_table,
    published_forecasts,
    sliced_records,
    sliced_table,
    whole_runs,
)

from .set_ups import BUDGET_GIB

BEGIN = "<!-- scoreboard: written by `python -m data.make.measurements.readme_section` -->"
END = "<!-- scoreboard: end -->"
PAGE = Path("data") / "measurements" / "README.md"
PICTURES = ("scoreboard_peaks.svg", "scoreboard_time.svg")
COLOURS = 128  # of the contact sheet: enough for drawn frames, in a small file


def ram_table(data: Path) -> list[str]:
    """RAM that whole lessons held in each stage, beside the forecast of the highest; no lines without a record."""
    forecasts, lines = published_forecasts(data), []
    for path in sorted((data / "measurements").glob("ram_*.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        lines += [
            "",
            f"RAM that the process held in whole lessons, on one {rows[0]['device'].removeprefix('NVIDIA ')}, in GiB. "
            "Pinned copies count, and pages of mapped files do not, because the system can drop them: it reads them "
            "again. The forecast counts all weights, mapped or not; where weights are pinned, it was up to 10 % too "
            "low, so a verdict adds 10 %.",
            "",
            "| | mode | prompt | steps | decode | forecast of the highest |",
            "|---" * 6 + "|",
        ]
        by_size = {(row["model"], row["width"], row["height"], row["num_frames"]): row for row in rows}
        for size, modes in forecasts.items():
            if (row := by_size.get(size)) is not None:
                cells = [Row("", *size, "", "").set_up, row["offload"]]
                cells += [_figure(row["ram_gib"].get(stage)) for stage in ("encode_prompt", "generate", "decode")]
                cells.append(_figure(modes[row["offload"]]["peak_ram_gib"]))
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def sliced_lines(data: Path) -> list[str]:
    """Whole runs with sliced activations; no lines without a record."""
    if not sliced_records(data):
        return []
    table = sliced_table(data)
    return [
        "",
        f"{table.caption}, with sliced activations ([lesson 07](../../notebooks/07_slice_the_activations.ipynb)) and "
        "random weights: image, steps and decoding, by `python -m data.make.slices.whole_runs`. A14B holds one "
        "expert at a time and runs without guidance. The latents are compared with those of the baseline, bit for bit.",
        "",
        f"| {' | '.join(table.columns)} |",
        "|---" * len(table.columns) + "|",
        *(f"| {' | '.join(row)} |" for row in table.rows),
    ]


def drift_lines(data: Path) -> list[str]:
    """What hops lose, by the way of handing over; no lines without a record."""
    lines: list[str] = []
    for path in sorted((data / "measurements" / "drift").glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        ends, only = sorted({1, 5, one["hops"]}), " --ways windows" if one["ways"] == ["windows"] else ""
        heads = [f"hop {hop}: PSNR, all / moving" for hop in ends]
        heads += [f"{name} at {one['hops']}" for name in ("contrast", "saturation", "sharpness")]
        lines += [
            "",
            f"Hop after hop ([lesson 08](../../notebooks/08_go_on.ipynb)), the miniature of `{one['model']}`: medians "
            f"over {one['clips']} clips that it was never trained on, each continued for {one['hops']} hops of a "
            f"second, on {one['device'].removeprefix('NVIDIA ')}, by `python -m data.make.measurements.drift "
            f"{one['model']} --clips {one['clips']} --hops {one['hops']}{only}`. "
            f"Contrast, saturation and sharpness are relative to hop 1. {one['beats_freeze']:.0%} of "
            f"the clips that `{one['best']}` makes are nearer to the truth than the frozen last frame, and "
            f"{one['right_beats_wrong']:.0%} are nearer with the right prompt than with a wrong one.",
            "",
            f"| handed over | {' | '.join(heads)} | worst join |",
            "|---" * (len(heads) + 2) + "|",
        ]
        for way in one["ways"]:
            end = "" if way == one["best"] else f"_{way}"
            cells = [f"{one['psnr' + end][hop - 1]:.1f} / {one['moving_psnr' + end][hop - 1]:.1f}" for hop in ends]
            cells += [f"{one[name + end][-1]:.0%}" for name in ("contrast", "saturation", "sharpness")]
            lines.append(f"| {way} | {' | '.join(cells)} | {max(one['seam_over_usual' + end]):.1f} |")
    return lines


def section(rows: Sequence[Row], whole: Sequence[dict], data: Path = ROOT / "data") -> str:
    """The section in Markdown: a table of the modes, the charts, and the whole runs within the budget."""
    device, names = rows[0].device, dict.fromkeys(row.set_up for row in rows)
    lines = [
        f"The five models at full size with random weights, in every mode, on one {device.removeprefix('NVIDIA ')}. "
        "Each cell: peak allocated VRAM in GiB, and the time of a denoising step relative to the baseline (`none`). "
        f"Bold: below {BUDGET_GIB:g} GiB.",
        "",
        f"| | {' | '.join(OFFLOAD_MODES)} | baseline step |",
        "|---" * (len(OFFLOAD_MODES) + 2) + "|",
    ]
    for name in names:
        own = {row.offload: row for row in rows if row.set_up == name}
        baseline = next((row.resident_step_seconds for row in own.values() if row.resident_step_seconds), None)
        cells = [_cell(own.get(mode)) for mode in OFFLOAD_MODES]
        lines.append(f"| {name} | {' | '.join(cells)} | {'' if baseline is None else f'{baseline:.3g} s'} |")
    lines += [
        "",
        f"![Peak VRAM of the set-ups in every offload mode, against {BUDGET_GIB:g} GiB](../pictures/{PICTURES[0]})",
        f"![Time of a denoising step in every mode, relative to the baseline](../pictures/{PICTURES[1]})",
    ]
    if any(row.swap for row in rows):
        note = "In `model` offload, A14B's two experts are swapped once per clip; the ratio spreads it over all steps."
        lines += ["", note]
    if whole:
        note = "The lessons decode with only the VAE loaded. Where decoding is the peak, all modes need the same VRAM."
        lines += ["", note]
        lines += [
            "",
            f"Whole lessons, from the prompt to the decoded clip, with PyTorch limited to {BUDGET_GIB:g} GiB:",
            "",
            "| | mode | peak allocated | reserved | prompt | step | decode | same latents |",
            "|---" * 8 + "|",
        ]
        for one in whole:
            gib = (one["peak_allocated_gib"], one["peak_reserved_gib"])
            seconds = (one["prompt_seconds"], one["step_seconds"], one["decode_seconds"])
            cells = [one["set_up"], one["offload"], *(_figure(value, "GiB") for value in gib)]
            prompt, step, decode = (_figure(value, "s") for value in seconds)
            step += " (includes swapping the experts, once per clip)" if one["swap"] else ""
            cells += [prompt, step, decode, one["same_latents"]]
            lines.append(f"| {' | '.join(cells)} |")
        note = "TI2V-5B's whole run has the hook order that lesson 02 mends; the table of modes has that of diffusers."
        lines += ["", note]
    lines += sliced_lines(data)
    lines += ram_table(data)
    lines += drift_lines(data)
    lines += [
        "",
        "`python -m data.make.measurements.lessons` runs the lessons on your own GPU and adds its record. "
        "[Lesson 06](../../notebooks/06_scoreboard.ipynb) compares these figures with your runs.",
    ]
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    if row.failed or row.peak_gib is None:
        return "out of memory" if row.overflowed else "fails"
    ratio = "" if row.ratio is None else f" · {row.ratio:.2f}×"
    return f"**{row.peak_gib:.1f}**{ratio}" if row.peak_gib <= BUDGET_GIB else f"{row.peak_gib:.1f}{ratio}"


def _figure(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{value:.3g} {unit}".strip()


def charts(rows: Sequence[Row]) -> dict[str, str]:
    """The two charts as SVG, by file name."""
    device = rows[0].device.removeprefix("NVIDIA ")
    peaks = grouped_bars(
        f"Peak VRAM of every offload mode, on one {device}", by_set_up(rows, "peak_gib"), limit=BUDGET_GIB,
        limit_name="budget", what=f"peak allocated by PyTorch, GiB; hollow: more than {BUDGET_GIB:g}",
    )  # fmt: skip
    time = grouped_bars(
        f"Time of every offload mode, on one {device}", by_set_up(rows, "ratio"), doubling=True,
        what="seconds of a denoising step relative to the baseline; each line doubles the previous one",
    )  # fmt: skip
    return {PICTURES[0]: peaks.svg + "\n", PICTURES[1]: time.svg + "\n"}


def with_section(page: str, text: str) -> str:
    """`page` with `text` between its markers.

    Raises:
        ValueError: If there is not exactly one pair of markers.
    """
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.S)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"{PAGE.as_posix()} needs exactly one pair of markers: {BEGIN} and {END}")
    return pattern.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", page)


def wanted(root: Path = ROOT) -> dict[Path, str]:
    """The text of each file that the command writes.

    Raises:
        ValueError: If there are no measurements, or the page lacks its markers.
    """
    rows = of_the_table(measured(root / "data"))
    if not rows:
        raise ValueError(f"{root / 'data' / 'measurements'} has no record of a measured set-up")
    page = root / PAGE
    whole = [one for one in whole_runs(root / "data") if one["device"] == rows[0].device]
    text = with_section(page.read_text(encoding="utf-8"), section(rows, whole, root / "data"))
    drawn = {root / "data" / "pictures" / name: content for name, content in charts(rows).items()}
    return {page: text, **drawn}


def contact_sheet(folder: Path) -> Path:
    """Save a picture with one row of frames, at the same moments, for each lesson that was run into `folder`.

    Raises:
        ValueError: If there is none.
    """
    rows = continuations([folder])
    if not rows:
        raise ValueError(f"{folder} has no run of a lesson with a clip: run the lessons with `--out {folder}` first")
    page = clips.side_by_side(rows, count=4, height=96)
    path = ROOT / "data" / "pictures" / "scoreboard_clips.png"
    return clips.save_image(path, page.quantize(COLOURS, dither=Image.Dither.NONE))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, or 1 if something is missing or, with --check, a file is outdated."""
    command = "python -m data.make.measurements.readme_section"
    parser = argparse.ArgumentParser(prog=command, description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, list the outdated files")
    parser.add_argument("--clips", type=Path, help="draw the contact sheet of the runs in this folder")
    options = parser.parse_args(arguments)
    try:
        if options.clips:
            print(contact_sheet(options.clips).relative_to(ROOT))
            return 0
        stale = [(path, text) for path, text in wanted().items() if not _is(path, text)]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for path, text in stale:
        print(f"{path.relative_to(ROOT)}{' is outdated' if options.check else ''}")
        if not options.check:
            path.write_text(text, encoding="utf-8")
    return int(options.check and bool(stale))


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
