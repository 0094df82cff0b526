"""Time and memory of one full-size block over the size of its slices: data/measurements/slice_sizes_<gpu>.json.

python -m data.make.slices.block_sizes

The block is one of Wan2.2 A14B's 80, in bf16 with random weights, for 1280x720 with 81 frames.
"""

import time
from datetime import UTC, datetime

import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

from data.make import ROOT, gpu_slug
from helpers import measure
from helpers.slices import Rows, SlicedWanBlock, spans
from helpers.units import GIB

TOKENS = 21 * 45 * 80
SIZES = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 37800)
RUNS = 4


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device to measure on.")
    torch.manual_seed(0)
    block = WanTransformerBlock(5120, 13824, 40, cross_attn_norm=True).to("cuda", torch.bfloat16).eval()
    for name in ("norm1", "norm2", "norm3"):
        getattr(block, name).float()
    block.scale_shift_table.data = block.scale_shift_table.data.float()

    def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, device="cuda", dtype=dtype)

    hidden, prompt, temb = random(1, TOKENS, 5120), random(1, 512, 5120), random(1, 6, 5120)
    angles = tuple(random(1, TOKENS, 1, 128, dtype=torch.float32) for _ in range(2))

    def timed(*arguments) -> tuple[torch.Tensor, float, float]:
        """Output, milliseconds, and GiB of activations with the hidden states that are given."""
        seconds = []
        for _ in range(1 + RUNS):  # the first only warms up
            given, output = hidden.clone(), None
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before, began = torch.cuda.memory_allocated() - given.nbytes, time.perf_counter()
            output = block(given, *arguments)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
            peak = torch.cuda.max_memory_allocated() - before
        return output, 1000 * sum(seconds[1:]) / RUNS, peak / GIB

    with torch.no_grad():
        expected, plain, plain_gib = timed(prompt, temb, angles)
        rows, block.__class__ = [], SlicedWanBlock
        for size in SIZES:
            block.slice_tokens = size
            output, milliseconds, gib = timed(prompt, Rows(temb, None), angles)
            rows.append({
                "slice_tokens": size, "slices": len(spans(TOKENS, size)), "milliseconds": round(milliseconds, 1),
                "activations_gib": round(gib, 3), "equal": torch.equal(output, expected),
            })  # fmt: skip
            print(rows[-1], flush=True)
    device = torch.cuda.get_device_name(0)
    path = ROOT / "data" / "measurements" / f"slice_sizes_{gpu_slug(device)}.json"
    record = {
        "device": device, "tokens": TOKENS, "plain_ms": round(plain, 1), "plain_gib": round(plain_gib, 3), "rows": rows,
        "versions": measure.versions(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    print(measure.save(record, path))


if __name__ == "__main__":
    main()
