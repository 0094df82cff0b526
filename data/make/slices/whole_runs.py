"""Measure whole runs with sliced activations under a cap, and the plain resident runs beside them.

python -m data.make.slices.whole_runs                         # all, on the first GPU; resumes where it stopped
python -m data.make.slices.whole_runs --only a14b_720p --minutes 5

Each run encodes an image, takes some steps and decodes, on a full-size dummy checkpoint, in a process of its own that
PyTorch's allocator keeps below the cap. The baseline has all weights on the GPU and no cap; its step is the resident
step, and its latents are those that the sliced run must equal, bit for bit. The records lie in
data/measurements/sliced_<gpu>/, one JSON file for each run.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from data.make import ROOT, gpu_slug
from data.make.slices.one_run import run
from helpers import measure
from helpers.forecast import find_gpu, forecasts
from helpers.models import CACHE, CONFIGS


@dataclass(frozen=True)
class Run:
    """One sliced run.

    Attributes:
        model, width, height, num_frames: What is made.
        slice_tokens, cap_gib: Tokens at a time, and the cap of the process's GPU memory.
        steps: Denoising steps. The second is the one whose time counts: in the first, the hooks learn their order.
        guidance: Whether there are two forwards a step.
        baseline: Whether the plain resident run is measured, too.
        decode_chunk_size: Frames at once, of Stable Video Diffusion.
        encode_in_tiles: Whether the image is encoded in tiles.
        low_cpu_mem_usage: Whether each block is pinned only while it travels.
        offload: The mode.
    """

    model: str
    width: int
    height: int
    num_frames: int
    slice_tokens: int
    cap_gib: float
    steps: int = 3
    guidance: bool = True
    baseline: bool = True
    decode_chunk_size: int = 2
    encode_in_tiles: bool = False
    low_cpu_mem_usage: bool = False
    offload: str = "group_leaf"
    decode: bool = True


A14B = "wan22_i2v_a14b"
RUNS = {
    "ltx_video": Run("ltx_video", 768, 512, 121, 8192, 2.0, steps=4),
    "ltx_video_1216x704": Run("ltx_video", 1216, 704, 257, 9216, 4.0),
    "svd_xt": Run("svd_xt", 1024, 576, 25, 1, 4.0, steps=4, offload="group_block"),
    "cogvideox_5b_i2v": Run("cogvideox_5b_i2v", 720, 480, 49, 4096, 3.0, encode_in_tiles=True),
    "wan22_ti2v_5b": Run("wan22_ti2v_5b", 1280, 704, 121, 9216, 5.0),
    "a14b_720p": Run(A14B, 1280, 720, 81, 4096, 4.0, steps=4, guidance=False, encode_in_tiles=True),
    "a14b_720p_12_gib_of_ram": Run(
        A14B, 1280, 720, 81, 4096, 4.0, steps=4, guidance=False, encode_in_tiles=True, low_cpu_mem_usage=True,
        offload="group_block",
    ),
    "a14b_720p_10_s": Run(
        A14B, 1280, 720, 161, 8192, 6.0, steps=1, guidance=False, baseline=False, encode_in_tiles=True
    ),
    "a14b_1080p": Run(A14B, 1920, 1088, 81, 8192, 7.0, steps=2, guidance=False, baseline=False, encode_in_tiles=True),
    "a14b_1080p_10_s": Run(
        A14B, 1920, 1088, 161, 8192, 12.0, steps=1, guidance=False, baseline=False, encode_in_tiles=True
    ),
}  # fmt: skip


def job_of(one: Run, baseline: bool, latents: Path, configs: Path, cache: Path) -> dict:
    """What `one_run.run` takes: the run, or its baseline, which is not sliced and ends with the latents."""
    paths = {"latents": str(latents), "configs": str(configs), "cache": str(cache)}
    plain = {"slice_tokens": None, "decode": False} if baseline else {}
    return asdict(one) | paths | {"baseline": baseline} | plain


def measured(one: Run, folder: Path, baseline: bool, limit: float, configs: Path, cache: Path) -> dict:
    """Run it in a separate process, which is killed after `limit` seconds; returns what it printed."""
    latents = folder / "latents" / f"{one.model}_{one.width}x{one.height}x{one.num_frames}_{one.steps}.pt"
    latents.parent.mkdir(parents=True, exist_ok=True)
    job = job_of(one, baseline, latents, configs, cache)
    command = [sys.executable, "-m", "data.make.slices.whole_runs", "--child", json.dumps(job)]
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=limit, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {limit:.0f} s"}
    rows = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("ROW ")]
    return rows[-1] if rows else {"failed": done.stderr[-300:]}


def record(one: Run, sliced: dict, baseline: dict) -> dict:
    """The record of a run, from what its two processes printed."""
    phases = {phase["name"]: phase for phase in sliced.get("meter", {}).get("phases", ())}
    stages = {name: phases[name] for name in ("encode_image", "denoise", "decode") if name in phases}
    device = torch.cuda.get_device_name(0)
    expected = forecasts(
        one.model, width=one.width, height=one.height, num_frames=one.num_frames, guidance=one.guidance,
        slice_tokens=one.slice_tokens,
        decode_chunk_size=one.decode_chunk_size, low_cpu_mem_usage=one.low_cpu_mem_usage,
        one_expert_at_a_time=one.model == A14B, modes=(one.offload,), gpu=find_gpu(device) or "H100",
    )[one.offload]  # fmt: skip
    times, resident = sliced.get("step_times", []), baseline.get("step_times", [])
    return {
        "model": one.model, "weights": "dummy", "offload": one.offload, "width": one.width, "height": one.height,
        "num_frames": one.num_frames, "steps": one.steps, "guidance": one.guidance, "slice_tokens": one.slice_tokens,
        "one_expert_at_a_time": one.model == A14B, "low_cpu_mem_usage": one.low_cpu_mem_usage,
        "decode_chunk_size": one.decode_chunk_size, "vram_cap_gib": one.cap_gib, "device": device,
        "peak_allocated_gib": max((phase["peak_allocated_gib"] for phase in stages.values()), default=None),
        "peak_reserved_gib": max((phase["peak_reserved_gib"] for phase in stages.values()), default=None),
        "peak_ram_gib": sliced.get("meter", {}).get("peak_ram_gib"),
        "step_seconds": next(iter(times[1:] or times), None),
        "resident_step_seconds": next(iter(resident[1:] or resident), None),
        "step_times": times, "latents_equal": sliced.get("latents_equal"),
        "latents_difference": sliced.get("latents_difference"), "latents_finite": sliced.get("latents_finite"),
        "frames": sliced.get("frames"), "frames_finite": sliced.get("frames_finite"), "failed": sliced.get("failed"),
        "stages": {name: phase["seconds"] for name, phase in stages.items()}, "phases": list(phases.values()),
        "forecast": {
            "stages": {name: stage.peak_gib for name, stage in expected.stages.items()},
            "peak_vram_gib": expected.peak_vram_gib, "peak_ram_gib": expected.peak_ram_gib,
            "step_seconds": expected.step_seconds, "resident_step_seconds": expected.resident_step_seconds,
        },
        "baseline": baseline, "versions": measure.versions(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=RUNS, help="these runs alone")
    parser.add_argument("--minutes", type=float, default=60.0, help="start no run after this time (default: 60)")
    parser.add_argument("--out", type=Path, help="folder of the records (default: data/measurements/sliced_<gpu>)")
    parser.add_argument("--configs", type=Path, default=CONFIGS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return run(json.loads(args.child))
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device to measure on.")
    slug = gpu_slug(torch.cuda.get_device_name(0))
    folder = args.out or ROOT / "data" / "measurements" / f"sliced_{slug}"
    deadline = time.monotonic() + 60 * args.minutes
    baselines: dict[tuple, dict] = {}
    for name in args.only or RUNS:
        path = folder / f"{name}.json"
        left = deadline - time.monotonic()
        if path.exists() or left < 30:
            print(f"{name}: {'recorded already' if path.exists() else 'no time left'}", flush=True)
            continue
        one, limits = RUNS[name], (args.configs, args.cache)
        same = (one.model, one.width, one.height, one.num_frames, one.steps, one.guidance)
        if one.baseline and same not in baselines:
            baselines[same] = measured(one, folder, True, left, *limits)
        baseline = baselines.get(same, {})
        sliced = measured(one, folder, False, deadline - time.monotonic() + 30, *limits)
        row = record(one, sliced, baseline)
        measure.save(row, path)
        shown = ("peak_allocated_gib", "peak_reserved_gib", "peak_ram_gib", "step_seconds", "resident_step_seconds",
                 "latents_difference", "failed", "stages", "forecast")  # fmt: skip
        print(name, json.dumps({key: row[key] for key in shown} | {"left_s": round(deadline - time.monotonic())}),
              flush=True)  # fmt: skip
    return None


if __name__ == "__main__":
    main()
