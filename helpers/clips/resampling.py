"""Give new frames the frame rate of the clip that they continue, without changing their duration.

    resample(new_frames, past.frames[-1], fps=7, to_fps=24, how="motion")

Lessons 04 and 05 explain it: their models make 7 and 8 frames a second. Frames are `np.uint8` arrays of shape
[T, height, width, 3], RGB.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from helpers.clips.clip import Clip, ClipError, exact_rate
from helpers.clips.video.ffmpeg import ffmpeg_path

WAYS = ("blend", "nearest", "motion")
# Overlapped blocks, motion estimated in both directions and refined at edges: the best that ffmpeg's filter offers.
# Scene-cut detection is off: a continuation has no cuts.
MOTION = "mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1:scd=none"


def resample(frames: np.ndarray, last: np.ndarray, *, fps: float, to_fps: float, how: str = "blend") -> np.ndarray:
    """Convert new frames to another frame rate.

    "nearest" repeats or drops frames: each output frame shows the input frame on screen at its midpoint. It invents
    nothing, but motion is jerky. "blend" mixes the two neighbouring input frames, which doubles the edges of moving
    things. "motion" moves blocks of pixels along their estimated motion (ffmpeg's filter `minterpolate`); wrong
    estimates tear the picture. The last two interpolate from the clip's last frame on.

    Args:
        frames: `np.uint8` [T, H, W, 3], the new frames only, without any that repeat the clip.
        last: `np.uint8` [H, W, 3], the clip's last frame at the same size.
        fps, to_fps: Their frame rate and the clip's, in frames per second.
        how: One of `WAYS`.

    Returns:
        `np.uint8` [round(T * to_fps / fps), H, W, 3], at least one frame; `frames` itself if the rates are equal.

    Raises:
        ClipError: If there is no such way, or if ffmpeg fails.
    """
    if fps == to_fps and how in WAYS:
        return frames
    number = max(1, round(len(frames) * to_fps / fps))
    return _resampled(frames, last, fps, to_fps, how, np.arange(number), 0)


def resample_pieces(
    pieces: Iterable[np.ndarray], last: np.ndarray, *, fps: float, to_fps: float, how: str = "blend"
) -> Iterator[np.ndarray]:
    """`resample` for frames that come some at a time, so that RAM holds one piece, however many there are.

    With "motion", each piece is interpolated alone, from the last frame before it.
    """
    if fps == to_fps:
        yield from pieces
        return
    seen = made = 0
    for frames, is_last in _with_last(pieces):
        whole = (seen + len(frames)) * to_fps / fps
        end = max(1, round(whole)) if is_last else math.floor(whole + 1e-9)  # what lies beyond needs the next piece
        if end > made:
            yield _resampled(frames, last, fps, to_fps, how, np.arange(made, end), seen)
        seen, made, last = seen + len(frames), end, frames[-1]


def _with_last(pieces: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, bool]]:
    """Each piece, and whether it is the last one."""
    pieces = iter(pieces)
    current = next(pieces, None)
    while current is not None:
        following = next(pieces, None)
        yield current, following is None
        current = following


def _resampled(
    frames: np.ndarray, last: np.ndarray, fps: float, to_fps: float, how: str, which: np.ndarray, seen: int
) -> np.ndarray:
    """The frames `which` at the new rate, from those that follow the first `seen` at the old one."""
    if how not in WAYS:
        raise ClipError(f"resample={how!r}: there are {', '.join(WAYS)}.")
    path = np.concatenate([last[None], frames])
    if how == "nearest":
        middles = ((which + 0.5) * fps / to_fps).astype(int) - seen
        return path[1 + middles.clip(-1, len(frames) - 1)]
    if how == "motion":
        return _along_motion(path, fps, to_fps)[1 : len(which) + 1]
    at = np.clip((which + 1) * fps / to_fps, seen, seen + len(frames))
    before = np.minimum(at.astype(int) - seen, len(frames) - 1)
    share = (at - seen - before)[:, None, None, None]
    return np.stack([  # frame by frame, because floats take four times the memory
        (path[b] * (1 - s) + path[b + 1] * s).round().astype(np.uint8) for b, s in zip(before, share, strict=True)
    ])  # fmt: skip


def at_rate(clip: Clip, fps: float) -> Clip:
    """The same clip at another frame rate, ending in the same frame: as a model of that rate must see its past.

    From a faster clip the nearest frames are taken; in a slower one, frames between are made along the motion.
    """
    back = clip.frames[::-1]
    if fps < clip.fps:
        at = np.arange(round((len(clip) - 1) * fps / clip.fps) + 1) * clip.fps / fps
        back = back[np.minimum(at.round().astype(int), len(clip) - 1)]
    elif fps > clip.fps and len(clip) > 1:
        back = np.concatenate([back[:1], resample(back[1:], back[0], fps=clip.fps, to_fps=fps, how="motion")])
    start = max(0.0, clip.start + clip.seconds - len(back) / fps)
    return replace(clip, frames=np.ascontiguousarray(back[::-1]), fps=fps, start=start)


def _along_motion(path: np.ndarray, fps: float, to_fps: float) -> np.ndarray:
    """All frames at the new rate, including the first."""
    # The filter needs frames beyond the last one it has to produce.
    path = np.concatenate([path, np.repeat(path[-1:], 3, axis=0)])
    height, width = path.shape[1:3]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24"]
    command = [ffmpeg_path(), "-v", "error", *raw, "-s", f"{width}x{height}", "-r", str(exact_rate(fps)), "-i", "-"]
    command += ["-vf", f"minterpolate=fps={exact_rate(to_fps)}:{MOTION}", *raw, "-"]
    done = subprocess.run(command, input=path.tobytes(), capture_output=True, check=False)
    if done.returncode:
        raise ClipError(f"ffmpeg cannot interpolate these frames: {done.stderr.decode(errors='replace').strip()}")
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3).copy()
