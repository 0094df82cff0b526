"""Reading, fitting, showing, joining and writing clips, with real files that ffmpeg makes."""

import math
import subprocess

import numpy as np
import pytest
from PIL import Image

from helpers import clips
from helpers.clips import (
    Clip,
    ClipError,
    continuation_truth,
    ffmpeg_path,
    fit,
    poster,
    psnr,
    read,
    save_image,
    seam,
    show,
    side_by_side,
    sources,
    stitch,
    write,
)

pytestmark = pytest.mark.clips


def ffmpeg(*arguments):
    subprocess.run([ffmpeg_path(), "-v", "error", "-y", *map(str, arguments)], check=True)


def moving_square(num_frames=24, width=96, height=64, speed=1, background=40):
    """A smooth background over which a bright square moves right, `speed` pixels a frame."""
    ramp = np.linspace(background, background + 60, width).astype(np.uint8)
    frames = np.broadcast_to(ramp[None, None, :, None], (num_frames, height, width, 3)).copy()
    for index, frame in enumerate(frames):
        left = 4 + index * speed
        frame[16:40, left : left + 24] = (230, 180, 60)
    return frames


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file for each kind of input, by name."""
    folder = tmp_path_factory.mktemp("files")
    picture = ["-f", "lavfi", "-i", "testsrc=size={size}:rate={rate}:duration={seconds}"]

    def source(size="96x64", rate=24, seconds=1):
        return [part.format(size=size, rate=rate, seconds=seconds) for part in picture]

    h264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
    sound = ["-f", "lavfi", "-i", "sine=frequency=440:duration=1", "-c:a", "aac"]
    ffmpeg(*source(), *h264, folder / "silent.mp4")
    ffmpeg(*source(), *sound, *h264, folder / "sound.mp4")
    ffmpeg(*source("64x96"), *h264, folder / "portrait.mp4")
    ffmpeg(*source("175x99"), "-c:v", "libx264", "-pix_fmt", "yuv444p", folder / "odd.mp4")
    ffmpeg(*source(rate=10), folder / "animated.gif")
    ffmpeg(*source(), "-frames:v", 1, *h264, folder / "single.mp4")
    ffmpeg(*source(rate="30000/1001"), *h264, folder / "ntsc.mp4")
    ffmpeg(*source("64x48", rate=10, seconds=30), *h264, folder / "long.mp4")
    ffmpeg(*sound, folder / "audio_only.mp4")
    ffmpeg("-display_rotation", 90, "-i", folder / "silent.mp4", "-c", "copy", folder / "turned.mp4")
    ffmpeg("-i", folder / "silent.mp4", "-c", "copy", "-movflags", "+faststart", folder / "index_first.mp4")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 20)
    whole = (folder / "silent.mp4").read_bytes()
    (folder / "cut_off.mp4").write_bytes(whole[: len(whole) // 2])
    indexed = (folder / "index_first.mp4").read_bytes()
    (folder / "no_frames.mp4").write_bytes(indexed[: indexed.index(b"mdat") + 4])
    (folder / "folder.mp4").mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "frames", "size", "fps", "has_audio"),
    [
        ("silent.mp4", 24, (96, 64), 24, False),
        ("sound.mp4", 24, (96, 64), 24, True),
        ("portrait.mp4", 24, (64, 96), 24, False),
        ("turned.mp4", 24, (64, 96), 24, False),
        ("odd.mp4", 24, (175, 99), 24, False),
        ("animated.gif", 10, (96, 64), 10, False),
        ("single.mp4", 1, (96, 64), 24, False),
        ("ntsc.mp4", 30, (96, 64), 30000 / 1001, False),
    ],
)
def test_read(files, name, frames, size, fps, has_audio):
    clip = read(files / name)
    assert (len(clip), clip.size, clip.fps, clip.has_audio) == (frames, size, fps, has_audio)
    assert clip.frames.dtype == np.uint8 and clip.frames.shape == (frames, size[1], size[0], 3)
    assert clip.frames.std() > 20
    assert clip.path == files / name and clip.start == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.mp4", "does not exist: give the path of a video"),
        ("empty.mp4", "is empty: copy or download it again"),
        ("text.mp4", "is not a video that ffmpeg can read"),
        ("audio_only.mp4", "holds sound but no picture"),
        ("cut_off.mp4", "was cut off before its end"),
        ("no_frames.mp4", "no frame of no_frames.mp4 can be decoded"),
        ("folder.mp4", "is a folder without pictures: give the path of a video file"),
    ],
)
def test_read_says_what_is_wrong(files, name, message):
    with pytest.raises(ClipError) as error:
        read(files / name)
    assert message in str(error.value)


def test_read_keeps_only_the_end(files):
    clip = read(files / "long.mp4", max_seconds=2)
    assert len(clip) == 20
    assert clip.start == pytest.approx(28)
    whole = read(files / "long.mp4", max_seconds=60)
    assert len(whole) == 300
    assert np.array_equal(clip.frames, whole.frames[-20:])


def test_read_when_the_sound_outlasts_the_picture(files, tmp_path):
    ffmpeg(
        "-i",
        files / "silent.mp4",
        "-f",
        "lavfi",
        "-i",
        "sine=duration=20",
        "-c:v",
        "copy",
        tmp_path / "long_sound.mp4",
    )
    clip = read(tmp_path / "long_sound.mp4", max_seconds=2)
    assert (len(clip), clip.start) == (24, 0)


def test_bundled_clips_and_their_truth(files, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CLIPS", tmp_path)
    for name in ("excavator.mp4", "excavator_continues.mp4", "wood_chipper.mp4"):
        (tmp_path / name).write_bytes((files / "silent.mp4").read_bytes())
    assert clips.bundled() == ["excavator", "wood_chipper"]
    assert repr(read("excavator")) == "excavator: 24 frames, 96x64, 24 fps, 1.0 s, no sound"
    assert continuation_truth(read("excavator")).name == "excavator_continues"
    assert continuation_truth(read("wood_chipper")) is None
    assert continuation_truth(Clip(moving_square(), 24)) is None
    with pytest.raises(ClipError, match="Did you mean 'excavator'"):
        read("excavater")


def test_read_without_ffmpeg(files, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(files / "no_such_program"))
    assert len(read(files / "silent.mp4")), "the packaged program is taken instead"
    monkeypatch.setattr("helpers.clips.video.ffmpeg._packaged", list)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ClipError, match="IMAGEIO_FFMPEG_EXE names .*no_such_program, which is no program: run"):
        read(files / "silent.mp4")


def test_slices_are_clips():
    clip = Clip(moving_square(48), 24, start=5)
    tail = clip[-12:]
    assert (len(tail), tail.fps, tail.start) == (12, 24, 6.5)
    assert (clip[::2].fps, clip[::2].seconds) == (12, clip.seconds)
    with pytest.raises(TypeError, match=r"clip\[-9:\]"):
        clip[0]


def test_clip_refuses_floats():
    with pytest.raises(ClipError, match="must be uint8"):
        Clip(np.zeros((2, 4, 4, 3), np.float32), 24)
    with pytest.raises(ClipError, match="frames per second"):
        Clip(moving_square(2), 0)


def test_fit_to_the_same_size_changes_nothing():
    frames = moving_square()
    assert np.array_equal(fit(frames, 96, 64), frames)


@pytest.mark.parametrize("size", [(64, 64), (288, 160), (32, 96), (95, 63), (1, 1)])
def test_fit_gives_the_size(size):
    assert fit(moving_square(2), *size).shape == (2, size[1], size[0], 3)


def test_fit_cuts_the_edges_evenly():
    frames = np.zeros((1, 60, 120, 3), np.uint8)
    frames[:, :, 30:90] = 200  # the middle square
    assert (fit(frames, 60, 60) == 200).mean() > 0.95
    upright = frames.transpose(0, 2, 1, 3)
    assert (fit(upright, 60, 60) == 200).mean() > 0.95


def test_fit_does_not_alias():
    stripes = np.zeros((1, 64, 256, 3), np.uint8)
    stripes[:, :, ::2] = 255
    assert fit(stripes, 64, 16).std() < 8  # grey, not stripes


def test_poster_and_captions():
    clip = Clip(moving_square(24), 24)
    strip = poster(clip, count=4, height=64)
    assert strip.width == 4 * 96 + 3 * 2 and strip.height > 64
    assert poster(clip.frames, count=4, height=64).height == 64  # no rate, so no times
    assert poster(clip[:2], count=6, height=64).width == 2 * 96 + 2
    assert poster(clip[:1], height=64).width == 96
    with pytest.raises(ValueError, match="1 captions for 4 frames"):
        poster(clip, count=4, captions=["a"])


def test_side_by_side_has_a_row_for_each():
    clip = Clip(moving_square(24), 24)
    page = side_by_side(
        {"generated": clip, "truth": clip[::3], "portrait": clip.fit(32, 64)}, count=3, height=60
    )
    assert page.height > 3 * 60 and page.width > 3 * 90


def test_show_outside_a_notebook_does_nothing():
    assert show(Clip(moving_square(4), 24)) is None


def test_show_in_a_notebook_puts_the_picture_first(monkeypatch):
    import IPython
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", object)
    monkeypatch.setattr(IPython.display, "display", lambda data, **_: shown.append(data))
    show(Clip(moving_square(6, width=175, height=99), 24, name="excavator"))
    picture, player = shown
    assert set(picture) == {"image/png", "text/plain"}
    assert '<video controls width="176" height="100"' in player["text/html"]
    assert player["text/plain"].startswith("excavator: 6 frames")


def test_write_then_read(tmp_path):
    clip = Clip(moving_square(25), 24).fit(288, 160)  # enlarged, so without edges that 4:2:0 cannot hold
    path = write(tmp_path / "new" / "continued.mp4", clip)
    again = read(path)
    assert (len(again), again.size, again.fps, again.has_audio) == (25, (288, 160), 24, False)
    assert psnr(clip.frames, again.frames) > 38
    assert abs(again.frames.mean() - clip.frames.mean()) < 0.5
    assert [file.name for file in path.parent.iterdir()] == ["continued.mp4"]
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")


@pytest.mark.parametrize("fps", [7, 8, 16, 24, 30000 / 1001])
def test_write_keeps_the_rate(tmp_path, fps):
    assert read(write(tmp_path / "clip.mp4", Clip(moving_square(9), fps))).fps == fps


def test_write_pads_odd_sizes(tmp_path):
    clip = Clip(moving_square(3), 24).fit(287, 159)
    again = read(write(tmp_path / "odd.mp4", clip))
    assert again.size == (288, 160)
    assert psnr(clip.frames, again.frames[:, :159, :287]) > 38


def sound_samples(path, start=0.0):
    """Seconds of sound in a file and its loudest sample, from `start` on."""
    command = [
        ffmpeg_path(),
        "-v",
        "error",
        "-ss",
        str(start),
        "-i",
        str(path),
        "-f",
        "s16le",
        "-ac",
        "1",
        "-ar",
        "8000",
        "-",
    ]
    samples = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.int16)
    return len(samples) / 8000, int(np.abs(samples).max(initial=0))


def test_write_keeps_the_sound_under_the_beginning(files, tmp_path):
    clip = read(files / "sound.mp4")
    longer = stitch(clip, np.repeat(clip.frames[-1:], 25, 0), context=1)
    path = write(tmp_path / "continued.mp4", longer, audio_from=clip)
    again = read(path)
    assert again.has_audio and len(again) == 48
    seconds, loudest = sound_samples(path)
    assert seconds == pytest.approx(1, abs=0.1) and loudest > 1000


def test_write_takes_the_sound_from_where_the_frames_start(tmp_path):
    late = "aevalsrc='if(gt(t,2),sin(2*PI*440*t),0)':d=3"  # silence, and a tone in the third second
    ffmpeg(
        "-f",
        "lavfi",
        "-i",
        "testsrc=s=96x64:r=24:d=3",
        "-f",
        "lavfi",
        "-i",
        late,
        "-pix_fmt",
        "yuv420p",
        tmp_path / "in.mp4",
    )
    end = read(tmp_path / "in.mp4", max_seconds=1)
    path = write(tmp_path / "out.mp4", end, audio_from=end)
    assert sound_samples(path)[0] == pytest.approx(1, abs=0.1)
    assert sound_samples(path)[1] > 10000
    silent = read(tmp_path / "in.mp4")[:24]
    assert sound_samples(write(tmp_path / "start.mp4", silent, audio_from=silent))[1] < 1000


def test_write_without_sound_to_take(files, tmp_path):
    clip = read(files / "silent.mp4")
    assert not read(write(tmp_path / "out.mp4", clip, audio_from=clip)).has_audio


def test_failed_write_keeps_the_file_that_was_there(tmp_path):
    clip = Clip(moving_square(5), 24)
    path = write(tmp_path / "continued.mp4", clip)
    before = path.read_bytes()
    with pytest.raises(ClipError, match=r"continued.mp4 cannot be written: .*crf"):
        write(path, clip, crf=-5000)
    lost = Clip(clip.frames, 24, path=tmp_path / "gone.mp4", has_audio=True)
    with pytest.raises(ClipError, match=r"gone.mp4"):
        write(path, clip, audio_from=lost)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_write_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    clip = Clip(moving_square(2), 24)
    with pytest.raises(ClipError, match=r"file/out.mp4 cannot be written"):
        write(tmp_path / "file" / "out.mp4", clip)
    with pytest.raises(ClipError, match=r"must end in .mp4"):
        write(tmp_path / "out.avi", clip)
    with pytest.raises(ClipError, match="has no frames"):
        write(tmp_path / "out.mp4", clip[:0])
    with pytest.raises(ClipError, match=r"file/a.png cannot be written"):
        save_image(tmp_path / "file" / "a.png", Image.new("RGB", (4, 4)))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_save_image(tmp_path):
    path = save_image(tmp_path / "new" / "poster.png", Image.new("RGB", (8, 4), "red"))
    assert Image.open(path).size == (8, 4)
    assert [file.name for file in path.parent.iterdir()] == ["poster.png"]


@pytest.mark.parametrize(
    ("fps", "new_frames", "context", "expected"),
    [
        (None, 25, 1, 24),  # the same rate: every frame once
        (24, 25, 9, 16),
        (8, 9, 1, 24),  # a third of the rate: each frame three times, 1 s
        (16, 17, 1, 24),
        (48, 49, 1, 24),  # twice the rate: every second frame
        (7, 25, 1, round(24 / 7 * 24)),
    ],
)
def test_stitch_keeps_rate_and_seconds(fps, new_frames, context, expected):
    clip = Clip(moving_square(24), 24)
    new = moving_square(new_frames, background=100)
    longer = stitch(clip, new, fps=fps, context=context)
    assert (len(longer) - 24, longer.fps, longer.has_audio) == (expected, 24, False)
    assert longer.seconds == pytest.approx(1 + (new_frames - context) / (fps or 24), abs=0.5 / 24)
    assert np.array_equal(longer.frames[:24], clip.frames)
    first = context + 1 if fps == 48 else context
    assert np.array_equal(longer.frames[24], new[first])
    assert np.array_equal(longer.frames[-1], new[-1])


def test_stitch_repeats_each_slow_frame_as_often():
    clip = Clip(moving_square(2), 24)
    new = moving_square(3)
    shown = stitch(clip, new, fps=8, context=0).frames[2:]
    assert np.array_equal(shown, np.repeat(new, 3, axis=0))


@pytest.mark.parametrize(
    ("width", "context", "message"),
    [
        (64, 1, "the clip is 96x64 and its continuation 64x64: fit the clip first, clip.fit(64, 64)"),
        (96, 5, "context=5: the continuation has 5 frames, so give 0 to 4"),
        (96, -1, "context=-1"),
    ],
)
def test_stitch_says_what_is_wrong(width, context, message):
    with pytest.raises(ClipError) as error:
        stitch(Clip(moving_square(3), 24), moving_square(5)[:, :, :width], context=context)
    assert message in str(error.value)


def test_psnr():
    a = np.full((2, 4, 4, 3), 100, np.uint8)
    assert psnr(a, a) == math.inf
    assert psnr(a, a + 1) == pytest.approx(48.13, abs=0.01)
    assert psnr(a, a - 1) == psnr(a, a + 1)
    with pytest.raises(ValueError, match="shapes differ"):
        psnr(a, a[:1])


def test_seam_of_a_smooth_join():
    frames = moving_square(48)
    figures = seam(Clip(frames[:24], 24), frames[24:])
    assert figures.ratio == pytest.approx(1, abs=0.3)
    assert abs(figures.brightness_step) < 0.5 and not figures.frozen
    assert "the continuation moves" in repr(figures)


def wave(times):
    """A wave 96 pixels long that moves 48 pixels a second, at the given times."""
    phase = 2 * np.pi * (np.arange(96) - 48 * np.asarray(times)[:, None]) / 96
    row = (128 + 100 * np.sin(phase)).round().astype(np.uint8)
    return np.broadcast_to(row[:, None, :, None], (len(times), 8, 96, 3))


@pytest.mark.parametrize("rate", [120, 48, 30, 24, 16, 8])
@pytest.mark.parametrize("new_rate", [24, 16, 7])
def test_seam_where_the_continuation_has_another_frame_rate(rate, new_rate):
    before, end = Clip(wave(np.arange(rate) / rate), rate), (rate - 1) / rate
    after = wave(end + np.arange(1, 13) / new_rate)
    figures = seam(before, after, fps=new_rate)
    assert figures.ratio == pytest.approx(1, abs=0.05) and not figures.frozen
    frozen = seam(before, np.repeat(before.frames[-1:], 12, axis=0), fps=new_rate)
    assert (frozen.jump, frozen.frozen) == (0, True)
    if rate == 30 and new_rate == 24:  # without the rate, a step of 1/24 s is held against the clip's 1/30 s
        assert seam(before, after).ratio == pytest.approx(1.25, abs=0.05)


def test_seam_refuses_a_rate_of_0():
    with pytest.raises(ValueError, match="fps=0: give the frames per second"):
        seam(Clip(moving_square(8), 24), moving_square(8), fps=0)


def test_seam_after_a_clip_shorter_than_a_step():
    frames = moving_square(12)
    assert math.isnan(seam(Clip(frames[:3], 24), frames[3:], fps=7).usual)
    assert seam(Clip(frames[:5], 24), frames[5:], fps=7).usual > 0


def test_seam_of_a_frozen_and_brighter_continuation():
    frames = moving_square(24)
    still = np.repeat(frames[-1:] + 10, 12, axis=0)
    figures = seam(Clip(frames, 24), still)
    assert figures.frozen and figures.brightness_step == pytest.approx(10, abs=0.01)
    assert figures.jump == pytest.approx(10, abs=0.01) and figures.ratio > 3
    assert "FROZEN" in repr(figures)


def test_seam_after_a_single_frame():
    frames = moving_square(8)
    figures = seam(Clip(frames[:1], 24), frames[1:])
    assert math.isnan(figures.usual) and not figures.frozen
    repr(figures)


def test_the_beginning_can_be_read_in_place_of_the_end():
    whole = read("excavator")
    beginning, end = read("excavator", max_seconds=0.5, from_start=True), read("excavator", max_seconds=0.5)
    assert len(beginning) == len(end) == 12
    assert np.array_equal(beginning.frames, whole.frames[:12]) and beginning.start == 0
    assert np.array_equal(end.frames, whole.frames[-12:]) and end.start == pytest.approx(2.5)
