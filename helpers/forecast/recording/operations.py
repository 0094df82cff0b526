"""What one operation costs: floating-point operations, bytes read and written, and a temporary workspace.

    cost(torch.ops.aten.mm.default, (a, b), {}, product)  # {"operation": "mm", "flops": ..., "moved": ..., ...}
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from helpers.forecast.recording.allocators import rounded

# PyTorch's layer norm gives each row its own block of threads, so a short row takes as long as this much traffic would:
# 1.1 ns for a row of 64 channels on an H200. CogVideoX normalises each head of each token.
NORM_ROW_BYTES = 4096


def cost(operation: Any, args: tuple, kwargs: dict, output: Any) -> dict[str, Any]:
    """The cost of an operation of torch's dispatcher, as the arguments of `Tape.add`."""
    packet = operation.overloadpacket
    inputs, outputs = (
        [leaf for leaf in tree_leaves(one) if isinstance(leaf, torch.Tensor)] for one in ((args, kwargs), output)
    )
    flops = flop_registry[packet](*args, **kwargs, out_val=output) if packet in flop_registry else 0
    moved = sum(traffic(tensor) for tensor in (*inputs, *outputs))
    if packet is torch.ops.aten.native_layer_norm:
        moved = max(moved, outputs[1].numel() * NORM_ROW_BYTES)
    work, kind = 0, ""
    if flops:
        kind = str(outputs[0].dtype)
        if packet is torch.ops.aten.convolution:
            work = convolution_workspace(inputs[0], inputs[1], outputs[0])
            # torch.backends.cudnn.allow_tf32 is on by default
            kind = "convolution " + kind.replace("float32", "tf32")
    name = str(packet).removeprefix("aten.")
    if not inputs or "empty" in name:
        moved = 0  # creating an empty tensor takes no time; filling it does
    return {"operation": name, "work": work, "flops": flops, "moved": moved, "kind": kind}


def attention_cost(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor, sums: torch.Tensor
) -> dict[str, Any]:
    """The cost of fused attention, as the arguments of `Tape.add`; query and key are [..., tokens, channels]."""
    pairs = math.prod(query.shape[:-1]) * key.shape[-2]
    return {
        "operation": "scaled_dot_product_attention",
        "flops": 2 * pairs * (query.shape[-1] + value.shape[-1]),
        "moved": sum(traffic(tensor) for tensor in (query, key, value, output, sums)),
        "kind": f"attention {query.shape[-1]} {query.dtype}",
    }


def traffic(tensor: torch.Tensor) -> int:
    """Bytes moved by reading or writing the tensor; an expanded tensor counts no more than its storage."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def convolution_workspace(image: torch.Tensor, weight: torch.Tensor, output: torch.Tensor) -> int:
    """Bytes of cuDNN's workspace for a convolution: channels-last copies of all three tensors.

    Found by measuring, with torch 2.11. In 3-D, the decode peaks of five video VAEs on an H100 (bf16 and fp32) match
    the forecast to 0.01 GiB with the workspace; without it, the fp32 ones are up to 2.6 GiB too low. In 2-D, on an
    H200, a 1x1 convolution is a matrix product and has no workspace, nor has one that reads a three-channel image. In
    fp32 (TF32) the others do, which is 0.29 GiB of Stable Video Diffusion's encoding. In half precision some do, but
    not the one at that model's decoding peak (256 to 256 channels, 8 frames), so it is left out.
    """
    if image.ndim < 5 and (image.element_size() < 4 or weight[0, 0].numel() == 1 or weight.shape[1] < 4):
        return 0
    return sum(rounded(tensor.nbytes) for tensor in (image, weight, output))
