"""Quantization-aware training: weights are rounded to their storage format in the forward pass.

The gradients pass through the rounding unchanged (a straight-through estimator: Bengio, Leonard and Courville, 2013,
arXiv:1308.3432). A model trained this way loses almost nothing when its file is written; rounding the weights of any
other model adds visible errors.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

LAYERS = (torch.nn.Linear, torch.nn.Conv3d)  # hold most of a miniature's weights
Chosen = Callable[[str, torch.nn.Module], bool]  # whether to quantize a layer, from its name and the layer


def q4_0(weight: torch.Tensor) -> torch.Tensor:
    """A matrix [rows, columns] rounded to Q4_0, in blocks of 32 columns."""
    blocks = weight.unflatten(1, (-1, 32))
    scale = blocks.gather(2, blocks.abs().argmax(2, keepdim=True)) / -8
    steps = (blocks / torch.where(scale == 0, 1, scale) + 8.5).floor().clamp(0, 15) - 8
    kept = (steps * scale.half().float()).flatten(1)
    return weight + (kept - weight).detach()


def fp8(weight: torch.Tensor) -> torch.Tensor:
    """A tensor of any shape rounded to fp8 (e4m3)."""
    return weight + (weight.to(torch.float8_e4m3fn).to(weight.dtype) - weight).detach()


def prepare(module: torch.nn.Module, rounding: Callable[[torch.Tensor], torch.Tensor], chosen: Chosen):
    """Choose the layers of `module` whose weights the functions `quantized_...` round.

    Args:
        rounding: `q4_0` or `fp8`.
        chosen: Whether to round the weights of a layer.

    Returns:
        The module.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, LAYERS):
            layer.rounding = rounding if chosen(name, layer) else None
    return module


def quantized_weight(layer: torch.nn.Module) -> torch.Tensor:
    """The weight of a prepared layer as its file will store it."""
    return layer.rounding(layer.weight) if layer.rounding else layer.weight


def quantized_linear(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """`Linear.forward` with the quantized weight."""
    return F.linear(x, quantized_weight(layer), layer.bias)


def quantized_conv(layer: torch.nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """`Conv3d.forward` with the quantized weight."""
    return layer._conv_forward(x, quantized_weight(layer), layer.bias)


def inner_linear(name: str, layer: torch.nn.Module) -> bool:
    """Whether a layer is one of a transformer's linear layers, except those that read and write the latents."""
    return isinstance(layer, torch.nn.Linear) and name not in ("proj_in", "proj_out")


def in_fp8(module: torch.nn.Module, chosen: Chosen = inner_linear) -> torch.nn.Module:
    """The module, ready to be saved: the weights of the chosen layers in fp8, everything else in fp16."""
    for name, layer in module.named_modules():
        if isinstance(layer, LAYERS) and chosen(name, layer):
            layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
    for parameter in module.parameters():
        if parameter.dtype != torch.float8_e4m3fn:
            parameter.data = parameter.data.half()
    return module
