"""Forecast how much VRAM and RAM a model needs, and how long a step takes, before anything is downloaded.

    forecast("wan22_i2v_a14b", offload="group_leaf", width=1280, height=720, num_frames=81)
    forecasts("ltx_video", width=768, height=512, num_frames=121)  # all five modes

Each stage's real forward runs on torch's `meta` device, where tensors have shapes but no data. A tape follows every
storage (`helpers.forecast.recording`), and the rules of the offload mode tell which weights are on the GPU at each
moment (`helpers.forecast.placement`). The highest sum is the peak. This takes seconds, and neither a GPU nor weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from helpers.forecast import gpus
from helpers.forecast.pipelines import stages
from helpers.forecast.pipelines.base import Request, RequestError, Stages
from helpers.forecast.placement import Placement
from helpers.forecast.ram import ram_gib
from helpers.forecast.recording.recorder import Recording, architecture, record
from helpers.forecast.result import Forecast, Forecasts
from helpers.forecast.stage import STAGES, Stage
from helpers.models.catalogue import ENCODE_WAYS, MODELS, OFFLOAD_MODES
from helpers.units import GIB

POINTS = 400  # of each stage's timeline
GGUF_SEQUENTIAL = (
    "sequential offload sends every weight through the meta device, where a GGUF weight loses its quantization type "
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
    tiling: bool | None = None,
    chunking: bool = True,
    decode_chunk_size: int = 8,
    slice_tokens: int | None = None,
    lean_decoding: bool | None = None,
    use_stream: bool = True,
    record_stream: bool = True,
    low_cpu_mem_usage: bool = False,
    offload_vae: bool = True,
    decode_alone: bool = True,
    one_expert_at_a_time: bool = False,
    encode: str = "fp32",
    gpu: str | gpus.GPU = gpus.DEFAULT_GPU,
    modes: tuple[str, ...] = OFFLOAD_MODES,
) -> Forecasts:
    """Forecast several offload modes of one model and size.

    By default it is what the lessons do: the frame is encoded and the steps are made in the offload mode, without the
    text encoder; then the pipeline is dropped, and the VAE alone decodes, in tiles.

    Args:
        checkpoint: A name in `helpers.models.MODELS`, or a folder in the diffusers layout that holds a member of these
            families, with or without weights.
        width, height: Pixels.
        num_frames: Frames, including the given one.
        guidance: Whether classifier-free guidance is on.
        quantization: GGUF type of the denoisers' matrices ("Q4_K"), "none", or `None` for the checkpoint's own.
        dtype: Data type of every component on the GPU, or `None` for the one that the lessons load each in.
        tiling: Whether the VAE works in tiles, where it can; `None` for where it does in the lessons: whenever it
            decodes, and for some models and sizes when it encodes the frame.
        chunking, decode_chunk_size: The SVD UNet's forward chunking, and the frames that its decoder takes at once.
        slice_tokens: Tokens that the denoiser computes at a time (`helpers.slices.slice_activations`), or `None`.
        lean_decoding: Whether the decoder's tiles or frames go to RAM as they are made; `None` for where they do in the
            lessons: with slices.
        use_stream, record_stream, low_cpu_mem_usage: Options of group offload.
        offload_vae: Whether the VAE, and SVD's CLIP, are offloaded while the denoiser works in groups, as in the
            lessons.
        decode_alone: Whether decoding has the GPU to itself, as in the lessons; else the VAE decodes inside the
            pipeline, where the mode leaves the other components.
        one_expert_at_a_time: Whether the second of two experts is loaded when the first has made its steps and is
            dropped (`helpers.models.in_turn`); reading it from disk is not in the seconds.
        encode: How the prompt is encoded on the CPU: "fp32", all layers at once, or "layer_by_layer" from disk.
        gpu: A name in `helpers.forecast.GPUS`, or a `GPU`. Its rates are for the estimated seconds.
        modes: Which offload modes.

    Raises:
        ArchitectureError: If there is no such checkpoint, or its family is not supported.
        RequestError: If the model cannot make this size or number of frames, or a mode does not exist; the message
            names the valid values.
        ValueError: If there is no such GPU.
    """
    for mode in modes:
        if mode not in OFFLOAD_MODES:
            raise RequestError(f"offload={mode!r}: there are {', '.join(OFFLOAD_MODES)}.")
    if encode not in ENCODE_WAYS:
        raise RequestError(f"encode={encode!r}: there are {', '.join(ENCODE_WAYS)}.")
    if slice_tokens is not None and (type(slice_tokens) is not int or slice_tokens < 1):
        raise RequestError(f"slice_tokens={slice_tokens!r}: give a number of tokens, 1 or more, or None.")
    device = gpus.gpu(gpu)
    request = Request(
        width, height, num_frames, guidance, tiling, chunking, decode_chunk_size, slice_tokens, lean_decoding
    )
    steps = stages(architecture(checkpoint, quantization, dtype), request)
    recordings = {stage: record(steps, stage) for stage in STAGES}
    rates = device.rates
    clocks = {stage: None if rates is None else rates.clock(one.tape) for stage, one in recordings.items()}
    title = MODELS[checkpoint].title if checkpoint in MODELS else Path(checkpoint).name
    work = _Work(str(checkpoint), title, steps, recordings, device, clocks)
    options = _Options(
        use_stream, record_stream, low_cpu_mem_usage, offload_vae, decode_alone, one_expert_at_a_time, encode
    )
    return Forecasts({mode: _forecast(work, mode, options) for mode in modes})


def forecast(checkpoint: str | Path, *, offload: str, **options) -> Forecast:
    """Forecast one offload mode; the options are those of `forecasts`."""
    return forecasts(checkpoint, modes=(offload,), **options)[offload]


@dataclass(frozen=True)
class _Options:
    use_stream: bool
    record_stream: bool
    low_cpu_mem_usage: bool
    offload_vae: bool
    decode_alone: bool
    one_expert_at_a_time: bool
    encode: str


@dataclass(frozen=True)
class _Work:
    """What is the same in every offload mode. `clocks` has seconds by event, or `None` without rates."""

    checkpoint: str
    title: str
    steps: Stages
    recordings: Mapping[str, Recording]
    gpu: gpus.GPU
    clocks: Mapping[str, np.ndarray | None]


def _forecast(work: _Work, offload: str, options: _Options) -> Forecast:
    arch = work.steps.arch
    later = arch.denoisers[1:] if options.one_expert_at_a_time else ()
    components = {name: arch.component(name) for name in arch.on_gpu if name not in later}
    placement = Placement(components, offload, options.use_stream, options.offload_vae)
    done = {}
    alone = Placement({"vae": arch.component("vae")}, "none")
    for name, recording in work.recordings.items():
        placed = alone if name == "decode" and options.decode_alone else placement
        done[name] = _stage(name, recording, placed, work.gpu, work.clocks[name])
        if name == "denoise":
            placement.end_call()
    denoise, clock = work.recordings["denoise"].tape, work.clocks["denoise"]
    return Forecast(
        model=work.title,
        checkpoint=work.checkpoint,
        offload=offload,
        request=work.steps.request,
        gpu=work.gpu,
        quantization=arch.quantization,
        stages=done,
        ram=ram_gib(
            arch, placement, work.steps.request, options.low_cpu_mem_usage, options.decode_alone,
            work.recordings["decode"].tape.ram_peak, options.encode, _is_mapped(work),
            bool(later),
        ),  # fmt: skip
        moved_gib=placement.travel(denoise).to_gpu / GIB,
        tflops=float(denoise.flops.sum()) / 1e12,
        step_seconds=done["denoise"].seconds,
        resident_step_seconds=None if clock is None else float(clock[-1]),
        fails=_why_it_fails(work, offload),
        left_out=tuple(_left_out(work, placement, options)),
        swap_seconds=placement.swap_seconds(work.gpu.rates) if placement.swaps_experts and work.gpu.rates else 0.0,
    )


def _is_mapped(work: _Work) -> bool:
    published = MODELS.get(work.checkpoint)
    return published is not None and not published.cast_when_loaded and not work.steps.arch.quantization


def _why_it_fails(work: _Work, offload: str) -> str:
    return GGUF_SEQUENTIAL if offload == "sequential" and work.steps.arch.quantization else ""


def _left_out(work: _Work, placement: Placement, options: _Options) -> list[str]:
    notes = [work.steps.left_out] if work.steps.left_out else []
    if placement.swaps_experts:
        rates = work.gpu.rates
        about = "" if rates is None else f": about {placement.swap_seconds(rates):.2g} s"
        notes.append(f"the two experts are swapped on the GPU once per clip{about}")
    if placement.use_stream and not options.record_stream:
        notes.append("record_stream=False adds a host wait for each group, which is not in the seconds")
    return notes


def _stage(name: str, recording: Recording, placement: Placement, gpu: gpus.GPU, clock: np.ndarray | None) -> Stage:
    tape, weights = recording.tape, placement.weights(recording.tape)
    if placement.offload != "sequential":  # there the component is cast in RAM, and only layers are on the GPU
        weights += recording.upcast_bytes
    total = tape.live + tape.work + weights
    highest = int(total.argmax())
    operation, module = tape.where(highest)
    constant = gpu.workspace_mib * 2**20
    if clock is None:
        seconds, times = None, np.arange(1, tape.count + 1) / tape.count
    else:
        seconds = placement.seconds(tape, weights, clock, gpu.rates)
        times = clock * (seconds / clock[-1] if clock[-1] else 1.0)
    stride = max(1, len(total) // POINTS)
    points = []
    for start in range(0, len(total), stride):  # the highest event of each run, so that no peak is lost
        at = start + int(total[start : start + stride].argmax())
        point = times[at], (weights[at] + constant) / GIB, (total[at] + constant) / GIB
        points.append(tuple(map(float, point)))
    peak, held = float(total[highest]), float(weights[highest])
    return Stage(
        name=name,
        peak_gib=(peak + constant) / GIB,
        weights_gib=(held + constant) / GIB,
        activations_gib=(peak - held) / GIB,
        operation=operation,
        module=_path(module, placement.components),
        seconds=seconds,
        timeline=tuple(points),
    )


def _path(wanted: torch.nn.Module | None, components: Mapping[str, torch.nn.Module]) -> str:
    """The module's name in the pipeline, "transformer.blocks.0.ffn" for example, or "" if no component has it."""
    for name, component in components.items():
        for path, module in component.named_modules():
            if module is wanted:
                return f"{name}.{path}".rstrip(".")
    return ""
