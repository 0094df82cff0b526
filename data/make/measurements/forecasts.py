"""Draw the forecasts of the six set-ups for the README, and time the forecaster.

python -m data.make.measurements.forecasts              # writes data/pictures/forecast_*.svg and data/forecasts.json
python -m data.make.measurements.forecasts --benchmark  # seconds and peak RAM of each forecast, in a separate process
"""

import argparse
import json
import resource
import subprocess
import sys
import time

from data.make import ROOT
from helpers.forecast import forecasts

from .set_ups import BUDGET_GIB, SET_UPS

GPU = "RTX 4070 Ti"


def forecast_of(name: str):
    """The forecasts of a set-up in all modes, as `helpers.forecast.forecasts` returns them."""
    set_up = SET_UPS[name]
    width, height, frames = set_up.size
    return forecasts(set_up.model, width=width, height=height, num_frames=frames, gpu=GPU)


def draw() -> None:
    """Write a chart for each set-up, and one JSON file with all figures."""
    figures = {}
    for name, set_up in SET_UPS.items():
        result = forecast_of(name)
        path = ROOT / "data" / "pictures" / f"forecast_{name}.svg"
        path.write_text(result.chart(BUDGET_GIB).svg + "\n", encoding="utf-8")
        size = dict(zip(("width", "height", "num_frames"), set_up.size, strict=True))
        figures[name] = {"model": set_up.model} | size | {"card": GPU} | result.as_json()
        print(path.relative_to(ROOT))
    path = ROOT / "data" / "forecasts.json"
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT))


def benchmark() -> None:
    """Print the seconds (without imports) and the peak RAM of each forecast."""
    for name in SET_UPS:
        command = [sys.executable, "-m", "data.make.measurements.forecasts", "--one", name]
        subprocess.run(command, check=True, cwd=ROOT)


def time_one(name: str) -> None:
    """Print the seconds and this process's peak RAM of one forecast."""
    import transformers  # noqa: F401 - imported here so that its time is not counted
    from diffusers import WanImageToVideoPipeline  # noqa: F401

    began = time.perf_counter()
    forecast_of(name)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    print(f"{name:<22}{seconds:6.1f} s  {peak:5.2f} GiB of RAM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmark", action="store_true", help="time each forecast instead of drawing it")
    parser.add_argument("--one", choices=SET_UPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        time_one(args.one)
    elif args.benchmark:
        benchmark()
    else:
        draw()


if __name__ == "__main__":
    main()
