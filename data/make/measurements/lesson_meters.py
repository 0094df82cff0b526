"""Read the meters that an executed notebook shows, also while it runs and after it has failed."""

import json
from pathlib import Path

from helpers.charts import METER_JSON


def meters(notebook: Path) -> dict[str, dict]:
    """What the meters in an executed notebook saw last, by cell id; empty if it cannot be read (yet).

    A cell with several meters has a key for each: the id, then the id and the meter's title.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return {}
    found = {}
    for cell in cells:
        for output in cell.get("outputs", ()):
            meter = output.get("data", {}).get(METER_JSON)
            if meter is not None and meter["state"] != "running":
                stage = cell["id"].replace("-", "_")
                found[f"{stage}_{meter['title']}" if stage in found else stage] = meter
    return found


def line_of(stage: str, meter: dict) -> str:
    """A meter as a line of progress."""
    peak = f"RAM {meter['peak_ram_gib']:.2f} GiB"
    if meter["peak_allocated_gib"] is not None:
        peak = f"{meter['peak_allocated_gib']:.2f} GiB allocated, {meter['peak_reserved_gib']:.2f} reserved, {peak}"
    return f"    {stage}: {meter['state']}, {meter['seconds']:.1f} s, {peak}"


def meters_so_far(folder: Path) -> dict[str, dict]:
    """The meters in the folder's executed notebook: that of a running lesson, or the failed or final one."""
    patterns = ("*.partial.ipynb", "*.failed.ipynb", "*.ipynb")
    notebooks = (path for pattern in patterns for path in folder.glob(pattern))
    return next(filter(None, map(meters, notebooks)), {})
