"""Latents come back for the run that they were made for, and for no other."""

import pytest
import torch
from PIL import Image

from helpers.lesson import SavedLatents

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
