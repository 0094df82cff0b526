"""The sound of a clip, and what is heard while its new frames play."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np

from helpers.clips.clip import ClipError
from helpers.clips.video.ffmpeg import ffmpeg_path, run
from helpers.clips.video.probing import Video

AFTERWARDS = ("silence", "fade", "room")
IN_MP4 = ("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac")
RATE = 48_000  # samples a second of encoded sound
FADE = 0.5  # seconds


def encode_sound(
    video: Video, path: Path, *, begin: Fraction, end: Fraction, more: Fraction, afterwards: str
) -> None:
    """Encode the sound of a file as AAC; its time 0 is when the picture begins.

    Args:
        video: The file and its sound track.
        path: The file to write, `.mka`.
        begin, end: When the clip's own picture begins and ends, in the file's time in seconds.
        more: How long the new frames play, in seconds.
        afterwards: One of `AFTERWARDS`: "silence"; "fade", the sound fades out before the new frames; or "room", the
            last second goes on as a loop with cross-fades.

    Raises:
        ClipError: If ffmpeg fails; the message gives its reason.
    """
    track = f"[0:{video.sound.index}]"
    seconds = float(end - begin)
    # From the picture's beginning to its end, with silence where there is no sound.
    graph = f"{track}asetpts=PTS-{float(begin):.6f}/TB,atrim=start=0,aresample={RATE}:async=1:first_pts=0"
    graph += f",atrim=end={seconds:.6f},aformat=channel_layouts=mono|stereo|5.1"
    loop = None
    if afterwards == "fade":
        fade = min(FADE, seconds)
        graph += f",afade=t=out:st={seconds - fade:.6f}:d={fade:.6f}"
    elif afterwards == "room" and (loop := _room_tone(video, end, more)) is not None:
        # The loop begins with what the cross-fade needs.
        pcm = f"aformat=sample_rates={RATE}:channel_layouts=stereo,asetpts=N/SR/TB"
        graph = f"{graph},aformat=channel_layouts=stereo,asetpts=PTS[a];[1:a]{pcm}[b];[a][b]acrossfade=d={FADE}"
    command = [ffmpeg_path(), "-v", "error", "-y", "-max_error_rate", "1", "-copyts", "-i", f"file:{video.path}"]
    if loop is not None:
        command += ["-f", "f32le", "-ar", str(RATE), "-ac", "2", "-i", "-"]
    command += ["-filter_complex", graph, "-c:a", "aac", "-b:a", "192k", f"file:{path}"]
    status, reason = run(command, None if loop is None else loop.data.cast("B"))
    if status:
        raise ClipError(f"the sound of {video.path.name} cannot be encoded: {reason.splitlines()[-1]}")


def _room_tone(video: Video, end: Fraction, more: Fraction) -> np.ndarray | None:
    """`np.float32` [samples, 2]: the second before `end`, looped with cross-fades, `more` seconds and one fade long."""
    begin = max(0.0, float(end) - video.begin - 1)
    command = [ffmpeg_path(), "-v", "error", "-nostdin", "-ss", f"{begin:.6f}", "-t", "1"]
    command += ["-i", f"file:{video.path}", "-map", f"0:{video.sound.index}", "-f", "f32le"]
    command += ["-ar", str(RATE), "-ac", "2", "-"]
    heard = subprocess.run(command, capture_output=True, check=False).stdout
    second = np.frombuffer(heard, np.float32).reshape(-1, 2)
    fade = min(int(0.2 * RATE), len(second) // 3)
    if fade < 100:
        return None
    rise = np.sqrt(np.linspace(0, 1, fade, dtype=np.float32))[:, None]  # equal power
    once = second[fade:].copy()
    once[-fade:] = once[-fade:] * rise[::-1] + second[:fade] * rise
    count = int((float(more) + FADE) * RATE)
    return np.ascontiguousarray(np.tile(once, (-(-count // len(once)), 1))[:count])
