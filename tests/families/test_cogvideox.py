"""The CogVideoX miniature: what its pipeline and scheduler ask for, and its learned positions."""

import pytest
import torch

from data.make.miniatures import prompts
from data.make.miniatures.dataset import pixels
from data.make.miniatures.families.cogvideox_5b_i2v import scheduler as published_scheduler

from .untrained import Recorder, clip_of, cogvideox_only, falls, latents_of


@cogvideox_only
def test_cogvideox_learns_what_its_pipeline_and_scheduler_ask_for(untrained, small):
    family, work, folder = untrained
    (latents, conditions, indices, spread), vae = latents_of(family, work)
    assert latents.float().pow(2).mean().sqrt() == pytest.approx(1, abs=0.02)  # as the scaling factor makes it
    embeds, mask = family.embed_prompts(work)
    denoising = family.denoising(latents, conditions, indices, spread, embeds, mask, 2, "transformer")

    recorder, scheduler = Recorder(), published_scheduler()
    denoising.latents, denoising.conditions = latents[:1], conditions[:1]
    loss = denoising.loss(recorder)
    steps = recorder.kwargs["timestep"]
    clean = latents[:1].float().transpose(1, 2)
    left = scheduler.alphas_cumprod[steps].float().view(-1, 1, 1, 1, 1)
    velocity = (left.sqrt() * recorder.noisy - clean) / (1 - left).sqrt()
    scheduler.set_timesteps(50)
    undone = scheduler.step(velocity[:1], steps[0], recorder.noisy[:1]).pred_original_sample
    assert torch.allclose(undone.float(), clean, atol=1e-3)
    assert loss.item() == pytest.approx(((1 - left).sqrt() * velocity**2).mean().item(), rel=1e-3)

    denoiser = family.build_denoiser()
    assert {parameter.dtype for parameter in denoiser.parameters()} == {torch.float32}
    before = denoiser.patch_embed.pos_embedding.detach().clone()
    assert falls(denoising, denoiser)
    assert not torch.equal(denoiser.patch_embed.pos_embedding, before)  # the positions are learned


@cogvideox_only
def test_cogvideox_is_given_the_frame_as_its_pipeline_gives_it(untrained):
    family, work, folder = untrained
    pipe = family.continuer(folder, "cpu").pipe
    clips, prompt = clip_of(family, frames=1)
    _, given = pipe.prepare_latents(
        pixels(clips)[:, :, 0], 1, 16, family.frames, *reversed(family.size), torch.float32, torch.device("cpu"),
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    posterior = pipe.vae.encode(pixels(family.conditioning_frames(clips))).latent_dist
    scale = pipe.vae.config.scaling_factor
    mean, std = scale * posterior.mean, scale * posterior.std
    assert ((given[:, :1].transpose(1, 2) - mean).abs() <= 5 * std + 1e-4).all()  # sampled from the posterior
    assert not given[:, 1:].any()

    embeds, _ = prompts.embed(work, [prompt, ""], family.positions)
    theirs, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    assert theirs.shape == (1, 226, prompts.WIDTH) and torch.allclose(embeds[:1], theirs, atol=2e-3)
    rotary = pipe._prepare_rotary_positional_embeddings(*reversed(family.size), 5, torch.device("cpu"))
    latents = torch.zeros(1, 16, 5, family.size[1] // 8, family.size[0] // 8)
    denoising = family.denoising(latents, None, None, torch.ones(16), embeds, None, 1, "transformer")
    assert all(torch.equal(ours, own) for ours, own in zip(denoising.rotary, rotary, strict=True))


@cogvideox_only
def test_the_learned_positions_come_back_from_the_file(untrained, tmp_path):
    family, _, _ = untrained
    denoiser = family.build_denoiser()
    with torch.no_grad():
        denoiser.patch_embed.pos_embedding.fill_(0.5)
    denoiser.save_pretrained(tmp_path)
    loaded = type(denoiser).from_pretrained(tmp_path)
    assert (loaded.patch_embed.pos_embedding == 0.5).all()
