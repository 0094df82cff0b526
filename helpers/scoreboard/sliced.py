"""Whole runs with sliced activations under a cap, as recorded in data/measurements/sliced_<gpu>/."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.charts.table import MISSING, Table
from helpers.scoreboard.rows import DATA, Row

COLUMNS = (
    "run", "cap, GiB", "mode", "tokens in a slice", "peak, GiB", "forecast", "RAM, GiB", "s/step", "x baseline",
    "latents",
)  # fmt: skip


def sliced_records(data: Path = DATA) -> list[dict]:
    """The records, by model and number of tokens."""
    paths = sorted((data / "measurements").glob("sliced_*/*.json"))
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return sorted(records, key=lambda one: (one["model"], one["width"] * one["height"] * one["num_frames"]))


def sliced_table(data: Path = DATA) -> Table:
    """The runs as a table; the baseline of a step has all weights on the GPU, no slices and no cap."""
    records = sliced_records(data)
    device = records[0]["device"].removeprefix("NVIDIA ")
    return Table(f"{len(records)} whole runs under a cap, on one {device}", COLUMNS, list(map(_cells, records)))


def _cells(record: dict) -> tuple[str, ...]:
    size = record["model"], record["width"], record["height"], record["num_frames"]
    step, baseline = record["step_seconds"], record["resident_step_seconds"]
    # The UNet of Stable Video Diffusion has no slices of tokens, but of its batch.
    entries = record["model"] == "svd_xt"
    mode = record["offload"] + ", less pinned" * record["low_cpu_mem_usage"]
    return (
        Row("", *size, "", "").set_up, f"{record['vram_cap_gib']:g}", mode,
        "one entry of the batch" if entries else f"{record['slice_tokens']:,}",
        _figure(record["peak_allocated_gib"]), _figure(record["forecast"]["peak_vram_gib"]),
        _figure(record["peak_ram_gib"], 1), _figure(step), _figure(step / baseline if baseline else None),
        _same(record),
    )  # fmt: skip


def _same(record: dict) -> str:
    if record["latents_equal"] is None:
        return MISSING
    return "equal" if record["latents_equal"] else f"off by {record['latents_difference']:.2f}"


def _figure(value: float | None, digits: int = 2) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"
