"""Offload modes that take more than one call. Lesson 01 writes these functions out and explains them."""

from __future__ import annotations

import accelerate
import torch
from accelerate import cpu_offload_with_hook
from diffusers.hooks import apply_group_offloading

from helpers.measure.memory import release
from helpers.models.architecture import DENOISERS


def offload_sequentially(pipe, device):
    """Sequential offload: the weights of each layer are on the GPU only while that layer runs."""
    if device == "cuda":
        pipe.enable_sequential_cpu_offload(device=device)
    else:  # the same hooks; the method asks for a device "cpu:0", which torch 2.13 treats as another device
        for component in pipe.components.values():
            if isinstance(component, torch.nn.Module):
                accelerate.cpu_offload(component, torch.device("cpu"))


def offload_in_groups(pipe, offload_type, device, low_cpu_mem_usage=False):
    """Group offload: denoisers arrive in groups; other components arrive whole, and leave when a denoiser runs."""
    modules = {name: one for name, one in pipe.components.items() if isinstance(one, torch.nn.Module)}
    denoisers = [one for name, one in modules.items() if name in DENOISERS]
    hooks = [cpu_offload_with_hook(one, torch.device(device))[1] for one in modules.values() if one not in denoisers]
    for denoiser in denoisers:
        apply_group_offloading(
            denoiser, onload_device=torch.device(device), offload_device=torch.device("cpu"),
            offload_type=offload_type, num_blocks_per_group=1, use_stream=device == "cuda",
            record_stream=device == "cuda", low_cpu_mem_usage=low_cpu_mem_usage,
        )
        for hook in hooks:
            denoiser.register_forward_pre_hook(lambda *_, hook=hook: hook.offload())
        release()  # pinning copied the weights: return the memory of the originals
