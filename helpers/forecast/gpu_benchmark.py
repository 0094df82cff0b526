"""Measure the rates of this machine's GPU: `measure_gpu()`."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from helpers.forecast.gpus import GPU, cublas_mib
from helpers.forecast.rates import Rates
from helpers.units import GIB

LARGE_PRODUCT = 0.8  # share of the datasheet's rate that a large product by itself reaches


def measure_gpu(seconds: float = 2.0) -> GPU:
    """Measure the rates of this machine's first GPU, in about `seconds`.

    Raises:
        RuntimeError: If there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("There is no CUDA device to measure: name a GPU of helpers.forecast.GPUS instead.")
    share = seconds / 8

    def rate(work: Callable[[], object], amount: float) -> float:
        """`amount` per second while `work` repeats."""
        work()
        torch.cuda.synchronize()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < share:
            work()
            torch.cuda.synchronize()
            count += 1
        return count * amount / (time.perf_counter() - start)

    def product(dtype: torch.dtype) -> float:
        """The datasheet's rate, estimated from a large product, in 10^12 operations per second."""
        size = 4096
        a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
        return rate(lambda: a @ b, 2 * size**3) / 1e12 / LARGE_PRODUCT

    free = torch.cuda.mem_get_info()[0]
    count = min(2**28, free // 8)
    on_gpu = torch.empty(count, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(on_gpu)
    pinned = torch.empty(count, dtype=torch.uint8, pin_memory=True)
    # More than a processor's cache holds, as weights are.
    weights = [torch.ones(count // 4, dtype=torch.uint8) for _ in range(16)]

    def onload() -> None:
        for tensor in weights:
            on_gpu[: len(tensor)].copy_(tensor)

    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        fp32 = product(torch.float32)
        torch.backends.cuda.matmul.allow_tf32 = True
        tf32 = product(torch.float32)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    rates = Rates(
        bf16=product(torch.bfloat16),
        fp16=product(torch.float16),
        tf32=tf32,
        fp32=fp32,
        bandwidth=rate(lambda: other.copy_(on_gpu), 2 * count) / 1e9,
        pinned=rate(lambda: on_gpu.copy_(pinned, non_blocking=True), count) / 1e9,
        pageable=rate(onload, sum(map(len, weights))) / 1e9,
        to_host=rate(on_gpu.cpu, count) / 1e9,
    )
    properties = torch.cuda.get_device_properties(0)
    return GPU(properties.name, properties.total_memory / GIB, rates, cublas_mib(properties.major))
