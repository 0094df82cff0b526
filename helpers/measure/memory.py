"""Free memory that PyTorch and malloc keep after its owner is gone, so that the next measurement starts clean."""

from __future__ import annotations

import ctypes
import gc

import torch


def release() -> None:
    """Free the memory of deleted pipelines, and the RAM of weights that were pinned or moved to the GPU.

    PyTorch keeps freed memory for reuse, both on the GPU and pinned in RAM, and so does malloc. Offload hooks give a
    pipeline reference cycles, which only the garbage collector frees.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        getattr(torch._C, "_host_emptyCache", lambda: None)()  # pinned pages; there is no public name for it
        trim()


def trim() -> bool:
    """Return freed RAM to the system; False if malloc is not glibc's, which keeps pieces of up to 32 MiB."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False
