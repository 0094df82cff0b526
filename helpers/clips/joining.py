"""Join a clip and its continuation, and judge the join in numbers.

    frames = carry_grain(match_colour(frames, clip.frames[-1]), clip.frames[-1])
    longer = stitch(clip, frames, fps=24, context=1)
    seam(clip, frames[1:], fps=24)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from helpers.clips.clip import Clip, ClipError
from helpers.clips.fitting import BAND
from helpers.clips.oklab import from_oklab, oklab
from helpers.clips.resampling import resample


def stitch(
    clip: Clip, continuation: np.ndarray, *, fps: float | None = None, context: int = 1, resampled: str = "nearest"
) -> Clip:
    """Join a clip and the frames that continue it, both at the model's size, to look at the join.

    The result has the clip's frame rate. Both halves keep their speed: a continuation with another frame rate is
    resampled, and its duration does not change. `helpers.clips.extend` joins the clip's whole file at its own size.

    Args:
        clip: The clip, at the continuation's size (`Clip.fit`).
        continuation: `np.uint8` [T, H, W, 3], as the model made it.
        fps: Its frame rate in frames per second; by default the clip's.
        context: How many of its first frames repeat the end of the clip; they are dropped.
        resampled: How it gets the clip's frame rate, one of `helpers.clips.resampling.WAYS`.

    Raises:
        ClipError: If the sizes differ, or if no frame of the continuation is left.
    """
    new = Clip(continuation, fps or clip.fps)
    if new.size != clip.size:
        raise ClipError(
            f"the clip is {clip.width}x{clip.height} and its continuation {new.width}x{new.height}: "
            f"fit the clip first, clip.fit({new.width}, {new.height})."
        )
    if not 0 <= context < len(new):
        raise ClipError(
            f"context={context}: the continuation has {len(new)} frames, so give 0 to {len(new) - 1}."
        )
    last = clip.frames[-1]
    frames = resample(continuation[context:], last, fps=new.fps, to_fps=clip.fps, how=resampled)
    return Clip(np.concatenate([clip.frames, frames]), clip.fps, name=f"{clip.name}, continued")


def match_colour(frames: np.ndarray, last: np.ndarray, strength: float = 1.0) -> np.ndarray:
    """Give generated frames the colours of the clip: those by which the first of them differs from the clip's last.

    The first generated frame repeats the clip's last one, so that what differs is the model's doing. Mean and deviation
    of lightness and of the two colour axes are matched in the perceptual space Oklab (Ottosson 2020), over the whole
    picture, so that the correction holds where the camera moves.

    Args:
        frames: `np.uint8` [T, H, W, 3]; the first repeats `last`.
        last: `np.uint8` [H, W, 3].
        strength: 0 changes nothing, 1 corrects all of the difference.
    """
    now, wanted = (oklab(frame).reshape(-1, 3) for frame in (frames[0], last))
    spread = np.clip(wanted.std(0) / np.maximum(now.std(0), 1e-3), 0.8, 1.25)
    gain = 1 + strength * (spread - 1)
    offset = strength * wanted.mean(0) + (1 - strength) * now.mean(0) - gain * now.mean(0)
    return np.stack([from_oklab(oklab(frame) * gain + offset) for frame in frames])


def carry_grain(frames, last_frame):
    """Frames [T, H, W, 3] with the grain that the first lacks compared with `last_frame`, where nothing moved."""
    lost = last_frame.astype("float32") - frames[0]
    change = np.abs(frames.astype("float32") - frames[0]).max(axis=-1, keepdims=True)
    return (frames + np.exp(-((change / 8) ** 2)) * lost).clip(0, 255).round().astype("uint8")


def carry_detail(frames: np.ndarray, reference: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Give large frames the detail that the model's size has lost, wherever nothing has moved.

    It is `carry_grain` at the clip's own size: a still background stays as sharp as it was.

    Args:
        frames: `np.uint8` [T, H, W, 3], brought from the model's size to the clip's.
        reference: `np.uint8` [H, W, 3], the clip's last frame after the same way down and up.
        last: `np.uint8` [H, W, 3], the clip's last frame itself.
    """
    import torch  # whose arithmetic uses all cores

    detailed = np.empty_like(frames)
    for top in range(0, len(last), BAND):  # some rows at a time: floats take four times the memory
        rows = slice(top, top + BAND)
        before = torch.from_numpy(reference[rows]).float()
        lost = torch.from_numpy(last[rows]).float() - before
        for target, frame in zip(detailed, frames, strict=True):
            new = torch.from_numpy(frame[rows]).float()
            still = (new - before).abs_().amax(dim=-1, keepdim=True).div_(8).square_().neg_().exp_()
            target[rows] = new.addcmul_(still, lost).round_().clamp_(0, 255).byte().numpy()
    return detailed


def fade_in(frames: np.ndarray, last: np.ndarray, over: int = 6) -> np.ndarray:
    """Let a hop begin exactly where the video ends: what the model's version of its last frame lacks fades in.

    Args:
        frames: `np.uint8` [1 + T, H, W, 3]; the first repeats `last`.
        last: `np.uint8` [H, W, 3].
        over: How many frames after the first the difference is spread over.
    """
    lacks = last.astype(np.float32) - frames[0]
    weight = (1 - np.arange(len(frames)) / (over + 1)).clip(0).reshape(-1, 1, 1, 1)
    return (frames + weight * lacks).clip(0, 255).round().astype("uint8")


def sharpness_kept(before: np.ndarray, after: np.ndarray) -> float:
    """How sharp a frame is compared with the one before: the ratio of the deviations of their Laplacians.

    Args:
        before, after: `np.uint8` [H, W, 3] of the same size.
    """
    frames = (frame.astype(np.float32).mean(axis=-1) for frame in (before, after))
    sharp_before, sharp_after = (float(laplacian(grey).std()) for grey in frames)
    return sharp_after / max(sharp_before, 1e-6)


def laplacian(grey: np.ndarray) -> np.ndarray:
    """How much each inner pixel of a grey picture [H, W] differs from the four around it, times four."""
    return grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]


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
    """How smoothly a continuation joins its clip. Differences are mean absolute differences on a scale of 0 to 255.

    Attributes:
        jump: From the last frame before the join to the first new one.
        usual: Median difference in the second before the join, over the time between two new frames; nan if the clip
            is too short to tell.
        ratio: `jump / usual`; about 1 where the join is invisible.
        brightness_step: Mean of the first new frame minus mean of the last one before.
        frozen: Whether the continuation hardly moves: its median difference between frames is below a tenth of
            `usual`.
    """

    jump: float
    usual: float
    ratio: float
    brightness_step: float
    frozen: bool

    @property
    def verdict(self) -> str:
        """What the figures mean, in words."""
        if self.frozen:
            return "The continuation hardly moves."
        if not self.ratio < math.inf:
            return "The clip stands still before the join, so that no step is usual."
        if self.ratio > 4 or abs(self.brightness_step) > 3:
            return "The join is a visible jump."
        return "The join shows to the attentive eye." if self.ratio > 2 else "The join is smooth."

    def __repr__(self) -> str:
        return (
            f"{self.verdict}\n"
            f"jump at the join {self.jump:.2f} of 255, usual from frame to frame {self.usual:.2f}: "
            f"{self.ratio:.1f} times\n"
            f"brightness step {self.brightness_step:+.2f} of 255\n"
            f"the continuation {'is FROZEN' if self.frozen else 'moves'}"
        )


def seam(before: Clip, after: np.ndarray, *, fps: float | None = None) -> Seam:
    """Measure the join between a clip and the new frames.

    Args:
        before: The clip, at the new frames' size.
        after: The new frames, `np.uint8` [T, H, W, 3], without context frames.
        fps: Their frame rate in frames per second; by default the clip's. At a lower rate things move further from
            frame to frame, and so does the step across the join.

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
    second = math.ceil(before.fps) + math.ceil(lag)  # in frames, so that they span a second of steps
    jump, usual = float(np.abs(first - last).mean()), _median_step(before.frames[-second:], lag)
    return Seam(
        jump=jump,
        usual=usual,
        ratio=jump / usual if usual else math.inf,
        brightness_step=float(first.mean() - last.mean()),
        frozen=bool(_median_step(after) < 0.1 * usual),
    )


def _median_step(frames: np.ndarray, lag: float = 1.0) -> float:
    """Median of the mean absolute difference between frames `lag` apart; nan if there are too few frames.

    A fractional `lag` is interpolated.
    """
    below, above = math.floor(lag), math.ceil(lag)
    if len(frames) <= above:
        return math.nan
    near, far = (
        np.median([np.abs(b.astype(np.int16) - a).mean() for a, b in zip(frames, frames[gap:], strict=False)])
        for gap in (below, above)
    )
    return float(near + (far - near) * (lag - below))
