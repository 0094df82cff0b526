"""What is in a video file: its streams, times, shape and colours, read by PyAV without decoding more than a frame."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from helpers.clips.clip import ClipError
from helpers.clips.video.colour import Colour

PICTURE_FORMATS = ("image2", "_pipe")
USUAL_RATES = [Fraction(*rate) for rate in (
    (24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (48, 1), (50, 1), (60000, 1001), (60, 1), (120, 1)
)]  # fmt: skip
OTHERS = {"video": "other pictures", "subtitle": "subtitles", "attachment": "attachments"}  # by type of stream
NO_FILM = ("ansi",)  # how ffmpeg would play a text file


@dataclass(frozen=True)
class Sound:
    """The sound track that is used.

    Attributes:
        index: The stream's number in the file.
        codec: Its name in ffmpeg, "aac" for example.
        language: Three letters, or "".
        end: When it ends, in the file's time in seconds; 0 if the file does not say.
    """

    index: int
    codec: str
    language: str = ""
    end: float = 0.0


@dataclass(frozen=True)
class Video:
    """The video stream that is used, and the sound beside it. Times are in seconds.

    Attributes:
        path: The file.
        index: The stream's number in the file.
        codec, profile, pixel_format: As ffmpeg names them.
        width, height: As stored, before any rotation; of the last frame if that changes.
        changes_size: Whether it does.
        aspect: Width of a pixel over its height.
        rotation: Degrees that a player turns the picture counter-clockwise: 0, 90, 180 or 270.
        rates: Frames per second that the file states, exact: the average, and the rate of the container.
        time_base: The unit of the file's times, in seconds.
        begin: When the file begins.
        seconds: How long it says it is; 0 if it does not say.
        reorders: Whether frames are stored in another order than they are shown (B-frames).
        interlaced, transparent, mirrored: Whether it is.
        timed: Whether its packets say when they are shown; those of a raw stream, or of some AVI files, do not.
        in_mp4: Whether the file is an mp4 or a mov, in which packets are as `joining` needs them.
        colour: What its numbers mean.
        is_picture: Whether it is a single picture, which has no rate.
        sound: The sound track, or `None`.
        notes: What a reader should know, a sentence each.
        facts: What the file says of itself, its title or place for example.
        left_out: What else is in it, "subtitles" for example, which no result keeps.
        decodes: Whether PyAV can decode it; the ffmpeg program may do more.
    """

    path: Path
    index: int
    codec: str
    profile: str | None
    pixel_format: str
    width: int
    height: int
    changes_size: bool
    aspect: Fraction
    rotation: int
    rates: tuple[Fraction, ...]
    time_base: Fraction
    begin: float
    seconds: float
    reorders: bool
    interlaced: bool
    transparent: bool
    mirrored: bool
    timed: bool
    in_mp4: bool
    colour: Colour
    is_picture: bool
    sound: Sound | None
    notes: tuple[str, ...]
    facts: dict[str, str]
    left_out: tuple[str, ...]
    decodes: bool

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) as a player shows it: upright, with square pixels."""
        width, height = self.width, self.height
        if self.aspect > 1:
            width = round(width * self.aspect)
        elif self.aspect < 1:
            height = round(height / self.aspect)
        return (height, width) if self.rotation % 180 else (width, height)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[av.container.InputContainer]:
    """The file, opened for reading."""
    with av.open(f"file:{path}", metadata_errors="ignore") as file:
        yield file


def probe(path: Path) -> Video:
    """Look into a video file.

    Of several tracks the default one is used, or else the first that can be decoded, for the picture and for the sound.

    Raises:
        ClipError: If no track is a video that can be decoded; the message says what the file is.
    """
    try:
        with opened(path) as file:
            return _video(path, file)
    except av.FFmpegError:
        raise ClipError(_why_unreadable(path)) from None


def _video(path: Path, file: av.container.InputContainer) -> Video:
    films = [one for one in file.streams.video if not one.disposition & av.stream.Disposition.attached_pic]
    films = _default_first([one for one in films if one.codec_context and one.codec_context.name not in NO_FILM])
    if not films:
        raise ClipError(_why_unreadable(path, bool(file.streams.audio)))
    stream, frame = _first_decodable(path, films)
    sound, notes = _sound(path, file)
    last = _last_size(path, file, stream.index)
    first = (frame.width, frame.height) if frame else (stream.codec_context.width, stream.codec_context.height)
    codec, is_picture = stream.codec_context, file.format.name.endswith(PICTURE_FORMATS)
    rates = [_usual(rate) for rate in (stream.average_rate, stream.base_rate, stream.guessed_rate) if rate]
    return Video(
        path=path,
        index=stream.index,
        codec=codec.codec.canonical_name,
        profile=codec.profile,
        pixel_format=frame.format.name if frame else codec.pix_fmt or "",
        width=(last or first)[0],
        height=(last or first)[1],
        changes_size=last not in (None, first),
        aspect=Fraction(stream.sample_aspect_ratio or 1),
        rotation=round(frame.rotation) % 360 if frame else 0,
        rates=() if is_picture else tuple(dict.fromkeys(rates)),
        time_base=Fraction(stream.time_base),
        begin=float(Fraction(file.start_time or 0, av.time_base)),
        seconds=float(Fraction(file.duration or 0, av.time_base)),
        reorders=bool(codec.has_b_frames),
        interlaced=frame.interlaced_frame if frame else False,
        transparent=_transparent(stream, frame),
        mirrored=frame is not None and _mirrored(frame),
        timed=_timed(file, stream),
        in_mp4="mp4" in file.format.name,
        colour=Colour.of(stream.codec_context, frame) if frame else Colour.unknown(codec.height),
        is_picture=is_picture,
        sound=sound,
        notes=notes,
        facts=dict(file.metadata),
        left_out=tuple(dict.fromkeys(_left_out(file, stream.index, sound))),
        decodes=frame is not None,
    )


def _usual(rate: Fraction) -> Fraction:
    """The usual rate that a rate means. Formats that round times to 1/1000 of a second only come near it."""
    return next((usual for usual in USUAL_RATES if abs(rate / usual - 1) < 0.0005), Fraction(rate))


def _default_first(streams: list) -> list:
    return sorted(streams, key=lambda stream: not stream.disposition & av.stream.Disposition.default)


def _first_decodable(path: Path, streams: list) -> tuple:
    """The first stream of which a frame can be decoded, and this frame; `None` for both if there is none."""
    for stream in streams:
        with contextlib.suppress(av.FFmpegError), opened(path) as file:
            for frame in file.decode(file.streams[stream.index]):
                return stream, frame
    return streams[0], None


def _sound(path: Path, file: av.container.InputContainer) -> tuple[Sound | None, tuple[str, ...]]:
    """The track to use, and what to say about those that cannot be decoded."""
    tracks = _default_first([one for one in file.streams.audio if one.codec_context])
    stream, frame = _first_decodable(path, tracks) if tracks else (None, None)
    unknown = len(file.streams.audio)
    if frame is None:
        notes = (f"{path.name} has a sound track that cannot be decoded: the result is silent.",) if unknown else ()
        return None, notes
    notes = ()
    if stream is not tracks[0]:
        notes = (f"the default sound track of {path.name} cannot be decoded: track {stream.index} is used instead.",)
    codec, times = stream.codec_context.codec.canonical_name, (stream.start_time, stream.duration)
    end = 0.0 if None in times else float(sum(times) * stream.time_base)
    return Sound(stream.index, codec, stream.metadata.get("language", ""), end), notes


def _left_out(file: av.container.InputContainer, picture: int, sound: Sound | None) -> Iterator[str]:
    """What a file holds besides the picture and the sound that are used."""
    for stream in file.streams:
        if stream.index == picture or sound is not None and stream.index == sound.index:
            continue
        if stream.disposition & av.stream.Disposition.attached_pic:
            yield "a cover picture"
        elif stream.type == "data":
            yield "a time code" if "timecode" in stream.metadata else "data"
        elif stream.type == "audio":
            if sound is not None:  # else a note says that none can be decoded
                yield "other sound tracks"
        elif stream.type in OTHERS:
            yield OTHERS[stream.type]
    if file.chapters():
        yield "chapters"


def _transparent(stream: av.video.stream.VideoStream, frame: av.VideoFrame | None) -> bool:
    if frame is None:
        return stream.codec_context.name == "webp"  # an animated one, which PyAV does not decode and ffmpeg may
    names = ("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya8", "ya16", "pal8")
    return frame.format.name.startswith(names) or stream.metadata.get("alpha_mode") == "1"


def _timed(file: av.container.InputContainer, stream: av.video.stream.VideoStream) -> bool:
    if file.format.name == "avi" and stream.codec_context.has_b_frames:  # only the order of storing is known
        return False
    packets = [packet for packet in itertools.islice(file.demux(stream), 16) if packet.size]
    return all(packet.pts is not None for packet in packets)


def _last_size(path: Path, file: av.container.InputContainer, index: int) -> tuple[int, int] | None:
    """(width, height) of the last frame in formats in which it may change; `None` if it is that of the first one."""
    if file.format.name not in ("mpegts", "mpeg", "flv") or not file.duration:
        return None
    last = None
    with contextlib.suppress(av.FFmpegError), opened(path) as again:
        again.seek((file.start_time or 0) + max(0, file.duration - 3 * av.time_base))
        for frame in again.decode(again.streams[index]):
            last = frame.width, frame.height
    return last


def _mirrored(frame: av.VideoFrame) -> bool:
    """Whether the display matrix of a frame turns it over, and does not only turn it round."""
    with contextlib.suppress(ValueError):  # of kinds of data that PyAV does not know
        for data in frame.side_data:
            if data.type.name == "DISPLAYMATRIX":
                a, b, _, c, d = struct.unpack("<5i", bytes(data)[:20])
                return a * d - b * c < 0
    return False


def _why_unreadable(path: Path, has_sound: bool = False) -> str:
    if has_sound:
        return f"{path.name} holds sound but no picture: give a video file."
    with path.open("rb") as file:
        is_mp4 = file.read(12)[4:8] == b"ftyp"
    if is_mp4:
        return f"{path.name} is damaged or was cut off before its end: copy or download it again."
    return f"{path.name} is not a video that ffmpeg can read: give an mp4, mov, mkv, webm or gif file."
