"""Read a photo, or a folder of pictures, as a clip.

Pillow reads them, not ffmpeg: it turns them as their EXIF data say, converts colour profiles, and puts the tiles of a
phone's HEIC photo together.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps
from pillow_heif import register_heif_opener

from helpers.clips.clip import ClipError
from helpers.clips.sources import PICTURES, pictures_in
from helpers.clips.video.decoding import DEFAULT_FPS, most_frames

register_heif_opener()
ANIMATED = ("PNG", "WEBP", "AVIF")  # formats of which a file may be a film, which ffmpeg reads
FORMATS = (*ANIMATED, "BMP", "HEIF", "JPEG", "MPO", "TIFF")


def is_photo(path: Path) -> bool:
    """Whether a file is a single picture, by its name and by what it holds."""
    if path.suffix.lower() not in PICTURES:  # a raw stream of JPEGs begins like one
        return False
    try:
        with Image.open(path, formats=[one for one in FORMATS if one in _known()]) as opened:
            return opened.format not in ANIMATED or getattr(opened, "n_frames", 1) == 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def frames_of_pictures(path: Path, seconds: float, from_start: bool) -> dict[str, Any]:
    """Return the `frames`, `fps`, `start` and `notes` of a `Clip`: a photo, or a folder of pictures, 24 a second."""
    files = pictures_in(path) if path.is_dir() else [path]
    first, notes = _picture(files[0 if from_start else -1])
    keep = min(max(1, round(seconds * DEFAULT_FPS)), most_frames(first.shape))
    begin = 0 if from_start else max(0, len(files) - keep)
    files = files[begin : begin + keep]
    frames = np.empty((len(files), *first.shape), np.uint8)
    for target, file in zip(frames, files, strict=True):
        frame, _ = _picture(file)
        if frame.shape != first.shape:
            raise ClipError(
                f"the pictures in {path.name} differ in size, {file.name} is {frame.shape[1]}x{frame.shape[0]} and "
                f"another {first.shape[1]}x{first.shape[0]}: keep those of one clip in the folder."
            )
        target[:] = frame
    return {"frames": frames, "fps": DEFAULT_FPS, "start": begin / DEFAULT_FPS, "notes": notes}


def size_of_pictures(path: Path) -> tuple[int, int]:
    """(width, height) of a photo, or of the last picture in a folder."""
    frame, _ = _picture(pictures_in(path)[-1] if path.is_dir() else path)
    return frame.shape[1], frame.shape[0]


def _known() -> set[str]:
    """The formats that this Pillow reads; AVIF came late."""
    Image.init()
    return set(Image.OPEN)


def _picture(file: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """A picture, `np.uint8` [height, width, 3], upright, in sRGB, on black where it is transparent; and what to say."""
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # Pillow cuts 16 bits off at 255
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            profile = opened.info.get("icc_profile")
            if image.has_transparency_data:
                image = image.convert("RGBA")
            image, notes = _in_srgb(file, image, profile) if profile else (image, ())
            if image.mode == "RGBA":
                image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
            return np.asarray(image.convert("RGB")), notes
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ClipError(f"{file} cannot be read, {error}: copy or save it again, or leave it out.") from error


def _in_srgb(file: Path, image: Image.Image, profile: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    """A picture converted from its colour profile to sRGB, which the models know, and a sentence that says so."""
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(given).strip()
        if "srgb" in name.lower():
            return image, ()
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        image = ImageCms.profileToProfile(image, given, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return image, (f"{file.name} has a colour profile that cannot be used: its colours may be off.",)
    return image, (f"{file.name} has the colour profile {name!r}: its colours are converted to sRGB.",)
