"""Write a clip as an mp4 file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.clips.clip import Clip, ClipError
from helpers.clips.video.encoding import Look
from helpers.clips.video.ffmpeg import ffmpeg_path, run
from helpers.files import replacing


def write(path: str | Path, clip: Clip, *, audio_from: Clip | None = None, crf: int = 18) -> Path:
    """Write a clip as an mp4 that every browser plays: H.264, 4:2:0, with its index at the front.

    The file appears under its name only when it is complete; until then an existing file is kept. 4:2:0 needs even
    sides, so the last column or row of an odd width or height is doubled.

    Args:
        path: The file to write, `.mp4`. Its folder is created if it does not exist.
        clip: What to write.
        audio_from: A clip that was read from a file. Its sound, if it has any, plays from the beginning and ends with
            that clip.
        crf: Constant rate factor of x264, 0 (lossless) to 51; lower values mean higher quality and larger files.

    Returns:
        The path.

    Raises:
        ClipError: If the file cannot be written; the message gives the path and ffmpeg's reason.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise ClipError(f"{path} cannot be written: the name must end in .mp4.")
    if len(clip) == 0:
        raise ClipError(f"{path} cannot be written: the clip has no frames.")
    frames, look = np.ascontiguousarray(clip.frames), Look()
    command = [ffmpeg_path(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{clip.width}x{clip.height}", "-r", str(clip.rate), "-i", "-"]
    if audio_from is not None and audio_from.has_audio:
        # The frames may be the end of a long file: start the sound where they start.
        command += ["-ss", f"{audio_from.start:.3f}", "-t", f"{audio_from.seconds:.3f}"]
        command += ["-i", f"file:{audio_from.path}"]
        command += ["-map", "0:v", "-map", "1:a:0", "-c:a", "aac"]
    command += ["-vf", ",".join(look.filters(clip.size)), *look.options(clip.size, crf), "-movflags", "+faststart"]

    try:
        with replacing(path) as temporary:
            status, reason = run([*command, f"file:{temporary}"], frames.data.cast("B"))
            if status:
                hint = " Leave out audio_from to write it without sound." if audio_from is not None else ""
                raise ClipError(f"{path} cannot be written: {reason}{hint}")
    except OSError as error:
        raise ClipError(f"{path} cannot be written: {error}") from error
    return path
