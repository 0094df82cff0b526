"""Decode the latents of a run: the file, the meter and the pixels. Lesson 01 writes this out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers.video_processor import VideoProcessor
from safetensors.torch import load_file

from helpers.lesson.parameters import Settings
from helpers.measure.meter import VRAMMeter

ADVICE = "The latents are safe in latents.safetensors: close other programs that use the GPU, and run this cell again."


def to_frames(video: torch.Tensor) -> np.ndarray:
    """Frames, `np.uint8` [T, H, W, 3], of a decoder's output [1, 3, T, H, W] from -1 to 1, on any device."""
    return (VideoProcessor().postprocess_video(video, output_type="np")[0] * 255).round().astype("uint8")


def decode_saved(
    decode: Callable[[torch.Tensor], np.ndarray],
    settings: Settings,
    title: str = "decode in tiles",
    advice: str = ADVICE,
) -> tuple[np.ndarray, VRAMMeter]:
    """Decode the latents in the lesson's folder inside a meter, and print how long it took.

    Args:
        decode: Returns the frames, `np.uint8` [T, H, W, 3], of the latents as they were saved.
        title, advice: The meter's.

    Returns:
        The frames, and the meter.
    """
    latents = load_file(settings.folder / "latents.safetensors")["latents"]
    with VRAMMeter(title, budget_gb=settings.vram_budget_gb, advice=advice) as meter:
        frames = decode(latents)
    print(f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]} in {meter.seconds:.1f} s")
    return frames, meter
