"""Read the meters that an executed notebook shows, also while it runs and after it has failed."""

import json
import re
from pathlib import Path

METER = re.compile(r"^(?P<title>.+): (?P<state>done|stopped by \w+), (?P<seconds>[\d.]+) s$", re.M)
VRAM = re.compile(r"^  VRAM: peak ([\d.]+) GiB allocated, ([\d.]+) reserved, ([\d.]+) device-wide", re.M)
RAM = re.compile(r"^  RAM.*: peak ([\d.]+) GiB", re.M)
FORECAST = re.compile(r"^  forecast: ([\d.]+) GiB", re.M)


def meters(notebook: Path) -> list[dict]:
    """The final figures of the meters in an executed notebook, in their order; empty if it cannot be read (yet)."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return []
    found = []
    for cell in cells:
        for output in cell.get("outputs", ()):
            text = "".join(output.get("data", {}).get("text/plain", ""))
            if not ((meter := METER.match(text)) and (ram := RAM.search(text))):
                continue
            vram, forecast = VRAM.search(text), FORECAST.search(text)
            allocated, reserved, device = map(float, vram.groups()) if vram else (None, None, None)
            found.append({
                "cell": cell.get("id"), "title": meter["title"], "state": meter["state"],
                "seconds": float(meter["seconds"]), "peak_allocated_gib": allocated, "peak_reserved_gib": reserved,
                "peak_device_gib": device, "peak_ram_gib": float(ram[1]),
                "forecast_gib": float(forecast[1]) if forecast else None,
            })  # fmt: skip
    return found


def line_of(meter: dict) -> str:
    """A meter as a line of progress."""
    peak = f"RAM {meter['peak_ram_gib']:.2f} GiB"
    if meter["peak_allocated_gib"] is not None:
        peak = f"{meter['peak_allocated_gib']:.2f} GiB allocated, {meter['peak_reserved_gib']:.2f} reserved, {peak}"
    return f"    {meter['cell']}: {meter['state']}, {meter['seconds']:.1f} s, {peak}"


def meters_so_far(folder: Path) -> list[dict]:
    """The meters in the folder's executed notebook: that of a running lesson, or the failed or final one."""
    patterns = ("*.partial.ipynb", "*.failed.ipynb", "*.ipynb")
    notebooks = (path for pattern in patterns for path in folder.glob(pattern))
    return next(filter(None, map(meters, notebooks)), [])
