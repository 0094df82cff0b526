"""The command line: `python -m helpers.forecast wan22_i2v_a14b --width 1280 --height 720 --vram 12`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from helpers.forecast.forecasting import forecasts
from helpers.forecast.gpus import DEFAULT_GPU, GPUS
from helpers.forecast.pipelines.base import RequestError
from helpers.forecast.planning.planner import SLICES, Way, find_way, ram_savings
from helpers.forecast.planning.verdict import Verdict
from helpers.forecast.recording.recorder import architecture
from helpers.forecast.result import Forecasts
from helpers.models.architecture import ArchitectureError
from helpers.models.catalogue import ENCODE_WAYS, MODELS, OFFLOAD_MODES
from helpers.units import duration

EXAMPLES = """\
examples:
  python -m helpers.forecast ltx_video                                  all modes at the model's own size
  python -m helpers.forecast wan22_i2v_a14b --width 1280 --height 720 --vram 12 --gpu "RTX 4070 Ti"
                                                                        does it fit 12 GiB, and how long does it take?
  python -m helpers.forecast my_folder --width 768 --height 512 --num-frames 97 --offload group_leaf
                                                                        one mode of a checkpoint in the diffusers layout

Sizes are GiB (2**30 bytes). Peaks of VRAM are what PyTorch allocates; a verdict adds 0.5 GiB for CUDA itself, and 10 %
to the RAM. Minutes are for one clip; a lesson that also compares the modes takes two steps more for each.
Seconds are estimates for the GPU. """


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    args = _parser().parse_args(arguments)
    try:
        _refuse_useless(args)
        known = MODELS.get(args.checkpoint)
        options = _size(args) | dict(
            guidance=args.guidance,
            tiling=args.tiling,
            decode_alone=args.decode_alone,
            chunking=args.chunking is not False,
            quantization=args.quantization or (known and known.quantization),
            low_cpu_mem_usage=args.low_cpu_mem_usage,
            slice_tokens=args.slice_tokens,
            lean_decoding=args.lean_decoding,
            one_expert_at_a_time=args.one_expert_at_a_time,
            encode=args.encode,
            gpu=args.gpu,
            modes=(args.offload,) if args.offload else OFFLOAD_MODES,
        )
        if args.decode_chunk_size:
            options["decode_chunk_size"] = args.decode_chunk_size
        every = forecasts(args.checkpoint, **options)
        steps = args.steps or (known and known.defaults["pretrained"].steps)
        budgets = {"vram_budget_gb": args.vram, "ram_budget_gb": args.ram, "minutes": args.minutes}
        asked = any(budget is not None for budget in budgets.values())
        verdict = Verdict.of(every, steps=steps, **budgets) if asked else None
        short = verdict and every.fastest(args.vram, args.ram) is None  # of memory
        way = None
        if short:
            way = find_way(args.checkpoint, vram_budget_gb=args.vram, ram_budget_gb=args.ram, **options)
        if way:
            found = Forecasts({way.forecast.offload: way.forecast})
            verdict = Verdict.of(found, steps=steps, **budgets, options=way.options)
    except (ArchitectureError, RequestError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        judged = {"verdict": asdict(verdict)} if verdict else {}
        print(json.dumps(every.as_json() | judged, indent=1))
        return 0
    print(every[args.offload] if args.offload else every)
    if verdict:
        minutes = verdict.minutes_per_clip
        time = "" if minutes is None else f", about {duration(60 * minutes)} per clip of {steps} steps on {args.gpu}"
        which = f"As it is, no mode fits. With {way.text}, it" if way else "It"
        print(f"{which} {'fits' if verdict.fits else 'does not fit'}: {verdict.why}{time}")
        if way:
            print(way.how)
        elif short:
            least = _most_frugal(args.checkpoint, options)
            needs = f"{least.forecast.needs_vram_gib:.1f} GiB of VRAM and {least.forecast.needs_ram_gib:.1f} of RAM"
            print(f"The most frugal way, {least.forecast.offload} with {least.text},")
            print(f"needs {needs}, CUDA's own half GiB and 10 % of RAM for safety included.")
            print("Take fewer frames or a smaller size.")
    return 0


def _most_frugal(checkpoint: str, options: dict) -> Way:
    """Everything that saves memory for this model, switched on."""
    arch = architecture(checkpoint, options["quantization"])
    savings = {"slice_tokens": min(filter(None, SLICES)), "low_cpu_mem_usage": True} | ram_savings(arch)[-1]
    if arch.family == "StableVideoDiffusion":
        savings["decode_chunk_size"] = 1
    if options["modes"] == OFFLOAD_MODES:
        options = options | {"modes": ("group_leaf",)}
    return Way(forecasts(checkpoint, **options | savings).first, savings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.forecast",
        description="Forecast the VRAM, RAM and seconds that a model needs, from its config files alone.",
        epilog=f"{EXAMPLES}GPUs: {', '.join(GPUS)}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="MODEL_OR_FOLDER", help=f"{', '.join(MODELS)}, or a diffusers folder")
    parser.add_argument("--width", type=int, help="pixels (default: the model's own)")
    parser.add_argument("--height", type=int, help="pixels (default: the model's own)")
    parser.add_argument("--num-frames", type=int, help="including the frame that is given (default: the model's own)")
    parser.add_argument("--steps", type=_positive_int, help="denoising steps per clip (default: the model's own)")
    parser.add_argument("--vram", type=_positive, metavar="GIB", help="VRAM to fit into: adds a verdict")
    parser.add_argument("--ram", type=_positive, metavar="GIB", help="RAM to fit into: adds a verdict")
    parser.add_argument("--minutes", type=_positive, help="minutes per clip to stay within: adds a verdict")
    parser.add_argument("--offload", choices=OFFLOAD_MODES, help="one mode in detail instead of the table of all")
    parser.add_argument("--gpu", default=DEFAULT_GPU, help="for the estimated seconds (default: %(default)s)")
    parser.add_argument("--quantization", help='GGUF type such as Q4_K, or "none" (default: that of the download)')
    parser.add_argument("--low-cpu-mem-usage", action="store_true", help="group offload without pinned copies")
    parser.add_argument("--slice-tokens", type=_positive_int, metavar="N", help="tokens in the denoiser at a time")
    parser.add_argument("--one-expert-at-a-time", action="store_true", help="of two experts, only one in RAM")
    parser.add_argument("--encode", choices=ENCODE_WAYS, default="fp32", help="the prompt (default: %(default)s)")
    parser.add_argument("--decode-chunk-size", type=_positive_int, metavar="N", help="of SVD (default: 8)")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--guidance", action=switch, default=True, help="two passes per step (default: on)")
    parser.add_argument("--tiling", action=switch, default=None, help="the VAE in tiles (default: as in the lessons)")
    parser.add_argument("--lean-decoding", action=switch, default=None, help="tiles to RAM (default: with slices)")
    parser.add_argument("--decode-alone", action=switch, default=True, help="only the VAE decodes (default: on)")
    parser.add_argument("--chunking", action=switch, default=None, help="SVD's forward chunking (default: on)")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0")
    return value


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number, at least 1")
    return int(text)


def _refuse_useless(args: argparse.Namespace) -> None:
    """Raise RequestError for an option that does nothing for this model."""
    family = architecture(args.checkpoint).family
    if args.chunking is not None and family != "StableVideoDiffusion":
        raise RequestError("--chunking does nothing here: only Stable Video Diffusion has forward chunking.")
    if args.decode_chunk_size is not None and family != "StableVideoDiffusion":
        raise RequestError("--decode-chunk-size does nothing here: only Stable Video Diffusion decodes in chunks.")
    if args.one_expert_at_a_time and len(architecture(args.checkpoint).denoisers) < 2:
        raise RequestError("--one-expert-at-a-time does nothing here: this model has one.")
    if args.low_cpu_mem_usage and args.offload not in (None, "group_block", "group_leaf"):
        raise RequestError("--low-cpu-mem-usage does nothing here: it is an option of group offload.")
    if args.encode != "fp32" and architecture(args.checkpoint).text_encoder is None:
        raise RequestError("--encode does nothing here: this model takes no prompt.")
    if args.tiling is not None and family == "StableVideoDiffusion":
        raise RequestError("--tiling does nothing here: the VAE of Stable Video Diffusion cannot tile.")


def _size(args: argparse.Namespace) -> dict[str, int]:
    """Width, height and number of frames, the model's defaults where they are not given.

    Raises:
        RequestError: If a folder's size is not given.
    """
    sizes = {"width": args.width, "height": args.height, "num_frames": args.num_frames}
    if args.checkpoint in MODELS:
        defaults = vars(MODELS[args.checkpoint].defaults["pretrained"])
        return {name: defaults[name] if size is None else size for name, size in sizes.items()}
    if missing := [f"--{name.replace('_', '-')}" for name, size in sizes.items() if size is None]:
        raise RequestError(f"give {', '.join(missing)} for a folder.")
    return sizes


if __name__ == "__main__":
    sys.exit(main())
