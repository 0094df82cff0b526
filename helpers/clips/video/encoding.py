"""Encode frames piece by piece, so that RAM never holds a whole film.

    encode("new.mp4", pieces, size=(1920, 1080), rate=Fraction(30000, 1001), look=Look())
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from helpers.clips.clip import ClipError
from helpers.clips.video.colour import SCALING, STANDARD, Colour
from helpers.clips.video.decoding import shape_filters
from helpers.clips.video.ffmpeg import ffmpeg_path, run
from helpers.clips.video.probing import Video

PROFILES = {
    "Baseline": "baseline", "Constrained Baseline": "baseline", "Main": "main", "High": "high", "High 10": "high10",
    "Main 10": "main10",
}  # fmt: skip
OWN_CRF = 8  # of a clip's own frames that are encoded again: above 45 dB
LARGE = 1920 * 1088  # pixels
CRF = {"h264": 16, "hevc": 16, "vp9": 18, "av1": 18}  # visually lossless
ENCODERS = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "av1": "libsvtav1"}


@dataclass(frozen=True)
class Look:
    """How frames are stored. By default as every browser plays them: H.264, 4:2:0, BT.709.

    Attributes:
        codec, profile, pixel_format: As ffmpeg names them.
        colour: The colour tags.
        reorders: Whether frames may be stored in another order than shown.
        rotation: Degrees that a player will turn the picture counter-clockwise.
        stored: (width, height) before this turn, or `None` for the frames' own.
        aspect: Width of a stored pixel over its height.
    """

    codec: str = "h264"
    profile: str | None = "High"
    pixel_format: str = "yuv420p"
    colour: Colour = STANDARD
    reorders: bool = True
    rotation: int = 0
    stored: tuple[int, int] | None = None
    aspect: Fraction = Fraction(1)

    @classmethod
    def like(cls, video: Video) -> Look:
        """The look of a video stream."""
        return cls(
            video.codec, video.profile, video.pixel_format, video.colour, video.reorders, video.rotation,
            (video.width, video.height), video.aspect,
        )  # fmt: skip

    def options(self, size: tuple[int, int], crf: int | None = None) -> list[str]:
        """The encoder's options for frames of a (width, height).

        Parameters stand in front of every key frame, so that the frames can follow others. Large frames are not
        encoded several at a time, and few are looked ahead: with 16 cores, RAM would hold dozens of them.
        """
        is_large = size[0] * size[1] > LARGE
        codec = ["-c:v", ENCODERS[self.codec], "-crf", str(CRF[self.codec] if crf is None else crf)]
        profile = ["-profile:v", PROFILES[self.profile]] if self.profile in PROFILES else []
        if self.codec == "h264":
            codec += ["-preset", "fast", *profile, "-bf", "2" if self.reorders else "0"]
            ahead = "4:sync-lookahead=0:sliced-threads=1" if is_large else "12"
            return [*codec, "-x264-params", f"repeat-headers=1:b-pyramid=none:rc-lookahead={ahead}"]
        if self.codec == "hevc":
            order = "" if self.reorders else ":bframes=0"
            order += ":rc-lookahead=5:frame-threads=1" if is_large else ""
            return [*codec, "-preset", "fast", *profile, "-x265-params", f"repeat-headers=1:log-level=error{order}"]
        if self.codec == "vp9":
            return [*codec, "-b:v", "0", "-cpu-used", "4", "-row-mt", "1", "-auto-alt-ref", "0"]
        return [*codec, "-preset", "8"]

    def filters(self, size: tuple[int, int]) -> list[str]:
        """The filters that turn upright RGB frames of a (width, height) into stored ones."""
        turns = {90: ["transpose=clock"], 180: ["hflip", "vflip"], 270: ["transpose=cclock"]}.get(self.rotation, [])
        right, bottom = size[0] % 2, size[1] % 2
        shape = []
        if self.stored is not None:
            shape = [f"scale={self.stored[0]}:{self.stored[1]}:flags={SCALING}+lanczos"]
        elif right or bottom:  # 4:2:0 needs even sides: double the last column or row
            shape = [f"pad={size[0] + right}:{size[1] + bottom}"]
            shape += [f"fillborders=right={right}:bottom={bottom}:mode=smear"]
        aspect = f"setsar={self.aspect.numerator}/{self.aspect.denominator}"
        return [*turns, *shape, *self.colour.from_rgb(self.pixel_format), aspect]


def encode(
    path: Path,
    pieces: Iterable[np.ndarray],
    *,
    size: tuple[int, int],
    rate: Fraction,
    look: Look,
    crf: int | None = None,
    before: Sequence[str] = (),
) -> int:
    """Encode pieces of frames, `np.uint8` [T, H, W, 3], as a video without sound.

    Args:
        path: The file, in a format that its suffix names.
        pieces: Frames in the order of time.
        size: Their (width, height).
        rate: Frames per second, exact.
        look: How they are stored.
        crf: The encoder's constant rate factor, by default one that is visually lossless.
        before: ffmpeg filters that the frames go through first.

    Returns:
        How many frames were encoded.

    Raises:
        ClipError: If ffmpeg fails; the message gives its reason.
    """
    count = 0
    command = [ffmpeg_path(), "-v", "error", "-y", "-thread_queue_size", "1", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{size[0]}x{size[1]}", "-r", f"{rate.numerator}/{rate.denominator}", "-i", "-", "-vf"]
    command += [",".join([*before, *look.filters(size)])]
    command += [*look.options(size, crf), "-video_track_timescale", str(timescale(rate)), f"file:{path}"]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log) as process:
        try:
            for piece in pieces:
                if piece.shape[2:0:-1] != size:
                    raise ClipError(f"frames of {piece.shape[2]}x{piece.shape[1]} cannot follow {size[0]}x{size[1]}.")
                process.stdin.write(np.ascontiguousarray(piece).data.cast("B"))
                count += len(piece)
            process.stdin.close()
        except BrokenPipeError:
            pass  # ffmpeg has ended, and says why
        except BaseException:
            process.kill()
            raise
        if process.wait():
            log.seek(0)
            raise ClipError(f"{path.name} cannot be written: {log.read().decode(errors='replace').strip()}")
    return count


def look_again(video: Video) -> Look:
    """How a file is stored that cannot be copied: as browsers play it, in its own colours unless they are converted."""
    own = not (video.colour.hdr or video.colour.wide or video.colour.rgb)
    return Look(colour=video.colour if own else STANDARD)


def softening(begin: float, end: float, soft: tuple[int, int], size: tuple[int, int]) -> list[str]:
    """The ffmpeg filters that take from a film, between two moments, the detail that a smaller size cannot hold.

    Args:
        begin, end: When it begins, and when all of this detail is gone, in seconds of the film.
        soft: The smaller (width, height).
        size: The film's own.
    """
    down, up = (f"scale={one[0]}:{one[1]}:flags={SCALING}+bicubic" for one in (soft, size))
    share = f"clip((T-{begin:.4f})/{max(end - begin, 1e-3):.4f},0,1)"
    return [
        f"split[sharp][whole];[whole]{down},{up}[soft];"
        f"[sharp][soft]blend=all_expr='A+(B-A)*{share}':enable='gte(t,{begin:.4f})'"
    ]


def encode_again(video: Video, path: Path, size: tuple[int, int], look: Look, after: Sequence[str] = ()) -> None:
    """Encode the picture of a whole file again, upright and with square pixels; every frame keeps its time.

    Args:
        video: The file.
        path: The file to write.
        size: (width, height) of the frames as a player shows them.
        look: How they are stored.
        after: ffmpeg filters that the upright frames go through.

    Raises:
        ClipError: If ffmpeg fails; the message gives its reason.
    """
    scaled = f"scale={size[0]}:{size[1]}:flags={SCALING}+lanczos"
    filters = [*shape_filters(video), scaled, *after]
    if look.colour is not video.colour or size[0] % 2 or size[1] % 2:
        filters += video.colour.to_bt709()
        filters += ["format=gbrap", "premultiply=inplace=1"] if video.transparent else []
        filters += ["format=gbrp", *look.filters(size)]
    else:  # no way through RGB, which would soften colours twice
        filters += [f"format={look.pixel_format}", look.colour.tags()]
    command = [ffmpeg_path(), "-v", "error", "-y", "-nostdin", "-fflags", "+discardcorrupt"]
    command += ["-i", f"file:{video.path}", "-map", f"0:{video.index}", "-vf", ",".join(filters)]
    command += ["-fps_mode", "passthrough", "-enc_time_base", "demux", *look.options(size, OWN_CRF), f"file:{path}"]
    status, reason = run(command)
    if status:
        raise ClipError(f"{video.path.name} cannot be encoded again: {reason}")


def timescale(rate: Fraction) -> int:
    """Ticks a second in which a frame takes a whole number of ticks, at least 10,000, as mp4 files have them."""
    return rate.numerator * -(-10_000 // rate.numerator)
