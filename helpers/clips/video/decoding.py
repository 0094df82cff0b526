"""Decode the frames of a video file: upright, with square pixels, in BT.709, at a steady rate."""

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
from helpers.clips.video.colour import SCALING
from helpers.clips.video.ffmpeg import ffmpeg_path
from helpers.clips.video.probing import USUAL_RATES, Video, opened, probe

DEFAULT_FPS = 24.0  # of pictures, which have no frame rate
MOST_BYTES = 768 * 2**20  # of RAM for the frames of one clip


def frames_of(path: Path, max_seconds: float, from_start: bool) -> dict[str, Any]:
    """Return the `frames`, `fps`, `start`, `has_audio` and `notes` of a `Clip`; see `helpers.clips.read`."""
    video = probe(path)
    stated = [float(rate) for rate in video.rates]
    for seek in _seeks(video, max_seconds, from_start):
        frames, times = _decode(video, seek, stated, from_start)
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
    return {
        "frames": _picked(frames, shown), "fps": fps, "has_audio": video.sound is not None,
        "start": max(0.0, start - video.begin), "notes": (*video.notes, *_colour_notes(video)),
    }  # fmt: skip


def shape_filters(video: Video) -> list[str]:
    """The ffmpeg filters that make whole frames with square pixels. ffmpeg itself turns them upright."""
    filters = ["bwdif=mode=send_frame:deint=interlaced"] if video.interlaced else []
    if video.aspect != 1:
        filters.append(f"scale=w='round(iw*max(sar,1))':h='round(ih/min(sar,1))':flags={SCALING}+lanczos,setsar=1")
    return filters


def _colour_notes(video: Video) -> Iterator[str]:
    if video.colour.hdr:
        yield f"{video.path.name} is HDR: its colours are tone-mapped to BT.709, which the models know."
    elif video.colour.wide:
        yield f"{video.path.name} has a wide gamut: its colours are converted to BT.709, which the models know."


def _seeks(video: Video, seconds: float, from_start: bool) -> Iterator[list[str]]:
    """Yield the ffmpeg options that seek to the wanted seconds: the quickest first, the most reliable last."""
    window = seconds + 1  # in some formats a seek lands a few frames off
    if from_start:
        yield ["-t", f"{window:.3f}"]
    elif not 0 < video.seconds <= window:
        if video.seconds:
            yield ["-sseof", f"{-window:.3f}"]
        # That seek misses if sound continues after the last frame, if the stated length is missing or wrong, or if
        # the file was cut off. Ten extra seconds, because some formats seek to any frame but decode only from the
        # next key frame.
        if (moment := _last_packet(video) - video.begin - window - 10) > 0:
            yield ["-ss", f"{moment:.3f}"]
    yield []


def _last_packet(video: Video) -> float:
    """Time of the last video packet, in seconds. The whole file is read, but nothing is decoded."""
    with opened(video.path) as file:
        packets = file.demux(file.streams[video.index])
        return float(max((packet.pts for packet in packets if packet.pts is not None), default=0) * video.time_base)


def _decode(
    video: Video, seek: list[str], stated: list[float], from_start: bool
) -> tuple[deque[np.ndarray], np.ndarray]:
    """Decode a file. Return the last frames (or the first) that fit in RAM, and the times of all frames in seconds."""
    # A file that was cut off ends in a corrupt packet, whose frame would be half grey: discard it.
    command = [ffmpeg_path(), "-hide_banner", "-nostats", "-nostdin", "-copyts", "-fflags", "+discardcorrupt", *seek]
    decoders = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # ffmpeg's own ignore the alpha channel
    command += ["-c:v", decoders[video.codec]] if video.transparent and video.codec in decoders else []
    command += ["-i", f"file:{video.path}", "-map", f"0:{video.index}"]
    # PAM states the size of each frame, so rotation needs no special case. Passthrough: every frame exactly once.
    filters = [*shape_filters(video), *video.colour.to_bt709()]
    if video.changes_size:
        filters.append("scale={}:{}:flags=lanczos".format(*video.shown_size))
    filters.append("showinfo=checksum=0")
    command += ["-vf", ",".join(filters), "-fps_mode", "passthrough"]
    command += ["-sws_flags", SCALING, "-pix_fmt", "rgba" if video.transparent else "rgb24"]
    command += ["-c:v", "pam", "-f", "image2pipe", "-"]
    frames: deque[np.ndarray] = deque()
    count = 0
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        while (frame := _next_frame(process.stdout)) is not None:
            frames.append(frame)
            count += 1
            if len(frames) > most_frames(frame.shape):
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


def _next_frame(stream: Any) -> np.ndarray | None:
    """The next picture of a stream of PAM files, on black where it is transparent; `None` at the end."""
    header = {}
    while (line := stream.readline()) != b"ENDHDR\n":
        if not line:
            return None
        name, _, value = line.partition(b" ")
        header[name] = value
    width, height, depth = (int(header[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH"))
    pixels = stream.read(width * height * depth)
    if len(pixels) < width * height * depth:
        return None
    frame = np.frombuffer(pixels, np.uint8).reshape(height, width, depth)
    if depth < 4:
        return frame
    return ((frame[..., :3].astype(np.uint16) * frame[..., 3:] + 127) // 255).astype(np.uint8)


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
    known = {float(rate) for rate in USUAL_RATES}
    fps = min(
        agree, key=lambda rate: (rate not in known, abs(usual.sum() * rate - len(usual))),
        default=round(len(usual) / usual.sum(), 3),
    )  # fmt: skip
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
