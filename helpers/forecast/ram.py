"""RAM that a lesson's process takes at each of its moments, for each offload mode."""

from __future__ import annotations

import torch

from helpers.forecast.pipelines.base import Request
from helpers.forecast.placement import Group, Placement
from helpers.forecast.recording.allocators import power_of_two, tensors
from helpers.models.architecture import Architecture
from helpers.units import GIB

# Python, torch, diffusers and a CUDA context: the process of data/measurements/ltx_video_miniature_h200.json.
PROCESS_GIB = 2.0
KEPT_BY_MALLOC = 2**25  # glibc takes smaller pieces from its heap, and keeps what is freed there
FRAME_BYTES = 3 * (4 + 4 + 1)  # for each pixel: two copies as floats in `postprocess_video`, and bytes for the clip


def ram_gib(
    arch: Architecture,
    placement: Placement,
    request: Request,
    low_cpu_mem_usage: bool = False,
    decode_alone: bool = True,
    decoding: int = 0,
    encode: str = "fp32",
    mapped: bool = False,
    in_turn: bool = False,
) -> dict[str, float]:
    """GiB of RAM at each moment of a lesson, by the moment's name.

    Args:
        low_cpu_mem_usage: Group offload's option to pin only the weights that are about to be copied.
        decode_alone: Whether the pipeline is dropped before decoding, and the VAE is on the GPU.
        encode: How the prompt is encoded: "fp32", all layers at once, or "layer_by_layer".
        decoding: Bytes of the pieces that decoding sends to RAM, and of joining them there.
        mapped: Whether the files hold the denoisers as they are loaded, so that they take RAM only once they are
            pinned.
        in_turn: Whether a second expert is loaded when the first has done its steps.
    """
    encoder = 0
    if arch.text_encoder and encode == "fp32":
        encoder = sum(tensor.nbytes for tensor in arch.component(arch.text_encoder).parameters())
    weights = {name: _bytes(component) for name, component in placement.components.items()}
    load = run = sum(weights.values())
    if placement.offload == "none":
        run = 0
    elif placement.offload.startswith("group"):
        load, run = _group_offload(placement, weights, low_cpu_mem_usage)
        if placement.use_stream and not low_cpu_mem_usage:
            # PyTorch keeps the pinned memory of an expert that is dropped, and pins the next one there.
            swap = max(map(_bytes, placement.components.values())) if in_turn else 0
            load = run if mapped else max(load, run + swap)
    frames = request.num_frames * request.height * request.width * FRAME_BYTES
    moments = {"encode the prompt": encoder} if arch.text_encoder else {}
    moments |= {
        "load": max(load, run),
        "generate": run,
        "decode": run * (not decode_alone) + max(decoding, frames),
    }
    return {moment: PROCESS_GIB + size / GIB for moment, size in moments.items()}


def _group_offload(placement: Placement, weights: dict[str, int], low_cpu_mem_usage: bool) -> tuple[int, int]:
    """Bytes of weights while the components are loaded and offload is applied, and while the pipeline runs."""
    grouped = {name: groups for name, groups in placement.groups.items() if groups}
    load = sum(weights.values())
    run = sum(weights[name] for name in placement.come_and_go)
    if not placement.use_stream:
        return load, run + sum(weights[name] for name in grouped)
    if low_cpu_mem_usage:
        largest = max(power_of_two(size) for groups in grouped.values() for size in _sizes(groups))
        return load, run + sum(weights[name] for name in grouped) + 2 * largest
    waiting = sum(weights[name] for name in grouped)
    for name, groups in grouped.items():
        sizes = _sizes(groups)
        waiting -= weights[name]
        run += sum(map(power_of_two, sizes))
        # Block level pins all of a component's blocks before it frees the first one's own copy. Leaf level frees each
        # copy at once, but malloc keeps the small ones until the lesson's `release`.
        block = placement.offload == "group_block"
        copies = weights[name] if block else sum(size for size in sizes if size < KEPT_BY_MALLOC)
        load = max(load, run + copies + waiting)
    return load, run


def _sizes(groups: list[Group]) -> list[int]:
    return [tensor.nbytes for group in groups for tensor in group.tensors]


def _bytes(component: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in tensors(component))
