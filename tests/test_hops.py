"""Hops on disk, a prompt for each, and what a video loses while it goes on."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from data.make.measurements import drift
from helpers import clips
from helpers.hops import HopError, Hops, prompt_of_each_hop

pytestmark = pytest.mark.hops
MADE_FROM = {"weights": "miniature", "size": [16, 8], "steps": 4}


def frames(value, count=3):
    return np.full((count, 8, 16, 3), value, np.uint8)


def test_a_run_that_was_stopped_goes_on_with_the_hop_that_is_missing(tmp_path):
    before = frames(9, count=2)
    first = Hops(tmp_path / "hops", **MADE_FROM)
    assert len(first) == 0 and not list(tmp_path.iterdir()) and first.latents(0) is None
    for number in range(2):
        first.save_latents(number, torch.full((1, 2), float(number)))
        first.add(number, frames(number), prompt=f"prompt {number}", seed=number)
    first.save_latents(2, torch.zeros(1, 2))  # and then it was killed

    again = Hops(tmp_path / "hops", **MADE_FROM)
    assert len(again) == 2 and again.latents(1).tolist() == [[1.0, 1.0]] and again.latents(2) is not None
    assert again.notes(1) == {"prompt": "prompt 1", "seed": 1}
    assert [int(frame.mean()) for frame in again.last(4, before)] == [0, 1, 1, 1]
    assert [int(frame.mean()) for frame in again.last(8, before)] == [9, 9, 0, 0, 0, 1, 1, 1]
    assert [len(piece) for piece in again.pieces(2)] == [2, 1, 2, 1]
    again.add(2, frames(2), prompt="", seed=2)
    assert len(again) == 3 and not [path for path in tmp_path.rglob("*") if "part" in path.name]


def test_hops_of_other_parameters_are_refused_and_nothing_is_overwritten(tmp_path):
    hops = Hops(tmp_path, **MADE_FROM)
    hops.add(0, frames(5), prompt="digs", seed=0)
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(HopError, match=r"made with steps=4, and this run has 8\. Choose another out_dir, or delete"):
        Hops(tmp_path, **MADE_FROM | {"steps": 8})
    hops.check(0, prompt="digs", seed=0)
    with pytest.raises(HopError, match="its hop 1 was made with prompt='digs', and this run has 'rests'"):
        hops.check(0, prompt="rests", seed=0)
    with pytest.raises(HopError, match="hop 3 cannot follow: 1 hops are finished"):
        hops.add(2, frames(1))
    with pytest.raises(HopError, match="hop 2 has no frames"):
        hops.add(1, frames(1, count=0))
    with pytest.raises(HopError, match="9 frames of context: there are 5; take fewer"):
        hops.last(9, frames(0, count=2))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_each_hop_has_a_prompt_and_the_last_one_goes_on():
    assert prompt_of_each_hop("it digs", 3) == ["it digs"] * 3
    assert prompt_of_each_hop("lowers its arm | digs|raises it", 4) == ["lowers its arm", "digs", *["raises it"] * 2]
    assert prompt_of_each_hop("", 2) == ["", ""]
    with pytest.raises(HopError, match="3 prompts for 2 hops: give at most 2, or more seconds"):
        prompt_of_each_hop("a | b | c", 2)
    with pytest.raises(HopError, match="there is nothing"):
        prompt_of_each_hop("a | | c", 3)


def test_looks_say_what_fades():
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 256, (40, 24, 32, 3)).astype(np.float32)
    fading = 128 + (sharp - 128) * np.linspace(1, 0.5, 40)[:, None, None, None]
    pieces = fading.round().astype(np.uint8)
    looks = clips.Looks().add(pieces[:13]).add(pieces[13:])  # as hops come
    assert looks.rows == clips.Looks().add(pieces).rows or np.isnan(looks.rows[0][-1])
    drift = looks.drift()
    kept = 0.5 / 1  # of the deviation, from the first frame to the last; the ends are means over six frames
    for name in ("contrast", "sharpness"):
        assert kept < drift.ratio(name) < kept + 0.12, name
    assert drift.ratio("saturation") < 0.75 and abs(drift.change["lightness"]) < 0.05
    assert "contrast -4" in repr(drift)
    grey = np.full((8, 24, 32, 3), 100, np.uint8)
    still = clips.Looks().add(grey).drift()
    assert still.change["motion"] == still.change["contrast"] == 0 and still.last["saturation"] < 1e-3
    assert np.isclose(still.last["lightness"], 0.504, atol=0.01), "Oklab's lightness of this grey"
    with pytest.raises(ValueError, match="3 frames: drift needs at least 4"):
        clips.Looks().add(grey[:3]).drift()


@pytest.mark.slow
@pytest.mark.make
def test_the_command_that_measures_drift_continues_clips_in_each_way(tmp_path, capsys):
    sheet = tmp_path / "hops.png"
    words = "ltx_video --clips 1 --hops 1 --steps 1 --ways last_frame several --json".split()
    assert drift.main([*words, "--sheet", str(sheet)]) is None
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    lists = {"psnr", "moving_psnr", "contrast", "saturation", "sharpness", "seam_over_usual"}
    assert lists | {f"{name}_last_frame" for name in lists} | {"psnr_freeze"} <= set(result)
    assert all(len(result[name]) == 1 and np.isfinite(result[name]).all() for name in lists)
    assert result["contrast"][0] == result["sharpness_last_frame"][0] == 1 and result["best"] == "several"
    assert 0 <= result["beats_freeze"] <= 1 and 0 <= result["right_beats_wrong"] <= 1
    with Image.open(sheet) as picture:
        assert picture.size == (2 * 288, 2 * 160), "the clip's last frame and the end of each hop, in two ways"


def test_a_still_way_has_the_figures_of_a_still():
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, 2)
    true = np.stack([ramp + 30 * number for number in range(4)]).astype(np.uint8)
    still = np.repeat(true[:1], 4, axis=0)
    figures = drift.figures(still, true, true[0], hops=2)
    assert figures["psnr"] == figures["psnr_freeze"] and figures["seam_over_usual"][0] == 0
