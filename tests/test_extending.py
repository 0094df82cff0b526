"""A clip's whole file, and new frames behind it: nothing of the file is lost, whatever it is."""

import itertools
import shutil
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from helpers.clips import ClipError, extend, ffmpeg_path, psnr, read
from helpers.clips.fitting import softened
from helpers.clips.joining import sharpness_kept
from helpers.clips.video.probing import probe
from helpers.clips.video.sound import AFTERWARDS
from tests.notebook_style import ROOT

pytestmark = pytest.mark.clips
CHIPPER = ROOT / "data" / "clips" / "wood_chipper.mp4"
NEW = 12  # frames
H264 = "-c:v libx264 -preset veryfast -crf 18 -pix_fmt yuv420p -c:a aac"
HLG = (
    "-vf scale=320:180,zscale=tin=709:min=709:pin=709:t=arib-std-b67:p=2020:m=2020_ncl:npl=203,format=yuv420p10le "
    "-c:v libx265 -preset ultrafast -x265-params log-level=error:colorprim=bt2020:transfer=arib-std-b67:"
    "colormatrix=bt2020nc -c:a aac"
)


@dataclass(frozen=True)
class Film:
    """A file to extend, made of two seconds of a bundled clip, with the way its own frames are expected to be kept."""

    name: str
    options: str
    how: str = "copy"
    source: str = ""  # another film that it is made of
    least: float = 45.0  # PSNR of its own frames where they are encoded again, in dB


FILMS = [
    *(Film(f"at_{rate.replace('/', '_')}.mp4", f"-vf scale=320:180,fps={rate} {H264}")
      for rate in ("8", "12", "15", "24000/1001", "25", "30000/1001", "50", "60")),
    Film("plain.mp4", f"-vf scale=320:180 {H264}"),
    Film("portrait.mp4", f"-vf crop=406:720,scale=202:360 {H264}"),
    Film("turned.mov", "-c copy", source="plain.mp4"),
    Film("upside_down.mov", "-c copy", source="plain.mp4"),
    Film("variable.mp4", f"-vf scale=320:180,select='not(mod(n\\,5))+not(mod(n\\,3))' -fps_mode passthrough {H264}"),
    Film("base.mp4", f"-vf scale=320:180 -profile:v baseline {H264}"),
    Film("hevc.mp4", "-vf scale=320:180 -c:v libx265 -preset ultrafast -x265-params log-level=error -pix_fmt yuv420p "
                     "-tag:v hvc1 -c:a aac"),
    Film("full.mp4", f"-vf scale=320:180:out_range=pc -color_range pc {H264.replace('yuv420p', 'yuvj420p')}"),
    Film("vp9.webm", "-vf scale=320:180 -c:v libvpx-vp9 -cpu-used 8 -row-mt 1 -b:v 1M -c:a libopus"),
    Film("av1.mkv", "-vf scale=320:180 -c:v libsvtav1 -preset 12 -svtav1-params tune=0 -c:a libopus"),
    Film("wide_pixels.mp4", f"-vf scale=240:180,setsar=4/3 {H264}"),
    Film("vorbis.mkv", f"-vf scale=320:180 {H264.replace('aac', 'libvorbis')}"),
    Film("stream.ts", "-c copy", source="plain.mp4"),
    Film("reordered.avi", f"-vf scale=320:180 {H264.replace('aac', 'mp3')}", how="encode"),
    Film("hlg.mov", HLG, how="encode", least=40),
    Film("prores.mov", "-vf scale=320:180 -c:v prores_ks -profile:v 2 -c:a pcm_s16le", how="encode"),
    Film("mpeg2.mpg", "-vf scale=320:180 -r 25 -c:v mpeg2video -b:v 6M -c:a mp2", how="encode"),
    Film("fields.mp4", f"-vf scale=320:180,interlace -flags +ildct+ilme {H264}", how="encode"),
    Film("full_chroma.mp4", f"-vf scale=320:180 {H264.replace('yuv420p', 'yuv444p')}", how="encode"),
    Film("raw.h264", "-c copy -an -bsf:v h264_mp4toannexb", how="encode", source="plain.mp4"),
    Film("animated.gif", "-an -vf fps=12,scale=160:90 -t 1", how="encode", least=18),  # its dithering is coarse colour
]  # fmt: skip


def named(name):
    return next(one for one in FILMS if one.name == name)


BEFORE = {"turned.mov": ["-display_rotation", "90"], "upside_down.mov": ["-display_rotation", "180"]}


def ffmpeg(*arguments):
    subprocess.run([ffmpeg_path(), "-v", "error", "-y", "-nostdin", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="module")
def film(folder):
    """Makes a film, once."""

    def make(wanted: Film) -> Path:
        path = folder / wanted.name
        if not path.exists():
            sources = ["-t", "2", "-i", CHIPPER, "-f", "lavfi", "-t", "2", "-i", "sine=f=440:r=48000"]
            if wanted.source:
                sources = ["-i", make(named(wanted.source))]
            ffmpeg(*BEFORE.get(wanted.name, []), *sources, *wanted.options.split(), path)
        return path

    return make


def longer(clip, path, **more):
    """The clip's file with `NEW` frames that move its last frame sideways, in two pieces."""
    new = np.stack([np.roll(clip.frames[-1], 2 * step, axis=1) for step in range(1, NEW + 1)])
    return new, extend(clip, lambda: [new[:5], new[5:]], rate=clip.rate, path=path, **more)


def decoded(path):
    """The frames of a film as they are stored, decoded one by one."""
    with av.open(str(path)) as file:
        yield from file.decode(file.streams.video[0])


def heard(path, index=0):
    """When the sound begins and ends, in seconds after the first frame."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        begin = min(packet.pts for packet in itertools.islice(file.demux(stream), 20) if packet.pts is not None)
        begin = float(begin * stream.time_base)
    with av.open(str(path)) as file:
        frames = list(file.decode(file.streams.audio[index]))
    return frames[0].time - begin, frames[-1].time + frames[-1].samples / frames[-1].sample_rate - begin


@pytest.mark.parametrize("wanted", FILMS, ids=lambda one: one.name)
def test_the_clip_is_whole_and_the_new_frames_follow(film, tmp_path, wanted):
    path = film(wanted)
    clip, facts = read(path), probe(path)
    new, made = longer(clip, tmp_path / "continued.mp4")
    assert made.how == wanted.how, made.why
    old = 0
    result = decoded(made.path)
    for own in decoded(path):
        other, old = next(result), old + 1
        if made.how == "copy":
            assert np.array_equal(own.to_ndarray(), other.to_ndarray()), f"frame {old} of the clip is not its own"
    assert sum(1 for _ in result) == NEW

    shown = read(made.path)
    varies = path.name == "variable.mp4"
    # A GIF's own times are hundredths of a second, so that its rate is known to a frame in a hundred.
    rel = 0.2 if varies else 0.01 if wanted.name.endswith(".gif") else 1e-9
    assert shown.size == clip.size and shown.fps == pytest.approx(clip.fps, rel=rel)
    if not varies:  # in a file of variable rate, reading picks frames for a steady one
        assert psnr(shown.frames[-NEW:], new) > (17 if path.suffix == ".gif" else 38)
        count = min(len(clip), len(shown) - NEW)
        least = wanted.least if made.how == "encode" else 60
        assert psnr(shown.frames[-NEW - count : -NEW], clip.frames[-count:]) > least

    after = probe(made.path)
    assert made.seconds - made.join == pytest.approx(NEW / clip.fps, abs=1e-3)
    assert after.seconds == pytest.approx(made.seconds, abs=0.03)
    colour = facts.colour
    if made.how == "copy":
        assert after.colour == colour and (after.codec, after.rotation) == (facts.codec, facts.rotation)
    elif colour.hdr or colour.rgb:
        assert (after.colour.matrix, after.colour.primaries, after.colour.transfer) == (1, 1, 1)
    if facts.sound is not None and facts.timed:
        (before, end), (begin, stop) = heard(path), heard(made.path)
        assert begin == pytest.approx(before, abs=0.025) and stop == pytest.approx(min(end, made.join), abs=0.05)


def test_three_rounds_keep_the_first_clip_bit_by_bit(film, tmp_path):
    path = first = film(named("plain.mp4"))
    count = len(read(first))
    for turn in range(1, 4):
        _, made = longer(read(path), tmp_path / f"round_{turn}.mp4")
        assert made.how == "copy"
        path = made.path
    frames = list(decoded(path))
    assert len(frames) == count + 3 * NEW
    assert all(np.array_equal(a.to_ndarray(), b.to_ndarray()) for a, b in zip(decoded(first), frames, strict=False))
    assert probe(path).seconds == pytest.approx((count + 3 * NEW) / 24, abs=0.03)


def test_all_of_a_long_film_is_kept_and_ram_stays_flat(film, tmp_path):
    long = tmp_path / "long.mp4"
    ffmpeg("-stream_loop", 149, "-i", film(named("plain.mp4")), "-c", "copy", long)  # five minutes
    clip = read(long)
    assert clip.seconds == pytest.approx(10, abs=0.1)
    _, made = longer(clip, tmp_path / "continued.mp4")
    assert made.how == "copy" and made.join == pytest.approx(probe(long).seconds, abs=0.1)
    with av.open(str(long)) as file:
        packets = sum(packet.size > 0 for packet in file.demux(file.streams.video[0]))
    with av.open(str(made.path)) as file:
        assert sum(packet.size > 0 for packet in file.demux(file.streams.video[0])) == packets + NEW


def test_the_default_sound_track_is_used_and_a_late_one_stays_late(film, tmp_path):
    plain, two = film(named("plain.mp4")), tmp_path / "two.mkv"
    ffmpeg("-i", plain, "-f", "lavfi", "-t", 2, "-i", "sine=f=880", "-map", "0:v", "-map", "0:a", "-map", "1:a", "-c:v",
           "copy", "-c:a", "aac", "-disposition:a:0", "0", "-disposition:a:1", "default", two)  # fmt: skip
    assert probe(two).sound.index == 2
    late = tmp_path / "late.ts"
    ffmpeg("-i", plain, "-itsoffset", 0.69, "-i", plain, "-map", "0:v", "-map", "1:a", "-c", "copy", late)
    _, made = longer(read(late), tmp_path / "continued.mp4")
    assert heard(made.path)[0] == pytest.approx(heard(late)[0], abs=0.025)
    assert heard(made.path)[0] > 0.6


def test_sound_that_cannot_be_decoded_is_found_before_anything_long(film, tmp_path):
    plain, broken = film(named("plain.mp4")), tmp_path / "broken.mov"
    ffmpeg("-i", plain, "-map", "0:v", "-map", "0:a", "-c:v", "copy", "-c:a", "adpcm_ima_qt", broken)
    data = broken.read_bytes()
    broken.write_bytes(data.replace(b"ima4", b"zzz4"))
    clip = read(broken)
    assert not clip.has_audio and "a sound track that cannot be decoded: the result is silent" in repr(clip)
    _, made = longer(clip, tmp_path / "continued.mp4")
    assert probe(made.path).sound is None and made.how == "copy"


@pytest.mark.parametrize("afterwards", AFTERWARDS)
def test_what_is_heard_with_the_new_frames(film, tmp_path, afterwards):
    _, made = longer(read(film(named("plain.mp4"))), tmp_path / "continued.mp4", afterwards=afterwards)
    with av.open(str(made.path)) as file:
        sound = np.concatenate([f.to_ndarray().astype(float).mean(0) for f in file.decode(audio=0)])
        rate = file.streams.audio[0].rate
    loud = [np.abs(sound[int(at * rate) : int((at + 0.1) * rate)]).mean() if len(sound) > at * rate else 0
            for at in (1.0, 1.85, 2.2, 2.35)]  # fmt: skip
    if afterwards == "silence":
        assert loud[1] > 0.5 * loud[0] and loud[3] < 0.05 * loud[0]
    elif afterwards == "fade":
        assert loud[1] < 0.5 * loud[0] and loud[3] < 0.05 * loud[0]
    else:
        assert loud[2] > 0.5 * loud[0] and loud[3] > 0.5 * loud[0]


def test_the_readers_choice_and_wrong_ones(film, tmp_path):
    clip = read(film(named("plain.mp4")))
    _, made = longer(clip, tmp_path / "again.mp4", original="encode")
    assert made.how == "encode" and "you asked for it" in made.why
    assert probe(made.path).colour == probe(clip.path).colour, "in its own colours"
    with pytest.raises(ClipError, match="original='keep': there are copy, encode, and None"):
        longer(clip, tmp_path / "no.mp4", original="keep")
    with pytest.raises(ClipError, match="afterwards='music': there are silence, fade, room"):
        longer(clip, tmp_path / "no.mp4", afterwards="music")
    with pytest.raises(ClipError, match="no new frames"):
        extend(clip, lambda: [], rate=24, path=tmp_path / "no.mp4")
    assert not (tmp_path / "no.mp4").exists() and not list(tmp_path.glob(".*")), "nothing is left behind"


def test_a_full_disk_is_named_before_anything_is_written(film, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ClipError, match=r"continued.mp4 needs about 0\.\d+ GiB of disk, and 0.01 GiB are free"):
        longer(read(film(named("plain.mp4"))), tmp_path / "continued.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_film_that_changes_its_size_goes_on_in_its_last_size(film, tmp_path):
    small, large = film(named("at_25.mp4")), tmp_path / "large.mp4"
    ffmpeg("-i", small, "-vf", "scale=480:270", *H264.split(), large)
    parts = [tmp_path / "a.ts", tmp_path / "b.ts"]
    for source, part in zip((small, large), parts, strict=True):
        ffmpeg("-i", source, "-c", "copy", part)
    changed = tmp_path / "changed.ts"
    changed.write_bytes(b"".join(part.read_bytes() for part in parts))
    clip = read(changed)
    assert clip.size == (480, 270)
    _, made = longer(clip, tmp_path / "continued.mp4")
    assert made.how == "encode" and "its size changes in the middle" in made.why
    assert read(made.path).size == (480, 270)


@pytest.mark.parametrize("name", ["plain.mp4", "turned.mov", "stream.ts", "hlg.mov", "a folder"])
def test_the_end_grows_softer_where_asked(film, tmp_path, name):
    if name == "a folder":
        source = tmp_path / "frames"
        source.mkdir()
        for number, frame in enumerate(read(film(named("plain.mp4"))).frames):
            Image.fromarray(frame).save(source / f"{number}.png")
    else:
        source = film(named(name))
    clip = read(source)
    soft = clip.width // 4, clip.height // 4
    _, made = longer(clip, tmp_path / "continued.mp4", soften=0.5, soft=soft)
    assert made.how == "encode"
    again = read(made.path)[: len(clip)]
    sharp = -(-len(clip) * 3 // 4)  # frames of two seconds
    assert psnr(again.frames[:sharp], clip.frames[:sharp]) > 40
    assert psnr(again.frames[-1:], softened(clip.frames[-1:], soft)) > 35
    assert sharpness_kept(clip.frames[-1], again.frames[-1]) < 0.45
    middle = (sharp + len(clip)) // 2
    assert 0.4 < sharpness_kept(clip.frames[middle], again.frames[middle]) < 0.85


def test_a_single_picture_and_a_folder_become_films(tmp_path):
    clip = read("excavator", max_seconds=1).fit(160, 90)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{number}.png")
    for source, count in ((tmp_path / "frames", len(clip)), (tmp_path / "frames" / "3.png", 1)):
        _, made = longer(read(source), tmp_path / "continued.mp4")
        assert made.how == "encode" and len(list(decoded(made.path))) == count + NEW


def test_exact_rates_stay_exact(film, tmp_path):
    clip = read(film(named("at_24000_1001.mp4")))
    assert clip.rate == Fraction(24000, 1001)
    _, made = longer(clip, tmp_path / "continued.mp4")
    assert Fraction(24000, 1001) in probe(made.path).rates


def test_what_was_trimmed_away_does_not_come_back(film, tmp_path):
    """An edit list hides frames that the file still holds; `-c copy` from the middle of a film writes one."""
    ffmpeg("-ss", "0.4", "-i", film(named("plain.mp4")), "-c", "copy", tmp_path / "trimmed.mp4")
    clip = read(tmp_path / "trimmed.mp4")
    hidden = sum(1 for _ in packets(clip.path)) - len(clip)
    assert hidden > 0
    _, made = longer(clip, tmp_path / "continued.mp4")
    assert made.how == "encode" and "it was trimmed" in made.why
    again = read(made.path)
    assert len(again) == len(clip) + NEW and psnr(again.frames[: len(clip)], clip.frames) > 45


def packets(path, kind="video"):
    with av.open(str(path)) as file:
        yield from (packet for packet in file.demux(getattr(file.streams, kind)[0]) if packet.size)


@pytest.mark.parametrize("name", ["plain.mp4", "hevc.mp4", "at_24000_1001.mp4"])
def test_the_rate_stays_constant_where_frames_are_stored_in_another_order(film, tmp_path, name):
    clip = read(film(named(name)))
    _, made = longer(clip, tmp_path / "continued.mp4")
    assert made.how == "copy"
    assert len(set(np.diff([packet.dts for packet in packets(made.path)]))) == 1
    with av.open(str(clip.path)) as old, av.open(str(made.path)) as new:
        assert old.streams.video[0].codec_context.codec_tag == new.streams.video[0].codec_context.codec_tag
        assert new.streams.video[0].average_rate == clip.rate


@pytest.mark.parametrize("afterwards", AFTERWARDS)
@pytest.mark.parametrize("name", ["late.ts", "late.mkv", "late.mp4"])
def test_sound_stays_with_the_picture_whatever_follows(film, tmp_path, name, afterwards):
    """A tone from 1.0 s of the picture on, in files that begin at 3 s, or whose sound begins late."""
    tone = "sine=f=440:r=48000:d=1,adelay=300:all=1"  # its track begins 0.7 s after the picture
    start = "0" if name == "late.mp4" else "3"
    picture, late = film(named("plain.mp4")), str(float(start) + 0.7)
    ffmpeg("-itsoffset", start, "-i", picture, "-itsoffset", late, "-f", "lavfi", "-i", tone, "-map", "0:v", "-map",
           "1:a", "-c:v", "copy", "-c:a", "aac", "-copyts", tmp_path / name)  # fmt: skip
    clip = read(tmp_path / name)
    _, made = longer(clip, tmp_path / "continued.mp4", afterwards=afterwards)
    assert made.how == "copy"
    command = [ffmpeg_path(), "-v", "error", "-i", made.path, "-af", "aresample=async=1:first_pts=0", "-f", "s16le"]
    heard = subprocess.run([*command, "-ac", "1", "-ar", "8000", "-"], capture_output=True, check=True).stdout
    loud = np.flatnonzero(np.abs(np.frombuffer(heard, np.int16).astype(int)) > 1500)
    assert loud[0] / 8000 == pytest.approx(1.0, abs=0.025)


def test_what_is_left_out_and_what_changes_is_said(film, tmp_path):
    text = tmp_path / "words.srt"
    text.write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    plain, hlg = film(named("plain.mp4")), film(named("hlg.mov"))
    ffmpeg("-i", plain, "-i", text, "-map", "0:v", "-map", "0:a", "-map", "0:a", "-map", "1", "-c", "copy", "-c:s",
           "mov_text", "-metadata", "title=Mine", "-metadata:s:a:0", "language=deu", tmp_path / "more.mp4")  # fmt: skip
    _, made = longer(read(tmp_path / "more.mp4"), tmp_path / "continued.mp4")
    assert made.how == "copy" and "Left out: other sound tracks, subtitles." in made.why
    with av.open(str(made.path)) as file:
        assert file.metadata["title"] == "Mine" and file.streams.audio[0].metadata["language"] == "deu"
    _, made = longer(read(hlg), tmp_path / "continued.mp4")
    assert "HDR becomes BT.709, and each colour has 8 bits" in made.why
    long_sound = ["-f", "lavfi", "-t", "4", "-i", "sine=f=440:r=48000", "-map", "0:v", "-map", "1:a"]
    ffmpeg("-i", plain, *long_sound, "-c:v", "copy", "-c:a", "aac", tmp_path / "sound.mp4")
    _, made = longer(read(tmp_path / "sound.mp4"), tmp_path / "continued.mp4")
    assert "Its sound goes on for 2.0 s after its picture" in made.why


@pytest.mark.parametrize("soften", [-1, float("nan")])
def test_seconds_of_softening_are_checked(film, tmp_path, soften):
    with pytest.raises(ClipError, match="give seconds, from 0"):
        longer(read(film(named("plain.mp4"))), tmp_path / "continued.mp4", soften=soften, soft=(80, 45))
