"""Colours are read as a file's tags say, and as players guess where it has none; what is written says what it is."""

import struct
import subprocess

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from helpers.clips import Clip, ffmpeg_path, read, write
from helpers.clips.video.probing import probe
from tests.notebook_style import ROOT

pytestmark = pytest.mark.clips
CHIPPER = ROOT / "data" / "clips" / "wood_chipper.mp4"
PATCHES = np.array(
    [(200, 40, 40), (40, 180, 60), (50, 60, 210), (220, 200, 60), (128, 128, 128), (16, 16, 16)], np.uint8
)


def patches(width, height):
    """A frame of six flat colours, side by side."""
    return np.repeat(PATCHES, width // len(PATCHES), axis=0)[None].repeat(height, axis=0)


def seen(frame):
    """The colour in the middle of each patch."""
    height, width = frame.shape[:2]
    rows, step = slice(height // 2 - 4, height // 2 + 4), width // len(PATCHES)
    return np.array([frame[rows, step * n + step // 2].mean(0) for n in range(len(PATCHES))])


def stored(path, size, filters, *options):
    """A film of one second of the patches, stored by ffmpeg with these filters."""
    raw = patches(*size)[None].repeat(6, axis=0)
    command = [ffmpeg_path(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "{}x{}".format(*size)]
    command += ["-r", "6", "-i", "-", "-vf", filters, "-c:v", "libx264", "-crf", "8", *options, str(path)]
    subprocess.run(command, input=raw.tobytes(), check=True)
    return path


UNTAGGED = "setparams=colorspace=unknown:color_primaries=unknown:color_trc=unknown"


@pytest.mark.parametrize(
    ("size", "filters"),
    [
        ((960, 720), f"scale=out_color_matrix=bt709,format=yuv420p,{UNTAGGED}"),
        ((600, 480), f"scale=out_color_matrix=smpte170m,format=yuv420p,{UNTAGGED}"),
        ((600, 480), "scale=out_color_matrix=bt709,format=yuv420p,setparams=colorspace=bt709"),
        ((960, 720), "scale=out_color_matrix=smpte170m,format=yuv420p,setparams=colorspace=smpte170m"),
        ((960, 720), "scale=out_color_matrix=bt709:out_range=pc,format=yuvj420p,setparams=colorspace=bt709:range=pc"),
        ((600, 480), "format=yuv444p,scale=out_color_matrix=bt2020,setparams=colorspace=bt2020nc"),
    ],
    ids=["untagged HD", "untagged SD", "SD in BT.709", "HD in BT.601", "full range", "BT.2020's matrix"],
)
def test_colours_are_what_the_tags_say(tmp_path, size, filters):
    frame = read(stored(tmp_path / "film.mp4", size, filters)).frames[-1]
    assert np.abs(seen(frame) - PATCHES).max() <= 3


@pytest.mark.parametrize(
    ("transfer", "tag"), [("arib-std-b67", "arib-std-b67"), ("smpte2084", "smpte2084")], ids=["HLG", "HDR10"]
)
def test_hdr_of_ordinary_brightness_looks_as_it_did_before(tmp_path, transfer, tag):
    path = tmp_path / "hdr.mov"
    scale = f"scale=320:180,zscale=tin=709:min=709:pin=709:t={transfer}:p=2020:m=2020_ncl:npl=203,format=yuv420p10le"
    params = f"log-level=error:colorprim=bt2020:transfer={tag}:colormatrix=bt2020nc"
    command = [ffmpeg_path(), "-v", "error", "-t", "0.5", "-i", CHIPPER, "-vf", scale, "-c:v", "libx265"]
    subprocess.run([*command, "-preset", "ultrafast", "-crf", "14", "-x265-params", params, path], check=True)
    clip, before = read(path), read(CHIPPER, max_seconds=0.5, from_start=True).fit(320, 180)
    assert "is HDR: its colours are tone-mapped" in repr(clip)
    difference = clip.frames[-1].astype(int) - before.frames[len(clip) - 1]
    assert np.abs(difference.mean(axis=(0, 1))).max() < 1.5 and np.abs(difference).mean() < 3


# Display P3 (D65, adapted to D50 as ICC profiles are): its primaries in XYZ, and in linear sRGB.
P3_PRIMARIES = {"r": (0.51512, 0.2412, -0.00105), "g": (0.29198, 0.69225, 0.04189), "b": (0.1571, 0.06657, 0.78407)}
P3_TO_SRGB = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])


def display_p3():
    """The bytes of a colour profile: sRGB's, with other primaries and another name."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for entry in range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12):
        name, (at, _) = profile[entry : entry + 4].decode(), struct.unpack(">II", profile[entry + 4 : entry + 12])
        if name in ("rXYZ", "gXYZ", "bXYZ"):
            profile[at + 8 : at + 20] = struct.pack(">3i", *(round(x * 65536) for x in P3_PRIMARIES[name[0]]))
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "wide".encode("utf-16-be"))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_photo_with_a_colour_profile_comes_in_srgb(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    options = {"quality": 100, "subsampling": 0} if suffix == ".jpg" else {}
    Image.fromarray(patches(96, 64)).save(path, icc_profile=display_p3(), **options)
    clip = read(path)
    linear = np.where(PATCHES <= 0.04045 * 255, PATCHES / 255 / 12.92, ((PATCHES / 255 + 0.055) / 1.055) ** 2.4)
    linear = (linear @ P3_TO_SRGB.T).clip(0, 1)
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    assert np.abs(expected - PATCHES).max() > 20
    assert np.abs(seen(clip.frames[0]) - expected).max() < 3
    assert "converted to sRGB" in clip.notes[0]


def test_an_opaque_gif_keeps_its_values(tmp_path):
    path = tmp_path / "flat.gif"
    raw = patches(120, 64)[None].repeat(4, axis=0)
    command = [ffmpeg_path(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "120x64", "-r", "10"]
    palette = ["-i", "-", "-vf", "split[a][b];[a]palettegen[p];[b][p]paletteuse"]
    subprocess.run([*command, *palette, path], input=raw.tobytes(), check=True)
    assert np.array_equal(seen(read(path).frames[-1]), PATCHES)


@pytest.mark.parametrize("size", [(600, 480), (960, 720)])
def test_what_is_written_says_what_it_is_and_two_decoders_agree(tmp_path, size):
    path = write(tmp_path / "written.mp4", Clip(patches(*size)[None].repeat(6, axis=0), 6.0), crf=8)
    colour = probe(path).colour
    assert (colour.matrix, colour.primaries, colour.transfer, colour.full) == (1, 1, 1, False)
    assert np.abs(seen(read(path).frames[-1]) - PATCHES).max() <= 3
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
    other = frame.reformat(format="rgb24", src_colorspace="ITU709", dst_colorspace="ITU709").to_ndarray()
    assert np.abs(seen(other) - PATCHES).max() <= 3
