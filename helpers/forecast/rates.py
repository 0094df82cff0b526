"""How fast a GPU computes and copies, and how long the operations on a tape take at these rates.

Times made from rates are estimates. Each operation takes the longer of two times: its arithmetic at the GPU's rate, or
its memory traffic at the GPU's bandwidth (the roofline model: Williams, Waterman and Patterson, 2009).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers.forecast.recording.tape import Tape

# The share of a datasheet's rate that real work reaches. Set once, so that the steps of five full-size models on an
# H100 and an H200 (torch 2.11) come out within 25 %.
MATMUL, ATTENTION, CONVOLUTION, BANDWIDTH = 0.65, 0.9, 0.17, 0.76
# Attention takes one exponential for each pair of tokens. A GPU computes one in the time of 16 fp32 operations (CUDA
# programming guide, throughput of arithmetic instructions: 16 against 128 multiply-adds a clock), and its matrix units
# wait meanwhile. Heads of 64 channels therefore reach 0.5 of the GPU's rate and heads of 128 reach 0.65, as measured on
# an H200. The FlashAttention-3 paper explains why (Shah et al., 2024, section 3).
OPERATIONS_PER_EXPONENTIAL = 16
PCIE = {3: 15.75, 4: 31.5, 5: 63.0}  # GB/s of 16 lanes, one way, by generation (PCI-SIG)
PINNED = 0.8  # share of the link's rate that copies from pinned RAM reach
# GB/s from pageable RAM, which one core copies into a pinned buffer; and back into newly allocated RAM, which the
# system first fills with zeros, page by page. Weights of some GB, on two H200 machines: 5.8 to 8.3, and 1.4 to 3.
PAGEABLE, TO_HOST = 8.0, 2.0
LAUNCH_SECONDS = 8e-6  # the least that one operation takes: Python and the launch of a kernel
# Time that offload hooks add on the CPU. Group offload: 20 us for each tensor, timed on a block of 160; and for each
# call, the value that explains the steps of Stable Video Diffusion in leaves (3,933 calls, 1.46 and 1.64 s on an H200).
# In a loop over 300 small layers, calls took less: 60 us. Sequential offload: the time that steps of LTX-Video, Stable
# Video Diffusion and CogVideoX need beyond their copies, 0.23 to 0.38 ms for each tensor on two H200 machines.
GROUP_CALL_SECONDS, GROUP_TENSOR_SECONDS, SEQUENTIAL_TENSOR_SECONDS = 1.4e-4, 2e-5, 3e-4
# GB/s at which GPU memory is mapped and unmapped, with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True as in the
# lessons: 70 us for each 20 MiB on an H200. Sequential offload does so all the time.
MAPPING = 300


@dataclass(frozen=True)
class Rates:
    """Peak rates of one GPU.

    Attributes:
        bf16, fp16, tf32, fp32: 10^12 operations per second, dense, with fp32 accumulation.
        bandwidth: GB/s of the GPU's memory.
        pinned, pageable: GB/s of copies to the GPU, from pinned and from pageable RAM.
        to_host: GB/s of copies back into newly allocated RAM.
        source: Where the rates come from.
    """

    bf16: float
    fp16: float
    tf32: float
    fp32: float
    bandwidth: float
    pinned: float
    pageable: float
    to_host: float = TO_HOST
    source: str = "measured"

    def clock(self, tape: Tape) -> np.ndarray:
        """Seconds from the tape's start to the end of each event, all weights on the GPU."""
        arithmetic = tape.flops * np.array([self._operation_seconds(kind) for kind in tape.kind_names])[tape.kinds]
        memory = tape.moved / (1e9 * BANDWIDTH * self.bandwidth)
        return np.cumsum(np.where(tape.launched, np.maximum(np.maximum(arithmetic, memory), LAUNCH_SECONDS), 0.0))

    def _operation_seconds(self, kind: str) -> float:
        """Seconds of one floating-point operation; the kinds are those in `Tape.kind_names`."""
        what, _, dtype = kind.rpartition("torch.")
        rates = {"bfloat16": self.bf16, "float16": self.fp16, "tf32": self.tf32, "float32": self.fp32}
        rate = 1e12 * rates.get(dtype, self.fp32)
        if what.startswith("attention"):
            operations = 4 * int(what.split()[1])  # for each pair of tokens, in each head
            return 1 / (ATTENTION * rate) + OPERATIONS_PER_EXPONENTIAL / (1e12 * self.fp32 * operations)
        return 1 / ((CONVOLUTION if what.startswith("convolution") else MATMUL) * rate)
