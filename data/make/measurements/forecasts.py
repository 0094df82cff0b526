"""Draw the forecasts of the six set-ups for the README, and time the forecaster.

python -m data.make.forecasts              # writes data/pictures/forecast_*.svg and data/forecasts.json
python -m data.make.forecasts --benchmark  # seconds and peak RAM of one forecast each, in a process of its own
"""

import argparse
import json
import resource
import subprocess
import sys
import time

from helpers.forecast import forecasts

from .train import ROOT

# name of the picture: the model and the size that the set-up's author ran
SET_UPS = {
    "ltx_video": ("ltx_video", 768, 512, 121),
    "wan22_i2v_a14b_720p": ("wan22_i2v_a14b", 1280, 720, 81),
    "wan22_i2v_a14b": ("wan22_i2v_a14b", 640, 384, 81),
    "cogvideox_5b_i2v": ("cogvideox_5b_i2v", 720, 480, 49),
    "svd_xt": ("svd_xt", 1024, 576, 25),
    "wan22_ti2v_5b": ("wan22_ti2v_5b", 640, 384, 121),
}
CARD = "RTX 4070 Ti"
BUDGET = 12.0


def forecast_of(name: str):
    """The forecasts of one set-up, all modes."""
    model, width, height, frames = SET_UPS[name]
    return forecasts(model, width=width, height=height, num_frames=frames, card=CARD)


def draw() -> None:
    """Write a chart for each set-up, and all figures into one JSON file."""
    figures = {}
    for name, (model, width, height, frames) in SET_UPS.items():
        result = forecast_of(name)
        path = ROOT / "data" / "pictures" / f"forecast_{name}.svg"
        path.write_text(result.chart(BUDGET).svg + "\n", encoding="utf-8")
        size = {"model": model, "width": width, "height": height, "num_frames": frames, "card": CARD}
        figures[name] = size | result.as_json()
        print(path.relative_to(ROOT))
    path = ROOT / "data" / "forecasts.json"
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT))


def benchmark() -> None:
    """Print seconds (imports apart) and peak RAM for each set-up."""
    for name in SET_UPS:
        subprocess.run([sys.executable, "-m", "data.make.forecasts", "--one", name], check=True, cwd=ROOT)


def one(name: str) -> None:
    import transformers  # noqa: F401 - these imports are left out of the time
    from diffusers import WanImageToVideoPipeline  # noqa: F401

    began = time.perf_counter()
    forecast_of(name)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    print(f"{name:<22}{seconds:6.1f} s  {peak:5.2f} GiB of RAM")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benchmark", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one)
    elif args.benchmark:
        benchmark()
    else:
        draw()


if __name__ == "__main__":
    main()
