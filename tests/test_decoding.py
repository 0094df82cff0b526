"""The saved latents of a run are decoded inside a meter; what the two lessons on Wan2.2 share; answers to exercises."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.lesson import answered, decode_saved, decode_wan, pad_embeddings

pytestmark = pytest.mark.lesson


@pytest.fixture
def settings(tmp_path):
    save_file({"latents": torch.arange(3.0)}, tmp_path / "latents.safetensors")
    return SimpleNamespace(folder=tmp_path, vram_budget_gb=12.0)


def test_the_latents_are_decoded_from_their_file(settings, capsys):
    def decode(latents):
        assert torch.equal(latents, torch.arange(3.0))
        return np.zeros((5, 2, 4, 3), np.uint8)

    frames, meter = decode_saved(decode, settings)
    assert frames.shape == (5, 2, 4, 3) and (meter.title, meter.state) == ("decode in tiles", "done")
    assert capsys.readouterr().out.startswith("5 frames of 4x2 in ")


def test_if_decoding_runs_out_of_memory_the_latents_are_kept(settings, capsys):
    def decode(latents):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with pytest.raises(torch.OutOfMemoryError):
        decode_saved(decode, settings, "decode 8 at once")
    said = capsys.readouterr().out
    assert "Out of memory in 'decode 8 at once'" in said and "The latents are safe in latents.safetensors" in said
    assert (settings.folder / "latents.safetensors").is_file()


def test_padding_is_zeros_behind_the_tokens():
    padded = pad_embeddings(torch.ones(2, 3, dtype=torch.bfloat16), 4)
    assert padded.shape == (1, 4, 3) and padded.dtype is torch.bfloat16
    assert padded[0].sum(-1).tolist() == [3, 3, 0, 0]


def test_wans_latents_get_their_mean_and_scale_back():
    seen = []

    def decode(latents):
        seen.append(latents)
        return SimpleNamespace(sample=torch.zeros(1, 3, 5, 16, 16))

    config = {"latents_mean": [1.0, 2.0], "latents_std": [3.0, 4.0]}
    vae = SimpleNamespace(config=config, device=torch.device("cpu"), decode=decode)
    frames = decode_wan(vae, torch.ones(1, 2, 2, 1, 1, dtype=torch.bfloat16))
    assert frames.shape == (5, 16, 16, 3) and (frames == 128).all()
    assert seen[0].dtype is torch.float32 and seen[0][0, :, 0, 0, 0].tolist() == [4, 6]


def test_an_exercise_without_an_answer_says_so(capsys):
    assert not answered(2, None) and capsys.readouterr().out == "exercise 2: no answer yet\n"
    assert answered(2, np.zeros(3)) and answered(3, False) and capsys.readouterr().out == ""
