"""Forecast VRAM, RAM and seconds: `python -m helpers.forecast wan22_i2v_a14b --width 1280 --height 720 --json`."""

from __future__ import annotations

import argparse
import json
import sys

from helpers.forecast.forecasting import forecasts
from helpers.forecast.gpus import DEFAULT_GPU
from helpers.forecast.pipelines.base import RequestError
from helpers.forecast.recording.recorder import architecture
from helpers.models.architecture import ArchitectureError
from helpers.models.catalogue import MODELS, OFFLOAD_MODES


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    args = _parser().parse_args(arguments)
    try:
        result = forecasts(
            args.checkpoint,
            **_size(args),
            guidance=args.guidance,
            tiling=args.tiling,
            chunking=args.chunking,
            quantization=args.quantization,
            low_cpu_mem_usage=args.low_cpu_mem_usage,
            gpu=args.gpu,
            modes=(args.offload,) if args.offload else OFFLOAD_MODES,
        )
    except (ArchitectureError, RequestError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(result.as_json(), indent=1))
    else:
        print(result[args.offload] if args.offload else result)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.forecast", description="Forecast the VRAM, RAM and seconds that a model needs."
    )
    parser.add_argument("checkpoint", metavar="MODEL_OR_FOLDER", help=f"{', '.join(MODELS)}, or a diffusers folder")
    for name in ("width", "height", "num-frames"):
        parser.add_argument(f"--{name}", type=int, help="default: the model's own")
    parser.add_argument("--offload", choices=OFFLOAD_MODES, help="one mode in detail instead of the table of all")
    parser.add_argument("--gpu", default=DEFAULT_GPU, help="for the estimated seconds (default: %(default)s)")
    parser.add_argument("--quantization", help='GGUF type such as Q4_K, or "none"; default: the checkpoint\'s own')
    parser.add_argument("--low-cpu-mem-usage", action="store_true", help="group offload without pinned copies")
    for name in ("guidance", "tiling", "chunking"):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


def _size(args: argparse.Namespace) -> dict[str, int]:
    """Width, height and number of frames, the model's defaults where they are not given.

    Raises:
        ArchitectureError: If there is no such model or folder.
        RequestError: If a folder's size is not given.
    """
    sizes = {"width": args.width, "height": args.height, "num_frames": args.num_frames}
    if args.checkpoint in MODELS:
        defaults = vars(MODELS[args.checkpoint].defaults["pretrained"])
        return {name: defaults[name] if size is None else size for name, size in sizes.items()}
    architecture(args.checkpoint)  # a folder that does not exist is reported before its size is asked for
    if missing := [f"--{name.replace('_', '-')}" for name, size in sizes.items() if size is None]:
        raise RequestError(f"give {', '.join(missing)} for a folder.")
    return sizes


if __name__ == "__main__":
    sys.exit(main())
