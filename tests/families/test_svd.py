"""The Stable Video Diffusion miniature: what its pipeline and scheduler ask for, and its ambient clips."""

import pytest
import torch

from data.make.miniatures.dataset import draw_clips, pixels
from data.make.miniatures.evaluate import evaluate
from data.make.miniatures.families import family_of
from data.make.miniatures.families.svd_xt import WIDTH

from .untrained import Recorder, clip_of, falls, latents_of, svd_only


@svd_only
def test_svd_learns_what_its_pipeline_and_scheduler_ask_for(untrained, small):
    family, work, folder = untrained
    (latents, conditions, rows, spread), vae = latents_of(family, work)
    assert conditions is None and latents.float().pow(2).mean().sqrt() == pytest.approx(1, abs=0.02)
    denoising = family.denoising(latents[:1], None, rows[:1], spread, None, None, 2, "unet")
    recorder, scheduler = Recorder(), family.continuer(folder, "cpu").pipe.scheduler
    scheduler.set_timesteps(8)
    index = 3
    sigma = scheduler.sigmas[index]
    denoising.draw_sigma = lambda number, device: sigma.expand(number, 1, 1, 1, 1)
    loss = denoising.loss(recorder)
    clean = latents[:1].float().transpose(1, 2)
    size = (sigma**2 + 1).sqrt()
    noisy = recorder.noisy * size
    step = scheduler.timesteps[index]
    assert torch.allclose(recorder.args[1], step.expand(2))
    assert torch.allclose(scheduler.scale_model_input(noisy, step), recorder.noisy)
    velocity = ((noisy - clean) / sigma - sigma * clean) / size
    undone = scheduler.step(velocity, step, noisy).pred_original_sample
    assert torch.allclose(undone, clean.expand_as(undone), atol=1e-3)
    assert loss.item() == pytest.approx((sigma / size * velocity**2).mean().item(), rel=1e-3)
    assert recorder.kwargs["added_time_ids"][0].tolist() == [6, rows[0, 0].item(), rows[0, 1].item()]

    drawn = family.denoising(latents, None, rows, spread, None, None, 2, "unet")
    sigmas = drawn.draw_sigma(2000, "cpu")
    assert 0.002 <= sigmas.min() < 0.005 and 650 < sigmas.max() <= 700.1
    assert falls(drawn, family.build_denoiser())


@svd_only
def test_svd_gets_the_conditioning_of_its_pipeline(untrained):
    family, work, folder = untrained
    pipe = family.continuer(folder, "cpu").pipe
    clips, _ = clip_of(family, frames=1)
    torch.manual_seed(3)
    (row,) = family.motion_conditioning(work, pipe.vae, "cpu")(clips, torch.tensor([0.5]))
    bucket, strength, embedding, latents = row.split([1, 1, WIDTH, row.numel() - 2 - WIDTH])
    assert bucket.item() == 128 and 0.001 < strength.item() < 0.5
    image = pipe.video_processor.numpy_to_pil(clips[0, 0].permute(1, 2, 0).numpy() / 255)
    theirs = pipe._encode_image(image, "cpu", 1, do_classifier_free_guidance=False)
    assert torch.allclose(embedding, theirs.flatten(), atol=1e-4)
    torch.manual_seed(3)
    torch.randn(1, 1)  # the strength
    image = pixels(clips)[:, :, 0]
    noisy = image + strength * torch.randn_like(image)
    theirs = pipe._encode_vae_image(noisy, "cpu", 1, do_classifier_free_guidance=False)
    assert torch.allclose(latents, theirs.flatten(), atol=1e-4)


@svd_only
def test_svd_is_evaluated_on_ambient_clips(untrained, monkeypatch):
    family, _, folder = untrained
    monkeypatch.setattr(family, "frames", 3)
    result = evaluate("svd_xt", folder, clips=1, seed=0, steps=1)
    assert "psnr_wrong_motion" in result and "psnr_wrong_prompt" not in result
    assert result["psnr_freeze"] > result["psnr_generated"]  # it is untrained


def test_ambient_clips_are_drawn_for_a_family_without_prompts(small):
    family = family_of("svd_xt")
    clips, amounts = next(draw_clips(2, 0, family, "cpu"))
    assert clips.shape == (2, 3, 3, 64, 64) and amounts.shape == (2,) and ((0 <= amounts) & (amounts < 1)).all()
    again = next(draw_clips(2, 0, family, "cpu"))
    assert torch.equal(clips, again[0]) and torch.equal(amounts, again[1])
