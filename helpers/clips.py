"""Read, fit, stitch and write short video clips, and judge their join.

    from helpers.clips import read, stitch, write

    clip = read("excavator")                   # a bundled clip, or the path of your own
    context = clip.fit(288, 160)               # the model's size
    longer = stitch(context, new_frames, fps=24, context=1)
    write("continued.mp4", longer, audio_from=clip)

Frames are `np.uint8` arrays of shape [T, height, width, 3], RGB. The program ffmpeg decodes and encodes; it
comes with the package imageio-ffmpeg.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import math
import os
import re
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

CLIPS = Path(__file__).resolve().parent.parent / "data" / "clips"
CONTINUES = "_continues"


class ClipError(ValueError):
    """A clip that cannot be read, joined or written; the message says what to do."""


@dataclass(frozen=True, repr=False, eq=False)
class Clip:
    """Frames and how fast they play.

    Attributes:
        frames: `np.uint8` [T, height, width, 3], RGB.
        fps: Frames per second.
        name: Short name for captions.
        path: The file the frames come from, or `None`.
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

    def fit(self, width: int, height: int) -> Clip:
        """Returns the same clip at another size, see `fit`."""
        return replace(self, frames=fit(self.frames, width, height))

    def __repr__(self) -> str:
        frames = "1 frame" if len(self) == 1 else f"{len(self)} frames"
        sound = "with sound" if self.has_audio else "no sound"
        size = f"{self.width}x{self.height}"
        return f"{self.name}: {frames}, {size}, {self.fps:g} fps, {self.seconds:.1f} s, {sound}"


# Reading


def ffmpeg_path() -> str:
    """Returns the path of the ffmpeg program: the one of imageio-ffmpeg, or else the system's.

    Raises:
        ClipError: If there is none.
    """
    try:
        import imageio_ffmpeg

        found = shutil.which(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
    if not found:
        raise ClipError("no ffmpeg program was found: run `pip install imageio-ffmpeg`, which brings one.")
    return found


def bundled() -> list[str]:
    """Returns the names of the bundled clips, without their true continuations."""
    return sorted(path.stem for path in CLIPS.glob("*.mp4") if not path.stem.endswith(CONTINUES))


def find(source: str | Path) -> Path:
    """Returns the file of a bundled clip's name or of a path.

    Raises:
        ClipError: If there is no such file, or if it is a folder or empty.
    """
    names = bundled()
    if str(source) in names:
        return CLIPS / f"{source}.mp4"
    path = Path(source).expanduser()
    if path.is_dir():
        raise ClipError(f"{source} is a folder: give the path of the video file in it.")
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        have = f" or a bundled clip ({', '.join(names)})" if names else ""
        raise ClipError(f"{source} does not exist: give the path of a video{have}.{hint}")
    if path.stat().st_size == 0:
        raise ClipError(f"{source} is empty: copy or download it again.")
    return path


def read(source: str | Path, *, max_seconds: float = 10.0, from_start: bool = False) -> Clip:
    """Reads the end of a video, or its beginning.

    Only the last seconds are decoded and kept, because only they matter for what comes next. Frames are as
    a player shows them, turned upright where the file says so, and never resized. Ten seconds of 1920x1080 at
    24 fps take 1.4 GiB of RAM, for a moment twice that: give a smaller `max_seconds` for larger clips.

    Args:
        source: Name of a bundled clip, or the path of a video in any format that ffmpeg decodes.
        max_seconds: How much to keep, in seconds.
        from_start: Keep the beginning and not the end.

    Returns:
        The clip; at least one frame.

    Raises:
        ClipError: If there is no ffmpeg, no such file, or no frame in it that can be decoded.
    """
    path = find(source)
    header = _run([ffmpeg_path(), "-hide_banner", "-nostdin", "-i", f"file:{path}"])[1]
    video = re.search(r"Stream #0:.* Video: .*", header)
    if video is None:
        raise ClipError(_why_unreadable(path, header))
    # ffmpeg leaves the rate out where it cannot tell, for example in a GIF of one frame.
    rate = re.search(r" ([\d.]+) fps", video[0])
    fps = float(rate[1]) if rate and float(rate[1]) > 0 else 24.0
    duration = 0.0
    if length := re.search(r"Duration: (\d+):(\d+):([\d.]+)", header):
        duration = 3600 * float(length[1]) + 60 * float(length[2]) + float(length[3])

    keep = max(1, round(max_seconds * fps))
    frames: deque[np.ndarray] = deque(maxlen=keep)
    if from_start:
        _decode(path, ["-t", f"{max_seconds:.3f}"], frames)
    elif duration > max_seconds + 1:
        # One second more than needed, as seeking lands a few frames off in some formats.
        _decode(path, ["-sseof", f"{-max_seconds - 1:.3f}"], frames)
    if frames:
        start = 0.0 if from_start else max(0.0, duration - len(frames) / fps)
    else:
        # A short clip, one of unknown length, or one whose sound goes on after its last frame.
        count = _decode(path, [], frames)
        start = (count - len(frames)) / fps
    if not frames:
        raise ClipError(f"no frame of {path.name} can be decoded, it is damaged: copy or download it again.")
    has_audio = re.search(r"Stream #0:.* Audio: ", header) is not None
    return Clip(np.stack(frames), fps, name=path.stem, path=path, has_audio=has_audio, start=start)


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


def _run(command: list[str], data: memoryview | None = None) -> tuple[int, str]:
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


def _decode(path: Path, seek: list[str], frames: deque[np.ndarray]) -> int:
    """Decodes a file into `frames`, whose oldest fall out at the front. Returns how many came in all."""
    command = [ffmpeg_path(), "-v", "error", "-nostdin", *seek, "-i", f"file:{path}", "-map", "0:v:0"]
    # PPM states each frame's size, so that a turned video needs no guess. Passthrough: every frame once, none
    # doubled. Without the two flags the colour conversion darkens the picture by about one level in 255.
    command += ["-fps_mode", "passthrough", "-sws_flags", "accurate_rnd+full_chroma_int"]
    command += ["-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"]
    count = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        while process.stdout.readline() == b"P6\n":
            width, height = map(int, process.stdout.readline().split())
            process.stdout.readline()  # the largest value, 255
            pixels = process.stdout.read(width * height * 3)
            if len(pixels) < width * height * 3:
                break
            frames.append(np.frombuffer(pixels, np.uint8).reshape(height, width, 3))
            count += 1
    return count


# Sizes


def fit(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scales frames until they cover a size, and cuts what stands out, half of it on each side.

    A wider shape loses its left and right edges, a taller one its top and bottom; nothing is squeezed and no
    bars are added. Lanczos filtering over the whole source area avoids aliasing. Frames that have the size
    already are returned as they are.

    Args:
        frames: `np.uint8` [T, H, W, 3].
        width, height: The size to return, in pixels.

    Returns:
        `np.uint8` [T, height, width, 3].
    """
    source_height, source_width = frames.shape[1:3]
    if (source_width, source_height) == (width, height):
        return frames
    scale = max(width / source_width, height / source_height)
    left = max(0.0, (source_width - width / scale) / 2)
    top = max(0.0, (source_height - height / scale) / 2)
    box = (left, top, source_width - left, source_height - top)
    fitted = np.empty((len(frames), height, width, 3), np.uint8)
    for target, frame in zip(fitted, frames, strict=True):
        target[:] = np.asarray(
            Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS, box=box)
        )
    return fitted


# Joining and writing


def stitch(
    clip: Clip, continuation: np.ndarray, *, fps: float | None = None, context: int = 1, enlarge: int = 1
) -> Clip:
    """Joins a clip and the frames that continue it.

    The result keeps the clip's frame rate, and both halves keep their own speed: where the continuation has
    another frame rate, each output frame shows the continuation's frame that is on screen at its middle, so
    frames are repeated or left out and the length in seconds stays true.

    Args:
        clip: The clip, at the continuation's size (`Clip.fit`).
        continuation: `np.uint8` [T, H, W, 3], as the model made it.
        fps: Its frame rate, in frames per second; the clip's by default.
        context: How many of its first frames repeat the clip's last ones; these are dropped.
        enlarge: Whole factor by which both halves are enlarged with the same filter, so that they look alike.

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
    if not isinstance(enlarge, int) or enlarge < 1:
        raise ClipError(f"enlarge={enlarge}: give a whole number, at least 1.")
    new = new[context:]
    middles = (np.arange(max(1, round(new.seconds * clip.fps))) + 0.5) / clip.fps
    on_screen = np.minimum((middles * new.fps).astype(int), len(new) - 1)
    frames = np.concatenate([clip.frames, new.frames[on_screen]])
    frames = fit(frames, clip.width * enlarge, clip.height * enlarge)
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
    frames = np.pad(clip.frames, ((0, 0), (0, clip.height % 2), (0, clip.width % 2), (0, 0)), mode="edge")
    command = [ffmpeg_path(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{frames.shape[2]}x{frames.shape[1]}", "-r", f"{clip.fps}", "-i", "-"]
    if audio_from is not None and audio_from.has_audio:
        # The frames may be the end of a long file: its sound must start where they do.
        command += ["-ss", f"{audio_from.start:.3f}", "-t", f"{audio_from.seconds:.3f}"]
        command += ["-i", f"file:{audio_from.path}", "-map", "0:v", "-map", "1:a:0", "-c:a", "aac"]
    # Players take untagged video for BT.709 or BT.601 by its size; converted to one and tagged, colours stay.
    command += ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709"]
    command += ["-color_primaries", "bt709", "-color_trc", "bt709"]
    command += ["-c:v", "libx264", "-crf", f"{crf}", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]

    with only_complete(path) as part:
        status, reason = _run([*command, f"file:{part}"], np.ascontiguousarray(frames).data.cast("B"))
        if status:
            raise ClipError(f"{path} cannot be written: {reason}")
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


# Figures


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two `np.uint8` arrays of the same shape, in dB; `inf` if they are equal.

    Raises:
        ValueError: If the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"the shapes differ: {list(a.shape)} and {list(b.shape)}")
    error = np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2, dtype=np.float64)
    return math.inf if error == 0 else float(10 * np.log10(255**2 / error))


@dataclass(frozen=True, repr=False)
class Seam:
    """How smoothly a continuation joins its clip. Differences are mean absolute ones, on the scale 0 to 255.

    Attributes:
        jump: From the last frame before the join to the first new one.
        usual: Median from frame to frame in the second before the join; nan if the clip has one frame.
        ratio: `jump / usual`; about 1 where the join does not show.
        brightness_step: Mean of the first new frame minus mean of the last one before.
        frozen: Whether the continuation hardly moves: its median from frame to frame is below a tenth of
            `usual`.
    """

    jump: float
    usual: float
    ratio: float
    brightness_step: float
    frozen: bool

    def __repr__(self) -> str:
        return (
            f"jump at the join {self.jump:.2f} of 255, usual from frame to frame {self.usual:.2f}: "
            f"{self.ratio:.1f} times\n"
            f"brightness step {self.brightness_step:+.2f} of 255\n"
            f"the continuation {'is FROZEN' if self.frozen else 'moves'}"
        )


def seam(before: Clip, after: np.ndarray) -> Seam:
    """Measures the join between a clip and the new frames, without any context frames among them.

    Args:
        before: The clip, at the new frames' size.
        after: The new frames, `np.uint8` [T, H, W, 3], at the clip's frame rate.

    Raises:
        ValueError: If the sizes differ.
    """
    last, first = before.frames[-1].astype(np.float32), after[0].astype(np.float32)
    if last.shape != first.shape:
        raise ValueError(f"the sizes differ: {list(last.shape)} and {list(first.shape)}")
    second = math.ceil(before.fps) + 1  # frames; one more than there are steps between them
    jump, usual = float(np.abs(first - last).mean()), _median_step(before.frames[-second:])
    return Seam(
        jump=jump,
        usual=usual,
        ratio=jump / usual if usual else math.inf,
        brightness_step=float(first.mean() - last.mean()),
        frozen=bool(_median_step(after) < 0.1 * usual),
    )


def _median_step(frames: np.ndarray) -> float:
    """Median of the mean absolute difference between neighbouring frames; nan for a single frame."""
    steps = [np.abs(b.astype(np.int16) - a).mean() for a, b in itertools.pairwise(frames)]
    return float(np.median(steps)) if steps else math.nan
