"""Collect the RAM that recorded lessons held, stage by stage: data/measurements/ram_<gpu>.json.

python -m data.make.measurements.lessons --out outputs/ram         # run the lessons on a GPU
python -m data.make.measurements.ram outputs/ram/lessons_h100      # and collect
"""

import argparse
import json
from pathlib import Path

from data.make import ROOT
from helpers.measure import save

STAGES = ("encode_prompt", "generate", "decode")


def collected(folder: Path) -> list[dict]:
    """A row for each record of a lesson: the set-up, the mode that made the clip, and GiB of RAM by finished stage."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        meters = {stage: record["meters"][stage] for stage in STAGES if stage in record["meters"]}
        asked = {name: record[name] for name in ("model", "width", "height", "num_frames", "offload", "device", "date")}
        held = {stage: meter["peak_ram_gib"] for stage, meter in meters.items() if meter["state"] == "done"}
        rows.append(asked | {"ram_gib": held, "versions": record["versions"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="with the records of lessons, lessons_h100 for example")
    folder = parser.parse_args().folder
    path = ROOT / "data" / "measurements" / f"ram_{folder.name.removeprefix('lessons_')}.json"
    print(save({"rows": collected(folder)}, path).relative_to(ROOT))


if __name__ == "__main__":
    main()
