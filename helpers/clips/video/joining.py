"""Join a film and the new frames that follow it, packet by packet: nothing is decoded, so nothing is lost."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from helpers.clips.video.probing import Sound, Video, opened

FINEST = 1_000_000  # ticks a second
OF_THE_CONTAINER = ("major_brand", "minor_version", "compatible_brands", "encoder")  # not of the film


def join(
    film: Video,
    new: Video,
    path: Path,
    *,
    begin: Fraction,
    end: Fraction,
    rate: Fraction,
    sound: tuple[Path, Sound] | None,
    sound_begin: Fraction,
    heard: Fraction,
    facts: Mapping[str, str],
) -> None:
    """Write an mp4 of all packets of a film, those of a video that follows it, and those of a sound track.

    Args:
        film, new: What is joined; their codec, profile, size and colours are the same.
        path: The file to write. It begins at 0.
        begin, end: Of the film, in its own time in seconds.
        rate: Of the new frames, per second.
        sound: A file and its track; `None` for silence.
        sound_begin: The time in that file at which the film begins, in seconds.
        heard: How much of the sound to take, in seconds.
        facts: What the file says of itself: title, date, place.

    Raises:
        av.FFmpegError, ValueError: If an mp4 cannot hold these streams.
    """
    ticks = math.lcm(film.time_base.denominator, rate.numerator)
    ticks = ticks if ticks <= FINEST else film.time_base.denominator
    options = {"movflags": "+faststart", "video_track_timescale": str(ticks)}
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(av.open(str(path), "w", format="mp4", options=options))
        file, new_file = (stack.enter_context(opened(video.path)) for video in (film, new))
        target.metadata.update({name: text for name, text in facts.items() if name not in OF_THE_CONTAINER})
        stream = target.add_stream_from_template(file.streams[film.index], opaque=True)
        stream.time_base = Fraction(1, ticks)
        if film.codec == "hevc" and file.streams[film.index].codec_context.codec_tag == "hvc1":
            stream.codec_context.codec_tag = "hvc1"  # Apple's players know no other
        old = _moved(file, file.streams[film.index], begin, Fraction(0), film.time_base)
        fresh = _moved(
            new_file, new_file.streams[new.index], begin_of(new.path, new.index), end - begin, Fraction(1, ticks)
        )
        queues = [((packet.dts * packet.time_base, 0, packet, stream) for packet in _rising(old, fresh))]
        if sound is not None:
            track_file = stack.enter_context(opened(sound[0]))
            track = track_file.streams[sound[1].index]
            into = target.add_stream_from_template(track, opaque=True)
            if sound[1].language:
                into.metadata["language"] = sound[1].language
            packets = _moved(track_file, track, sound_begin, Fraction(0), Fraction(track.time_base))
            packets = itertools.takewhile(lambda packet: packet.pts * packet.time_base < heard, packets)
            queues.append((packet.pts * packet.time_base, 1, packet, into) for packet in packets)
        for _, _, packet, into in heapq.merge(*queues, key=lambda entry: entry[:2]):
            packet.stream = into
            target.mux(packet)


def span(film: Video, rate: Fraction) -> tuple[Fraction, Fraction]:
    """When the first frame of a film is shown, and when its last one goes off the screen, in seconds.

    The last frame stays for its duration, but at least as long as one at `rate`: many files cut it short.

    Raises:
        ValueError: If the file holds frames that are not shown. Copied, they would come back.
    """
    end = Fraction(0)
    with opened(film.path) as file:
        for packet in file.demux(file.streams[film.index]):
            if packet.is_discard:
                raise ValueError("it was trimmed, and the file still holds what is not shown")
            if packet.pts is not None:
                duration = max(1 / rate, (packet.duration or 0) * film.time_base)
                end = max(end, packet.pts * film.time_base + duration)
    return begin_of(film.path, film.index), end


def begin_of(path: Path, index: int) -> Fraction:
    """When the first frame of a stream is shown, in seconds."""
    with opened(path) as file:
        stream = file.streams[index]
        times = [packet.pts for packet in itertools.islice(_shown(file, stream), 32)]
        return min(times, default=0) * Fraction(stream.time_base)


def joins_cleanly(path: Path, end: Fraction, new: Video) -> bool:
    """Whether the new frames, from `end` on, decode in the joined file to what they are alone, bit by bit."""
    with opened(path) as joined, opened(new.path) as alone:
        stream = joined.streams.video[0]
        joined.seek(int(end / stream.time_base), stream=stream, backward=True)
        # The times of the film may be rounded: half a tick is before the first new frame.
        from_tick = end / stream.time_base - Fraction(1, 2)
        tail = (frame for frame in joined.decode(stream) if frame.pts is not None and frame.pts >= from_tick)
        for frame in alone.decode(video=0):
            other = next(tail, None)
            if other is None or not np.array_equal(frame.to_ndarray(), other.to_ndarray()):
                return False
        return next(tail, None) is None


def _shown(file, stream) -> Iterator[av.Packet]:
    """The packets of a stream with times, without those that an edit list cuts away."""
    return (packet for packet in file.demux(stream) if packet.pts is not None and not packet.is_discard)


def _moved(file, stream, begin: Fraction, to: Fraction, unit: Fraction) -> Iterator[av.Packet]:
    """The packets of a stream with times in `unit`, moved so that what was shown at `begin` is shown at `to`."""
    own = Fraction(stream.time_base)
    for packet in _shown(file, stream):
        stored = packet.pts if packet.dts is None else packet.dts
        packet.pts, packet.dts = (round((ticks * own - begin + to) / unit) for ticks in (packet.pts, stored))
        packet.duration = round(packet.duration * own / unit)
        packet.time_base = unit
        yield packet


def _rising(*parts: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """The packets of one part after the other, in even steps of the times of storing.

    A part that stores its frames less long before they are shown begins as early as the part before needs it; where it
    stores them longer before, its first times move on, so that they rise.
    """
    last = None
    for part in parts:
        early = 0
        for number, packet in enumerate(part):
            if last is not None:
                if not number:
                    early = max(0, packet.dts - math.ceil(last / packet.time_base) - packet.duration)
                packet.dts = min(packet.pts, max(packet.dts - early, math.floor(last / packet.time_base) + 1))
            last = packet.dts * packet.time_base
            yield packet
