"""Learning with the weights that a file will keep: rounded on the way forward, exact for the gradients.

A model that never saw its weights rounded makes more errors with them; one that learnt with them hardly any.
"""

import torch
import torch.nn.functional as F


def q4_0(weight: torch.Tensor) -> torch.Tensor:
    """What Q4_0 keeps of a matrix [rows, columns], blocks of 32 columns; gradients pass as if it kept all."""
    blocks = weight.unflatten(1, (-1, 32))
    scale = blocks.gather(2, blocks.abs().argmax(2, keepdim=True)) / -8
    steps = (blocks / torch.where(scale == 0, 1, scale) + 8.5).floor().clamp(0, 15) - 8
    kept = (steps * scale.half().float()).flatten(1)
    return weight + (kept - weight).detach()


def fp8(weight: torch.Tensor) -> torch.Tensor:
    """What a file in fp8 (e4m3) keeps of a tensor; gradients pass as if it kept all."""
    return weight + (weight.to(torch.float8_e4m3fn).to(weight.dtype) - weight).detach()


LAYERS = (torch.nn.Linear, torch.nn.Conv3d)  # whose weights are most of a miniature


def learn_as(kind, module: torch.nn.Module, chosen) -> torch.nn.Module:
    """Have the functions `..._as_stored` round the weights of the layers in the module that `chosen` says yes to."""
    for name, layer in module.named_modules():
        if isinstance(layer, LAYERS):
            layer.stored_as = kind if chosen(name, layer) else None
    return module


def weight_as_stored(layer: torch.nn.Module) -> torch.Tensor:
    """The layer's weight as it will come out of the file."""
    return layer.stored_as(layer.weight) if layer.stored_as else layer.weight


def linear_as_stored(layer: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """`Linear.forward` with the weight as it will come out of the file."""
    return F.linear(x, weight_as_stored(layer), layer.bias)


def conv_as_stored(layer: torch.nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    """`Conv3d.forward` with the weight as it will come out of the file."""
    return layer._conv_forward(x, weight_as_stored(layer), layer.bias)


def is_fp8(name: str, layer: torch.nn.Module) -> bool:
    """Whether a transformer's layer is stored in fp8: all linear ones but those that read and write latents."""
    return isinstance(layer, torch.nn.Linear) and name not in ("proj_in", "proj_out")


def in_fp8(module: torch.nn.Module, chosen=is_fp8) -> torch.nn.Module:
    """The module, to be saved: its chosen layers' weights in fp8, twice as many for the bytes, all else in fp16."""
    for name, layer in module.named_modules():
        if isinstance(layer, LAYERS) and chosen(name, layer):
            layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)
    for parameter in module.parameters():
        if parameter.dtype != torch.float8_e4m3fn:
            parameter.data = parameter.data.half()
    return module
