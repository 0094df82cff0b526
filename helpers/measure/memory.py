"""How much RAM this process holds, and how to free what PyTorch and malloc keep after its owner is gone."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import psutil
import torch

STATUS = Path("/proc/self/status")  # of Linux


def ram() -> int:
    """Bytes of RAM that this process holds for itself, as forecasts count it.

    Pinned memory counts. Pages of mapped files, such as weights that are read from disk without a copy, do not: the
    system drops them when it needs room, and reads them again. Systems other than Linux do not tell the two apart, and
    there everything counts.
    """
    if not STATUS.exists():
        return psutil.Process().memory_info().rss
    held = re.findall(r"Rss(?:Anon|Shmem):\s*(\d+) kB", STATUS.read_text())
    return 1024 * sum(map(int, held))


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
