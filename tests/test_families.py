"""The families that `data.make.train` trains: conditioned in training as their pipelines condition them at work."""

import importlib

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from data.make import text, wan22_i2v_a14b, wan22_ti2v_5b
from data.make.scenes import PROMPTS, render
from data.make.train import TRUTH_SEEDS, encode, pixels
from helpers.architecture import Architecture
from helpers.dummies import gguf_path
from helpers.models import model

FAMILIES = {"wan22_ti2v_5b": wan22_ti2v_5b, "wan22_i2v_a14b": wan22_i2v_a14b}


@pytest.fixture(scope="module", params=FAMILIES)
def untrained(request, tmp_path_factory):
    """A family, its work folder with untrained parts, and the checkpoint that is put together from them."""
    family, work = FAMILIES[request.param], tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    (work / "tokenizer").mkdir()
    text.save_tokenizer(work / "tokenizer")
    vocabulary = len(text.T5TokenizerFast.from_pretrained(work / "tokenizer"))
    text.save_encoder(work / "text_encoder", vocabulary, family.ENCODER)
    vae = family.build_vae()
    channels = vae.config.z_dim
    family.set_statistics(vae, torch.linspace(-0.5, 0.5, channels), torch.linspace(0.5, 1.5, channels))
    vae.half().save_pretrained(work / "vae")
    for part in family.DENOISERS:
        family.build_denoiser().half().save_pretrained(work / part)
    folder = tmp_path_factory.mktemp("checkpoint") / request.param
    family.assemble(work, folder)
    return family, work, folder


def clip_of(family, frames=None):
    look = {"frames": frames or family.FRAMES, "size": family.SIZE, "fps": family.FPS}
    video, prompts = render("excavator", [TRUTH_SEEDS + 5], **look)
    return (video * 255).round().byte(), prompts[0]


def statistics(vae):
    shape = (1, -1, 1, 1, 1)
    return torch.tensor(vae.config.latents_mean).view(shape), torch.tensor(vae.config.latents_std).view(shape)


def test_the_checkpoint_is_small_and_keeps_the_models_rules(untrained):
    family, _, folder = untrained
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 9_000_000
    entry = model(folder.name)
    assert entry.nearest_size(*family.SIZE) == family.SIZE and entry.nearest_frames(family.FRAMES) == family.FRAMES
    assert entry.fps == family.FPS


def test_the_forecast_reads_it(untrained):
    family, _, folder = untrained
    arch = Architecture(folder, dtype=torch.float32)
    pipe = family.Continuer(folder, "cpu").pipe
    for part in arch.on_card:
        loaded = {name: tuple(t.shape) for name, t in getattr(pipe, part).named_parameters()}
        assert loaded == {name: tuple(t.shape) for name, t in arch.part(part).named_parameters()}, part


def test_the_given_frame_is_conditioned_on_as_the_pipeline_does(untrained):
    family, work, folder = untrained
    pipe = family.Continuer(folder, "cpu").pipe
    clips, _ = clip_of(family, frames=5)
    image = pixels(clips)[:, :, 0]
    given = pipe.prepare_latents(
        image, 1, pipe.vae.config.z_dim, *reversed(family.SIZE), 5, torch.float32, torch.device("cpu"),
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    mean, std = statistics(pipe.vae)
    picture = family.picture(clips)
    encoded = encode(pipe.vae, clips if picture is None else picture, "cpu")[0]
    ours = (encoded - mean) / std
    if picture is None:  # the first latent frame of the clip, and zero noise there
        assert torch.allclose(given[1][:, :, 0], ours[:, :, 0], atol=1e-4)
        assert given[2][0, 0, :, 0, 0].tolist() == [0, 1]
    else:
        mask, condition = given[1].split([4, pipe.vae.config.z_dim], dim=1)
        assert torch.allclose(condition, ours, atol=1e-4)
        assert mask[0, :, :, 0, 0].tolist() == [[1, 0]] * 4


def test_the_loss_can_be_learnt_and_each_expert_sees_its_own_noise(untrained):
    family, work, _ = untrained
    vae = AutoencoderKLWan.from_pretrained(work / "vae", dtype=torch.float32)
    clips, prompt = clip_of(family, frames=5)
    mean, std = statistics(vae)
    latents = ((encode(vae, clips, "cpu")[0] - mean) / std).half()
    picture = family.picture(clips)
    conditions = None if picture is None else ((encode(vae, picture, "cpu")[0] - mean) / std).half()
    embeds, mask = text.embed(work, [*PROMPTS, ""])
    prompts = torch.tensor([PROMPTS.index(prompt)])
    seen = []
    for part in family.DENOISERS:
        denoising = family.Denoising(latents, conditions, prompts, torch.ones(1), embeds, mask, 2, part)
        sigmas = denoising.draw_sigma(1000, "cpu")
        seen.append((sigmas.min().item(), sigmas.max().item()))
        torch.manual_seed(0)
        transformer = family.build_denoiser().float()
        optimizer = torch.optim.AdamW(transformer.parameters(), lr=2e-3)
        losses = []
        for step in range(12):
            torch.manual_seed(step % 2)  # the same two draws again and again
            loss = denoising.loss(transformer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] + losses[-2] < 0.9 * (losses[0] + losses[1]), part
    if len(seen) == 2:
        (high, top), (bottom, low) = seen
        assert 0.9 <= high < 0.91 and top > 0.999 and bottom < 0.01 and 0.89 < low <= 0.9
    else:
        assert seen[0][0] < 0.02 and seen[0][1] > 0.999


def test_the_text_is_padded_as_the_pipeline_pads_it(untrained):
    family, work, folder = untrained
    pipe = family.Continuer(folder, "cpu").pipe
    embeds, mask = text.embed(work, [*PROMPTS, ""])
    denoising = family.Denoising(torch.zeros(1, 4, 2, 4, 4), None, torch.zeros(1).long(), None, embeds, mask, 1,
                                 next(iter(family.DENOISERS)))  # fmt: skip
    for index in (0, len(PROMPTS) - 1):
        theirs = pipe.encode_prompt(PROMPTS[index], do_classifier_free_guidance=False, max_sequence_length=512)[0]
        assert torch.allclose(denoising.embeds[index], theirs[0], atol=2e-3)


def test_it_continues_a_frame_through_the_real_pipeline(untrained):
    family, _, folder = untrained
    continuer = family.Continuer(folder, "cpu")
    continuer.frames = 5
    clips, prompt = clip_of(family, frames=1)
    frames = continuer.from_one(clips[0, 0].float() / 255, prompt, 1, 0)
    assert frames.shape == (5, 3, *reversed(family.SIZE)) and torch.isfinite(frames).all()
    assert continuer.context == 1


def test_the_experts_are_real_q4_files_with_wans_own_names(untrained):
    family, work, folder = untrained
    if folder.name != "wan22_i2v_a14b":
        pytest.skip("has no GGUF files")
    import gguf

    path = gguf_path(folder, "transformer_2", family.KIND)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert tensors["blocks.0.self_attn.q.weight"].tensor_type == gguf.GGMLQuantizationType.Q4_0
    assert tensors["head.head.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    trained = WanTransformer3DModel.from_pretrained(work / "transformer_2", dtype=torch.float32)
    exact = trained.blocks[0].ffn.net[2].weight.detach().numpy()
    packed = tensors["blocks.0.ffn.2.weight"]
    back = gguf.quants.dequantize(packed.data, packed.tensor_type)
    assert np.abs(back - exact).max() <= 1.01 * np.abs(exact).max() / 8
    bits = 8 * sum(t.n_bytes for t in tensors.values()) / sum(t.n_elements for t in tensors.values())
    assert 4.5 < bits < 8


def test_every_family_offers_what_training_asks_for():
    wanted = "FRAMES SIZE FPS DENOISERS ENCODER halves picture set_statistics build_vae build_denoiser Denoising"
    for name in ("ltx_video", *FAMILIES):
        family = importlib.import_module(f"data.make.{name}")
        assert all(hasattr(family, attribute) for attribute in [*wanted.split(), "assemble", "Continuer"]), name
