"""Read a clip from a video file, a photo or a folder of pictures."""

from __future__ import annotations

from pathlib import Path

from helpers.clips.clip import Clip
from helpers.clips.photos import frames_of_pictures, is_photo, size_of_pictures
from helpers.clips.sources import CONTINUES, find
from helpers.clips.video.decoding import frames_of
from helpers.clips.video.probing import probe


def read(source: str | Path, *, max_seconds: float = 10.0, from_start: bool = False) -> Clip:
    """Read the end of a video, or its beginning.

    Only the last seconds are decoded and kept, because only they matter for what comes next. Frames are as a player
    shows them: upright, with square pixels, deinterlaced, and on black where they are transparent; they are not
    resized otherwise. A variable frame rate becomes steady: the usual rate of these seconds, with each frame on screen
    as long as before. At most 0.75 GiB of frames is kept (129 frames at 1920x1080, 32 at 3840x2160); a clip that
    exceeds this is shortened. Colours are BT.709, as the file's tags say, and as players guess where it has none; HDR
    is tone-mapped.

    Args:
        source: The name of a bundled clip, the path of a video in any format that ffmpeg decodes or of a photo, or the
            path of a folder of pictures, which play in the order of the numbers in their names, 24 a second.
        max_seconds: How much to keep, in seconds.
        from_start: Keep the beginning instead of the end.

    Returns:
        The clip; at least one frame.

    Raises:
        ClipError: If there is no ffmpeg, no such file, or no frame in the file can be decoded.
    """
    path = find(source)
    decode = frames_of_pictures if path.is_dir() or is_photo(path) else frames_of
    return Clip(**decode(path, max_seconds, from_start), name=path.stem, path=path)


def shown_size(source: str | Path) -> tuple[int, int]:
    """(width, height) of a clip as a player shows it, without decoding more than a frame.

    Raises:
        ClipError: As `read` does.
    """
    path = find(source)
    return size_of_pictures(path) if path.is_dir() or is_photo(path) else probe(path).shown_size


def continuation_truth(clip: Clip, *, max_seconds: float = 10.0) -> Clip | None:
    """Return what really came next: `<name>_continues.mp4` beside the clip's file, or `None` if there is none.

    Args:
        clip: A clip that was read from a file.
        max_seconds: How much of the continuation to read, in seconds.
    """
    if clip.path is None:
        return None
    path = clip.path.with_name(f"{clip.path.stem}{CONTINUES}.mp4")
    return read(path, max_seconds=max_seconds, from_start=True) if path.is_file() else None
