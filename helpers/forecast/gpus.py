"""How fast a graphics card computes and how fast weights reach it: a small table, or a measurement of your own.

    card("RTX 4070 Ti").pinned  # GB/s
    measure_card()              # two seconds on your own GPU

Times made from these are estimates. Each operation is taken to need the longer of two times: its arithmetic at the
card's rate, or its memory traffic at the card's bandwidth (the roofline model: Williams, Waterman and Patterson, 2009).
"""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass, replace

import numpy as np

from helpers.tape import Tape

# What is reached of a datasheet's rate. Set once so that the steps of five full-size models on an H100 and an H200
# (torch 2.11) come out within 25 %; measured rates of one's own card need only the share that whole models reach.
MATMUL, ATTENTION, CONVOLUTION, BANDWIDTH = 0.65, 0.9, 0.17, 0.76
# Attention takes an exponential for each pair of tokens, one for each 16 fp32 operations that the card could do (CUDA
# programming guide, throughput of arithmetic instructions: 16 against 128 multiply-adds a clock), and while it does,
# its matrix units wait. So heads of 64 channels reach 0.5 of the card's rate and heads of 128 reach 0.65, as measured
# on an H200; the reason is in the FlashAttention-3 paper (Shah et al., 2024, section 3).
OPERATIONS_PER_EXPONENTIAL = 16
PCIE = {3: 15.75, 4: 31.5, 5: 63.0}  # GB/s of 16 lanes, one way, by generation (PCI-SIG)
PINNED = 0.8  # of that link's rate, for copies from pinned RAM
# GB/s from pageable RAM, which one core copies into a pinned buffer, and back into fresh RAM, which the system has to
# fill with zeros page by page. Weights of some GB, two H200 machines: 5.8 to 8.3, and 1.4 to 3.
PAGEABLE, HOME = 8.0, 2.0
LAUNCH_SECONDS = 8e-6  # the least that one operation takes: Python and the launch of a kernel
# What hooks add on the CPU. For group offload 20 us a tensor, timed on a block's 160, and for each call what the 3,933
# in a step of Stable Video Diffusion need: in leaves it takes 1.46 and 1.64 s in the records of an H200. (300 small
# layers by themselves took less, 60 us a call.) For sequential offload what the steps of LTX-Video, Stable Video
# Diffusion and CogVideoX need beyond their copies: 0.23 to 0.38 ms on two H200 machines.
GROUP_CALL_SECONDS, GROUP_TENSOR_SECONDS, SEQUENTIAL_TENSOR_SECONDS = 1.4e-4, 2e-5, 3e-4
# GB/s at which the card's memory is mapped and unmapped, with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True as in
# the lessons: 70 us for each 20 MiB on an H200. Sequential offload does so all the time.
MAPPING = 300


@dataclass(frozen=True)
class Card:
    """Rates of one graphics card.

    Attributes:
        vram_gib: Its memory.
        bf16, fp16, tf32, fp32: 10^12 operations a second, dense, with fp32 accumulation.
        bandwidth: Of its memory, GB/s.
        pinned, pageable: Copies from pinned and from pageable RAM, GB/s.
        home: Copies back into fresh RAM, GB/s.
        workspace_mib: What PyTorch allocates for cuBLAS (CUDABlas: 32 MiB on Hopper, else 8.1).
        source: Where the rates come from.
    """

    name: str
    vram_gib: float
    bf16: float
    fp16: float
    tf32: float
    fp32: float
    bandwidth: float
    pinned: float
    pageable: float
    home: float = HOME
    workspace_mib: float = 8.125
    source: str = "measured"

    def clock(self, tape: Tape) -> np.ndarray:
        """Seconds from the tape's start at the end of each event."""
        arithmetic = tape.flops * np.array([self._operation_seconds(kind) for kind in tape.kind_names])[tape.kinds]
        memory = tape.moved / (1e9 * BANDWIDTH * self.bandwidth)
        return np.cumsum(np.where(tape.launched, np.maximum(np.maximum(arithmetic, memory), LAUNCH_SECONDS), 0.0))

    def _operation_seconds(self, kind: str) -> float:
        """Seconds of one floating-point operation of a kind that a tape names."""
        what, _, dtype = kind.rpartition("torch.")
        rates = {"bfloat16": self.bf16, "float16": self.fp16, "tf32": self.tf32, "float32": self.fp32}
        rate = 1e12 * rates.get(dtype, self.fp32)
        if what.startswith("attention"):
            operations = 4 * int(what.split()[1])  # of each pair of tokens, for each head
            return 1 / (ATTENTION * rate) + OPERATIONS_PER_EXPONENTIAL / (1e12 * self.fp32 * operations)
        return 1 / ((CONVOLUTION if what.startswith("convolution") else MATMUL) * rate)


def _card(name, vram, half, tf32, fp32, bandwidth, pcie, source, *, bf16=None, workspace=8.125) -> Card:
    link = PCIE[pcie]
    return Card(
        name, vram, half if bf16 is None else bf16, half, tf32, fp32, bandwidth, PINNED * link,
        min(PAGEABLE, PINNED * link), HOME, workspace, source,
    )  # fmt: skip


AMPERE, ADA = "NVIDIA Ampere GA102 whitepaper, table 9", "NVIDIA Ada GPU architecture whitepaper, appendix A"
CARDS = {
    card.name: card
    for card in (
        _card("RTX 3060 12GB", 12, 25.6, 12.8, 12.7, 360, 4, AMPERE + " (per SM and clock)"),
        _card("RTX 4070 Ti", 12, 80.2, 40.1, 40.1, 504, 4, ADA),
        _card("RTX 4090", 24, 165.2, 82.6, 82.6, 1008, 4, ADA),
        # Turing has neither bf16 nor TF32 in its tensor cores, so both run at the fp32 rate.
        _card("T4", 15, 65, 8.1, 8.1, 320, 3, "NVIDIA T4 datasheet", bf16=8.1),
        _card("A10", 24, 125, 62.5, 31.2, 600, 4, "NVIDIA A10 datasheet"),
        _card("L4", 24, 121, 60, 30.3, 300, 4, "NVIDIA L4 datasheet"),
        _card("H100", 80, 989, 494, 67, 3350, 5, "NVIDIA H100 datasheet (SXM)", workspace=32),
        _card("H200", 141, 989, 494, 67, 4800, 5, "NVIDIA H200 datasheet (SXM)", workspace=32),
    )
}
DEFAULT_CARD = "RTX 4070 Ti"


def card(name: str | Card = DEFAULT_CARD) -> Card:
    """The card of that name.

    Raises:
        ValueError: If it is not in the table; the message names the nearest and all of them.
    """
    if isinstance(name, Card):
        return name
    if name in CARDS:
        return CARDS[name]
    longer = [known for known in CARDS if known.startswith(str(name))]
    near = longer or difflib.get_close_matches(str(name), CARDS, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"no card is called {name!r}: {hint}there are {', '.join(CARDS)}; or measure your own.")


def here() -> Card:
    """The card of this machine if it is in the table, else the default one with this machine's name and memory."""
    import torch

    if not torch.cuda.is_available():
        return CARDS[DEFAULT_CARD]
    properties = torch.cuda.get_device_properties(0)
    known = next((one for name, one in CARDS.items() if name.removesuffix(" 12GB") in properties.name), None)
    if known is not None:
        return known
    workspace = 32 if properties.major == 9 else 8.125
    vram = properties.total_memory / 2**30
    return replace(CARDS[DEFAULT_CARD], name=properties.name, vram_gib=vram, workspace_mib=workspace)


def measure_card(seconds: float = 2.0) -> Card:
    """Measure the rates of this machine's first GPU, in about `seconds`.

    Raises:
        RuntimeError: If there is no CUDA device.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("There is no CUDA device to measure: name a card of helpers.cards.CARDS instead.")
    share = seconds / 8

    def rate(work, amount: float) -> float:
        """`amount` per second, while `work` repeats."""
        work()
        torch.cuda.synchronize()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < share:
            work()
            torch.cuda.synchronize()
            count += 1
        return count * amount / (time.perf_counter() - start)

    def product(dtype: torch.dtype) -> float:
        size = 4096
        a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
        return rate(lambda: a @ b, 2 * size**3) / 1e12

    free = torch.cuda.mem_get_info()[0]
    count = min(2**28, free // 8)
    there = torch.empty(count, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(there)
    pinned = torch.empty(count, dtype=torch.uint8, pin_memory=True)
    # More than a processor's cache holds, as weights are.
    weights = [torch.ones(count // 4, dtype=torch.uint8) for _ in range(16)]

    def send() -> None:
        for part in weights:
            there[: len(part)].copy_(part)

    tf32 = torch.backends.cuda.matmul.allow_tf32
    try:
        fp32 = product(torch.float32)
        torch.backends.cuda.matmul.allow_tf32 = True
        fast = product(torch.float32)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    properties = torch.cuda.get_device_properties(0)
    return Card(
        name=properties.name,
        vram_gib=properties.total_memory / 2**30,
        # A large product alone reaches about 0.8 of the datasheet's rate, of which the shares above are taken.
        bf16=product(torch.bfloat16) / 0.8,
        fp16=product(torch.float16) / 0.8,
        tf32=fast / 0.8,
        fp32=fp32 / 0.8,
        bandwidth=rate(lambda: other.copy_(there), 2 * count) / 1e9,
        pinned=rate(lambda: there.copy_(pinned, non_blocking=True), count) / 1e9,
        pageable=rate(send, sum(map(len, weights))) / 1e9,
        home=rate(there.cpu, count) / 1e9,
        workspace_mib=32 if properties.major == 9 else 8.125,
    )
