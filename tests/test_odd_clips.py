"""Clips as people have them: every odd file gives its right frames, or an error that says what to do.

Each file is made here. Its frames have a colour in each corner, which tell how it is turned, and in the middle a grey
that is brighter by three levels from frame to frame, which tells which frame one sees.
"""

import os
import shutil
import subprocess
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.clips import Clip, ClipError, ffmpeg_path, read, stitch, write
from helpers.clips.video import decoding

pytestmark = pytest.mark.clips

COLOURS = {"R": (200, 30, 30), "G": (30, 180, 30), "B": (30, 30, 200), "W": (220, 220, 220), "K": (0, 0, 0)}


def ffmpeg(*arguments, frames=None):
    command = [ffmpeg_path(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, input=None if frames is None else frames.tobytes(), check=True)


def film(count=24, width=96, height=64):
    """Frames with a known colour in each corner and their own number in the middle, `np.uint8` [T, H, W, 3]."""
    frames = np.full((count, height, width, 3), 128, np.uint8)
    top, left = height // 4, width // 4
    frames[:, :top, :left], frames[:, :top, -left:] = COLOURS["R"], COLOURS["G"]
    frames[:, -top:, :left], frames[:, -top:, -left:] = COLOURS["B"], COLOURS["W"]
    frames[:, top:-top, left:-left] = 10 + 3 * np.arange(count)[:, None, None, None]
    return frames


def encode(path, *arguments, frames=None, rate=24, before=()):
    """Writes frames with ffmpeg: `before` are further inputs, `arguments` how to code."""
    frames = film() if frames is None else frames
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgba" if frames.shape[3] == 4 else "rgb24", "-s", size, "-r", rate]
    ffmpeg(*source, "-i", "-", *before, *arguments, path, frames=frames)
    return path


X264 = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", "4")
H264 = (*X264, "-pix_fmt", "yuv420p")
FFV1 = ("-c:v", "ffv1")
SINE = ("-f", "lavfi", "-i", "sine=duration=1")


def tone(begin, end, length):
    """A sound that is silent but for a tone between two times, in seconds."""
    return ("-f", "lavfi", "-i", f"aevalsrc='if(between(t,{begin},{end}),sin(2*PI*440*t),0)':d={length}")


def numbers(clip):
    """The number in each frame of a `film`."""
    height, width = clip.frames.shape[1:3]
    middle = clip.frames[:, height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8]
    return np.round((middle.mean(axis=(1, 2, 3)) - 10) / 3).astype(int).tolist()


def corners(frame):
    """The colours' letters at the top left, top right, bottom left and bottom right; ? for any other colour."""
    letters = ""
    height, width = frame.shape[:2]
    for y in (height // 8, height - 1 - height // 8):
        for x in (width // 8, width - 1 - width // 8):
            seen = frame[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].mean(axis=(0, 1))
            letters += next((name for name, known in COLOURS.items() if np.abs(seen - known).max() < 8), "?")
    return letters


@dataclass
class Odd:
    """What a file is, how it is made in a folder, and what must be read from it."""

    title: str
    make: object
    size: tuple = (96, 64)
    fps: float = 24
    shows: object = range(24)
    corners: str | None = "RGBW"
    sound: bool = False
    start: float = 0
    arguments: dict | None = None


# Turned, odd and strange pictures


def turned(folder, degrees):
    ffmpeg("-display_rotation", degrees, "-i", encode(folder / "flat.mp4", *H264), "-c", "copy", folder / "turned.mov")
    return folder / "turned.mov"


def half_transparent():
    """A film whose left half cannot be seen."""
    alpha = np.full((24, 64, 96, 1), 255, np.uint8)
    alpha[:, :, :24] = 0
    return np.concatenate([film(), alpha], axis=3)


def animation(path, durations, **more):
    """An animated picture of Pillow's making; `durations` in milliseconds."""
    pictures = [Image.fromarray(frame) for frame in film(len(durations))]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, **more)
    return path


def transparent_gif(folder):
    pictures = [Image.fromarray(frame) for frame in half_transparent()[:8]]
    more = {"save_all": True, "append_images": pictures[1:], "duration": 100, "disposal": 2}
    pictures[0].save(folder / "sticker.gif", **more)
    return folder / "sticker.gif"


def interlaced(folder):
    """A bar that moves fast, filmed in fields: the two halves of the lines are of different times."""
    fields = np.full((48, 96, 128, 3), 30, np.uint8)
    for index, field in enumerate(fields):
        field[:, index * 2 : index * 2 + 12] = 220
    frames = fields[::2].copy()
    frames[:, 1::2] = fields[1::2, 1::2]
    return encode(folder / "tape.mp4", *H264, "-flags", "+ilme+ildct", "-x264opts", "tff=1", frames=frames)


def with_cover(folder, name):
    """A video with a cover picture, in mp4 the first one in the file."""
    cover = folder / "cover.png"
    Image.new("RGB", (200, 200), "magenta").save(cover)
    encode(folder / "plain.mp4", *H264)
    if name.endswith(".mkv"):
        attached = ["-attach", cover, "-metadata:s:t", "mimetype=image/png"]
        ffmpeg("-i", folder / "plain.mp4", "-c", "copy", *attached, folder / name)
    else:
        both = ["-i", cover, "-i", folder / "plain.mp4", "-map", "0", "-map", "1", "-c", "copy"]
        ffmpeg(*both, "-disposition:v:0", "attached_pic", folder / name)
    return folder / name


def resized_midway(folder):
    encode(folder / "a.ts", *H264, frames=film(12))
    encode(folder / "b.ts", *H264, frames=film(24, 192, 128)[12:])
    (folder / "both.ts").write_bytes((folder / "a.ts").read_bytes() + (folder / "b.ts").read_bytes())
    return folder / "both.ts"


# Times


def variable(path, when, *arguments):
    """A film whose frame number n is shown from `when` on, an expression of ffmpeg's in n, in seconds."""
    times = ("-vf", f"settb=1/1000,setpts='({when})/TB'", "-fps_mode", "passthrough", "-enc_time_base", "1/1000")
    return encode(path, *H264, *times, *arguments)


def long_film(folder, name, seconds, *arguments, sound=()):
    """A film of 2 seconds at 24 frames a second, over and over."""
    encode(folder / "loop.mp4", *H264, "-g", "24", frames=film(48))
    loop = ["-stream_loop", -1, "-t", seconds, "-i", folder / "loop.mp4", *sound]
    ffmpeg(*loop, "-c:v", "copy", *arguments, folder / name)
    return folder / name


def sound_goes_on(folder):
    encode(folder / "short.mp4", *H264, "-g", "24", frames=film(72))
    ffmpeg("-i", folder / "short.mp4", *tone(0, 40, 40), "-c:v", "copy", folder / "long_sound.mp4")
    return folder / "long_sound.mp4"


def edited(folder):
    """A film trimmed on a phone: its first half is in the file and not to be shown."""
    ffmpeg("-ss", 0.5, "-i", encode(folder / "whole.mp4", *H264), "-c", "copy", folder / "edited.mp4")
    return folder / "edited.mp4"


def late_picture(folder):
    encode(folder / "late.mp4", *H264)
    late = ["-itsoffset", 2, "-i", folder / "late.mp4", "-map", "0:a", "-map", "1:v", "-c:v", "copy"]
    ffmpeg(*tone(0, 3, 3), *late, folder / "late.mkv")
    return folder / "late.mkv"


# Files that broke off

CUT = object()  # some of the first frames


def cut(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return path


# Folders


def folder_of(folder, suffix, count=12, **more):
    """Pictures with numbers that only a person puts in order: frame_0, frame_1, ..., frame_10."""
    target = folder / "frames"
    target.mkdir()
    for index, frame in enumerate(film(count)):
        Image.fromarray(frame).save(target / f"frame_{index}{suffix}", **more)
    return target


def littered_folder(folder):
    target = folder_of(folder, ".png")
    (target / "notes.txt").write_text("no picture")
    (target / "._frame_3.png").write_bytes(b"a companion that macOS leaves")
    (target / "Thumbs.db").write_bytes(b"Windows leaves this one")
    (target / "more.png").mkdir()
    (target / "frame_4.png").rename(target / "FRAME_4.PNG")
    return target


def transparent_folder(folder):
    (folder / "frames").mkdir()
    for index, frame in enumerate(half_transparent()):
        Image.fromarray(frame).save(folder / "frames" / f"{index}.png")
    return folder / "frames"


def exif_turned(path):
    """A photo that lies on its side in the file; to be turned by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(film(1)[0]).save(path, exif=exif, quality=98, subsampling=0)
    return path


def deep_grey_folder(folder):
    """Pictures of 16 bits for each pixel, without colours."""
    (folder / "frames").mkdir()
    for index, frame in enumerate(film()):
        Image.fromarray(frame[..., 1].astype(np.uint16) * 257).save(folder / "frames" / f"{index:04}.png")
    return folder / "frames"


def named(folder, name, *arguments):
    return encode(folder / name, *(arguments or H264))


def linked(folder):
    (folder / "link.mp4").symlink_to(encode(folder / "real.mp4", *H264))
    return folder / "link.mp4"


# fmt: off
ODD = [
    Odd("a plain mp4", lambda f: encode(f / "a.mp4", *H264)),
    Odd("portrait", lambda f: encode(f / "a.mp4", *H264, frames=film(24, 64, 96)), size=(64, 96)),
    Odd("turned by 90", lambda f: turned(f, 90), size=(64, 96), corners="GWRB"),
    Odd("turned by 180", lambda f: turned(f, 180), corners="WBGR"),
    Odd("turned by 270", lambda f: turned(f, 270), size=(64, 96), corners="BRWG"),
    Odd("odd size", lambda f: encode(f / "a.mkv", *FFV1, frames=film(24, 175, 99)), size=(175, 99)),
    Odd("1 pixel", lambda f: encode(f / "a.mkv", *FFV1, frames=film(4, 1, 1)), size=(1, 1), corners=None, shows=None),
    Odd("tiny", lambda f: encode(f / "a.mkv", *FFV1, frames=film(4, 3, 5)), size=(3, 5), corners=None, shows=None),
    Odd("1 frame", lambda f: encode(f / "a.mp4", *H264, frames=film(1)), shows=[0]),
    Odd("2 frames", lambda f: encode(f / "a.mp4", *H264, frames=film(2)), shows=[0, 1]),
    # Codecs and pixels
    Odd("webm", lambda f: encode(f / "a.webm", "-c:v", "libvpx-vp9", "-crf", 10, "-b:v", 0, "-cpu-used", 8)),
    Odd("H.264 of 10 bits", lambda f: encode(f / "a.mp4", *X264, "-pix_fmt", "yuv420p10le")),
    Odd("H.265 of 10 bits", lambda f: encode(f / "a.mkv", "-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-crf", 10,
                                             "-preset", "ultrafast", "-x265-params", "log-level=none")),
    Odd("ProRes 4:2:2 of 10 bits", lambda f: encode(f / "a.mov", "-c:v", "prores_ks", "-profile:v", 3)),
    Odd("raw 4:2:2 of 10 bits", lambda f: encode(f / "a.mov", "-c:v", "v210")),
    Odd("ProRes with alpha", lambda f: encode(f / "a.mov", "-c:v", "prores_ks", "-profile:v", 4, "-pix_fmt",
                                              "yuva444p10le", frames=half_transparent()), corners="KGKW"),
    Odd("webm with alpha", lambda f: encode(f / "a.webm", "-c:v", "libvpx-vp9", "-crf", 10, "-b:v", 0, "-cpu-used", 8,
                                            "-pix_fmt", "yuva420p", frames=half_transparent()), corners="KGKW"),
    Odd("VP8 with alpha", lambda f: encode(f / "a.webm", "-c:v", "libvpx", "-crf", 4, "-b:v", "5M", "-auto-alt-ref", 0,
                                           "-pix_fmt", "yuva420p", frames=half_transparent()), corners="KGKW"),
    Odd("MJPEG avi, full range", lambda f: encode(f / "a.avi", "-c:v", "mjpeg", "-q:v", 1, "-pix_fmt", "yuvj420p")),
    Odd("BT.709", lambda f: encode(f / "a.mp4", *H264, "-vf", "scale=out_color_matrix=bt709:out_range=tv",
                                   "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")),
    Odd("grayscale", lambda f: encode(f / "a.mp4", *X264, "-pix_fmt", "gray"), corners="???W"),
    Odd("black and white avi", lambda f: encode(f / "a.avi", *FFV1, "-pix_fmt", "gray"), corners="???W"),
    Odd("gif", lambda f: animation(f / "a.gif", [100] * 12), fps=10, shows=range(12)),
    Odd("gif with transparency", transparent_gif, fps=10, shows=range(8), corners="KGKW"),
    Odd("gif of 1 frame", lambda f: animation(f / "a.gif", [100]), fps=10, shows=[0]),
    Odd("animated png", lambda f: animation(f / "a.png", [100] * 12), fps=10, shows=range(12)),
    Odd("animated webp", lambda f: animation(f / "a.webp", [50] * 12, lossless=True), fps=20, shows=range(12)),
    Odd("wide pixels", lambda f: encode(f / "a.mp4", *H264, "-vf", "setsar=4/3"), size=(128, 64)),
    Odd("tall pixels", lambda f: encode(f / "a.mp4", *H264, "-vf", "setsar=1/2"), size=(96, 128)),
    Odd("PAL", lambda f: encode(f / "a.mpg", "-c:v", "mpeg2video", "-q:v", 1, "-aspect", "16:9", rate=25,
                                frames=film(24, 720, 576)), size=(1024, 576), fps=25),
    # It is shown in its last size; the scaled frames' numbers are no longer readable.
    Odd("other size midway", resized_midway, size=(192, 128), shows=None),
    # Several streams
    Odd("a cover in mp4", lambda f: with_cover(f, "cover.mp4")),
    Odd("a cover in mkv", lambda f: with_cover(f, "cover.mkv")),
    Odd("two pictures", lambda f: encode(f / "a.mkv", "-map", "0", "-map", "1", *FFV1,
                                         before=("-f", "lavfi", "-i", "color=red:s=400x300:d=1"))),
    Odd("sound first", lambda f: encode(f / "a.mkv", "-map", "1", "-map", "0", *FFV1, before=SINE), sound=True),
    Odd("sound of many channels", lambda f: encode(f / "a.mov", *H264, "-c:a", "pcm_s24le", "-ar", 192000, "-ac", 8,
                                                   before=SINE), sound=True),
    # Rates
    Odd("120 fps", lambda f: encode(f / "a.mp4", *H264, rate=120), fps=120),
    Odd("5 fps", lambda f: encode(f / "a.mp4", *H264, rate=5), fps=5, arguments={"max_seconds": 60}),
    Odd("half a frame a second", lambda f: encode(f / "a.mp4", *H264, rate=0.5, frames=film(4)),
        fps=0.5, shows=[0, 1, 2, 3]),
    Odd("23.976 fps in mkv", lambda f: encode(f / "a.mkv", *H264, rate="24000/1001"), fps=23.98),
    Odd("59.94 fps in mkv", lambda f: encode(f / "a.mkv", *H264, rate="60000/1001"), fps=59.94),
    Odd("raw H.264 without times", lambda f: encode(f / "a.h264", *H264, rate=25), fps=25),
    Odd("raw MJPEG without a rate", lambda f: encode(f / "a.mjpeg", "-c:v", "mjpeg", "-q:v", 1), fps=25),
    Odd("slower half", lambda f: variable(f / "a.mp4", "if(lt(N,16),N/20,0.8+(N-16)/10)"), fps=20,
        shows=[*range(16), *np.repeat(range(16, 23), 2), 23]),
    Odd("lost frames", lambda f: variable(f / "a.mkv", "if(lt(N,8),N,N+3)/24"),
        shows=[*range(8), 7, 7, 7, *range(8, 24)]),
    Odd("a long pause", lambda f: variable(f / "a.mp4", "N/20+if(gt(N,12),5)"), fps=20,
        shows=[*range(12), *[12] * 101, *range(13, 24)]),
    Odd("gif with a pause", lambda f: animation(f / "a.gif", [100] * 5 + [500] + [100] * 6), fps=10,
        shows=[0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 6, 7, 8, 9, 10, 11]),
    Odd("times out of joint", lambda f: variable(f / "a.mkv", "N/24+0.012*mod(N,2)"), shows=range(24)),
    # Where the times begin and end
    Odd("begins at 5 s in mkv", lambda f: encode(f / "a.mkv", *H264, "-output_ts_offset", 5)),
    Odd("begins at 5 s in ts", lambda f: encode(f / "a.ts", *H264, "-output_ts_offset", 5, before=SINE), sound=True),
    Odd("begins before 0", lambda f: encode(f / "a.mkv", *FFV1, "-output_ts_offset", -0.5,
                                            "-avoid_negative_ts", "disabled")),
    Odd("an edit list hides the beginning", edited, shows=range(12, 24)),
    Odd("ts from its end", lambda f: long_film(f, "a.ts", 8, "-output_ts_offset", 100, sound=SINE), sound=True,
        shows=[*range(48)], start=6, arguments={"max_seconds": 2}),
    Odd("ts from its beginning", lambda f: long_film(f, "a.ts", 8, "-output_ts_offset", 100, sound=SINE), sound=True,
        shows=range(12), arguments={"max_seconds": 0.5, "from_start": True}),
    Odd("mkv at 5 s from its end", lambda f: long_film(f, "a.mkv", 8, "-output_ts_offset", 5),
        shows=[*range(48)], start=6, arguments={"max_seconds": 2}),
    Odd("sound 37 s longer", sound_goes_on, sound=True, shows=range(24, 72), start=1, arguments={"max_seconds": 2}),
    Odd("picture 2 s later than sound", late_picture, sound=True, start=2, shows=range(12),
        arguments={"max_seconds": 0.5, "from_start": True}),
    Odd("an hour", lambda f: long_film(f, "hour.mp4", 3600),
        shows=range(24, 48), start=3599, arguments={"max_seconds": 1}),
    Odd("an hour without a stated length", lambda f: long_film(f, "hour.mkv", 3600, "-f", "matroska", "-live", 1),
        shows=range(24, 48), start=3599, arguments={"max_seconds": 1}),
    # Files that broke off: what is there is read
    Odd("mkv cut off", lambda f: cut(encode(f / "a.mkv", *FFV1), 0.5), shows=CUT),
    Odd("mp4 cut off behind its index", lambda f: cut(encode(f / "a.mp4", *H264, "-movflags", "+faststart"), 0.7),
        shows=CUT),
    Odd("long mp4 cut off", lambda f: cut(long_film(f, "a.mp4", 60, "-movflags", "+faststart"), 0.5), shows=CUT,
        start=None, arguments={"max_seconds": 1}),
    Odd("avi cut off", lambda f: cut(encode(f / "a.avi", "-c:v", "mjpeg", "-q:v", 1), 0.6), shows=CUT),
    Odd("ts cut off", lambda f: cut(encode(f / "a.ts", *H264), 0.7), shows=CUT),
    # A gif does not say how long its pictures are: the last one shows what came of it, above the one before.
    Odd("gif cut off", lambda f: cut(animation(f / "a.gif", [100] * 12), 0.7), fps=10, shows=[*range(7), 6]),
    # Folders of pictures, and pictures
    Odd("folder of png", lambda f: folder_of(f, ".png"), shows=range(12)),
    Odd("folder of jpg", lambda f: folder_of(f, ".jpg", quality=98, subsampling=0), shows=range(12)),
    Odd("folder of webp", lambda f: folder_of(f, ".webp", lossless=True), shows=range(12)),
    Odd("end of a folder", lambda f: folder_of(f, ".bmp", 30),
        shows=range(18, 30), start=0.75, arguments={"max_seconds": 0.5}),
    Odd("beginning of a folder", lambda f: folder_of(f, ".tif", 30), shows=range(12),
        arguments={"max_seconds": 0.5, "from_start": True}),
    Odd("folder with other files", littered_folder, shows=range(12)),
    Odd("folder of transparent pictures", transparent_folder, corners="KGKW"),
    Odd("folder of 16 bit pictures", deep_grey_folder, corners="???W"),
    Odd("folder of turned photos", lambda f: exif_turned(f / "frames" / "a.jpg").parent,
        size=(64, 96), corners="BRWG", shows=[0]),
    Odd("a turned photo", lambda f: exif_turned(f / "a.jpg"), size=(64, 96), corners="BRWG", shows=[0]),
    Odd("a picture", lambda f: encode(f / "a.png", frames=film(1)), shows=[0]),
    # Names
    Odd("name with spaces and quotes", lambda f: named(f, "it's my \"best\" clip, $HOME; #1 [x].mp4")),
    Odd("name in other scripts", lambda f: named(f, "ショベルカー – Bagger äöü 🚜.mp4")),
    Odd("name with a leading dash", lambda f: named(f, "./-i.mp4").rename(f / "-i.mp4")),
    Odd("name like a pattern", lambda f: named(f, "frame_%03d.mp4")),
    Odd("picture's name like a pattern", lambda f: encode(f / "a.png", frames=film(1)).rename(f / "frame_%03d.png"),
        shows=[0]),
    Odd("name with a colon", lambda f: named(f, "12:30.mp4")),
    Odd("name that ends in capitals", lambda f: named(f, "a.mp4").rename(f / "CLIP.MOV")),
    Odd("name with no ending", lambda f: named(f, "a.mp4").rename(f / "clip")),
    Odd("a link", linked),
]
# fmt: on


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.title)
def test_odd_clip(odd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = odd.make(tmp_path)
    clip = read(path.name, **(odd.arguments or {}))  # by its bare name, which may begin with a dash
    assert clip.size == odd.size and clip.fps == pytest.approx(odd.fps, rel=0.001)
    assert clip.has_audio == odd.sound
    if odd.shows is CUT:  # the frames before the cut, each whole
        assert numbers(clip) == [number % 48 for number in range(numbers(clip)[0], numbers(clip)[0] + len(clip))]
        assert 2 <= len(clip) <= 24
    elif odd.shows is not None:
        assert numbers(clip) == list(odd.shows)
    if odd.start is not None:
        assert clip.start == pytest.approx(odd.start, abs=0.5 / odd.fps)
    if odd.corners is not None:
        assert {corners(frame) for frame in clip.frames} == {odd.corners}
    assert len(read(write(tmp_path / "out" / "again.mp4", clip, audio_from=clip), max_seconds=600)) == len(clip)


# What is no clip


def written(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


def sound_with_cover(folder):
    Image.new("RGB", (64, 64), "magenta").save(folder / "cover.png")
    cover = ["-i", folder / "cover.png", "-map", "0", "-map", "1", "-disposition:v:0", "attached_pic"]
    ffmpeg(*SINE, *cover, "-c:v", "copy", folder / "song.m4a")
    return folder / "song.m4a"


def mixed_folder(folder):
    target = folder_of(folder, ".png")
    Image.new("RGB", (50, 40)).save(target / "frame_3.png")
    return target


def broken_folder(folder, content):
    target = folder_of(folder, ".png")
    (target / "frame_3.png").write_bytes(content)
    return target


def folder_of_clips(folder):
    (folder / "clips").mkdir()
    named(folder / "clips", "a.mp4")
    return folder / "clips"


def empty_folder(folder):
    (folder / "nothing").mkdir()
    return folder / "nothing"


def broken_link(folder):
    (folder / "link.mp4").symlink_to(folder / "gone.mp4")
    return folder / "link.mp4"


def forbidden(folder):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = named(folder, "a.mp4")
    path.chmod(0)
    return path


NOT_A_VIDEO = "is not a video that ffmpeg can read: give an mp4, mov, mkv, webm or gif file"
NO_PICTURES = "is a folder without pictures: give the path of a video file, or of a folder of frames"
NO_FRAME = "can be decoded, it is damaged: copy or download it again"
NO_PHOTO = "copy or save it again, or leave it out"

WRONG = {
    "zero bytes": (lambda f: written(f, "a.mp4", b""), "a.mp4 is empty: copy or download it again"),
    "a text": (lambda f: written(f, "a.mp4", b"my clip\n" * 99), NOT_A_VIDEO),
    "a text that ffmpeg would play": (lambda f: written(f, "notes.txt", b"my clip\n" * 99), NOT_A_VIDEO),
    "subtitles": (lambda f: written(f, "a.srt", b"1\n00:00:01,000 --> 00:00:02,000\nHello\n"), NOT_A_VIDEO),
    "a web page": (lambda f: written(f, "a.mp4", b"<!DOCTYPE html><html><body>404</body></html>"), NOT_A_VIDEO),
    "noise": (lambda f: written(f, "a.mp4", np.random.default_rng(0).bytes(5000)), NOT_A_VIDEO),
    "zeros": (lambda f: written(f, "a.mp4", bytes(5000)), NOT_A_VIDEO),
    "an mp4 without its index": (
        lambda f: cut(named(f, "a.mp4"), 0.5), "a.mp4 is damaged or was cut off before its end"),
    "an mp4 without its frames": (
        lambda f: cut(encode(f / "a.mp4", *H264, "-movflags", "+faststart"), 0.05), "cut off before its end"),
    "a picture cut off": (lambda f: cut(encode(f / "a.png", frames=film(1)), 0.5), NO_PHOTO),
    "sound only": (
        lambda f: encode(f / "a.m4a", "-map", "1", before=SINE), "a.m4a holds sound but no picture: give a video"),
    "sound with a cover": (sound_with_cover, "song.m4a holds sound but no picture: give a video"),
    "nothing there": (lambda f: f / "gone.mp4", "gone.mp4 does not exist: give the path of a video"),
    "a broken link": (broken_link, "link.mp4 does not exist: give the path of a video"),
    "a name too long": (lambda f: f / ("a" * 5000), "does not exist: give the path of a video"),
    "no user's home": (lambda f: f / "~nobody_here.mp4", "~nobody_here.mp4 does not exist"),
    "an unreadable file": (forbidden, "a.mp4 may not be read: change its permissions"),
    "an empty folder": (empty_folder, "nothing " + NO_PICTURES),
    "a folder of clips": (folder_of_clips, "clips " + NO_PICTURES),
    "a folder of mixed sizes": (mixed_folder, "the pictures in frames differ in size, frame_3.png is 50x40"),
    "a folder with a broken picture": (lambda f: broken_folder(f, b"no png"), "frame_3.png cannot be read"),
    "a folder with an empty picture": (lambda f: broken_folder(f, b""), "frame_3.png cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_clip_is_named(wrong, tmp_path, monkeypatch):
    make, message = WRONG[wrong]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClipError) as error:
        read(make(tmp_path).name)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["", " ", "a\0b"])
def test_no_name_is_no_clip(name):
    with pytest.raises(ClipError, match="does not exist: give the path of a video"):
        read(name)


def test_a_photo_in_tiles_is_put_together():
    """As phones store photos: `tests/photos/tiles.heic` is the excavator's last frame at 512x256, in 4 x 2 tiles."""
    photo = read(Path(__file__).parent / "photos" / "tiles.heic")
    whole = Image.fromarray(read("excavator").frames[-1]).resize((512, 256), Image.Resampling.LANCZOS)
    assert photo.size == (512, 256) and len(photo) == 1
    assert np.abs(photo.frames[0].astype(int) - whole).mean() < 3


# RAM, fields, sound


def test_large_frames_stay_within_the_ram(tmp_path, monkeypatch):
    frame = 3840 * 2160 * 3
    path = tmp_path / "4k.mp4"
    grey = ("-f", "lavfi", "-i", "color=gray:s=3840x2160:r=24:d=0.5")
    white = ("-vf", "drawbox=w=iw/2:h=ih:c=white:t=fill:enable='gt(n,7)'")
    ffmpeg(*grey, *white, *H264, path)
    monkeypatch.setattr(decoding, "MOST_BYTES", 4 * frame)
    tracemalloc.start()
    end = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert end.size == (3840, 2160) and end.fps == 24
    assert len(end) == 4 and end.start == pytest.approx(8 / 24)
    assert end.frames[0, 0, 0].min() > 240
    assert peak < 2.5 * 4 * frame
    beginning = read(path, from_start=True)
    assert len(beginning) == 4 and beginning.start == 0 and beginning.frames[0, 0, 0].max() < 140


def test_large_pictures_stay_within_the_ram(tmp_path, monkeypatch):
    path = folder_of(tmp_path, ".png")
    monkeypatch.setattr(decoding, "MOST_BYTES", 5 * 96 * 64 * 3)
    assert numbers(read(path)) == [7, 8, 9, 10, 11]
    assert numbers(read(path, from_start=True)) == [0, 1, 2, 3, 4]


def test_the_combs_of_interlaced_video_are_gone(tmp_path):
    clip = read(interlaced(tmp_path))
    assert (len(clip), clip.size, clip.fps) == (24, (128, 96), 24)
    lines = clip.frames[5:-5].astype(int)
    comb = np.abs(lines[:, 1:-1] - (lines[:, :-2] + lines[:, 2:]) / 2).mean()
    raw = np.full((1, 96, 128), 30)
    raw[:, ::2, 20:32], raw[:, 1::2, 22:34] = 220, 220  # how a frame was filmed
    assert np.abs(raw[:, 1:-1] - (raw[:, :-2] + raw[:, 2:]) / 2).mean() > 4 * comb
    places = [int(np.flatnonzero(frame[48, :, 0] > 125)[0]) for frame in clip.frames]
    assert np.diff(places).tolist() == pytest.approx([4] * 23, abs=2)


def heard(path):
    """When a file's sound begins and ends to be loud, in seconds; None where it is silent."""
    command = [ffmpeg_path(), "-v", "error", "-i", path, "-af", "aresample=async=1:first_pts=0"]
    command += ["-f", "s16le", "-ac", "1", "-ar", "8000", "-"]
    sound = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.int16)
    loud = np.flatnonzero(np.abs(sound.astype(int)) > 3000)
    return (loud[0] / 8000, loud[-1] / 8000) if len(loud) else None


def delayed(folder, name, video, sound):
    """Two seconds of film and a tone of three seconds, loud from 0.5 to 1.5 s; each begins at its own time."""
    encode(folder / "film.mp4", *H264, frames=film(48))
    ffmpeg(*tone(0.5, 1.5, 3), folder / "tone.wav")
    inputs = ["-itsoffset", video, "-i", folder / "film.mp4", "-itsoffset", sound, "-i", folder / "tone.wav"]
    ffmpeg(*inputs, "-map", "0:v", "-map", "1:a", "-c:v", "copy", folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("name", "video", "sound", "seconds", "expected"),
    [
        ("together.mp4", 0, 0, 10, (0.5, 1.5)),
        ("longer_sound.mkv", 0, 0, 10, (0.5, 1.5)),
        ("its_end.mp4", 0, 0, 1, (0, 0.5)),
        ("late_sound.mp4", 0, 0.4, 10, (0.9, 1.9)),
        ("late_picture.mkv", 0.5, 0, 10, (0, 1)),
        ("late_both.ts", 3, 3, 10, (0.5, 1.5)),
        ("late_both.mkv", 3, 3, 1, (0, 0.5)),
    ],
)
def test_the_sound_lies_where_it_lay(tmp_path, name, video, sound, seconds, expected):
    clip = read(delayed(tmp_path, name, video, sound), max_seconds=seconds)
    assert clip.has_audio and clip.seconds == pytest.approx(min(seconds, 2), abs=0.01)
    longer = stitch(clip, np.repeat(clip.frames[-1:], 25, axis=0), context=1)
    path = write(tmp_path / "longer.mp4", longer, audio_from=clip)
    assert read(path).seconds == pytest.approx(clip.seconds + 1, abs=0.01)
    assert heard(path) == pytest.approx(expected, abs=0.06)


def test_a_failed_write_beside_odd_names_loses_nothing(tmp_path):
    clip = Clip(film(3), 24)
    path = write(tmp_path / "it's %d – –x.mp4", clip)
    before = path.read_bytes()
    shutil.copy(path, tmp_path / "sound.mp4")
    broken = Clip(film(3), 24, path=written(tmp_path, "broken.wav", b"RIFF"), has_audio=True)
    with pytest.raises(ClipError, match="cannot be written"):
        write(path, clip, audio_from=broken)
    assert path.read_bytes() == before
    assert not [file for file in tmp_path.iterdir() if ".part" in file.name]
