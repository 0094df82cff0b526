"""Find and decode the files that people have: `helpers.clips.read` makes a clip of what comes from here."""

from __future__ import annotations

import difflib
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

CLIPS = Path(__file__).resolve().parent.parent / "data" / "clips"
CONTINUES = "_continues"
PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
DEFAULT_FPS = 24.0  # of pictures, which have no rate of their own
SCALING = "accurate_rnd+full_chroma_int"  # otherwise colours come out about one level in 255 too dark
MOST_BYTES = 2 * 2**30  # of RAM for the frames of one clip


class ClipError(ValueError):
    """A clip that cannot be read, joined or written; the message says what to do."""


def ffmpeg_path() -> str:
    """Returns the path of the ffmpeg program: the one of imageio-ffmpeg, or else the system's.

    Raises:
        ClipError: If there is none, or if it is too old.
    """
    try:
        import imageio_ffmpeg

        found = shutil.which(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
    if not found:
        raise ClipError("no ffmpeg program was found: run `pip install imageio-ffmpeg`, which brings one.")
    if _is_too_old(found):
        raise ClipError(f"the program {found} is too old: run `pip install --upgrade imageio-ffmpeg`.")
    return found


@functools.cache
def _is_too_old(ffmpeg: str) -> bool:
    """Whether an ffmpeg program lacks an option that `_decode` gives it: it would take every clip for damaged."""
    return "Unrecognized option" in run([ffmpeg, "-hide_banner", "-nostdin", "-fps_mode", "passthrough"])[1]


def bundled() -> list[str]:
    """Returns the names of the bundled clips, without their true continuations."""
    return sorted(path.stem for path in CLIPS.glob("*.mp4") if not path.stem.endswith(CONTINUES))


def find(source: str | Path) -> Path:
    """Returns the file, or the folder of pictures, of a bundled clip's name or of a path.

    Raises:
        ClipError: If there is nothing of that name, or if it is empty or may not be read.
    """
    names = bundled()
    if str(source) in names:
        return CLIPS / f"{source}.mp4"
    path = Path(os.path.expanduser(source))
    is_folder = os.path.isdir(path)  # unlike Path's own, it takes names too long for the file system
    if not str(source).strip() or not is_folder and not os.path.isfile(path):
        near = difflib.get_close_matches(path.stem, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        have = f" or a bundled clip ({', '.join(names)})" if names else ""
        name = str(source).strip() or "a clip without a name"
        raise ClipError(f"{name} does not exist: give the path of a video{have}.{hint}")
    if not os.access(path, os.R_OK | os.X_OK if is_folder else os.R_OK):
        raise ClipError(f"{source} may not be read: change its permissions, or copy it.")
    if is_folder and not _pictures(path):
        raise ClipError(
            f"{source} is a folder without pictures: give the path of a video file, or of a folder of frames "
            f"({', '.join(sorted(PICTURES))})."
        )
    if not is_folder and path.stat().st_size == 0:
        raise ClipError(f"{source} is empty: copy or download it again.")
    return path


def frames_of(path: Path, max_seconds: float, from_start: bool) -> dict[str, Any]:
    """Returns a clip's `frames`, `fps`, `start` and `has_audio`, see `helpers.clips.read`."""
    if path.is_dir():
        return _read_pictures(path, max_seconds, from_start)
    header = run([ffmpeg_path(), "-hide_banner", "-nostdin", "-i", f"file:{path}"])[1]
    # A cover is no video, and "ansi" is how ffmpeg would play a text.
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
    most = min(keep, _fits(frames[0].shape))
    if from_start:
        shown, start = shown[shown < len(frames)][:most], times[0]
    else:
        dropped = len(times) - len(frames)  # for want of RAM
        shown = shown[shown >= dropped][-most:] - dropped
        start = times[-1] - (len(shown) - 1) / fps
    has_audio = re.search(r"^ +Stream #0:\d+.*?: Audio: (?!none)", header, re.MULTILINE) is not None
    return {"frames": _picked(frames, shown), "fps": fps, "has_audio": has_audio, "start": max(0.0, start - begin)}


def run(command: list[str], data: memoryview | None = None) -> tuple[int, str]:
    """Runs a program with `data` as its input. Returns its exit status and what it wrote as errors."""
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    return done.returncode, done.stderr.decode(errors="replace").strip()


def _why_unreadable(path: Path, header: str) -> str:
    if "Audio: " in header:
        return f"{path.name} holds sound but no picture: give a video file."
    with path.open("rb") as file:
        is_mp4 = file.read(12)[4:8] == b"ftyp"
    if is_mp4:
        return f"{path.name} is damaged or was cut off before its end: copy or download it again."
    return f"{path.name} is not a video that ffmpeg can read: give an mp4, mov, mkv, webm or gif file."


def _seeks(path: Path, header: str, begin: float, seconds: float, from_start: bool) -> Iterator[list[str]]:
    """Gives ffmpeg's options that lead to the wanted seconds: the quickest first, the surest last."""
    length = 0.0
    if stated := re.search(r"Duration: (\d+):(\d+):([\d.]+)", header):
        length = 3600 * float(stated[1]) + 60 * float(stated[2]) + float(stated[3])
    window = seconds + 1  # seeking lands a few frames off in some formats
    if from_start:
        yield ["-t", f"{window:.3f}"]
    elif not 0 < length <= window:
        if length:
            yield ["-sseof", f"{-window:.3f}"]
        # The sound goes on after the last frame, no length is stated or a wrong one, or the file was cut off.
        # Ten seconds more, as some formats are sought to any frame but decoded from the next key frame only.
        if (moment := _last_packet(path) - begin - window - 10) > 0:
            yield ["-ss", f"{moment:.3f}"]
    yield []


def _last_packet(path: Path) -> float:
    """Time of a file's last packet of pictures, in seconds. All of it is read but nothing decoded."""
    command = [ffmpeg_path(), "-v", "error", "-nostdin", "-copyts", "-i", f"file:{path}", "-map", "0:V:0"]
    packets = subprocess.run([*command, "-c", "copy", "-f", "framecrc", "-"], capture_output=True, check=False).stdout
    unit = re.search(rb"#tb 0: (\d+)/(\d+)", packets)
    ticks = re.findall(rb"^0, +(-?\d+),", packets, re.MULTILINE)
    return max(map(int, ticks)) * int(unit[1]) / int(unit[2]) if unit and ticks else 0.0


def _decoder(header: str) -> list[str]:
    """The options for a webm with transparency, which ffmpeg's own decoders leave out."""
    codec = re.search(r"Video: (vp[89])\b", header)
    transparent = re.search(r"alpha_mode +: 1", header)
    return ["-c:v", {"vp8": "libvpx", "vp9": "libvpx-vp9"}[codec[1]]] if codec and transparent else []


def _filters(video: str, header: str) -> list[str]:
    """The filters that make the frames of a stream look as in a player; the last one tells their times."""
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
    """Decodes a file. Returns as many frames as fit in RAM, the last or the first, and the times of all, in seconds."""
    # Without the corrupt packet at the end of a file that was cut off: its frame would be half grey.
    command = [ffmpeg_path(), "-hide_banner", "-nostats", "-nostdin", "-copyts", "-fflags", "+discardcorrupt"]
    command += [*options, "-i", f"file:{path}", "-map", "0:V:0", "-vf", ",".join(filters)]
    # PPM states each frame's size, so that a turned video needs no guess. Passthrough: every frame once, none
    # doubled.
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
            if len(frames) > _fits(frames[0].shape):
                if from_start:
                    frames.pop()
                    count -= 1
                    break
                frames.popleft()
        process.stdout.close()  # so that ffmpeg ends where nobody wants the rest
        process.wait()
        log.seek(0)
        told = log.read()
    unit = re.search(rb"config in time_base: (\d+)/(\d+)", told)
    ticks = re.findall(rb"\] n: *\d+ pts: *(-?\d+)", told)[:count]
    if len(ticks) < count:  # a stream without times
        return frames, np.arange(count) / (stated[0] if stated and stated[0] else DEFAULT_FPS)
    times = np.array(ticks, float) * (int(unit[1]) / int(unit[2]) if unit else 1.0)
    # Where two recordings were put one behind the other, the clock goes back, or on by hours.
    gaps = np.diff(times)
    sound = (gaps > 0) & (gaps < 3600)
    if sound.any():
        gaps[~sound] = np.median(gaps[sound])
    return frames, times[:1] + np.concatenate([[0.0], gaps.cumsum()])[: len(times)]


def _steady(times: np.ndarray, stated: list[float]) -> tuple[float, np.ndarray]:
    """Makes the frames' times steady.

    Args:
        times: When each frame comes, in seconds.
        stated: Rates that the file states, in frames per second.

    Returns:
        The rate, in frames per second, and for each frame at that rate the index of the one to show.
    """
    gaps = np.diff(times)
    stated = [rate for rate in stated if rate > 0]
    if not gaps.sum() > 0:
        return (stated or [DEFAULT_FPS])[0], np.arange(len(times))
    # The usual gap, without pauses and lost frames. A rate that the file states is better where it agrees, as
    # many formats round the times, to 1/1000 or even 1/100 of a second.
    usual = gaps[np.abs(gaps - np.median(gaps)) <= np.median(gaps) / 2]
    agree = [rate for rate in stated if abs(usual.sum() * rate - len(usual)) < 0.5]
    fps = min(agree, key=lambda rate: abs(usual.sum() * rate - len(usual)), default=round(len(usual) / usual.sum(), 3))
    passed = times - times[0]
    if np.abs(passed * fps - np.arange(len(times))).max() < 0.5:
        return fps, np.arange(len(times))
    middles = (np.arange(round(passed[-1] * fps) + 1) + 0.5) / fps
    return fps, np.searchsorted(passed, middles, side="right") - 1


def _fits(shape: tuple[int, ...]) -> int:
    """How many frames of a shape fit in the RAM that a clip may take; at least one."""
    return max(1, MOST_BYTES // int(np.prod(shape)))


def _picked(frames: deque[np.ndarray], indices: np.ndarray) -> np.ndarray:
    """Puts frames into one array, in rising order, and lets each go when it is done: RAM holds them once."""
    picked = np.empty((len(indices), *frames[0].shape), np.uint8)
    gone = 0
    for target, index in zip(picked, indices, strict=True):
        while gone < index:
            frames.popleft()
            gone += 1
        target[:] = frames[0]
    return picked


def _pictures(folder: Path) -> list[Path]:
    """The pictures in a folder in the order of the numbers in their names, frame_2 before frame_10."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in PICTURES and file.is_file()]
    return sorted(
        (file for file in files if not file.name.startswith(".")),  # some systems hide a companion beside each
        key=lambda file: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name.lower())],
    )


def _read_pictures(folder: Path, seconds: float, from_start: bool) -> dict[str, Any]:
    """Does the same for a folder of pictures."""
    files = _pictures(folder)
    first = _picture(files[0 if from_start else -1])
    keep = min(max(1, round(seconds * DEFAULT_FPS)), _fits(first.shape))
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
