"""GPUs by name: their memory, and their rates where we know them.

    gpu("RTX 4070 Ti").rates.bandwidth           # 504 GB/s
    find_gpu("NVIDIA GeForce RTX 3060", 11.75)   # the entry "RTX 3060 12GB"
    here()                                       # this machine's GPU

A GPU that is not in the table has no rates. Its memory can be forecast, its seconds cannot: `measure_gpu` measures
its rates in a few seconds.

Compute rates follow from the number of SMs, the boost clock and the multiply-adds of one SM per clock. A laptop's boost
clock depends on the power limit that its maker set; the table has the upper end of NVIDIA's range, so a laptop's
seconds are a lower bound.

Left out: GTX cards and the P100, which have no tensor cores; AMD Radeon cards, because the share of the peak rate that
real work reaches was set on NVIDIA's kernels; RTX 50 laptop GPUs, whose clocks we could not confirm.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

import torch

from helpers.forecast.rates import PAGEABLE, PCIE, PINNED, Rates

UNKNOWN_RATES = "this GPU's rates are unknown: measure them with measure_gpu()"
CUBLAS_MIB, CUBLAS_HOPPER_MIB = 8.125, 32.0  # what PyTorch allocates for cuBLAS (CUDABlas.cpp)


@dataclass(frozen=True)
class GPU:
    """A GPU's name, its memory in GiB, its rates or `None`, and cuBLAS's workspace in MiB."""

    name: str
    vram_gib: float
    rates: Rates | None = None
    workspace_mib: float = CUBLAS_MIB


def _rates(fp16, tf32, fp32, bandwidth, pcie, source, *, bf16=None, lanes=16) -> Rates:
    pinned = PINNED * PCIE[pcie] * lanes / 16
    return Rates(
        fp16 if bf16 is None else bf16, fp16, tf32, fp32, bandwidth, pinned, min(PAGEABLE, pinned), source=source
    )


@dataclass(frozen=True)
class _Family:
    """Dense multiply-adds of one SM per clock with fp32 accumulation, by data type; and the PCIe generation."""

    fp16: int
    bf16: int
    tf32: int
    fp32: int
    pcie: int
    source: str

    def gpu(self, name: str, vram_gib: float, sms: int, boost_mhz: int, bandwidth: float, lanes: int = 16) -> GPU:
        fp16, bf16, tf32, fp32 = (
            round(2 * each * sms * boost_mhz / 1e6, 1) for each in (self.fp16, self.bf16, self.tf32, self.fp32)
        )
        rates = _rates(fp16, tf32, fp32, bandwidth, self.pcie, self.source, bf16=bf16, lanes=lanes)
        return GPU(name, vram_gib, rates)


# Volta and Turing have neither bf16 nor TF32 in their tensor cores, so both run at the fp32 rate. GeForce cards halve
# the tensor cores' rate with fp32 accumulation; workstation and data centre cards do not.
VOLTA = _Family(512, 64, 64, 64, 3, "NVIDIA V100 datasheet")
TURING = _Family(256, 64, 64, 64, 3, "NVIDIA Turing whitepaper, appendix A and B")
AMPERE = _Family(256, 256, 128, 128, 4, "NVIDIA Ampere GA102 whitepaper, table 9 (per SM and clock)")
AMPERE_RTX_A = _Family(512, 512, 256, 128, 4, "NVIDIA RTX A series datasheets")
A100 = _Family(1024, 1024, 512, 64, 4, "NVIDIA A100 datasheet")
ADA = _Family(256, 256, 128, 128, 4, "NVIDIA Ada GPU architecture whitepaper, appendix A")
ADA_RTX = _Family(512, 512, 256, 128, 4, "NVIDIA RTX 6000 Ada Generation datasheet")
BLACKWELL = _Family(256, 256, 128, 128, 5, "NVIDIA RTX Blackwell GPU architecture whitepaper, appendix A")

# Device names that are not the table's name behind NVIDIA, GeForce or Tesla.
REPORTED_AS = {
    "A100-SXM4-40GB": "A100 40GB", "A100-PCIE-40GB": "A100 40GB", "A100-SXM4-80GB": "A100 80GB",
    "H100 80GB HBM3": "H100",
    "V100-SXM2-16GB": "V100 SXM2 16GB", "V100-SXM2-32GB": "V100 SXM2 32GB",
    "V100-PCIE-16GB": "V100 PCIe 16GB", "V100-PCIE-32GB": "V100 PCIe 32GB",
}  # fmt: skip

GPUS: dict[str, GPU] = {
    one.name: one
    for one in (
        # name, GiB, SMs, boost clock in MHz, GB/s, and PCIe lanes where they are not 16
        TURING.gpu("RTX 2060 6GB", 6, 30, 1680, 336),
        TURING.gpu("RTX 2060 12GB", 12, 34, 1650, 336),
        TURING.gpu("RTX 2070", 8, 36, 1620, 448),
        TURING.gpu("RTX 2080 Ti", 11, 68, 1545, 616),
        AMPERE.gpu("RTX 3050 8GB", 8, 20, 1777, 224, 8),
        AMPERE.gpu("RTX 3060 8GB", 8, 28, 1777, 240),
        GPU("RTX 3060 12GB", 12, _rates(25.6, 12.8, 12.7, 360, 4, AMPERE.source)),
        AMPERE.gpu("RTX 3060 Ti", 8, 38, 1665, 448),
        AMPERE.gpu("RTX 3070", 8, 46, 1725, 448),
        AMPERE.gpu("RTX 3070 Ti", 8, 48, 1770, 608),
        AMPERE.gpu("RTX 3080 10GB", 10, 68, 1710, 760),
        AMPERE.gpu("RTX 3080 12GB", 12, 70, 1710, 912),
        AMPERE.gpu("RTX 3080 Ti", 12, 80, 1665, 912),
        AMPERE.gpu("RTX 3090", 24, 82, 1695, 936),
        AMPERE.gpu("RTX 3090 Ti", 24, 84, 1860, 1008),
        AMPERE.gpu("RTX 3060 Laptop", 6, 30, 1703, 336),
        AMPERE.gpu("RTX 3070 Laptop", 8, 40, 1620, 448),
        AMPERE.gpu("RTX 3080 Laptop 8GB", 8, 48, 1710, 448),
        AMPERE.gpu("RTX 3080 Laptop 16GB", 16, 48, 1710, 448),
        ADA.gpu("RTX 4060", 8, 24, 2460, 272, 8),
        ADA.gpu("RTX 4060 Ti 8GB", 8, 34, 2535, 288, 8),
        ADA.gpu("RTX 4060 Ti 16GB", 16, 34, 2535, 288, 8),
        ADA.gpu("RTX 4070", 12, 46, 2475, 504),
        ADA.gpu("RTX 4070 SUPER", 12, 56, 2475, 504),
        ADA.gpu("RTX 4070 Ti", 12, 60, 2610, 504),
        ADA.gpu("RTX 4070 Ti SUPER", 16, 66, 2610, 672),
        ADA.gpu("RTX 4080", 16, 76, 2505, 717),
        ADA.gpu("RTX 4080 SUPER", 16, 80, 2550, 736),
        ADA.gpu("RTX 4090", 24, 128, 2520, 1008),
        ADA.gpu("RTX 4050 Laptop", 6, 20, 2370, 192, 8),
        ADA.gpu("RTX 4060 Laptop", 8, 24, 2370, 256, 8),
        ADA.gpu("RTX 4070 Laptop", 8, 36, 2175, 256, 8),
        ADA.gpu("RTX 4080 Laptop", 12, 58, 2280, 432),
        ADA.gpu("RTX 4090 Laptop", 16, 76, 2040, 576),
        BLACKWELL.gpu("RTX 5060", 8, 30, 2497, 448, 8),
        BLACKWELL.gpu("RTX 5060 Ti 8GB", 8, 36, 2572, 448, 8),
        BLACKWELL.gpu("RTX 5060 Ti 16GB", 16, 36, 2572, 448, 8),
        BLACKWELL.gpu("RTX 5070", 12, 48, 2512, 672),
        BLACKWELL.gpu("RTX 5070 Ti", 16, 70, 2452, 896),
        BLACKWELL.gpu("RTX 5080", 16, 84, 2617, 960),
        BLACKWELL.gpu("RTX 5090", 32, 170, 2407, 1792),
        AMPERE_RTX_A.gpu("RTX A2000 6GB", 6, 26, 1200, 288),
        AMPERE_RTX_A.gpu("RTX A2000 12GB", 12, 26, 1200, 288),
        AMPERE_RTX_A.gpu("RTX A4000", 16, 48, 1560, 448),
        AMPERE_RTX_A.gpu("RTX A5000", 24, 64, 1695, 768),
        AMPERE_RTX_A.gpu("RTX A6000", 48, 84, 1800, 768),
        ADA_RTX.gpu("RTX 6000 Ada", 48, 142, 2505, 960),
        GPU("T4", 15, _rates(65, 8.1, 8.1, 320, 3, "NVIDIA T4 datasheet", bf16=8.1)),
        VOLTA.gpu("V100 PCIe 16GB", 16, 80, 1380, 900),
        VOLTA.gpu("V100 PCIe 32GB", 32, 80, 1380, 900),
        VOLTA.gpu("V100 SXM2 16GB", 16, 80, 1530, 900),
        VOLTA.gpu("V100 SXM2 32GB", 32, 80, 1530, 900),
        GPU("A10", 24, _rates(125, 62.5, 31.2, 600, 4, "NVIDIA A10 datasheet")),
        GPU("A10G", 24, _rates(70, 35, 31.5, 600, 4, "NVIDIA A10G datasheet")),
        A100.gpu("A100 40GB", 40, 108, 1410, 1555),
        A100.gpu("A100 80GB", 80, 108, 1410, 2039),
        A100.gpu("A100 80GB PCIe", 80, 108, 1410, 1935),
        GPU("L4", 24, _rates(121, 60, 30.3, 300, 4, "NVIDIA L4 datasheet")),
        GPU("L40S", 48, _rates(362, 183, 91.6, 864, 4, "NVIDIA L40S datasheet")),
        GPU("H100", 80, _rates(989, 494, 67, 3350, 5, "NVIDIA H100 datasheet (SXM)"), CUBLAS_HOPPER_MIB),
        GPU("H100 PCIe", 80, _rates(756, 378, 51, 2000, 5, "NVIDIA H100 datasheet (PCIe)"), CUBLAS_HOPPER_MIB),
        GPU("H200", 141, _rates(989, 494, 67, 4800, 5, "NVIDIA H200 datasheet (SXM)"), CUBLAS_HOPPER_MIB),
    )
}
DEFAULT_GPU = "RTX 4070 Ti"


def gpu(name: str | GPU = DEFAULT_GPU) -> GPU:
    """The GPU with that name in the table, or with that name as CUDA reports it; a `GPU` is returned as it is.

    Raises:
        ValueError: If it is not in the table; the message names the nearest.
    """
    if isinstance(name, GPU):
        return name
    if found := find_gpu(name):
        return found
    key = _key(_short(name))
    near = [known for known in GPUS if _key(known).startswith(key)][:3] if key else []
    near = near or difflib.get_close_matches(_short(name), GPUS, n=1, cutoff=0.8)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"no GPU is called {name!r}: {hint}The table has {', '.join(GPUS)}.")


def _short(device_name: str) -> str:
    """A device's name without the words that many share."""
    return " ".join(re.sub(r"\b(NVIDIA|GeForce|Tesla|GPU|Generation)\b", " ", device_name, flags=re.IGNORECASE).split())


def _key(name: str) -> str:
    """A name as it is compared: without spaces, in small letters."""
    return name.replace(" ", "").lower()


def find_gpu(device_name: str, vram_gib: float | None = None) -> GPU | None:
    """The table's entry for a GPU as CUDA or NVML report it, or `None` if there is no entry for exactly this one.

    Names are compared as a whole, so that an A100 is never an A10. Some names are shared by GPUs with different
    memory (an "NVIDIA GeForce RTX 3060" has 8 or 12 GiB): give `vram_gib`, the reported size, to tell them apart.
    """
    name = _key(REPORTED_AS.get(_short(device_name), _short(device_name)))
    found = [one for one in GPUS.values() if name in (_key(one.name), _key(re.sub(r" \d+GB$", "", one.name)))]
    if vram_gib is not None:  # error correction takes up to 9 % of the memory
        found = [one for one in found if 0.85 < vram_gib / one.vram_gib < 1.08]
    return found[0] if len(found) == 1 else None


def here() -> GPU:
    """This machine's first GPU, without rates if it is not in the table; the default GPU if there is no CUDA device."""
    if not torch.cuda.is_available():
        return GPUS[DEFAULT_GPU]
    properties = torch.cuda.get_device_properties(0)
    vram_gib = properties.total_memory / 2**30
    return find_gpu(properties.name, vram_gib) or GPU(properties.name, vram_gib, None, cublas_mib(properties.major))


def cublas_mib(compute_capability: int) -> float:
    """cuBLAS's workspace in MiB, by the major number of the compute capability."""
    return CUBLAS_HOPPER_MIB if compute_capability == 9 else CUBLAS_MIB
