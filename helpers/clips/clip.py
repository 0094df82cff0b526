"""A clip: frames and how fast they play."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.clips.fitting import fit


class ClipError(ValueError):
    """A clip that cannot be read, joined or written; the message says what to do."""


def exact_rate(fps: float) -> Fraction:
    """24000/1001 for 23.976…: the rate that a rounded number means."""
    return Fraction(fps).limit_denominator(1001)


@dataclass(frozen=True, repr=False, eq=False)
class Clip:
    """Frames and how fast they play.

    Attributes:
        frames: `np.uint8` [T, height, width, 3], RGB.
        fps: Frames per second.
        name: Short name for captions.
        path: The file, or the folder of pictures, that the frames come from, or `None`.
        has_audio: Whether that file has sound.
        start: Time of the first frame in that file, in seconds.
        notes: What a reader should know of the file, a sentence each.
    """

    frames: np.ndarray
    fps: float
    name: str = "clip"
    path: Path | None = None
    has_audio: bool = False
    start: float = 0.0
    notes: tuple[str, ...] = ()

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
    def rate(self) -> Fraction:
        """Frames per second as a fraction: 24000/1001 for the NTSC rate that `fps` rounds to 23.976."""
        return exact_rate(self.fps)

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

    @property
    def last_frame(self) -> Image.Image:
        """The last frame as a picture: what an image-to-video model continues."""
        return Image.fromarray(self.frames[-1])

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: slice) -> Clip:
        """`clip[-9:]` is a clip of the last nine frames; a step above 1 lowers the frame rate to match."""
        if not isinstance(index, slice):
            raise TypeError("index a clip with a slice, clip[-9:]; single frames are in clip.frames")
        first, _, step = index.indices(len(self))
        if step < 1:
            raise ValueError("a clip plays forwards: the step must be at least 1")
        return replace(
            self, frames=self.frames[index], fps=self.fps / step, start=self.start + first / self.fps
        )

    def fit(self, width: int, height: int, how: str = "crop") -> Clip:
        """Return the same clip at another size; see `helpers.clips.fitting.fit`."""
        return replace(self, frames=fit(self.frames, width, height, how))

    def __repr__(self) -> str:
        frames = "1 frame" if len(self) == 1 else f"{len(self)} frames"
        sound = "with sound" if self.has_audio else "no sound"
        size = f"{self.width}x{self.height}"
        facts = f"{self.name}: {frames}, {size}, {self.fps:g} fps, {self.seconds:.1f} s, {sound}"
        return "\n".join([facts, *self.notes])
