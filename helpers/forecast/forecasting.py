"""How much VRAM and RAM a model will need, and how long a step will take, before anything is downloaded.

    python -m helpers.forecast wan22_i2v_a14b --width 1280 --height 720 --num-frames 81

    from helpers.forecast import forecast, forecasts
    forecast("wan22_i2v_a14b", offload="group_leaf", width=1280, height=720, num_frames=81)
    forecasts("ltx_video", width=768, height=512, num_frames=121)  # all five modes

Each stage's real forward runs on torch's `meta` device, where tensors have shapes but no numbers; a tape follows
every storage's life (`helpers.tape`), and the offload mode's own rules say which weights are on the card at each moment
(`helpers.placement`). The largest sum is the peak. It takes seconds, needs no GPU, and no weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from helpers import cards
from helpers.architecture import Architecture, ArchitectureError
from helpers.cards import DEFAULT_CARD, Card
from helpers.checks import OFFLOAD_MODES
from helpers.forecast_result import GIB, Forecast, Forecasts, Stage
from helpers.models import MODELS, model
from helpers.placement import Placement, module_bytes, ram_bytes
from helpers.replay import remembering
from helpers.stages import Request, RequestError, stages
from helpers.tape import Tape

# What a stage depends on besides size and frames. A tape is recorded once for all requests that differ elsewhere.
STAGE_OPTIONS = {
    "encode_image": ("tiling",),
    "denoise": ("guidance", "chunking"),
    "decode": ("tiling", "decode_chunk_size"),
}
# Python, torch, diffusers and a CUDA context in RAM: the process of data/measurements/ltx_video_miniature_h200.json.
PROCESS_GIB = 2.0
GGUF_SEQUENTIAL = (
    "sequential offload sends every weight through the meta device, where a GGUF weight loses its quantisation type "
    "(huggingface/diffusers issue 14691)"
)


def forecasts(
    checkpoint: str | Path,
    *,
    width: int,
    height: int,
    num_frames: int,
    guidance: bool = True,
    quantization: str | None = None,
    dtype: torch.dtype | None = None,
    tiling: bool = True,
    chunking: bool = True,
    decode_chunk_size: int = 8,
    use_stream: bool = True,
    record_stream: bool = True,
    low_cpu_mem_usage: bool = False,
    vae_home: bool = True,
    card: str | Card = DEFAULT_CARD,
    modes: tuple[str, ...] = OFFLOAD_MODES,
) -> Forecasts:
    """Forecast several offload modes of one model and size.

    Args:
        checkpoint: A name in `helpers.models.MODELS`, or a folder in the diffusers layout of a member of these
            families; weights need not be there.
        width, height: Pixels.
        num_frames: Frames, the given one included.
        guidance: Whether classifier-free guidance is on.
        quantization: GGUF type of the denoisers' matrices ("Q4_K"), "none", or `None` for the checkpoint's own.
        dtype: Of all that goes to the card; `None` for what the lessons load.
        tiling: Whether the VAE works in tiles, where it can.
        chunking, decode_chunk_size: The SVD UNet's forward chunking, and the frames that its decoder takes at once.
        use_stream, record_stream, low_cpu_mem_usage: Options of group offload.
        vae_home: Whether the VAE, and SVD's CLIP, leave the card while the denoiser works in groups, as in the lessons.
        card: A name in `helpers.cards.CARDS`, or a `Card`, for the estimated seconds.
        modes: Which offload modes.

    Raises:
        ArchitectureError: If there is no such checkpoint, or of no supported family.
        RequestError: If the model cannot make this size or number of frames; the message names the nearest.
        ValueError: If a mode or a card does not exist.
    """
    for mode in modes:
        if mode not in OFFLOAD_MODES:
            raise RequestError(f"offload={mode!r}: there are {', '.join(OFFLOAD_MODES)}.")
    device = cards.card(card)
    request = Request(width, height, num_frames, guidance, tiling, chunking, decode_chunk_size)
    recorded = _record(str(checkpoint), quantization, dtype, request)
    clocks = {name: device.clock(tape) for name, tape in recorded.tapes.items()}
    groups = _GroupOffload(use_stream, record_stream, low_cpu_mem_usage, vae_home)
    return Forecasts({mode: _forecast(recorded, mode, device, clocks, groups) for mode in modes})


def forecast(checkpoint: str | Path, *, offload: str, **options) -> Forecast:
    """Forecast one offload mode; the options are those of `forecasts`."""
    return forecasts(checkpoint, modes=(offload,), **options)[offload]


@dataclass(frozen=True)
class _GroupOffload:
    use_stream: bool
    record_stream: bool
    low_cpu_mem_usage: bool
    vae_home: bool


@dataclass(frozen=True)
class _Recorded:
    """The tapes of one model and size; they are the same in every offload mode."""

    name: str
    arch: Architecture
    request: Request
    tapes: Mapping[str, Tape]
    upcasts: Mapping[str, int]  # bytes that casting a part for a stage adds to its weights
    left_out: tuple[str, ...]


_architecture = lru_cache(maxsize=4)(Architecture)  # building 14 billion parameters takes a second, even without memory


def _record(checkpoint: str, quantization: str | None, dtype: torch.dtype | None, request: Request) -> _Recorded:
    arch = _architecture(checkpoint, quantization, dtype)
    left_out = stages(arch, request).left_out  # and the request is one that the model can answer
    tapes, upcasts = {}, {}
    for name, options in STAGE_OPTIONS.items():
        seen = {option: getattr(request, option) for option in options}
        tapes[name], upcasts[name] = _tape(
            arch, name, Request(request.width, request.height, request.num_frames, **seen)
        )
    title = MODELS[checkpoint].title if checkpoint in MODELS else Path(checkpoint).name
    return _Recorded(title, arch, request, tapes, upcasts, tuple(filter(None, [left_out])))


@lru_cache(maxsize=48)
def _tape(arch: Architecture, stage: str, request: Request) -> tuple[Tape, int]:
    """One stage's tape, and the bytes that casting a part for it adds to its weights."""
    steps = stages(arch, request)
    parts = [arch.part(name) for name in arch.on_card]
    tape, usual = Tape(), sum(map(module_bytes, parts))
    with steps.prepared(stage):
        for part in parts:
            tape.keep(part)
        with tape, remembering(tape, *steps.alike()):
            getattr(steps, stage)()
        return tape, sum(map(module_bytes, parts)) - usual


def _forecast(recorded: _Recorded, offload: str, device: Card, clocks: Mapping, groups: _GroupOffload) -> Forecast:
    arch, request = recorded.arch, recorded.request
    parts = {name: arch.part(name) for name in arch.on_card}
    placement = Placement(parts, offload, groups.use_stream, groups.vae_home)
    paths = {
        module: f"{name}.{path}".rstrip(".") for name, part in parts.items() for path, module in part.named_modules()
    }
    fails = GGUF_SEQUENTIAL if offload == "sequential" and arch.quantization else ""
    done = {}
    for name, tape in recorded.tapes.items():
        weights = placement.weights(tape)
        if offload != "sequential":  # there the part is cast in RAM, and is on the card a layer at a time
            weights += recorded.upcasts[name]
        clock = clocks[name]
        seconds = placement.seconds(tape, weights, clock, device)
        done[name] = _stage(name, tape, weights, clock, seconds, paths, device)
        if name == "denoise":
            placement.on_card.clear()  # the pipeline's call ends here, and sends everything home
    ram = {
        moment: PROCESS_GIB + size / GIB
        for moment, size in ram_bytes(arch, placement, request, groups.low_cpu_mem_usage).items()
    }
    step = recorded.tapes["denoise"]
    notes = list(recorded.left_out)
    if swap := placement.swap_seconds(device):
        notes.append(f"once a clip the two experts change places on the card: about {swap:.2g} s")
    if placement.use_stream and not groups.record_stream:
        notes.append("record_stream=False adds a host wait for each group, which is not in the seconds")
    return Forecast(
        recorded.name, offload, request, device, done, max(ram.values()), ram, placement.travel(step).to_card / GIB,
        float(step.flops.sum()) / 1e12, done["denoise"].seconds, float(clocks["denoise"][-1]), fails, tuple(notes),
    )  # fmt: skip


def _stage(name, tape, weights, clock, seconds, paths, device) -> Stage:
    total = tape.live + tape.work + weights
    highest = int(total.argmax())
    operation, module = tape.where(highest)
    constant = device.workspace_mib * 2**20
    stretch = seconds / clock[-1] if clock[-1] else 1.0
    stride = max(1, len(total) // 400)
    points = []
    for start in range(0, len(total), stride):  # of each run of events the highest, so that no peak is lost
        at = start + int(total[start : start + stride].argmax())
        point = clock[at] * stretch, (weights[at] + constant) / GIB, (total[at] + constant) / GIB
        points.append(tuple(map(float, point)))
    peak, held = float(total[highest]), float(weights[highest])
    return Stage(
        name, (peak + constant) / GIB, (held + constant) / GIB, (peak - held) / GIB, operation,
        paths.get(module, ""), seconds, tuple(points),
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m helpers.forecast", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", metavar="MODEL_OR_FOLDER", help=f"{', '.join(MODELS)}, or a diffusers folder")
    for name in ("width", "height", "num-frames"):
        parser.add_argument(f"--{name}", type=int, help="default: the model's own")
    parser.add_argument("--offload", choices=OFFLOAD_MODES, help="one mode in detail, in place of the table of all")
    parser.add_argument("--card", default=DEFAULT_CARD, help="for the estimated seconds (default: %(default)s)")
    parser.add_argument("--quantization", help='GGUF type such as Q4_K, or "none"; default: the checkpoint\'s own')
    parser.add_argument("--low-cpu-mem-usage", action="store_true", help="group offload without pinned copies")
    for name in ("guidance", "tiling", "chunking"):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    args = parser.parse_args(arguments)
    try:
        Architecture(args.checkpoint)
        sizes = {name: getattr(args, name) for name in ("width", "height", "num_frames")}
        if args.checkpoint in MODELS:
            defaults = model(args.checkpoint).defaults["pretrained"]
            sizes = {name: getattr(defaults, name) if size is None else size for name, size in sizes.items()}
        if missing := [name for name, size in sizes.items() if size is None]:
            raise RequestError(f"give {', '.join('--' + name.replace('_', '-') for name in missing)} for a folder.")
        result = forecasts(
            args.checkpoint, **sizes, guidance=args.guidance, tiling=args.tiling, chunking=args.chunking,
            quantization=args.quantization, low_cpu_mem_usage=args.low_cpu_mem_usage, card=args.card,
            modes=(args.offload,) if args.offload else OFFLOAD_MODES,
        )  # fmt: skip
    except (ArchitectureError, RequestError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(result.as_json(), indent=1))
    else:
        print(result[args.offload] if args.offload else result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
