"""The measured runs: real pipelines on dummy checkpoints, in one offload mode after another."""

import gc
import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from helpers.measure import ram
from helpers.models import Architecture, dummy_folder, gguf_path
from helpers.units import GIB

STEPS = 2


def load_expert(arch: Architecture, folder: Path, name: str):
    """One denoiser in RAM, from its GGUF file."""
    import diffusers

    dtype = arch.dtype(name)
    return diffusers.WanTransformer3DModel.from_single_file(
        str(gguf_path(folder, name, arch.quantization)), config=str(folder), subfolder=name, torch_dtype=dtype,
        quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
    )  # fmt: skip


def load(arch: Architecture, folder: Path, experts: Mapping[str, torch.nn.Module] | None = None):
    """The pipeline in RAM, loaded as in the lessons, without its text encoder and tokenizer.

    Args:
        experts: Denoisers to take instead of those in GGUF files.
    """
    import diffusers

    dtype = arch.dtype(arch.denoisers[0])
    components = {name: None for name in ("text_encoder", "tokenizer") if name in arch.index}
    if arch.quantization:
        components |= experts or {name: load_expert(arch, folder, name) for name in arch.denoisers}
    if arch.family == "Wan":
        components["vae"] = diffusers.AutoencoderKLWan.from_pretrained(folder, subfolder="vae", dtype=torch.float32)
    pipe = getattr(diffusers, arch.pipeline).from_pretrained(folder, dtype=dtype, **components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(arch: Architecture, pipe, width: int, height: int, frames: int, device: str) -> dict:
    """The arguments of the pipeline, with guidance: a grey picture and random embeddings."""
    from PIL import Image

    dtype = arch.dtype(arch.denoisers[0])
    given = dict(
        image=Image.new("RGB", (width, height), "grey"), width=width, height=height, num_frames=frames,
        num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    if arch.family == "StableVideoDiffusion":
        return given | dict(decode_chunk_size=8)
    config = getattr(pipe, arch.denoisers[0]).config
    tokens, channels = {
        "LTX": lambda: (128, config.caption_channels),
        "Wan": lambda: (512, config.text_dim),
        "CogVideoX": lambda: (config.max_text_seq_length, config.text_embed_dim),
    }[arch.family]()
    embeds = {
        name: torch.randn(1, tokens, channels).to(device, dtype) for name in ("prompt_embeds", "negative_prompt_embeds")
    }
    if arch.family == "LTX":
        mask = torch.ones(1, tokens, dtype=torch.int64, device=device)
        embeds |= dict(prompt_attention_mask=mask, negative_prompt_attention_mask=mask)
    return given | embeds | dict(guidance_scale=5.0)


def place(pipe, arch: Architecture, offload: str, device: str) -> None:
    """Prepare the pipeline for an offload mode, with the same calls as in the lessons."""
    import accelerate

    if offload == "none":
        pipe.to(device)
    elif offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        if device == "cuda":
            pipe.enable_sequential_cpu_offload(device=device)
        else:
            for name in arch.on_gpu:
                accelerate.cpu_offload(getattr(pipe, name), torch.device(device))
    else:
        for denoiser in filter(None, (getattr(pipe, name) for name in arch.denoisers)):
            offload_in_groups(denoiser, offload, device)
        offload_whole_components(pipe, arch, device)


def offload_in_groups(denoiser: torch.nn.Module, offload: str, device: str, low_cpu_mem_usage: bool = False) -> None:
    """Group offload in blocks or leaves, streamed on a GPU."""
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        denoiser, onload_device=torch.device(device), offload_device=torch.device("cpu"),
        offload_type="leaf_level" if offload == "group_leaf" else "block_level", num_blocks_per_group=1,
        use_stream=device == "cuda", record_stream=device == "cuda",
        low_cpu_mem_usage=low_cpu_mem_usage and device == "cuda",
    )  # fmt: skip


def offload_whole_components(pipe, arch: Architecture, device: str) -> None:
    """All components but the denoisers arrive whole when they are called, and leave when a denoiser is."""
    import accelerate

    whole = [name for name in arch.on_gpu if name not in arch.denoisers]
    hooks = [accelerate.cpu_offload_with_hook(getattr(pipe, name), torch.device(device))[1] for name in whole]

    def offload_all(*_) -> None:
        for hook in hooks:
            hook.offload()

    for denoiser in filter(None, (getattr(pipe, name) for name in arch.denoisers)):
        denoiser.register_forward_pre_hook(offload_all)


class Stopwatch:
    """Measures the stages of one pipeline call. A stage begins when its module is first called.

    Attributes:
        peaks: Peak allocated VRAM of each stage in GiB, `None` without a GPU.
        seconds: Of each stage.
        steps: The time at the end of each denoising step.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.peaks, self.seconds, self.steps = {}, {}, []
        self.stage, self.began = "encode_image", self.now()

    def now(self) -> float:
        """The time in seconds, once the GPU has finished."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def enter(self, stage: str) -> None:
        """Begin a stage, unless it is the current one."""
        if stage == self.stage:
            return
        now = self.now()
        self.seconds[self.stage] = now - self.began
        self.peaks[self.stage] = torch.cuda.max_memory_allocated() / GIB if self.cuda else None
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        self.stage, self.began = stage, now

    def step(self, pipe, number: int, timestep: object, tensors: dict) -> dict:
        """The pipeline's `callback_on_step_end`."""
        self.steps.append(self.now())
        return tensors


def measure(model: str, width: int, height: int, frames: int, offload: str, device: str, folder: Path, arch) -> dict:
    """Measure one pipeline call in one mode; returns its row of the record, as far as it was measured."""
    pipe = load(arch, folder)
    if arch.family == "StableVideoDiffusion":
        pipe.unet.enable_forward_chunking()
    else:
        pipe.vae.enable_tiling()
    place(pipe, arch, offload, device)
    given = arguments(arch, pipe, width, height, frames, device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    watch = Stopwatch(device)
    for name in arch.denoisers:
        getattr(pipe, name).register_forward_pre_hook(lambda *_: watch.enter("denoise"))
    decode = pipe.vae.decode

    def watched_decode(*given, **options):  # a hook of the decoder would be too late, after the VAE's onload
        watch.enter("decode")
        return decode(*given, **options)

    pipe.vae.decode = watched_decode
    reserved = torch.cuda.max_memory_reserved() / GIB if device == "cuda" else None
    pipe(**given, output_type="np", callback_on_step_end=watch.step)
    watch.enter("end")
    if device == "cuda":
        reserved = torch.cuda.max_memory_reserved() / GIB
    return {
        "peaks": watch.peaks, "seconds": watch.seconds, "step_seconds": watch.steps[-1] - watch.steps[-2],
        "offload_vae": True, "peak_reserved_gib": reserved, "ram_gib": ram() / GIB,
    }  # fmt: skip


def measure_modes(job: dict) -> None:
    """Measure all modes of one set-up; prints a row of JSON for each.

    Args:
        job: "model", "width", "height", "num_frames", "modes", "configs" and "cache".
    """
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, size = job["model"], (job["width"], job["height"], job["num_frames"])
    arch = Architecture(Path(job["configs"]) / model)
    folder = dummy_folder(model, arch.on_gpu, Path(job["cache"]), Path(job["configs"]))
    for offload in job["modes"]:
        row = {key: job[key] for key in ("model", "width", "height", "num_frames")} | {"offload": offload}
        try:
            row |= measure(model, *size, offload, device, folder, arch)
        except torch.OutOfMemoryError as error:
            row["failed"] = f"out of memory: {str(error)[:200]}"
        except Exception as error:  # a mode that cannot work is a result as well: sequential offload of GGUF
            row["failed"] = f"{type(error).__name__}: {str(error)[:200]}"
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        print("ROW " + json.dumps(row), flush=True)
