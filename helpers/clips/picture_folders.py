"""Read a folder of pictures as a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from helpers.clips.clip import ClipError
from helpers.clips.sources import pictures_in
from helpers.clips.video.decoding import DEFAULT_FPS, most_frames


def frames_of_pictures(folder: Path, seconds: float, from_start: bool) -> dict[str, Any]:
    """Return the `frames`, `fps` and `start` of a `Clip`, its pictures played 24 a second."""
    files = pictures_in(folder)
    first = _picture(files[0 if from_start else -1])
    keep = min(max(1, round(seconds * DEFAULT_FPS)), most_frames(first.shape))
    begin = 0 if from_start else max(0, len(files) - keep)
    files = files[begin : begin + keep]
    frames = np.empty((len(files), *first.shape), np.uint8)
    for target, file in zip(frames, files, strict=True):
        frame = _picture(file)
        if frame.shape != first.shape:
            raise ClipError(
                f"the pictures in {folder.name} differ in size, {file.name} is {frame.shape[1]}x{frame.shape[0]} and "
                f"another {first.shape[1]}x{first.shape[0]}: keep those of one clip in the folder."
            )
        target[:] = frame
    return {"frames": frames, "fps": DEFAULT_FPS, "start": begin / DEFAULT_FPS}


def size_of_pictures(folder: Path) -> tuple[int, int]:
    """(width, height) of the last picture in a folder."""
    frame = _picture(pictures_in(folder)[-1])
    return frame.shape[1], frame.shape[0]


def _picture(file: Path) -> np.ndarray:
    """Reads a picture: `np.uint8` [height, width, 3], upright, on black where it is transparent."""
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # Pillow cuts 16 bits off at 255
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ClipError(f"{file} cannot be read, {error}: replace it or take it out of the folder.") from error
