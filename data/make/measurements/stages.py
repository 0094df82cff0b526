"""Compare the forecasts with a real GPU: every stage and offload mode of the five models, with random weights.

python -m data.make.measurements.stages                        # all runs, on the first GPU; resumes where it stopped
python -m data.make.measurements.stages --only svd_xt --minutes 5
python -m data.make.measurements.stages --compare              # without a GPU: today's forecasts of the recorded runs
python -m data.make.measurements.stages --draw                 # the same, and the chart

The real pipelines are called as in the lessons, on full-size dummy checkpoints (`helpers.models.dummies`), for two
denoising steps and the decoding. Each size of a model runs in a separate process. The record, with the forecasts of
that day, is data/measurements/stages_<gpu>.json; the chart beside it shows today's forecasts, misses included.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from data.make import ROOT, gpu_slug
from helpers import measure
from helpers.forecast import GPU, Rates, find_gpu, measure_gpu
from helpers.models import CACHE, CONFIGS, OFFLOAD_MODES

from .set_ups import SET_UPS
from .stage_accuracy import chart, compare, summary, table
from .stage_runs import measure_modes

SIX = {name: (one.model, *one.size) for name, one in SET_UPS.items()}
# (model, width, height, frames): the six set-ups, a larger size of each model, and a short clip of A14B
RUNS = [
    SIX["ltx_video"],
    SIX["svd_xt"],
    SIX["wan22_ti2v_5b"],
    ("wan22_i2v_a14b", 1280, 720, 13),
    SIX["cogvideox_5b_i2v"],
    SIX["wan22_i2v_a14b"],
    ("ltx_video", 1216, 704, 161),
    ("wan22_ti2v_5b", 1280, 704, 121),
    ("svd_xt", 1280, 768, 25),
    SIX["wan22_i2v_a14b_720p"],
]


def show(path: Path, configs: Path, draw: bool) -> None:
    """Print today's forecasts beside the figures of a record, and draw them in an SVG beside it if `draw`."""
    record = json.loads(path.read_text())
    gpu = gpu_of(record["device"], record.get("rates"))
    rows = [compare(row, configs, gpu) for row in record["rows"]]
    print(f"{record['device']}, measured {record['date'][:10]}\n{table(rows)}\n{summary(rows)}")
    if draw:
        path.with_suffix(".svg").write_text(chart(rows, record["device"]) + "\n")


def gpu_of(device: str, rates: dict | None = None) -> GPU:
    """A GPU of the table or, for any other, one with the rates that were measured on it.

    Raises:
        SystemExit: If it is in neither.
    """
    if known := find_gpu(device):
        return known
    if rates is None:
        raise SystemExit(f"{device} is not in helpers.forecast.GPUS: add it, or measure on a GPU that is.")
    return GPU(device, 0.0, Rates(**rates))


def rows_of(job: dict, limit: float) -> Iterator[dict]:
    """Measure one set-up in a separate process; yields its rows as they come. It is killed after `limit` seconds."""
    command = [sys.executable, "-m", "data.make.measurements.stages", "--child", json.dumps(job)]
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    clock = threading.Timer(limit, process.kill)
    clock.start()
    try:
        for line in process.stdout:
            if line.startswith("ROW "):
                yield json.loads(line[4:])
    finally:
        clock.cancel()
        process.wait()


def save(record: dict, path: Path) -> None:
    """Write the record with the versions and the date of today."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    measure.save(record | {"versions": measure.versions(), "date": date}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="a model's name")
    parser.add_argument("--modes", nargs="+", default=list(OFFLOAD_MODES), choices=OFFLOAD_MODES)
    parser.add_argument("--minutes", type=float, default=60.0, help="start no set-up after this time (default: 60)")
    parser.add_argument("--again", action="store_true", help="measure recorded set-ups again")
    parser.add_argument("--out", type=Path, help="file of the record (default: data/measurements/stages_<gpu>.json)")
    parser.add_argument("--configs", type=Path, default=CONFIGS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--sizes", help="other sizes: MODEL:WIDTHxHEIGHTxFRAMES, separated by commas")
    parser.add_argument("--compare", action="store_true", help="only compare today's forecasts with the records")
    parser.add_argument("--draw", action="store_true", help="the same, and draw the chart")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return measure_modes(json.loads(args.child))
    measurements = ROOT / "data" / "measurements"
    if args.compare or args.draw:
        for path in [args.out] if args.out else sorted(measurements.glob("stages_*.json")):
            show(path, args.configs, args.draw)
        return None

    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device to measure on; --compare needs none.")
    device = torch.cuda.get_device_name(0)
    rates = asdict(measure_gpu().rates)
    gpu = gpu_of(device, rates)
    path = args.out or measurements / f"stages_{gpu_slug(device)}.json"
    record = json.loads(path.read_text()) if path.exists() else {"device": device, "rows": []}
    record["rates"] = rates
    runs_to_do = RUNS
    if args.sizes:
        named = (one.split(":") for one in args.sizes.split(","))
        runs_to_do = [(model, *map(int, size.split("x"))) for model, size in named]
    deadline = time.monotonic() + 60 * args.minutes
    for model, width, height, frames in runs_to_do:
        key = {"model": model, "width": width, "height": height, "num_frames": frames}
        done = [row["offload"] for row in record["rows"] if key.items() <= row.items()]
        modes = [mode for mode in args.modes if args.again or mode not in done]
        if not modes or (args.only and model != args.only):
            continue
        if time.monotonic() > deadline:
            print(f"time is up before {model} {width}x{height}x{frames}; run the same command again", flush=True)
            break
        job = key | {"modes": modes, "configs": str(args.configs), "cache": str(args.cache)}
        for row in rows_of(job, limit=max(60.0, deadline - time.monotonic() + 60)):
            row = compare(row, args.configs, gpu)
            shown = ("model", "offload", "peaks", "missed_gib", "step_seconds", "failed")
            print(json.dumps({name: row.get(name) for name in shown}), flush=True)
            same = key | {"offload": row["offload"]}
            record["rows"] = [*(old for old in record["rows"] if not same.items() <= old.items()), row]
            save(record, path)
    show(path, args.configs, draw=True)


if __name__ == "__main__":
    main()
