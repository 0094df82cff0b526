"""Hops on disk, a prompt for each, and what a video loses while it goes on."""

import gc
import json
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from data.make.measurements import drift
from data.make.miniatures.families import family_of
from helpers import clips
from helpers.hops import (
    ContinueWan,
    HopError,
    Hops,
    Plan,
    Progress,
    hop_frames,
    latent_layout,
    prompt_arguments,
    prompt_of_each_hop,
    prompts_at,
)
from helpers.lesson import use_onednn
from helpers.models import Architecture, checkpoint

pytestmark = pytest.mark.hops
MADE_FROM = {"weights": "miniature", "size": [16, 8], "steps": 4}


def frames(value, count=3):
    return np.full((count, 8, 16, 3), value, np.uint8)


def test_a_run_that_was_stopped_goes_on_with_the_hop_that_is_missing(tmp_path):
    before = frames(9, count=2)
    first = Hops(tmp_path / "hops", **MADE_FROM)
    assert len(first) == 0 and not list(tmp_path.iterdir()) and first.latents(0) is None
    for number in range(2):
        first.save_latents(number, torch.full((1, 2), float(number)), seed=number)
        first.add(number, frames(number), prompt=f"prompt {number}", seed=number)
    first.save_latents(2, torch.zeros(1, 2), seed=2)  # and then it was killed

    again = Hops(tmp_path / "hops", **MADE_FROM)
    assert len(again) == 2 and again.latents(1, seed=1).tolist() == [[1.0, 1.0]]
    assert again.latents(2, seed=2) is not None and again.latents(2, seed=3) is None, "made from another seed"
    path = tmp_path / "hops" / "003_latents.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    assert again.latents(2, seed=2) is None, "a damaged file counts as none"
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


@pytest.mark.parametrize("damage", ["frames", "no frames", "notes", "no notes"])
def test_a_damaged_hop_is_made_again(tmp_path, damage):
    for number in range(3):
        Hops(tmp_path, **MADE_FROM).add(number, frames(number), prompt="digs", seed=number)
    path = tmp_path / ("002_frames.npy" if "frames" in damage else "002_notes.json")
    if damage.startswith("no"):
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    damaged = Hops(tmp_path, **MADE_FROM)
    assert len(damaged) == 1, "the second is missing"
    damaged.add(1, frames(1), prompt="digs", seed=1)
    assert len(damaged) == 3, "the third is still there"
    assert [int(piece[0, 0, 0, 0]) for piece in damaged.pieces()] == [0, 1, 2]


def test_hops_of_which_nobody_knows_the_origin_are_refused(tmp_path):
    Hops(tmp_path, **MADE_FROM).add(0, frames(0), seed=0)
    for content in ("{", None):
        (tmp_path / "hops.json").write_text(content) if content else (tmp_path / "hops.json").unlink()
        with pytest.raises(HopError, match=r"hops\.json is missing or damaged.*delete this folder"):
            Hops(tmp_path, **MADE_FROM)


def test_each_hop_has_a_prompt_and_the_last_one_goes_on():
    assert prompt_of_each_hop("it digs", 3) == ["it digs"] * 3
    assert prompt_of_each_hop("lowers its arm | digs|raises it", 4) == ["lowers its arm", "digs", *["raises it"] * 2]
    assert prompt_of_each_hop("", 2) == ["", ""]
    with pytest.raises(HopError, match="3 prompts for 2 hops: give at most 2, or more seconds"):
        prompt_of_each_hop("a | b | c", 2)
    with pytest.raises(HopError, match="one part is empty"):
        prompt_of_each_hop("a | | c", 3)


def test_each_hop_gets_the_sentence_that_is_true_at_its_time():
    happens = ((0, "digs"), (2.0, "raises"), (3.0, "rests"))
    assert prompts_at(happens, 6, 0.7) == ["digs"] * 3 + ["raises"] * 1 + ["rests"] * 2
    assert prompts_at(happens[:1], 2, 5.0) == ["digs"] * 2


def test_a_plan_says_what_the_whole_run_takes():
    plan = Plan(20, 24, 25, 9, (288, 160), latent_bytes=2**20, hop_seconds=2.0, peak_vram_gib=1.5)
    assert (plan.frames, plan.per_hop, plan.hops) == (480, 16, 30)
    assert plan.disk_gib == pytest.approx(30 * (2**20 + 288 * 160 * 3 * 16) / 2**30)
    shown = repr(plan)
    assert "30 of 16 frames, after 9 that are given" in shown and "1 min 0 s, 2.0 s a hop" in shown and "1.50" in shown
    assert "not known yet" in repr(Plan(0.1, 24, 25, 1, (288, 160), latent_bytes=1))
    assert Plan(0.1, 24, 25, 1, (288, 160), latent_bytes=1).hops == 1
    with pytest.raises(HopError, match="25 frames of context leave nothing to make in 25 frames: give less context"):
        Plan(1, 24, 25, 25, (288, 160), latent_bytes=1)
    for seconds in (0, -1, float("inf"), float("nan")):
        with pytest.raises(HopError, match="give more than 0"):
            Plan(seconds, 24, 25, 9, (288, 160), latent_bytes=1)


@pytest.mark.parametrize(("name", "layout"), [("ltx_video", (8, 32, 128)), ("wan22_ti2v_5b", (4, 16, 48))])
def test_a_latent_stands_for_frames_and_pixels(name, layout):
    assert latent_layout(Architecture(name).component("vae")) == layout
    miniature = Architecture(checkpoint(name, "miniature").repo).component("vae")
    assert latent_layout(miniature)[0] == 4


def test_memory_does_not_grow_with_the_number_of_hops(tmp_path):
    def peak(count):
        done, before = Hops(tmp_path / str(count), steps=count), np.zeros((9, 80, 144, 3), np.uint8)
        tracemalloc.start()
        for number in range(count):
            seen = done.last(9, before)
            done.save_latents(number, torch.zeros(1, 64, 7, 5, 9))
            done.add(number, np.repeat(seen[-1:], 16, axis=0) + np.uint8(1))
            gc.collect()  # what is left of reading headers and JSON is small, and collected when Python likes
        total = sum(int(piece[:, 0, 0, 0].sum()) for piece in done.pieces())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == 16 * count * (count + 1) // 2, "every hop is there, in order"
        return peak

    peak(2)  # imports and caches
    assert peak(30) < 1.05 * peak(3)


@pytest.mark.parametrize("name", ["ltx_video", "wan22_ti2v_5b"])
def test_no_frame_is_missing_or_twice_where_hops_meet(name):
    """A mark that moves at constant speed, in hops whose latents are those of the true frames."""
    use_onednn()
    family = family_of(name)
    model = family.continuer(checkpoint(name, "miniature").repo, "cpu").continuing(1)
    count, (width, height) = family.context + 2 * (family.frames - family.context), family.size
    rows, columns = np.mgrid[:height, :width]
    true = np.full((count, height, width, 3), 90, np.uint8)
    for at, frame in enumerate(true):
        frame[(rows - 80) ** 2 + (columns - 60 - 3 * at) ** 2 < 30**2] = (220, 170, 40)
    new = []
    for begin in (0, family.frames - family.context):
        window = true[begin : begin + family.frames]
        frames = hop_frames(model, window[: family.context], model.encode(window))
        assert len(frames) == 1 + family.frames - family.context, "the first repeats the last one seen"
        new.append(frames[1:])
    mark = np.concatenate([true[: family.context], *new])[:, 40:120, :, 2].astype(float)
    weight = (90 - mark).clip(20) - 20  # the mark is the only thing without blue
    places = (weight * np.arange(width)).sum((1, 2)) / weight.sum((1, 2))
    steps = np.diff(places)
    assert steps.min() > 1.5 and steps.max() < 4.5, steps.round(1)
    assert abs(places[-1] - (60 + 3 * (count - 1))) < 2


def test_a_hop_fades_in_from_the_last_frame():
    last, made = np.full((4, 6, 3), 90, np.uint8), np.full((9, 4, 6, 3), 100, np.uint8)
    faded = clips.fade_in(made, last, over=4)
    assert faded[:, 0, 0, 0].tolist() == [90, 92, 94, 96, 98, 100, 100, 100, 100]
    assert np.array_equal(clips.fade_in(made, made[0]), made), "nothing lacks, nothing changes"


def test_given_latents_do_what_the_published_pipeline_does_with_a_picture():
    """One latent frame handed to TI2V-5B is one picture encoded by its pipeline."""
    use_onednn()
    family = family_of("wan22_ti2v_5b")
    continuer = family.continuer(checkpoint("wan22_ti2v_5b", "miniature").repo, "cpu")
    model, frame = continuer.continuing(1), np.random.default_rng(0).integers(0, 256, (160, 288, 3), np.uint8)
    prompt = "the excavator raises its arm"
    ours = model.denoise(model.encode(frame[None]), prompt, seed=3)
    theirs = model.denoise_frame(frame, prompt, seed=3)
    assert ours.shape == theirs.shape == (1, 24, 7, 20, 36)
    assert (ours - theirs).abs().max() < 1e-3
    several = model.denoise(model.encode(np.repeat(frame[None], 9, axis=0)), prompt, seed=3)
    assert several.shape == ours.shape and not torch.allclose(several[:, :, 1:3], ours[:, :, 1:3])


def test_the_large_model_gets_anchor_tail_and_zeros():
    repo = checkpoint("wan22_i2v_a14b", "miniature").repo
    pipe = ContinueWan.from_pretrained(repo, transformer=None, transformer_2=None, text_encoder=None, tokenizer=None)
    pipe.given = torch.randn(1, 16, 2, 18, 32)
    random = torch.Generator().manual_seed(0)
    noise, beside = pipe.prepare_latents(None, 1, 16, 144, 256, 17, torch.float32, "cpu", random)
    assert noise.shape == (1, 16, 5, 18, 32) and beside.shape == (1, 20, 5, 18, 32)
    assert torch.equal(beside[:, 4:, :2], pipe.given) and not beside[:, 4:, 2:].any()
    assert beside[:, :4, 0].all() and not beside[:, :4, 1:].any(), "the mask marks the anchor alone"


def test_embeddings_are_padded_to_the_length_that_the_model_knows():
    given = prompt_arguments(torch.ones(3, 8), 5, with_mask=True, name="negative_prompt")
    assert given["negative_prompt_embeds"].sum(-1).tolist() == [[8, 8, 8, 0, 0]]
    assert given["negative_prompt_attention_mask"].tolist() == [[True] * 3 + [False] * 2]
    assert list(prompt_arguments(torch.ones(3, 8), 5, with_mask=False)) == ["prompt_embeds"]


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
    figures = drift.figures(still, true, np.repeat(true[:1], 2, axis=0), hops=2, call=2)
    assert figures["psnr"] == figures["psnr_freeze"] and figures["seam_over_usual"][1] == 0


def test_progress_says_hop_step_and_time_left(capsys):
    progress = Progress(3, 4, finished=1)
    assert repr(progress) == "hop 2 of 3, step 0 of 4" and progress.seconds_left is None
    tensors = {"latents": torch.zeros(1)}
    assert progress.step(None, 1, None, tensors) is tensors
    assert repr(progress) == "hop 2 of 3, step 2 of 4"
    progress.hop()
    assert repr(progress).startswith("hop 3 of 3, step 0 of 4, about 0 s left")
    progress.hop()
    assert repr(progress) == "all 3 hops are finished, 2 of them now"
