"""The last step of decoding: pixels from what a VAE's decoder returns. Lesson 01 writes it out."""

from __future__ import annotations

import numpy as np
import torch
from diffusers.video_processor import VideoProcessor


def to_frames(video: torch.Tensor) -> np.ndarray:
    """Frames, `np.uint8` [T, H, W, 3], of a decoder's output [1, 3, T, H, W] from -1 to 1, on any device."""
    return (VideoProcessor().postprocess_video(video, output_type="np")[0] * 255).round().astype("uint8")
