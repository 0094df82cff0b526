"""The LTX-Video miniature: both of its pipelines' conditioning, and their way of counting time."""

import torch
from diffusers import LTXConditionPipeline

from data.make.miniatures import prompts
from data.make.miniatures.families import family_of, ltx_video

from .untrained import falls

LTX = family_of("ltx_video")


def test_ltx_counts_time_as_its_two_pipelines_do():
    latents, indices = torch.randn(2, 64, 3, 4, 6).half(), torch.tensor([0, 0])
    embeds, mask = torch.randn(3, 9, prompts.WIDTH), torch.ones(3, 9)
    denoising = LTX.denoising(latents, None, indices, torch.ones(64), embeds, mask, 2, "transformer")
    denoiser = LTX.build_denoiser()
    assert falls(denoising, denoiser)
    truth = ltx_video.pack(latents)[:1].float()

    def leads_to_the_truth(hidden_states, timestep, **_):
        return ((hidden_states - truth) / timestep.amax(1).view(-1, 1, 1) * 1000,)

    first = LTX.denoising(latents[:1], None, indices[:1], torch.ones(64), embeds, mask, 2, "transformer")
    first.own.latest.zero_()
    losses = [first.loss(leads_to_the_truth).item() for _ in range(40)]
    assert max(losses) < 1e-6
    assert torch.allclose(first.own.latest.float(), latents[:1].float(), atol=1e-2)

    from_condition, fps = torch.tensor([[False], [True]]), torch.tensor([[25.0], [24.0]])
    ours = denoising.coordinates(from_condition, fps)
    scale = (ltx_video.TEMPORAL / 25, ltx_video.SPATIAL, ltx_video.SPATIAL)  # from `LTXImageToVideoPipeline`
    tokens = torch.zeros(1, 72, ltx_video.TRANSFORMER["cross_attention_dim"])
    theirs = denoiser.rope(tokens, 3, 4, 6, scale)
    assert all(torch.allclose(a, b) for a, b in zip(denoiser.rope(tokens, video_coords=ours[:1]), theirs, strict=True))

    ids = LTXConditionPipeline._prepare_video_ids(1, 3, 4, 6)
    theirs = LTXConditionPipeline._scale_video_ids(ids, scale_factor=16, scale_factor_t=4, frame_index=0).float()
    theirs[:, 0] /= 24
    assert torch.allclose(ours[1:], theirs)
