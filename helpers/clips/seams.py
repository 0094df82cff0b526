"""Judge the join of a clip and its continuation in numbers.

    from helpers.clips import psnr, seam

    seam(clip, new_frames, fps=24)             # new_frames without the context frames
    psnr(new_frames, true_frames)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # helpers.clips imports this module, so that its users find all in one place
    from helpers.clips import Clip


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two `np.uint8` arrays of the same shape, in dB; `inf` if they are equal.

    Raises:
        ValueError: If the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"the shapes differ: {list(a.shape)} and {list(b.shape)}")
    error = np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2, dtype=np.float64)
    return math.inf if error == 0 else float(10 * np.log10(255**2 / error))


@dataclass(frozen=True, repr=False)
class Seam:
    """How smoothly a continuation joins its clip. Differences are mean absolute ones, on the scale 0 to 255.

    Attributes:
        jump: From the last frame before the join to the first new one.
        usual: Median in the second before the join, over the time from one new frame to the next; nan if the clip
            is too short to tell.
        ratio: `jump / usual`; about 1 where the join does not show.
        brightness_step: Mean of the first new frame minus mean of the last one before.
        frozen: Whether the continuation hardly moves: its median from frame to frame is below a tenth of
            `usual`.
    """

    jump: float
    usual: float
    ratio: float
    brightness_step: float
    frozen: bool

    def __repr__(self) -> str:
        return (
            f"jump at the join {self.jump:.2f} of 255, usual from frame to frame {self.usual:.2f}: "
            f"{self.ratio:.1f} times\n"
            f"brightness step {self.brightness_step:+.2f} of 255\n"
            f"the continuation {'is FROZEN' if self.frozen else 'moves'}"
        )


def seam(before: Clip, after: np.ndarray, *, fps: float | None = None) -> Seam:
    """Measures the join between a clip and the new frames, without any context frames among them.

    Args:
        before: The clip, at the new frames' size.
        after: The new frames, `np.uint8` [T, H, W, 3].
        fps: Their frame rate, in frames per second; the clip's by default. Slower frames move further at each
            step, and it is such a step that leads from the clip to the first of them.

    Raises:
        ValueError: If the sizes differ, or if `fps` is not above 0.
    """
    last, first = before.frames[-1].astype(np.float32), after[0].astype(np.float32)
    if last.shape != first.shape:
        raise ValueError(f"the sizes differ: {list(last.shape)} and {list(first.shape)}")
    fps = before.fps if fps is None else fps
    if not fps > 0:
        raise ValueError(f"fps={fps}: give the frames per second, more than 0.")
    lag = before.fps / fps
    second = math.ceil(before.fps) + math.ceil(lag)  # frames; so that a second of steps lies between them
    jump, usual = float(np.abs(first - last).mean()), _median_step(before.frames[-second:], lag)
    return Seam(
        jump=jump,
        usual=usual,
        ratio=jump / usual if usual else math.inf,
        brightness_step=float(first.mean() - last.mean()),
        frozen=bool(_median_step(after) < 0.1 * usual),
    )


def _median_step(frames: np.ndarray, lag: float = 1.0) -> float:
    """Median of the mean absolute difference between frames `lag` apart; nan where there are too few.

    Between whole numbers of frames it is interpolated.
    """
    below, above = math.floor(lag), math.ceil(lag)
    if len(frames) <= above:
        return math.nan
    near, far = (
        np.median([np.abs(b.astype(np.int16) - a).mean() for a, b in zip(frames, frames[gap:], strict=False)])
        for gap in (below, above)
    )
    return float(near + (far - near) * (lag - below))
