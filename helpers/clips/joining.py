"""Read, fit, stitch and write short video clips.

    from helpers.clips import read, stitch, write

    clip = read("excavator")                   # a bundled clip, or the path of your own
    context = clip.fit(288, 160)               # the model's size
    longer = stitch(context, new_frames, fps=24, context=1)
    write("continued.mp4", longer, audio_from=clip)

Frames are `np.uint8` arrays of shape [T, height, width, 3], RGB. The program ffmpeg decodes and encodes; it
comes with the package imageio-ffmpeg. `seam` and `psnr`, which judge a join, are those of `helpers.seams`; `fit` and
`unfit` those of `helpers.fitting`; `resample` that of `helpers.resampling`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from helpers import reading
from helpers.fitting import fit, unfit
from helpers.reading import CLIPS, CONTINUES, ClipError, bundled, ffmpeg_path, find, run
from helpers.resampling import resample
from helpers.seams import Seam, psnr, seam

__all__ = [
    "CLIPS", "Clip", "ClipError", "Seam", "bundled", "continuation_truth", "ffmpeg_path", "find", "fit",
    "only_complete", "psnr", "read", "resample", "seam", "stitch", "unfit", "write",
]  # fmt: skip


@dataclass(frozen=True, repr=False, eq=False)
class Clip:
    """Frames and how fast they play.

    Attributes:
        frames: `np.uint8` [T, height, width, 3], RGB.
        fps: Frames per second.
        name: Short name for captions.
        path: The file or the folder of pictures the frames come from, or `None`.
        has_audio: Whether that file has sound.
        start: Time of the first frame within that file, in seconds.
    """

    frames: np.ndarray
    fps: float
    name: str = "clip"
    path: Path | None = None
    has_audio: bool = False
    start: float = 0.0

    def __post_init__(self) -> None:
        frames = self.frames
        if not isinstance(frames, np.ndarray):
            raise ClipError(
                f"frames must be a numpy array [T, height, width, 3], not {type(frames).__name__}."
            )
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ClipError(
                f"frames must be uint8 [T, height, width, 3], not {frames.dtype} {list(frames.shape)}: "
                "multiply floats in 0 to 1 by 255 and round."
            )
        if not self.fps > 0:
            raise ClipError(f"fps={self.fps}: give the frames per second, more than 0.")

    @property
    def seconds(self) -> float:
        return len(self) / self.fps

    @property
    def width(self) -> int:
        return self.frames.shape[2]

    @property
    def height(self) -> int:
        return self.frames.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: slice) -> Clip:
        """`clip[-9:]` is the clip of the last nine frames; a step above 1 lowers the frame rate with it."""
        if not isinstance(index, slice):
            raise TypeError("a clip is cut with a slice, clip[-9:]; single frames are in clip.frames")
        first, _, step = index.indices(len(self))
        if step < 1:
            raise ValueError("a clip plays forwards: the step must be at least 1")
        return replace(
            self, frames=self.frames[index], fps=self.fps / step, start=self.start + first / self.fps
        )

    def fit(self, width: int, height: int, how: str = "crop") -> Clip:
        """Returns the same clip at another size, see `helpers.fitting.fit`."""
        return replace(self, frames=fit(self.frames, width, height, how))

    def __repr__(self) -> str:
        frames = "1 frame" if len(self) == 1 else f"{len(self)} frames"
        sound = "with sound" if self.has_audio else "no sound"
        size = f"{self.width}x{self.height}"
        return f"{self.name}: {frames}, {size}, {self.fps:g} fps, {self.seconds:.1f} s, {sound}"


# Reading


def read(source: str | Path, *, max_seconds: float = 10.0, from_start: bool = False) -> Clip:
    """Reads the end of a video, or its beginning.

    Only the last seconds are decoded and kept, because only they matter for what comes next. Frames are as
    a player shows them: upright, with square pixels, without the combs of interlaced video, on black where
    they are transparent, and else never resized. A variable frame rate becomes a steady one, the usual one
    of these seconds, at which each frame stays on screen as long as it should. At most 2 GiB of frames are
    kept, for 1920x1080 about 345 frames and for 3840x2160 about 86: the clip is shorter then.

    Args:
        source: Name of a bundled clip, the path of a video or picture in any format that ffmpeg decodes, or
            that of a folder of pictures. Those play in the order of the numbers in their names, 24 a second.
        max_seconds: How much to keep, in seconds.
        from_start: Keep the beginning and not the end.

    Returns:
        The clip; at least one frame.

    Raises:
        ClipError: If there is no ffmpeg, no such file, or no frame in it that can be decoded.
    """
    path = find(source)
    return Clip(**reading.frames_of(path, max_seconds, from_start), name=path.stem, path=path)


def continuation_truth(clip: Clip, *, max_seconds: float = 10.0) -> Clip | None:
    """Returns what really came next, `<name>_continues.mp4` beside the clip's file, or `None` without one.

    Args:
        clip: A clip that was read from a file.
        max_seconds: How much of the continuation to read, in seconds.
    """
    if clip.path is None:
        return None
    path = clip.path.with_name(f"{clip.path.stem}{CONTINUES}.mp4")
    return read(path, max_seconds=max_seconds, from_start=True) if path.is_file() else None


# Joining and writing


def stitch(
    clip: Clip,
    continuation: np.ndarray,
    *,
    fps: float | None = None,
    context: int = 1,
    resampled: str = "nearest",
    fitted_from: Clip | None = None,
    fitted: str = "crop",
) -> Clip:
    """Joins a clip and the frames that continue it.

    The result keeps the clip's frame rate, and both halves keep their own speed: a continuation with another frame rate
    is shown at the clip's, and its length in seconds stays true. Both halves go through the same filters, so that they
    look alike.

    Args:
        clip: The clip, at the continuation's size (`Clip.fit`).
        continuation: `np.uint8` [T, H, W, 3], as the model made it.
        fps: Its frame rate, in frames per second; the clip's by default.
        context: How many of its first frames repeat the clip's last ones; these are dropped.
        resampled: How it gets the clip's frame rate, one of `helpers.resampling.WAYS`.
        fitted_from: The clip before it was fitted: the fit is undone and the result has its size (`unfit`).
        fitted: How it was fitted, one of `helpers.fitting.FITS`.

    Raises:
        ClipError: If the sizes differ, or if nothing is left of the continuation.
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
    if fitted_from is None:
        frames = np.concatenate([clip.frames, frames])
    else:
        around = fitted_from.frames
        frames = np.concatenate([unfit(clip.frames, around, fitted), unfit(frames, around[-1:], fitted)])
    return Clip(frames, clip.fps, name=f"{clip.name}, continued")


def write(path: str | Path, clip: Clip, *, audio_from: Clip | None = None, crf: int = 18) -> Path:
    """Writes a clip as an mp4 that every browser plays: H.264, 4:2:0, its index at the front.

    The file appears under its name only when it is complete; an existing one is kept until then. As 4:2:0
    needs even sides, an odd width or height gets its last column or row twice.

    Args:
        path: The file to write, `.mp4`. Its folder is created if need be.
        clip: What to write.
        audio_from: A clip that was read from a file. If it has sound, that lies under the beginning and ends
            when it ends.
        crf: Constant rate factor of x264, 0 (lossless) to 51; lower is better and larger.

    Returns:
        The path.

    Raises:
        ClipError: If the file cannot be written; the message has the path and ffmpeg's reason.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise ClipError(f"{path} cannot be written: the name must end in .mp4.")
    if len(clip) == 0:
        raise ClipError(f"{path} cannot be written: the clip has no frames.")
    frames = clip.frames
    if clip.height % 2 or clip.width % 2:
        frames = np.pad(frames, ((0, 0), (0, clip.height % 2), (0, clip.width % 2), (0, 0)), mode="edge")
    command = [ffmpeg_path(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{frames.shape[2]}x{frames.shape[1]}", "-r", f"{clip.fps}", "-i", "-"]
    if audio_from is not None and audio_from.has_audio:
        # The frames may be the end of a long file: its sound must start where they do.
        command += ["-ss", f"{audio_from.start:.3f}", "-t", f"{audio_from.seconds:.3f}"]
        command += ["-i", f"file:{audio_from.path}", "-map", "0:v", "-map", "1:a:0", "-c:a", "aac"]
    # Players take untagged video for BT.709 or BT.601 by its size; converted to one and tagged, colours stay.
    command += ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709"]
    command += ["-color_primaries", "bt709", "-color_trc", "bt709"]
    command += ["-c:v", "libx264", "-preset", "faster", "-crf", f"{crf}"]
    command += ["-pix_fmt", "yuv420p", "-movflags", "+faststart"]

    with only_complete(path) as part:
        status, reason = run([*command, f"file:{part}"], np.ascontiguousarray(frames).data.cast("B"))
        if status:
            hint = " Without audio_from it is written without sound." if "1:a:0" in command else ""
            raise ClipError(f"{path} cannot be written: {reason}{hint}")
    return path


@contextlib.contextmanager
def only_complete(path: Path) -> Iterator[Path]:
    """Gives a temporary name in the same folder; that file becomes `path` when the block has succeeded."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise ClipError(f"{path} cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
