"""How PyTorch's allocators round sizes: GPU memory to multiples of 512 bytes, pinned RAM to powers of two."""

from __future__ import annotations

from collections.abc import Iterator

import torch

GRANULE = 512  # CUDACachingAllocator.cpp, kMinBlockSize: every block is a multiple of it


def rounded(size: int) -> int:
    """Bytes that the GPU's caching allocator takes for a tensor of `size` bytes."""
    return -(-size // GRANULE) * GRANULE


def power_of_two(size: int) -> int:
    """Bytes that the pinned memory allocator takes for `size` bytes (CachingHostAllocator.cpp rounds up)."""
    return 1 << max(0, size - 1).bit_length() if size else 0


def tensors(module: torch.nn.Module, recurse: bool = True) -> Iterator[torch.Tensor]:
    """The module's parameters and buffers."""
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)


def module_bytes(module: torch.nn.Module) -> int:
    """Bytes that the module's parameters and buffers take on a GPU."""
    return sum(rounded(tensor.nbytes) for tensor in tensors(module))
