"""One run of the record of sliced runs: a real pipeline on a dummy checkpoint, from the image to the frames."""

import json
import time
from pathlib import Path

import torch

from data.make.measurements.stage_runs import (
    arguments,
    load,
    load_expert,
    offload_in_groups,
    offload_whole_components,
)
from helpers import slices
from helpers.measure import VRAMMeter, release
from helpers.models import Architecture, InTurn, dummy_folder, in_turn
from helpers.units import GIB


def run(job: dict) -> None:
    """Encode, denoise and decode as the job says; prints a row of JSON.

    Args:
        job: The fields of `whole_runs.Run`, and "configs", "cache", "latents" (where the baseline's go, which
            others are compared with), "baseline" (whether this is the plain resident run, without a cap).
    """
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    arch = Architecture(Path(job["configs"]) / job["model"])
    folder = dummy_folder(job["model"], arch.on_gpu, Path(job["cache"]), Path(job["configs"]))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not job["baseline"]:
        gpu_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(job["cap_gib"] * GIB / gpu_bytes)
    row, times = {}, []
    meter = VRAMMeter(job["model"], show=False)
    try:
        with meter:
            row |= _whole_run(job, arch, folder, device, meter, times)
    except Exception as error:  # that a run does not fit is a result as well
        row["failed"] = f"{type(error).__name__}: {str(error)[:300]}"
    pairs = zip(times, times[1:], strict=False)
    row["step_times"] = [round(after - before, 4) for before, after in pairs]
    print("ROW " + json.dumps(row | {"meter": meter.as_dict()}), flush=True)


def _whole_run(job: dict, arch: Architecture, folder: Path, device: str, meter: VRAMMeter, times: list) -> dict:
    meter.mark("load")
    pipe = _pipeline(job, arch, folder, device)
    torch.manual_seed(0)  # the same random embeddings in every run
    given = arguments(arch, pipe, job["width"], job["height"], job["num_frames"], device)
    if not job["guidance"]:
        given["guidance_scale"] = 1.0

    def step_ended(pipe, number, timestep, tensors):
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        return tensors

    def first_step(denoiser, _):
        handle.remove()
        if isinstance(denoiser, InTurn):
            meter.mark("load_expert")
            denoiser.expert()
        meter.mark("denoise")
        times.append(time.perf_counter())

    handle = getattr(pipe, arch.denoisers[0]).register_forward_pre_hook(first_step)
    meter.mark("encode_image")
    given |= dict(num_inference_steps=job["steps"], output_type="latent", callback_on_step_end=step_ended)
    latents = pipe(**given).frames.cpu()
    vae = pipe.vae
    meter.mark("drop")
    del pipe
    release()
    row = {"latents_finite": bool(latents.isfinite().all())} | _compared(latents, job)
    if not job["decode"]:
        return row
    meter.mark("decode")
    frames = _decode(job, arch, vae.to(device), latents)
    return row | {"frames": list(frames.shape), "frames_finite": bool(frames.isfinite().all())}


def _pipeline(job: dict, arch: Architecture, folder: Path, device: str):
    """The pipeline in its mode, sliced, and of the A14B one expert at a time; or with all weights on the GPU."""
    import diffusers

    def offloaded(denoiser):
        slices.slice_activations(denoiser, job["slice_tokens"])
        offload_in_groups(denoiser, job["offload"], device, job["low_cpu_mem_usage"])
        release()
        return denoiser

    experts = None
    if not job["baseline"] and len(arch.denoisers) > 1:
        loads = {name: lambda name=name: offloaded(load_expert(arch, folder, name)) for name in arch.denoisers}
        config = diffusers.WanTransformer3DModel.load_config(folder, subfolder=arch.denoisers[0])
        experts = in_turn(loads, config, arch.dtype(arch.denoisers[0]), device)
    pipe = load(arch, folder, experts)
    if arch.family == "StableVideoDiffusion":
        pipe.unet.enable_forward_chunking()
    elif job["encode_in_tiles"]:
        pipe.vae.enable_tiling()
    if job["baseline"]:
        return pipe.to(device)
    if experts is None:
        offloaded(getattr(pipe, arch.denoisers[0]))
    offload_whole_components(pipe, arch, device)
    return pipe


def _compared(latents: torch.Tensor, job: dict) -> dict:
    path = Path(job["latents"])
    if job["baseline"]:
        torch.save(latents, path)
    if job["baseline"] or not path.exists():
        return {}
    difference = float((latents.float() - torch.load(path).float()).abs().max())
    return {"latents_difference": difference, "latents_equal": difference == 0.0}


def _decode(job: dict, arch: Architecture, vae, latents: torch.Tensor) -> torch.Tensor:
    """The frames of the latents, in tiles or chunks of frames, the pieces joined in RAM."""
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(vae)  # the pipeline's offloading, if it had any
    device = next(vae.parameters()).device
    latents = latents.to(device, vae.dtype)
    if arch.family != "StableVideoDiffusion":
        vae.enable_tiling()
    if not job["baseline"]:
        slices.decode_lean(vae)
    with torch.no_grad():
        if arch.family == "StableVideoDiffusion":
            chunks = latents.flatten(0, 1).split(job["decode_chunk_size"])
            return torch.cat([vae.decode(chunk, num_frames=len(chunk)).sample for chunk in chunks])
        if arch.family == "LTX":
            grid = ((job["num_frames"] - 1) // 8 + 1, job["height"] // 32, job["width"] // 32)
            latents = latents.unflatten(1, grid).movedim(-1, 1)
            timestep = torch.zeros(1, device=device, dtype=vae.dtype) if vae.config.timestep_conditioning else None
            return vae.decode(latents, timestep).sample
        if arch.family == "CogVideoX":
            latents = latents.permute(0, 2, 1, 3, 4)
        return vae.decode(latents).sample
