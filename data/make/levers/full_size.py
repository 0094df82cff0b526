"""Measure the levers on the models at full size, with random weights, in leaf-level group offload below 12 GiB.

    python -m data.make.levers.full_size                                   # all, on the first GPU
    python -m data.make.levers.full_size --models ltx_video --seconds 120

The record, data/measurements/levers/full_size_<gpu>.json, has a row for each stack of levers: "step_seconds" is the
median of the steps after the first, in which hooks learn their order and compilers compile; with a cache, it is their
mean, because some are skipped. The peaks are PyTorch's. Of the two experts of Wan2.2-I2V-A14B only the first is there:
the steps that are measured are its own. Whether a cache *may* skip cannot be measured with random weights: MagCache is
told to skip every other step, so its row is the time at that rate of hits.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from data.make import ROOT, gpu_slug
from data.make.levers.levers import Lever, denoisers, levers
from data.make.measurements.stage_runs import arguments, load, load_expert, place
from helpers import measure, slices
from helpers.files import replacing
from helpers.models import CACHE, CONFIGS, Architecture, dummy_folder
from helpers.units import GIB

CAP_GIB = 12.0
SIZES = {
    "ltx_video": (768, 512, 121),
    "wan22_ti2v_5b": (640, 384, 121),
    "cogvideox_5b_i2v": (720, 480, 49),
    "wan22_i2v_a14b": (1280, 720, 81),
}
STACK = ["guidance_off", "lora", "attention"]
SINGLES = [[], ["guidance_off"], ["lora"], ["magcache"], ["attention"], ["fp8"], ["int8"], ["compile"]]
STACKS = {
    "ltx_video": [*SINGLES, STACK, [*STACK, "compile"]],
    "wan22_ti2v_5b": [*SINGLES, STACK, [*STACK, "compile"]],
    "cogvideox_5b_i2v": [
        [], ["guidance_off"], ["magcache"], ["attention"], ["fp8"], ["guidance_off", "magcache", "attention"],
    ],
    "wan22_i2v_a14b": [
        [], ["guidance_off"], STACK, ["guidance_off", "lora"], ["guidance_off", "lora", "slices"], [*STACK, "compile"],
    ],
}  # fmt: skip
STEPS = {"wan22_i2v_a14b": 2, "cogvideox_5b_i2v": 4}  # for the others 6
SLICE_TOKENS = 4096


def slice_tokens(pipe, arch: Architecture, steps: int) -> None:
    """Slices of activations, which are no lever but what makes it fit 4 GiB."""
    for denoiser in denoisers(pipe, arch).values():
        slices.slice_activations(denoiser, SLICE_TOKENS)


def measured(model: str, names: list[str], device: str, folder: Path, arch: Architecture) -> dict:
    """A few steps with the levers of a stack."""
    known = levers(device) | {"slices": Lever("slices", slice_tokens)}
    pulled = [known[name] for name in names]
    steps = STEPS.get(model, 6)
    if len(arch.denoisers) == 1:
        pipe = load(arch, folder)
    else:
        pipe = load(arch, folder, {"transformer": load_expert(arch, folder, "transformer"), "transformer_2": None})
        pipe.register_to_config(boundary_ratio=None)
    pipe.vae.enable_tiling()
    for lever in pulled:
        lever.pull(pipe, arch, steps)
    place(pipe, arch, "group_leaf", device)
    torch.manual_seed(0)
    given = arguments(arch, pipe, *SIZES[model], device)
    for lever in pulled:
        given |= lever.call(arch)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    timer = measure.StepTimer()
    given |= dict(num_inference_steps=steps, output_type="latent", callback_on_step_end=timer)
    latents = pipe(**given).frames
    each, cuda = timer.durations[1:], device == "cuda"
    return {
        "step_seconds": statistics.mean(each) if "magcache" in names else timer.step_seconds,
        "step_times": [round(one, 4) for one in each],
        "peak_allocated_gib": torch.cuda.max_memory_allocated() / GIB if cuda else None,
        "peak_reserved_gib": torch.cuda.max_memory_reserved() / GIB if cuda else None,
        "peak_ram_gib": measure.ram() / GIB, "finite": bool(latents.isfinite().all()),
    }  # fmt: skip


def measure_all(model: str, seconds: float, configs: Path, cache: Path) -> None:
    """All stacks of one model, until the time is over; prints a row of JSON for each."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    device, began = "cuda" if torch.cuda.is_available() else "cpu", time.perf_counter()
    arch = Architecture(configs / model)
    folder = dummy_folder(model, arch.on_gpu, cache, configs)
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(CAP_GIB * GIB / total)
    width, height, frames = SIZES[model]
    for names in STACKS[model]:
        if time.perf_counter() - began > seconds:
            break
        row = {"model": model, "width": width, "height": height, "num_frames": frames, "levers": names}
        torch.compiler.reset()
        try:
            row |= measured(model, names, device, folder, arch)
        except Exception as error:  # that a lever does not work is a result as well
            row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        print("ROW " + json.dumps(row), flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES), metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=600, help="per model: start no stack after this time")
    parser.add_argument("--out", type=Path, help="the record (default: data/measurements/levers/full_size_<gpu>.json)")
    parser.add_argument("--configs", type=Path, default=CONFIGS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--child", choices=SIZES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        measure_all(args.child, args.seconds, args.configs, args.cache)
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    path = args.out or ROOT / "data" / "measurements" / "levers" / f"full_size_{gpu_slug(device)}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    for model in args.models:
        options = ["--configs", args.configs, "--cache", args.cache, "--seconds", args.seconds, "--child", model]
        command = [sys.executable, "-m", "data.make.levers.full_size", *map(str, options)]
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
            for line in child.stdout:
                if not line.startswith("ROW "):
                    continue
                row = json.loads(line[4:])
                rows = [one for one in rows if (one["model"], one["levers"]) != (model, row["levers"])] + [row]
                about = {"device": device, "vram_cap_gib": CAP_GIB, "offload": "group_leaf", "weights": "dummy"}
                date = datetime.now(UTC).isoformat(timespec="seconds")
                record = {"rows": rows} | about | {"versions": measure.versions(), "date": date}
                with replacing(path) as temporary:
                    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                print(model, row["levers"], row.get("step_seconds"), row.get("failed", ""), flush=True)


if __name__ == "__main__":
    main()
