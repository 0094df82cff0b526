"""Decode the frames of a video file: upright, with square pixels, at a steady rate."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from helpers.clips.clip import ClipError
from helpers.clips.ffmpeg import ffmpeg_path, run

DEFAULT_FPS = 24.0  # of pictures, which have no frame rate
SCALING = "accurate_rnd+full_chroma_int"  # without these flags, colours come out about one level in 255 too dark
MOST_BYTES = 2 * 2**30  # of RAM for the frames of one clip


def frames_of(path: Path, max_seconds: float, from_start: bool) -> dict[str, Any]:
    """Return the `frames`, `fps`, `start` and `has_audio` of a `Clip`; see `helpers.clips.read`."""
    header = run([ffmpeg_path(), "-hide_banner", "-nostdin", "-i", f"file:{path}"])[1]
    # An album cover is not a video, and "ansi" is how ffmpeg would play a text file.
    video = re.search(r"^ +Stream #0:\d+.*?: Video: (?!ansi)(?!.*\(attached pic\)).*", header, re.MULTILINE)
    if video is None:
        raise ClipError(_why_unreadable(path, header))
    stated = [float(rate) * (1000 if k else 1) for rate, k in re.findall(r" ([\d.]+)(k?) (?:fps|tbr)", video[0])]
    if re.search(r"^Input #0, (image2|\w+_pipe),", header, re.MULTILINE):
        stated = [DEFAULT_FPS]  # ffmpeg calls a picture a video of 25 frames a second
    begin = re.search(r"Duration: .*, start: (-?[\d.]+)", header)
    begin = float(begin[1]) if begin else 0.0

    for seek in _seeks(path, header, begin, max_seconds, from_start):
        frames, times = _decode(path, [*seek, *_decoder(header)], _filters(video[0], header), stated, from_start)
        fps, shown = _steady(times, stated)
        keep = max(1, round(max_seconds * fps))
        if len(shown) >= keep or from_start and len(shown):
            break
    if not frames:
        raise ClipError(f"no frame of {path.name} can be decoded, it is damaged: copy or download it again.")
    most = min(keep, most_frames(frames[0].shape))
    if from_start:
        shown, start = shown[shown < len(frames)][:most], times[0]
    else:
        dropped = len(times) - len(frames)  # to stay within the RAM limit
        shown = shown[shown >= dropped][-most:] - dropped
        start = times[-1] - (len(shown) - 1) / fps
    has_audio = re.search(r"^ +Stream #0:\d+.*?: Audio: (?!none)", header, re.MULTILINE) is not None
    return {"frames": _picked(frames, shown), "fps": fps, "has_audio": has_audio, "start": max(0.0, start - begin)}


def _why_unreadable(path: Path, header: str) -> str:
    if "Audio: " in header:
        return f"{path.name} holds sound but no picture: give a video file."
    with path.open("rb") as file:
        is_mp4 = file.read(12)[4:8] == b"ftyp"
    if is_mp4:
        return f"{path.name} is damaged or was cut off before its end: copy or download it again."
    return f"{path.name} is not a video that ffmpeg can read: give an mp4, mov, mkv, webm or gif file."


def _seeks(path: Path, header: str, begin: float, seconds: float, from_start: bool) -> Iterator[list[str]]:
    """Yield the ffmpeg options that seek to the wanted seconds: the quickest first, the most reliable last."""
    length = 0.0
    if stated := re.search(r"Duration: (\d+):(\d+):([\d.]+)", header):
        length = 3600 * float(stated[1]) + 60 * float(stated[2]) + float(stated[3])
    window = seconds + 1  # in some formats a seek lands a few frames off
    if from_start:
        yield ["-t", f"{window:.3f}"]
    elif not 0 < length <= window:
        if length:
            yield ["-sseof", f"{-window:.3f}"]
        # That seek misses if sound continues after the last frame, if the stated length is missing or wrong, or if
        # the file was cut off. Ten extra seconds, because some formats seek to any frame but decode only from the
        # next key frame.
        if (moment := _last_packet(path) - begin - window - 10) > 0:
            yield ["-ss", f"{moment:.3f}"]
    yield []


def _last_packet(path: Path) -> float:
    """Time of the last video packet, in seconds. The whole file is read, but nothing is decoded."""
    command = [ffmpeg_path(), "-v", "error", "-nostdin", "-copyts", "-i", f"file:{path}", "-map", "0:V:0"]
    packets = subprocess.run([*command, "-c", "copy", "-f", "framecrc", "-"], capture_output=True, check=False).stdout
    unit = re.search(rb"#tb 0: (\d+)/(\d+)", packets)
    ticks = re.findall(rb"^0, +(-?\d+),", packets, re.MULTILINE)
    return max(map(int, ticks)) * int(unit[1]) / int(unit[2]) if unit and ticks else 0.0


def _decoder(header: str) -> list[str]:
    """The decoder option for a transparent webm: ffmpeg's default decoders ignore the alpha channel."""
    codec = re.search(r"Video: (vp[89])\b", header)
    transparent = re.search(r"alpha_mode +: 1", header)
    return ["-c:v", {"vp8": "libvpx", "vp9": "libvpx-vp9"}[codec[1]]] if codec and transparent else []


def _filters(video: str, header: str) -> list[str]:
    """The filters that make frames look as they do in a player; the last one reports their times."""
    filters = []
    if re.search(r"\b(top|bottom) (coded )?first", video):
        filters.append("bwdif=mode=send_frame:deint=interlaced")
    if re.search(r"\b(yuva|rgba|bgra|argb|abgr|gbrap|ya\d|pal8)", video) or re.search(r"alpha_mode +: 1", header):
        filters += ["format=gbrap", "premultiply=inplace=1"]
    if re.search(r"SAR (?!1:1\b|0:)\d+:\d+", video):
        filters.append(f"scale=w='round(iw*max(sar,1))':h='round(ih/min(sar,1))':flags={SCALING}+lanczos,setsar=1")
    return [*filters, "showinfo=checksum=0"]


def _decode(
    path: Path, options: list[str], filters: list[str], stated: list[float], from_start: bool
) -> tuple[deque[np.ndarray], np.ndarray]:
    """Decode a file. Return the last frames (or the first) that fit in RAM, and the times of all frames in seconds."""
    # A file that was cut off ends in a corrupt packet, whose frame would be half grey: discard it.
    command = [ffmpeg_path(), "-hide_banner", "-nostats", "-nostdin", "-copyts", "-fflags", "+discardcorrupt"]
    command += [*options, "-i", f"file:{path}", "-map", "0:V:0", "-vf", ",".join(filters)]
    # PPM states the size of each frame, so rotation needs no special case. Passthrough: every frame exactly once.
    command += ["-fps_mode", "passthrough", "-sws_flags", SCALING]
    command += ["-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"]
    frames: deque[np.ndarray] = deque()
    count = 0
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        while process.stdout.readline() == b"P6\n":
            width, height = map(int, process.stdout.readline().split())
            process.stdout.readline()  # the largest value, 255
            pixels = process.stdout.read(width * height * 3)
            if len(pixels) < width * height * 3:
                break
            frames.append(np.frombuffer(pixels, np.uint8).reshape(height, width, 3))
            count += 1
            if len(frames) > most_frames(frames[0].shape):
                if from_start:
                    frames.pop()
                    count -= 1
                    break
                frames.popleft()
        process.stdout.close()  # ends ffmpeg if we stopped early
        process.wait()
        log.seek(0)
        told = log.read()
    unit = re.search(rb"config in time_base: (\d+)/(\d+)", told)
    ticks = re.findall(rb"\] n: *\d+ pts: *(-?\d+)", told)[:count]
    if len(ticks) < count:  # a stream without times
        return frames, np.arange(count) / (stated[0] if stated and stated[0] else DEFAULT_FPS)
    times = np.array(ticks, float) * (int(unit[1]) / int(unit[2]) if unit else 1.0)
    # Where two recordings were concatenated, the clock jumps back, or forward by hours.
    gaps = np.diff(times)
    sound = (gaps > 0) & (gaps < 3600)
    if sound.any():
        gaps[~sound] = np.median(gaps[sound])
    return frames, times[:1] + np.concatenate([[0.0], gaps.cumsum()])[: len(times)]


def _steady(times: np.ndarray, stated: list[float]) -> tuple[float, np.ndarray]:
    """Turn frame times into a steady rate.

    Args:
        times: When each frame comes, in seconds.
        stated: Rates that the file states, in frames per second.

    Returns:
        The rate in frames per second, and the index of the frame to show for each frame at that rate.
    """
    gaps = np.diff(times)
    stated = [rate for rate in stated if rate > 0]
    if not gaps.sum() > 0:
        return (stated or [DEFAULT_FPS])[0], np.arange(len(times))
    # The usual gap, ignoring pauses and lost frames. A stated rate that agrees with it is more precise, because many
    # formats round times to 1/1000 or even 1/100 of a second.
    usual = gaps[np.abs(gaps - np.median(gaps)) <= np.median(gaps) / 2]
    agree = [rate for rate in stated if abs(usual.sum() * rate - len(usual)) < 0.5]
    fps = min(agree, key=lambda rate: abs(usual.sum() * rate - len(usual)), default=round(len(usual) / usual.sum(), 3))
    passed = times - times[0]
    if np.abs(passed * fps - np.arange(len(times))).max() < 0.5:
        return fps, np.arange(len(times))
    middles = (np.arange(round(passed[-1] * fps) + 1) + 0.5) / fps
    return fps, np.searchsorted(passed, middles, side="right") - 1


def most_frames(shape: tuple[int, ...]) -> int:
    """How many frames of a shape fit in the RAM that a clip may take, at least one."""
    return max(1, MOST_BYTES // int(np.prod(shape)))


def _picked(frames: deque[np.ndarray], indices: np.ndarray) -> np.ndarray:
    """Copy frames into one array, in ascending order, and free each as soon as it is copied: RAM holds them once."""
    picked = np.empty((len(indices), *frames[0].shape), np.uint8)
    gone = 0
    for target, index in zip(picked, indices, strict=True):
        while gone < index:
            frames.popleft()
            gone += 1
        target[:] = frames[0]
    return picked
