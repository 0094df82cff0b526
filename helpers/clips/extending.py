"""Join new frames to a clip's whole file, whose own frames and sound stay as they are.

    made = extend(clip, lambda: [new_frames], rate=Fraction(24), path="continued.mp4")
    print(made)
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from helpers.clips.clip import Clip, ClipError
from helpers.clips.photos import is_photo
from helpers.clips.video import joining
from helpers.clips.video.encoding import ENCODERS, OWN_CRF, Look, encode, encode_again, look_again, softening
from helpers.clips.video.ffmpeg import ffmpeg_path, run
from helpers.clips.video.probing import Sound, Video, probe
from helpers.clips.video.sound import AFTERWARDS, IN_MP4, encode_sound
from helpers.files import replacing

ORIGINALS = ("copy", "encode")
PIXELS = ("yuv420p", "yuvj420p", "yuv420p10le")
PIECE = 8  # frames


@dataclass(frozen=True)
class Extended:
    """A clip that was made longer.

    Attributes:
        path: The file.
        how: "copy" or "encode": what happened to the clip's own frames.
        why: The reason, in a sentence.
        join: When the new frames begin, in seconds.
        seconds: How long the file plays.
    """

    path: Path
    how: str
    why: str
    join: float
    seconds: float

    def __repr__(self) -> str:
        return f"{self.path.name}: {self.join:.2f} s became {self.seconds:.2f} s. {self.why}"


def extend(
    clip: Clip,
    pieces: Callable[[], Iterable[np.ndarray]],
    *,
    rate: Fraction,
    path: str | Path,
    original: str | None = None,
    afterwards: str = "silence",
    soften: float = 0.0,
    soft: tuple[int, int] | None = None,
) -> Extended:
    """Write the whole file that a clip was read from, followed by new frames, as an mp4.

    "copy" takes the file's own packets as they are, encodes the new frames to match them (codec, profile, size,
    colour tags), and joins the two: the clip's own frames lose nothing. "encode" encodes the clip once more, visually
    lossless, in H.264, upright and with square pixels, in BT.709 if it is HDR, of a wide gamut or RGB, else in its own
    colours. By default it is "copy" where that is possible. RAM holds one piece at a time, however long the file is.

    Args:
        clip: A clip that was read from a file. All of the file is kept, not only the frames that were read.
        pieces: Returns the new frames, `np.uint8` [T, H, W, 3] at the clip's size, some at a time; called again if
            they must be encoded a second time.
        rate: Their frames per second, exact.
        path: The file to write. It appears under its name when it is complete.
        original: One of `ORIGINALS`, or `None` to choose.
        afterwards: What is heard with the new frames, one of `helpers.clips.AFTERWARDS`.
        soften: Seconds before the join over which the clip's own frames lose the detail that `soft` cannot hold. They
            are encoded then. 0 leaves them as sharp as they are.
        soft: The (width, height) of which the new frames have the detail.

    Raises:
        ClipError: If a parameter is wrong, the disk is too small, or the file cannot be written.
    """
    path, rate = Path(path), Fraction(rate)
    if original not in (None, *ORIGINALS):
        raise ClipError(f"original={original!r}: there are {', '.join(ORIGINALS)}, and None to choose.")
    if afterwards not in AFTERWARDS:
        raise ClipError(f"afterwards={afterwards!r}: there are {', '.join(AFTERWARDS)}.")
    video = _film(clip.path)
    if not 0 <= soften < float("inf"):
        raise ClipError(f"soften={soften:g}: give seconds, from 0, which changes nothing.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_disk(clip.path, path)
        with replacing(path) as temporary, tempfile.TemporaryDirectory(dir=path.parent, prefix=".joining-") as folder:
            filters = []
            if soften and soft is not None:
                end = clip.start * (video is not None) + (len(clip) - 1) / clip.fps
                filters = softening(max(0.0, end - soften), end, soft, clip.size)
            work = _Work(clip, video, pieces, rate, Path(folder), temporary, afterwards, filters)
            obstacle = "you asked for it" if original == "encode" else _obstacle(video, clip.size)
            if obstacle is None and filters:
                obstacle = f"its last {min(soften, clip.seconds):g} s grow softer, as you asked"
            made = None
            if obstacle is None:
                made, obstacle = work.copied()
            how = "encode" if made is None else "copy"
            made = made or work.encoded()
    except OSError as error:
        raise ClipError(f"{path} cannot be written: {error}: choose another out_dir.") from error
    if how == "copy":
        sentences = [f"The clip's own frames are copied, bit for bit ({video.codec})."]
    else:
        sentences = [f"The clip's own frames are encoded once more, visually lossless: {obstacle}.", *_changes(video)]
    sentences += [*made.remarks, *(video.notes if video is not None else ())]
    if video is not None and video.left_out:
        sentences.append(f"Left out: {', '.join(video.left_out)}.")
    return Extended(path, how, " ".join(sentences), made.join, made.seconds)


def why_not_copied(path: Path) -> str | None:
    """Why the packets of a clip's file cannot be copied into a longer one, or `None` if nothing is known against it."""
    return _obstacle(_film(path), None)


def _film(path: Path | None) -> Video | None:
    """The video in a clip's file, or `None` if there is no file, or if it is a photo or a folder of pictures."""
    if path is None or not path.is_file() or is_photo(path):
        return None
    video = probe(path)
    return None if video.is_picture else video


class _Made(NamedTuple):
    """When the new frames begin and end, in seconds, and what to say about the sound."""

    join: float
    seconds: float
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Work:
    """One joining in a temporary folder."""

    clip: Clip
    video: Video | None
    pieces: Callable[[], Iterable[np.ndarray]]
    rate: Fraction
    folder: Path
    target: Path
    afterwards: str
    softening: list[str]

    def copied(self) -> tuple[_Made | None, str | None]:
        """What was made of the file's own packets, or `None` and the reason why they could not be joined."""
        try:
            film = self.video if self.video.in_mp4 else self._rewrapped()
            return self._joined(film, Look.like(self.video)), None
        except av.FFmpegError as error:
            return None, f"its packets cannot be joined to others ({error.strerror})"
        except ValueError as error:
            return None, str(error)

    def encoded(self) -> _Made:
        """What was made after the clip's own frames were encoded."""
        path, clip = self.folder / "film.mp4", self.clip
        look = Look() if self.video is None else look_again(self.video)
        if self.video is None:
            parts = (clip.frames[at : at + PIECE] for at in range(0, len(clip), PIECE))
            encode(path, parts, size=clip.size, rate=clip.rate, look=look, crf=OWN_CRF, before=self.softening)
        else:
            encode_again(self.video, path, clip.size, look, self.softening)
        try:
            return self._joined(probe(path), look)
        except (av.FFmpegError, ValueError):
            try:  # where recordings meet, the times of the sound may jump
                made = self._joined(probe(path), look, silent=True)
                return made._replace(remarks=("Its sound is left out, because its times jump.",))
            except (av.FFmpegError, ValueError) as error:
                raise ClipError(f"{self.target.name} cannot be written: {error}") from error

    def _joined(self, film: Video, look: Look, silent: bool = False) -> _Made:
        (begin, end), new_path = joining.span(film, self.clip.rate), self.folder / "new.mp4"
        count = encode(new_path, self.pieces(), size=self.clip.size, rate=self.rate, look=look)
        if not count:
            raise ClipError("there are no new frames to join: give at least one.")
        new, more = probe(new_path), count / self.rate
        sound, sound_begin, remarks = None, Fraction(0), []
        if self.video is not None and self.video.sound is not None and not silent:
            sound, sound_begin, remarks = self._sound(end - begin, more)
        joining.join(
            film, new, self.target, begin=begin, end=end, rate=self.rate, sound=sound, sound_begin=sound_begin,
            heard=end - begin + (more if self.afterwards == "room" else 0),
            facts={} if self.video is None else self.video.facts,
        )  # fmt: skip
        if not joining.joins_cleanly(self.target, end - begin, new):
            raise ClipError("a decoder does not take both parts for one stream")
        return _Made(float(end - begin), float(end - begin + more), tuple(remarks))

    def _sound(self, seconds: Fraction, more: Fraction) -> tuple[tuple[Path, Sound] | None, Fraction, list[str]]:
        """A file and its sound track, the time in it at which the picture begins, and what to say."""
        own, remarks = self.video.sound, []
        begin = joining.begin_of(self.video.path, self.video.index)
        if (longer := own.end - float(begin + seconds)) > 0.1:
            remarks.append(f"Its sound goes on for {longer:.1f} s after its picture: it ends with the picture.")
        if self.afterwards == "silence" and own.codec in IN_MP4:
            return (self.video.path, own), begin, remarks
        path = self.folder / "sound.mka"
        try:
            encode_sound(self.video, path, begin=begin, end=begin + seconds, more=more, afterwards=self.afterwards)
        except ClipError as error:
            return None, begin, [f"Its sound is left out: {error}."]
        return (path, Sound(0, "aac", own.language)), Fraction(0), [*remarks, "Its sound is encoded again (AAC)."]

    def _rewrapped(self) -> Video:
        """The same packets in an mp4 file: with both times, and with the codec's parameters outside the frames."""
        path = self.folder / "film.mp4"
        command = [ffmpeg_path(), "-v", "error", "-y", "-nostdin", "-copyts", "-i", f"file:{self.video.path}"]
        status, reason = run([*command, "-map", f"0:{self.video.index}", "-c", "copy", f"file:{path}"])
        if status:
            raise ClipError(reason)
        return probe(path)


def _changes(video: Video | None) -> list[str]:
    """What a clip loses besides: the results are what every player takes, 8 bits and colours at half the size."""
    if video is None:
        return []
    changes = ["HDR becomes BT.709"] if video.colour.hdr else ["its wide gamut becomes BT.709"] * video.colour.wide
    changes += ["each colour has 8 bits"] if re.search("p1[0-6]|48|64", video.pixel_format) else []
    changes += [] if "420" in video.pixel_format else ["colours have half the size (4:2:0)"]
    return [f"In the result, {', and '.join(changes)}."] if changes else []


def _obstacle(video: Video | None, size: tuple[int, int] | None) -> str | None:
    """Why the packets of a file cannot be copied, or `None` if they can; `size` is that of the clip's frames."""
    if video is None:
        return "it is not a video file"
    if not video.decodes or video.codec not in ENCODERS:
        return f"new frames cannot be encoded as {video.codec}"
    if video.pixel_format not in PIXELS:
        return f"new frames cannot be stored as {video.pixel_format}"
    for obstacle, found in {
        "it is HDR, and the new frames are not": video.colour.hdr,
        "it has a wide gamut, and the new frames do not": video.colour.wide,
        "it is interlaced": video.interlaced,
        "it is transparent": video.transparent,
        "it is mirrored": video.mirrored,
        "its size changes in the middle": video.changes_size or size not in (None, video.shown_size),
        "its frames have no times": not video.timed,
    }.items():
        if found:
            return obstacle
    return None


def check_disk(source: Path | None, path: Path) -> None:
    """Raise a ClipError if the disk has no room for the clip, a copy while it is made, and the new frames."""
    size = source.stat().st_size if source is not None and source.is_file() else 0
    needed, free = 2 * size + 64 * 2**20, shutil.disk_usage(path.parent).free
    if free < needed:
        raise ClipError(
            f"{path} needs about {needed / 2**30:.2f} GiB of disk, and {free / 2**30:.2f} GiB are free: make room, or "
            "choose another out_dir."
        )
