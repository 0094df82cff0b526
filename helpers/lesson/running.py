"""Measure the offload modes, and generate. Lesson 01 writes `cap_vram`, `measure_mode` and `generate` out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import torch

from helpers.lesson.kernels import use_onednn
from helpers.lesson.machine import quiet_libraries
from helpers.lesson.parameters import Settings
from helpers.measure.comparison import ModeRun
from helpers.measure.memory import release
from helpers.measure.meter import VRAMMeter
from helpers.models.experts import InTurn
from helpers.slices.slicing import slice_activations


def start_device(settings: Settings, half: torch.dtype = torch.bfloat16) -> tuple[str, torch.dtype]:
    """Choose the device and the data type, cap the process at the VRAM budget, and silence the libraries' loading bars.

    Returns:
        "cuda" or "cpu", and the data type: `half` on a GPU, and fp32 on a CPU or for a miniature.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = half if device == "cuda" and settings.weights != "miniature" else torch.float32
    if device == "cpu":
        use_onednn()  # PyTorch's default kernel for small 3D convolutions is several times slower
    quiet_libraries()
    cap_vram(settings.vram_budget_gb)
    print(f"running on {device} in {str(dtype).removeprefix('torch.')}")
    return device, dtype


def cap_vram(gib):
    """Let this process use at most `gib` GiB of the GPU, or all of it for `None`."""
    if torch.cuda.is_available():
        gpu_gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, (gib or gpu_gib) / gpu_gib))


def preparing(
    load: Callable[..., Any], modes: Mapping[str, Callable[[Any], object]], slice_tokens: int | None = None
) -> Callable[..., Any]:
    """The function `prepare(mode, ...)`: a fresh pipeline from `load(...)`, in one of the offload `modes`.

    Args:
        load: Returns a pipeline in RAM.
        modes: What puts a pipeline into a mode, by the mode's name.
        slice_tokens: Tokens that the denoiser computes at a time, or `None` for all.
    """

    def prepare(mode, **options):
        pipe = load(**options)
        pipe.set_progress_bar_config(disable=True)  # the meter shows the progress
        if slice_tokens is not None:
            slice_activations(pipe, slice_tokens)
        for component in pipe.components.values():
            if isinstance(component, InTurn):  # an expert that is loaded only when it is called
                component.when_loaded(lambda expert: modes[mode](SimpleNamespace(components={"transformer": expert})))
        modes[mode](pipe)
        return pipe

    return prepare


def measure_mode(mode, prepare, denoise, forecasts, settings, runs):
    """Take two denoising steps in an offload mode, inside a meter, and append what was measured to `runs`.

    `prepare(mode)` returns a fresh pipeline; `denoise(pipe, steps)` returns latents and the seconds of a step. The
    latents are compared with those of the baseline, the first run that has any. The mode "none" runs without the cap.
    With `compare=False` only the mode of the final run is measured.
    """
    if not settings.compares(mode):
        return print(f"{mode}: left out, only {settings.offload} is measured")
    budget_gb = settings.vram_budget_gb
    cap_vram(None if mode == "none" else budget_gb)
    expected, advice = forecasts[mode].denoising_peak_gib, forecasts.advice(mode, budget_gb)
    latents = step_seconds = pipe = None
    meter = VRAMMeter(mode, budget_gb=budget_gb, forecast=expected, advice=advice)
    with suppress(torch.OutOfMemoryError), meter:
        pipe = prepare(mode)
        meter.mark("denoise")
        latents, step_seconds = denoise(pipe, steps=2)
    del pipe
    release()
    baseline = next((run.latents for run in runs if run.latents is not None), latents if settings.compare else None)
    runs.append(ModeRun.from_meter(
        mode, meter, phase="denoise", step_seconds=step_seconds, latents=latents, baseline=baseline,
    ))
    measured = meter.peak_allocated_gib and f"measured {meter.peak_allocated_gib:.3f} GiB"
    print(f"{mode}: forecast on a GPU {expected:.3f} GiB; {measured or 'not measured, no GPU here'}")


def generate(prepare, denoise, settings, forecasts, saved):
    """Denoise in the chosen mode, or in a lighter one if memory runs out, and save the latents at once.

    `saved` are the `SavedLatents` of this run: latents found there are returned, and nothing is recomputed. Its notes
    say which mode made them, and what the meter measured.
    """
    cap_vram(settings.vram_budget_gb)
    latents = saved.load()
    modes = [settings.offload, *forecasts.lighter(settings.offload, settings.vram_budget_gb)]
    for mode in modes if latents is None else []:
        pipe, advice = None, forecasts.advice(mode, settings.vram_budget_gb)
        try:
            with VRAMMeter(f"generate, {mode}", budget_gb=settings.vram_budget_gb, advice=advice) as meter:
                pipe = prepare(mode)
                meter.mark("denoise")
                latents, step_seconds = denoise(pipe, settings.steps)
            saved.save(latents, offload=mode, step_seconds=step_seconds, meter=meter.as_dict())
            break
        except torch.OutOfMemoryError:
            if mode == modes[-1]:
                raise
        finally:
            pipe = None
    return latents
