"""The Wan miniatures: conditioned in training as their pipeline conditions them, with experts in GGUF files."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from data.make import ROOT
from data.make.clips.scenes import PROMPTS
from data.make.miniatures.dataset import encode, pixels
from data.make.miniatures.families import family_of, wan, wan22_i2v_a14b
from data.make.miniatures.families.on_own_predictions import OwnPredictions
from data.make.miniatures.quantization_aware import q4_0
from data.make.miniatures.vaes import channel_weights
from helpers.models import gguf_path

from .untrained import WANS, both_wans, clip_of, falls


def statistics(family, vae):
    """Mean and standard deviation of the latents' channels, [1, C, 1, 1, 1]."""
    return tuple(t.view(1, -1, 1, 1, 1) for t in family.statistics(vae))


@both_wans
def test_the_given_frame_is_conditioned_on_as_wans_pipeline_does(untrained):
    family, work, folder = untrained
    pipe = family.continuer(folder, "cpu").pipe
    clips, _ = clip_of(family, frames=5)
    image = pixels(clips)[:, :, 0]
    given = pipe.prepare_latents(
        image, 1, pipe.vae.config.z_dim, *reversed(family.size), 5, torch.float32, torch.device("cpu"),
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    mean, std = statistics(family, pipe.vae)
    given_frames = family.conditioning_frames(clips)
    posterior_of, _ = family.encoder_and_decoder(pipe.vae, compiled=False)
    encoded = encode(posterior_of, clips if given_frames is None else given_frames, "cpu")[0]
    ours = (encoded - mean) / std
    if given_frames is None:  # the first latent frame of the clip, without noise
        assert torch.allclose(given[1][:, :, 0], ours[:, :, 0], atol=1e-4)
        assert given[2][0, 0, :, 0, 0].tolist() == [0, 1]
    else:
        mask, condition = given[1].split([4, pipe.vae.config.z_dim], dim=1)
        assert torch.allclose(condition, ours, atol=1e-4)
        assert mask[0, :, :, 0, 0].tolist() == [[1, 0]] * 4


@both_wans
def test_the_loss_falls_and_each_expert_sees_its_range_of_noise(untrained):
    family, work, _ = untrained
    vae = AutoencoderKLWan.from_pretrained(work / "vae", dtype=torch.float32)
    clips, prompt = clip_of(family, frames=5)
    mean, std = statistics(family, vae)
    posterior_of, _ = family.encoder_and_decoder(vae, compiled=False)
    latents = ((encode(posterior_of, clips, "cpu")[0] - mean) / std).half()
    given = family.conditioning_frames(clips)
    conditions = None if given is None else ((encode(posterior_of, given, "cpu")[0] - mean) / std).half()
    embeds, mask = family.embed_prompts(work)
    prompts = torch.tensor([PROMPTS.index(prompt)])
    seen = []
    for component in family.denoisers:
        denoising = family.denoising(latents, conditions, prompts, torch.ones(1), embeds, mask, 2, component)
        sigmas = denoising.draw_sigma(1000, "cpu")
        seen.append((sigmas.min().item(), sigmas.max().item()))
        torch.manual_seed(0)
        assert falls(denoising, family.build_denoiser().float()), component
    if len(seen) == 2:
        (high, top), (bottom, low) = seen
        assert 0.9 <= high < 0.91 and top > 0.999 and bottom < 0.01 and 0.89 < low <= 0.9
    else:
        assert seen[0][0] < 0.02 and seen[0][1] > 0.999


@both_wans
def test_the_text_is_padded_as_wans_pipeline_pads_it(untrained):
    family, work, folder = untrained
    pipe = family.continuer(folder, "cpu").pipe
    embeds, mask = family.embed_prompts(work)
    denoising = family.denoising(torch.zeros(1, 4, 2, 4, 4), None, torch.zeros(1).long(), torch.ones(4), embeds, mask,
                                 1, next(iter(family.denoisers)))  # fmt: skip
    for index in (0, len(PROMPTS) - 1):
        theirs = pipe.encode_prompt(PROMPTS[index], do_classifier_free_guidance=False, max_sequence_length=512)[0]
        assert torch.allclose(denoising.embeds[index], theirs[0, : denoising.embeds.shape[1]], atol=2e-3)
        assert not theirs[0, denoising.embeds.shape[1] - 1 :].any()


@pytest.mark.parametrize("name", WANS)
def test_padding_that_is_read_once_counts_as_often_as_the_pipeline_pads(name):
    torch.manual_seed(0)
    training = family_of(name).build_denoiser().eval()
    published = WanTransformer3DModel(**training.config)
    published.load_state_dict(training.state_dict())
    embeds = torch.randn(1, wan.TOKENS, 32)
    embeds[:, 9:] = 0
    channels = training.config.in_channels
    given = {"hidden_states": torch.randn(1, channels, 3, 4, 6), "timestep": torch.full((1,), 500.0)}
    with torch.no_grad():
        in_the_pipeline = published(encoder_hidden_states=embeds, **given).sample
        once = training(encoder_hidden_states=embeds[:, :16], **given).sample
        too_few = published(encoder_hidden_states=embeds[:, :16], **given).sample
    assert torch.allclose(once, in_the_pipeline, atol=1e-5)
    assert not torch.allclose(too_few, in_the_pipeline, atol=1e-3)


@pytest.mark.parametrize("untrained", ["wan22_ti2v_5b"], indirect=True)
def test_wans_transformer_predicts_what_its_scheduler_takes_for_the_clean_latents(untrained):
    family, work, folder = untrained
    embeds, mask = family.embed_prompts(work)
    latents = torch.randn(1, 24, 2, 4, 4).half()
    denoising = family.denoising(latents, None, torch.zeros(1).long(), torch.ones(24), embeds, mask, 1, "transformer")
    assert denoising.loss(lambda **_: (latents.float(),)).item() == pytest.approx(0, abs=1e-9)

    scheduler = family.continuer(folder, "cpu").pipe.scheduler
    scheduler.set_timesteps(4)
    noisy = torch.randn(latents.shape)
    for step in scheduler.timesteps:
        noisy = scheduler.step(latents.float(), step, noisy).prev_sample
    assert torch.allclose(noisy, latents.float(), atol=1e-4)


def test_noise_is_added_to_predictions_and_to_points_closer_to_the_truth():
    truth, predicted = torch.zeros(1, 4, 3, 2, 2), torch.ones(1, 4, 3, 2, 2)
    own = OwnPredictions(truth.half())
    own.keep(torch.tensor([0]), predicted, torch.tensor([True]))
    pick = torch.zeros(2000).long()
    seen = own.estimates(pick, truth.expand(2000, -1, -1, -1, -1)).flatten(1)
    assert torch.equal(seen.min(1).values, seen.max(1).values)  # the same mixture in the whole clip
    assert 0.45 < (seen[:, 0] == 1).float().mean() < 0.55
    assert 0 <= seen.min() < 0.05 and 0.7 < seen.mean() < 0.8


@both_wans
def test_an_expert_starts_from_the_predictions_made_from_pure_noise(untrained):
    family, work, _ = untrained
    embeds, mask = family.embed_prompts(work)
    channels = family.build_vae().config.z_dim
    latents = torch.zeros(3, channels, 2, 4, 4).half()
    conditions = latents if len(family.denoisers) == 2 else None

    def says(value):
        return lambda hidden_states, **_: (torch.full((len(hidden_states), channels, 2, 4, 4), value),)

    for component in family.denoisers:
        denoising = family.denoising(latents, conditions, torch.zeros(3).long(), torch.ones(channels), embeds, mask, 2,
                                     component)  # fmt: skip
        for _ in range(40):
            denoising.loss(says(0.5))
        kept = denoising.own.latest
        if conditions is None:  # the given frame is unchanged
            assert not kept[:, :, 0].any()
            kept = kept[:, :, 1:]
        if component == "transformer_2":  # it never sees pure noise
            assert not kept.any()
            denoising.follow(says(0.25))
            assert (kept == 0.25).all()
        else:
            assert (kept == 0.5).all()


def test_an_error_counts_as_much_as_it_changes_the_picture():
    """Decodes noise in one channel at a time, in the miniature of A14B, whose channels differ most."""
    folder = ROOT / "data" / "miniatures" / "wan22_i2v_a14b" / "vae"
    vae = AutoencoderKLWan.from_pretrained(folder, dtype=torch.float32)
    clips, _ = clip_of(family_of("wan22_i2v_a14b"), frames=5)
    clips = clips[..., :96, :128]
    std = torch.tensor(vae.config.latents_std)
    torch.manual_seed(0)
    with torch.no_grad():
        posterior = vae.encode(pixels(clips)).latent_dist
        right = vae.decode(posterior.mean).sample
        changes = []
        for channel, size in enumerate(std):
            other = posterior.mean.clone()
            other[:, channel] += 0.3 * size * torch.randn_like(other[:, channel])
            changes.append((vae.decode(other).sample - right).square().mean())
    changes = torch.stack(changes)
    weights = channel_weights(posterior.std.mean((0, 2, 3, 4)) / std)
    assert weights.mean().item() == pytest.approx(1) and weights.max() > 100 * weights.min()
    assert torch.corrcoef(torch.stack([weights.log(), changes.log()]))[0, 1] > 0.95


def test_the_experts_train_with_the_weights_that_their_file_will_have():
    import gguf

    kind = gguf.GGMLQuantizationType.Q4_0
    torch.manual_seed(0)
    weight = torch.randn(8, 96)
    weight[3, 32:64] = 0
    weight.requires_grad_()
    kept = q4_0(weight)
    theirs = gguf.quants.dequantize(gguf.quants.quantize(weight.detach().numpy(), kind), kind)
    assert torch.equal(kept.detach(), torch.from_numpy(theirs)) and not torch.equal(kept, weight)
    (kept * 2).sum().backward()
    assert torch.equal(weight.grad, torch.full_like(weight, 2))

    expert = family_of("wan22_i2v_a14b").build_denoiser()
    packed = [name for name, layer in expert.named_modules() if getattr(layer, "rounding", None)]
    assert "blocks.0.attn1.to_q" in packed and "proj_out" not in packed


@pytest.mark.parametrize("untrained", ["wan22_i2v_a14b"], indirect=True)
def test_the_experts_are_real_q4_files_with_wans_original_names(untrained):
    family, work, folder = untrained
    import gguf

    path = gguf_path(folder, "transformer_2", wan22_i2v_a14b.KIND)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert tensors["blocks.0.self_attn.q.weight"].tensor_type == gguf.GGMLQuantizationType.Q4_0
    assert tensors["head.head.weight"].tensor_type == gguf.GGMLQuantizationType.F16
    assert tensors["head.head.bias"].tensor_type == gguf.GGMLQuantizationType.F32
    trained = WanTransformer3DModel.from_pretrained(work / "transformer_2", dtype=torch.float32)
    exact = trained.blocks[0].ffn.net[2].weight.detach().numpy()
    packed = tensors["blocks.0.ffn.2.weight"]
    back = gguf.quants.dequantize(packed.data, packed.tensor_type)
    assert np.abs(back - exact).max() <= 1.01 * np.abs(exact).max() / 8
    bits = 8 * sum(t.n_bytes for t in tensors.values()) / sum(t.n_elements for t in tensors.values())
    assert 4.5 < bits < 8

    again = family.read_denoiser(folder / "transformer_2")  # where the next training run starts
    assert again.state_dict().keys() == trained.state_dict().keys()
    read = again.blocks[0].ffn.net[2].weight
    assert torch.equal(read, torch.from_numpy(back).half().float())  # diffusers multiplies scale and step in fp16
    assert torch.equal(family.read_denoiser(work / "transformer_2").proj_out.weight, trained.proj_out.weight)
