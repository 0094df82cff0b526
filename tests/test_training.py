"""The parts of training that all families share: quantization, the optimizer, the losses, generated latents."""

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

from data.make.miniatures import prompts
from data.make.miniatures.families import family_of, ltx_video
from data.make.miniatures.losses import reconstruction_loss
from data.make.miniatures.muon import Muon
from data.make.miniatures.optimize import split_parameters
from data.make.miniatures.quantization_aware import fp8, in_fp8, quantized_linear
from data.make.miniatures.stages import generate_latents
from data.make.miniatures.vaes import forward_replaced

LTX = family_of("ltx_video")


def test_a_transformer_trains_with_the_weights_that_its_file_will_have(tmp_path):
    torch.manual_seed(0)
    learning = LTX.build_denoiser()
    in_fp8(LTXVideoTransformer3DModel(**ltx_video.TRANSFORMER)).save_pretrained(tmp_path)  # only the size matters
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5.3e6
    stored = LTXVideoTransformer3DModel(**ltx_video.TRANSFORMER)
    stored.load_state_dict(learning.state_dict())
    in_fp8(stored).save_pretrained(tmp_path)
    read = LTXVideoTransformer3DModel.from_pretrained(tmp_path, dtype=torch.float32)
    layers = dict(read.named_modules())
    rounded = [name for name, layer in learning.named_modules() if getattr(layer, "rounding", None)]
    assert "transformer_blocks.7.ff.net.2" in rounded and not {"proj_in", "proj_out"} & set(rounded)
    for name in rounded[-5:]:
        layer, theirs = learning.get_submodule(name), layers[name]
        x = torch.randn(3, layer.in_features)
        with forward_replaced(torch.nn.Linear, quantized_linear):
            seen = layer(x)
        bias = (layer.bias - theirs.bias).detach()  # in half precision there
        assert torch.allclose(seen, theirs(x) + bias, atol=1e-5) and not torch.equal(seen, layer(x))


def test_a_decoder_trains_with_the_kernels_that_its_file_will_have(tmp_path):
    torch.manual_seed(0)
    vae = LTX.build_vae()
    _, decoded = LTX.encoder_and_decoder(vae, compiled=False)
    latents = torch.randn(1, ltx_video.VAE["latent_channels"], 2, 3, 4)
    exact, seen = vae.decoder(latents), decoded(latents)
    chosen = {name for name, layer in vae.named_modules() if getattr(layer, "rounding", None)}
    assert len(chosen) == 11 and all(name.startswith("decoder.up_blocks.") for name in chosen)

    read = LTX.build_vae()
    read.load_state_dict(vae.state_dict())
    in_fp8(read, lambda name, layer: name in chosen).save_pretrained(tmp_path)
    read = AutoencoderKLLTXVideo.from_pretrained(tmp_path, dtype=torch.float32)
    theirs = read.decoder(latents)  # biases in half precision
    assert (seen - theirs).abs().max() < 0.1 * (seen - exact).abs().max()


def test_gradients_pass_through_the_rounding():
    weight = (0.1 * torch.randn(4, 6)).requires_grad_()
    (3 * fp8(weight)).sum().backward()
    assert torch.equal(weight.grad, torch.full_like(weight, 3))


def test_muon_trains_matrices_and_treats_kernels_as_matrices():
    torch.manual_seed(0)
    inner, others = split_parameters(LTX.build_vae())
    assert {weight.dim() for weight in inner} == {5} and any(weight.dim() == 5 for weight in others)
    inner, _ = split_parameters(LTX.build_denoiser())
    assert inner and all(weight.dim() == 2 and min(weight.shape) > 6 for weight in inner)  # no scale and shift tables

    kernel, matrix = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((8, 4, 3, 3, 3), (8, 108)))
    gradient = torch.randn(8, 108)
    kernel.grad, matrix.grad = gradient.view(8, 4, 3, 3, 3).clone(), gradient.clone()
    Muon([kernel, matrix], lr=0.1).step()
    assert torch.allclose(kernel.flatten(1), matrix, atol=1e-6)
    sizes = torch.linalg.svdvals(matrix.detach())
    assert sizes.max() < 2 * sizes.min(), "all directions are learned about equally fast"
    assert matrix.square().mean().sqrt().item() == pytest.approx(0.04, rel=0.3)  # 0.4 times the rate


def test_muon_leaves_parameters_without_a_gradient_unchanged():
    trained, unused, alone = (torch.nn.Parameter(torch.ones(shape)) for shape in ((4, 6), (4, 6), (3, 5)))
    trained.grad = torch.randn(4, 6)
    Muon([trained, unused, alone], lr=0.1).step()
    assert not torch.equal(trained, torch.ones(4, 6))
    assert torch.equal(unused, torch.ones(4, 6)) and torch.equal(alone, torch.ones(3, 5))


@pytest.mark.parametrize("family", [LTX, family_of("wan22_i2v_a14b")], ids=["ltx_video", "wan22_i2v_a14b"])
def test_latents_are_generated_step_by_step_by_the_denoiser_of_each_noise_level(family):
    channels = 64 if family is LTX else 16
    latents = torch.randn(3, channels, 2, 4, 4).half()
    conditions = None if family is LTX else latents
    embeds, mask = torch.randn(2, 9, prompts.WIDTH), torch.ones(2, 9)
    component = next(iter(family.denoisers))
    denoising = family.denoising(
        latents, conditions, torch.zeros(3).long(), torch.ones(channels), embeds, mask, 2, component
    )
    asked = []
    denoising.predict = lambda who, pick, estimate, sigma, prompt: (
        asked.append((who, sigma.max().item())) or estimate + 1
    )
    made = generate_latents(denoising, {"first": 0.9, "second": 0.0}, steps=4)
    levels = [1, 0.75, 0.5, 0.25] if family is LTX else [1, 0.9, 0.75, 0.5]
    assert [sigma for _, sigma in asked] == pytest.approx(2 * levels)  # two batches
    assert [who for who, _ in asked[:4]] == ["first" if sigma >= 0.9 else "second" for sigma in levels]
    assert torch.allclose(made.float(), latents.float() + 4, atol=1e-2)


def test_the_loss_grows_with_the_distance_from_the_clip():
    torch.manual_seed(0)
    clip = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    near, far = (reconstruction_loss(clip + size * torch.randn_like(clip), clip).item() for size in (0.05, 0.2))
    assert reconstruction_loss(clip, clip).item() == pytest.approx(0, abs=1e-5) and 0 < near < far
