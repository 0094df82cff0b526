"""Latents come back for the run that they were made for, and for no other."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from helpers.lesson import SavedLatents, resolve, to_frames

pytestmark = pytest.mark.lesson

IMAGE = Image.new("RGB", (4, 2), (10, 20, 30))
INPUTS = {"image": IMAGE, "width": 64, "prompt_embeds": torch.ones(1, 3, 2), "negative_prompt_embeds": None}
MORE = {"weights": "a@1", "steps": 4, "seed": 0, "dtype": torch.float32}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run" / "latents.safetensors"
    kept = SavedLatents(path, INPUTS, **MORE)
    assert kept.load() is None and kept.notes == {}
    kept.save(torch.arange(6.0).view(1, 6), seconds=1.5, offload="model")
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    return path


def test_the_same_run_finds_them(path):
    kept = SavedLatents(path, dict(reversed(INPUTS.items())), **MORE)
    assert torch.equal(kept.load(), torch.arange(6.0).view(1, 6)) and kept.notes == {"seconds": 1.5, "offload": "model"}


@pytest.mark.parametrize(
    "changed",
    [
        {"image": Image.new("RGB", (4, 2), (10, 20, 31))}, {"image": Image.new("RGB", (2, 4), (10, 20, 30))},
        {"width": 96}, {"prompt_embeds": torch.zeros(1, 3, 2)}, {"prompt_embeds": torch.ones(1, 2, 3)},
        {"prompt_embeds": torch.ones(1, 3, 2, dtype=torch.bfloat16)}, {"negative_prompt_embeds": torch.ones(1)},
        {"weights": "a@2"}, {"steps": 5}, {"seed": 1}, {"dtype": torch.bfloat16}, {"boundary": 0.5},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_any_other_run_does_not(path, changed):
    kept = SavedLatents(path, {**INPUTS, **MORE, **changed})
    assert kept.load() is None and kept.notes == {}


def test_a_damaged_file_counts_as_none(path):
    path.write_bytes(path.read_bytes()[:-2])
    assert SavedLatents(path, INPUTS, **MORE).load() is None


def test_the_latents_of_a_lessons_run_depend_on_its_settings(tmp_path):
    values = dict.fromkeys(["width", "height", "num_frames", "steps", "guidance_scale", "vram_budget_gb"])
    values |= dict(clip="excavator", prompt="dig", negative_prompt="", weights="miniature", offload="model", seed=0)
    settings = resolve("ltx_video", {**values, "ram_budget_gb": None, "out_dir": str(tmp_path)})
    kept = SavedLatents.for_run(settings, INPUTS, torch.float32)
    kept.save(torch.ones(2))
    assert SavedLatents.for_run(settings, INPUTS, torch.float32, boundary=0.5).load() is None
    assert kept.path == tmp_path / "ltx_video" / "excavator" / "latents.safetensors"
    assert torch.equal(SavedLatents.for_run(settings, INPUTS, torch.float32).load(), torch.ones(2))
    for changed in (replace(settings, seed=1), replace(settings, steps=settings.steps + 1)):
        assert SavedLatents.for_run(changed, INPUTS, torch.float32).load() is None
    assert SavedLatents.for_run(settings, INPUTS, torch.bfloat16).load() is None
    assert SavedLatents.for_run(settings, {**INPUTS, "width": 96}, torch.float32).load() is None


def test_a_decoders_output_becomes_frames():
    video = torch.linspace(-1, 1, 3 * 2 * 4 * 6).view(1, 3, 2, 4, 6)
    frames = to_frames(video)
    assert frames.shape == (2, 4, 6, 3) and frames.dtype == "uint8"
    assert frames[0, 0, 0, 0] == 0 and frames[-1, -1, -1, -1] == 255
    assert (to_frames(3 * video.bfloat16()).max(), to_frames(3 * video).min()) == (255, 0)  # clipped
