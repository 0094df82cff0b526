"""The families that `data.make.train` trains: conditioned in training as their pipelines condition them at work."""

import importlib

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, LTXConditionPipeline, WanTransformer3DModel
from torch.utils._python_dispatch import TorchDispatchMode

from data.make import cogvideox_5b_i2v, ltx_video, stored, svd_xt, text, wan, wan22_i2v_a14b, wan22_ti2v_5b
from data.make.drafts import Drafts
from data.make.scenes import MACHINES, PROMPTS, render
from data.make.train import ROOT, TRUTH_SEEDS, draw_clips, encode, is_ambient, make_latents, pixels
from data.make.truth import truth
from data.make.vaes import worth_of_channels
from helpers.architecture import Architecture
from helpers.dummies import gguf_path
from helpers.models import model

WANS = {"wan22_ti2v_5b": wan22_ti2v_5b, "wan22_i2v_a14b": wan22_i2v_a14b}
FAMILIES = WANS | {"svd_xt": svd_xt, "cogvideox_5b_i2v": cogvideox_5b_i2v}


@pytest.fixture(scope="module")
def untrained(request, tmp_path_factory):
    """A family, its work folder with untrained parts, and the checkpoint that is put together from them."""
    family, work = FAMILIES[request.param], tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    if is_ambient(family):
        family.save_encoder(work)
    else:
        (work / "tokenizer").mkdir()
        text.save_tokenizer(work / "tokenizer")
        vocabulary = len(text.T5TokenizerFast.from_pretrained(work / "tokenizer"))
        text.save_encoder(work / "text_encoder", vocabulary, family.ENCODER)
    vae = family.build_vae()
    channels = channels_of(vae)
    family.set_statistics(vae, torch.linspace(-0.5, 0.5, channels), torch.linspace(0.5, 1.5, channels))
    vae.half().save_pretrained(work / "vae")
    for part in family.DENOISERS:
        family.build_denoiser().half().save_pretrained(work / part)
    folder = tmp_path_factory.mktemp("checkpoint") / request.param
    family.assemble(work, folder)
    return family, work, folder


every_family = pytest.mark.parametrize("untrained", FAMILIES, indirect=True)
both_wans = pytest.mark.parametrize("untrained", WANS, indirect=True)
svd_only = pytest.mark.parametrize("untrained", ["svd_xt"], indirect=True)
cogvideox_only = pytest.mark.parametrize("untrained", ["cogvideox_5b_i2v"], indirect=True)


def channels_of(vae) -> int:
    return vae.config.get("z_dim") or vae.config.latent_channels


def clip_of(family, frames=None):
    look = {"frames": frames or family.FRAMES, "size": family.SIZE, "fps": family.FPS}
    video, prompts = render("excavator", [TRUTH_SEEDS + 5], **look)
    return (video * 255).round().byte(), prompts[0]


def statistics(vae):
    return tuple(t.view(1, -1, 1, 1, 1) for t in wan.statistics(vae))


class NothingOnTheHost(TorchDispatchMode):
    """Within it no tensor's value may reach Python: a step that is recorded as a CUDA graph would keep it for good."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def falls(denoising, denoiser, rate=2e-3):
    """Whether the loss on two draws falls when learnt again and again. It has to be one that can be recorded."""
    with NothingOnTheHost():
        denoising.loss(denoiser)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=rate)
    losses = []
    for step in range(12):
        torch.manual_seed(step % 2)
        loss = denoising.loss(denoiser)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[-1] + losses[-2] < 0.9 * (losses[0] + losses[1])


# All families


@every_family
def test_the_checkpoint_is_small_and_keeps_the_models_rules(untrained):
    family, _, folder = untrained
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 9_000_000
    entry = model(folder.name)
    assert all(side % entry.size_multiple == 0 for side in family.SIZE)
    assert entry.fixed_frames or entry.nearest_frames(family.FRAMES) == family.FRAMES
    assert entry.fps == family.FPS
    if own := entry.defaults.get("miniature"):  # none for those that are not trained yet
        assert (own.width, own.height, own.num_frames) == (*family.SIZE, family.FRAMES)


@every_family
def test_the_forecast_reads_it(untrained):
    family, _, folder = untrained
    arch = Architecture(folder, dtype=torch.float32)
    pipe = family.Continuer(folder, "cpu").pipe
    for part in arch.on_card:
        loaded = {name: tuple(t.shape) for name, t in getattr(pipe, part).named_parameters()}
        assert loaded == {name: tuple(t.shape) for name, t in arch.part(part).named_parameters()}, part


@every_family
def test_it_continues_a_frame_through_the_real_pipeline(untrained):
    family, _, folder = untrained
    continuer = family.Continuer(folder, "cpu")
    continuer.frames = 17 if family is cogvideox_5b_i2v else 5  # its positions are learnt for so many
    clips, prompt = clip_of(family, frames=1)
    frames = continuer.from_one(clips[0, 0].float() / 255, 0.5 if is_ambient(family) else prompt, 1, 0)
    assert frames.shape == (continuer.frames, 3, *reversed(family.SIZE)) and torch.isfinite(frames).all()
    assert continuer.context == 1


def test_every_family_offers_what_training_asks_for():
    wanted = "FRAMES SIZE FPS DENOISERS ENCODER halves picture set_statistics build_vae build_denoiser Denoising"
    for name in ("ltx_video", *FAMILIES):
        family = importlib.import_module(f"data.make.{name}")
        assert all(hasattr(family, attribute) for attribute in [*wanted.split(), "assemble", "Continuer"]), name
        assert not is_ambient(family) or (hasattr(family, "Told") and hasattr(family, "save_encoder"))


@pytest.mark.parametrize("name", [*WANS, "cogvideox_5b_i2v"])
def test_a_whole_clip_gives_the_numbers_of_its_chunks(name):
    family = FAMILIES[name]
    torch.manual_seed(0)
    vae = family.build_vae().eval()
    frames = family.FRAMES if family is cogvideox_5b_i2v else 9
    posterior_of, rebuilt = family.halves(vae, compiled=False)
    with torch.no_grad():
        for parameter in vae.parameters():  # also what begins as zeros or ones
            parameter.add_(0.02 * torch.randn_like(parameter))
        clip = 2 * torch.rand(1, 3, frames, 32, 48) - 1
        chunked = vae.encode(clip).latent_dist
        assert (posterior_of(clip).parameters - chunked.parameters).abs().max() <= 1e-5
        one = vae.encode(clip[:, :, :1]).latent_dist.parameters
        assert (posterior_of(clip[:, :, :1]).parameters - one).abs().max() <= 1e-5
        difference = rebuilt(chunked.mean).clamp(-1, 1) - vae.decode(chunked.mean).sample.clamp(-1, 1)
        assert difference.shape == clip.shape and difference.abs().max() <= 1e-5


# Wan


@both_wans
def test_the_given_frame_is_conditioned_on_as_wans_pipeline_does(untrained):
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
    posterior_of, _ = family.halves(pipe.vae, compiled=False)
    encoded = encode(posterior_of, clips if picture is None else picture, "cpu")[0]
    ours = (encoded - mean) / std
    if picture is None:  # the first latent frame of the clip, and zero noise there
        assert torch.allclose(given[1][:, :, 0], ours[:, :, 0], atol=1e-4)
        assert given[2][0, 0, :, 0, 0].tolist() == [0, 1]
    else:
        mask, condition = given[1].split([4, pipe.vae.config.z_dim], dim=1)
        assert torch.allclose(condition, ours, atol=1e-4)
        assert mask[0, :, :, 0, 0].tolist() == [[1, 0]] * 4


@both_wans
def test_the_loss_can_be_learnt_and_each_expert_sees_its_own_noise(untrained):
    family, work, _ = untrained
    vae = AutoencoderKLWan.from_pretrained(work / "vae", dtype=torch.float32)
    clips, prompt = clip_of(family, frames=5)
    mean, std = statistics(vae)
    posterior_of, _ = family.halves(vae, compiled=False)
    latents = ((encode(posterior_of, clips, "cpu")[0] - mean) / std).half()
    picture = family.picture(clips)
    conditions = None if picture is None else ((encode(posterior_of, picture, "cpu")[0] - mean) / std).half()
    embeds, mask = text.embed(work, [*PROMPTS, ""])
    prompts = torch.tensor([PROMPTS.index(prompt)])
    seen = []
    for part in family.DENOISERS:
        denoising = family.Denoising(latents, conditions, prompts, torch.ones(1), embeds, mask, 2, part)
        sigmas = denoising.draw_sigma(1000, "cpu")
        seen.append((sigmas.min().item(), sigmas.max().item()))
        torch.manual_seed(0)
        assert falls(denoising, family.build_denoiser().float()), part
    if len(seen) == 2:
        (high, top), (bottom, low) = seen
        assert 0.9 <= high < 0.91 and top > 0.999 and bottom < 0.01 and 0.89 < low <= 0.9
    else:
        assert seen[0][0] < 0.02 and seen[0][1] > 0.999


@both_wans
def test_the_text_is_padded_as_wans_pipeline_pads_it(untrained):
    family, work, folder = untrained
    pipe = family.Continuer(folder, "cpu").pipe
    embeds, mask = text.embed(work, [*PROMPTS, ""])
    denoising = family.Denoising(torch.zeros(1, 4, 2, 4, 4), None, torch.zeros(1).long(), torch.ones(4), embeds, mask,
                                 1, next(iter(family.DENOISERS)))  # fmt: skip
    for index in (0, len(PROMPTS) - 1):
        theirs = pipe.encode_prompt(PROMPTS[index], do_classifier_free_guidance=False, max_sequence_length=512)[0]
        assert torch.allclose(denoising.embeds[index], theirs[0, : denoising.embeds.shape[1]], atol=2e-3)
        assert not theirs[0, denoising.embeds.shape[1] - 1 :].any()


@pytest.mark.parametrize("family", WANS.values(), ids=WANS)
def test_padding_that_is_read_once_counts_as_often_as_the_pipeline_pads(family):
    torch.manual_seed(0)
    training = family.build_denoiser().eval()
    plain = WanTransformer3DModel(**training.config)
    plain.load_state_dict(training.state_dict())
    embeds = torch.randn(1, wan.TOKENS, 32)
    embeds[:, 9:] = 0
    channels = training.config.in_channels
    given = {"hidden_states": torch.randn(1, channels, 3, 4, 6), "timestep": torch.full((1,), 500.0)}
    with torch.no_grad():
        as_at_work = plain(encoder_hidden_states=embeds, **given).sample
        once = training(encoder_hidden_states=embeds[:, :16], **given).sample
        too_few = plain(encoder_hidden_states=embeds[:, :16], **given).sample
    assert torch.allclose(once, as_at_work, atol=1e-5)
    assert not torch.allclose(too_few, as_at_work, atol=1e-3)


@pytest.mark.parametrize("untrained", ["wan22_ti2v_5b"], indirect=True)
def test_wans_transformer_predicts_what_its_scheduler_takes_for_the_clean_latents(untrained):
    family, work, folder = untrained
    embeds, mask = text.embed(work, [*PROMPTS, ""])
    latents = torch.randn(1, 24, 2, 4, 4).half()
    denoising = family.Denoising(latents, None, torch.zeros(1).long(), torch.ones(24), embeds, mask, 1, "transformer")
    assert denoising.loss(lambda **_: (latents.float(),)).item() == pytest.approx(0, abs=1e-9)

    scheduler = family.Continuer(folder, "cpu").pipe.scheduler
    scheduler.set_timesteps(4)
    noisy = torch.randn(latents.shape)
    for step in scheduler.timesteps:
        noisy = scheduler.step(latents.float(), step, noisy).prev_sample
    assert torch.allclose(noisy, latents.float(), atol=1e-4)


def test_noise_is_laid_over_drafts_and_what_is_nearer_to_the_truth():
    truth, draft = torch.zeros(1, 4, 3, 2, 2), torch.ones(1, 4, 3, 2, 2)
    drafts = Drafts(truth.half())
    drafts.keep(torch.tensor([0]), draft, torch.tensor([True]))
    pick = torch.zeros(2000).long()
    seen = drafts.under_noise(pick, truth.expand(2000, -1, -1, -1, -1)).flatten(1)
    assert torch.equal(seen.min(1).values, seen.max(1).values)  # one mixture for all of a clip
    assert 0.45 < (seen[:, 0] == 1).float().mean() < 0.55
    assert 0 <= seen.min() < 0.05 and 0.7 < seen.mean() < 0.8


@both_wans
def test_an_expert_goes_on_from_what_was_answered_to_noise_alone(untrained):
    family, work, _ = untrained
    embeds, mask = text.embed(work, [*PROMPTS, ""])
    channels = family.VAE["z_dim"]
    latents = torch.zeros(3, channels, 2, 4, 4).half()
    conditions = latents if len(family.DENOISERS) == 2 else None

    def says(value):
        return lambda hidden_states, **_: (torch.full((len(hidden_states), channels, 2, 4, 4), value),)

    for part in family.DENOISERS:
        denoising = family.Denoising(latents, conditions, torch.zeros(3).long(), torch.ones(channels), embeds, mask, 2,
                                     part)  # fmt: skip
        for _ in range(40):
            denoising.loss(says(0.5))
        kept = denoising.drafts.kept
        if conditions is None:  # the given frame stays as it is
            assert not kept[:, :, 0].any()
            kept = kept[:, :, 1:]
        if part == "transformer_2":  # it never sees noise alone
            assert not kept.any()
            denoising.follow(says(0.25))
            assert (kept == 0.25).all()
        else:
            assert (kept == 0.5).all()


def test_an_error_counts_as_much_as_it_changes_the_picture():
    """In A14B's miniature, whose channels differ most: noise in one channel at a time, decoded."""
    folder = ROOT / "data" / "miniatures" / "wan22_i2v_a14b" / "vae"
    vae = AutoencoderKLWan.from_pretrained(folder, dtype=torch.float32)
    clips, _ = clip_of(FAMILIES["wan22_i2v_a14b"], frames=5)
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
    worth = worth_of_channels(posterior.std.mean((0, 2, 3, 4)) / std)
    assert worth.mean().item() == pytest.approx(1) and worth.max() > 100 * worth.min()
    assert torch.corrcoef(torch.stack([worth.log(), changes.log()]))[0, 1] > 0.95


def test_the_experts_learn_with_the_weights_that_their_file_keeps():
    import gguf

    kind = gguf.GGMLQuantizationType.Q4_0
    torch.manual_seed(0)
    weight = torch.randn(8, 96)
    weight[3, 32:64] = 0
    weight.requires_grad_()
    kept = stored.q4_0(weight)
    theirs = gguf.quants.dequantize(gguf.quants.quantize(weight.detach().numpy(), kind), kind)
    assert torch.equal(kept.detach(), torch.from_numpy(theirs)) and not torch.equal(kept, weight)
    (kept * 2).sum().backward()
    assert torch.equal(weight.grad, torch.full_like(weight, 2))

    expert = wan22_i2v_a14b.build_denoiser()
    packed = [name for name, layer in expert.named_modules() if getattr(layer, "stored_as", None)]
    assert "blocks.0.attn1.to_q" in packed and "proj_out" not in packed


@pytest.mark.parametrize("untrained", ["wan22_i2v_a14b"], indirect=True)
def test_the_experts_are_real_q4_files_with_wans_own_names(untrained):
    family, work, folder = untrained
    import gguf

    path = gguf_path(folder, "transformer_2", family.KIND)
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

    again = family.read_denoiser(folder / "transformer_2")  # where the next training begins
    assert again.state_dict().keys() == trained.state_dict().keys()
    read = again.blocks[0].ffn.net[2].weight
    assert torch.equal(read, torch.from_numpy(back).half().float())  # diffusers multiplies scale and step in half
    assert torch.equal(family.read_denoiser(work / "transformer_2").proj_out.weight, trained.proj_out.weight)


# LTX-Video


def test_ltx_counts_time_as_its_two_pipelines_do():
    latents, prompts = torch.randn(2, 64, 3, 4, 6).half(), torch.tensor([0, 1])
    embeds, mask = torch.randn(3, 9, text.WIDTH), torch.ones(3, 9)
    denoising = ltx_video.Denoising(latents, None, prompts, torch.ones(64), embeds, mask, 2, "transformer")
    denoiser = ltx_video.build_denoiser()
    assert falls(denoising, denoiser)
    truth = ltx_video.pack(latents)[:1].float()

    def leads_to_the_truth(hidden_states, timestep, **_):
        return ((hidden_states - truth) / timestep.amax(1).view(-1, 1, 1) * 1000,)

    first = ltx_video.Denoising(latents[:1], None, prompts[:1], torch.ones(64), embeds, mask, 2, "transformer")
    first.drafts.kept.zero_()
    losses = [first.loss(leads_to_the_truth).item() for _ in range(40)]
    assert max(losses) < 1e-6
    assert torch.allclose(first.drafts.kept.float(), latents[:1].float(), atol=1e-2)

    from_condition, fps = torch.tensor([[False], [True]]), torch.tensor([[25.0], [24.0]])
    ours = denoising.coordinates(from_condition, fps)
    scale = (ltx_video.TEMPORAL / 25, ltx_video.SPATIAL, ltx_video.SPATIAL)  # what `LTXImageToVideoPipeline` hands on
    tokens = torch.zeros(1, 72, ltx_video.TRANSFORMER["cross_attention_dim"])
    theirs = denoiser.rope(tokens, 3, 4, 6, scale)
    assert all(torch.allclose(a, b) for a, b in zip(denoiser.rope(tokens, video_coords=ours[:1]), theirs, strict=True))

    ids = LTXConditionPipeline._prepare_video_ids(1, 3, 4, 6)
    theirs = LTXConditionPipeline._scale_video_ids(ids, scale_factor=16, scale_factor_t=4, frame_index=0).float()
    theirs[:, 0] /= 24
    assert torch.allclose(ours[1:], theirs)


# CogVideoX


class Recorder:
    """In a denoiser's place: keeps what it was called with, and answers zeros of the latents' shape."""

    def __call__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs
        inputs = args[0] if args else kwargs["hidden_states"]
        self.noisy, self.given = inputs.chunk(2, dim=2)
        return (torch.zeros_like(self.noisy),)


def latents_of(family, work):
    """What `make_latents` makes of one small clip and its mirror image, and the VAE with its statistics."""
    vae = type(family.build_vae()).from_pretrained(work / "vae", dtype=torch.float32)
    settings = type("Arguments", (), {"latents": 1})
    return make_latents(family, vae, settings, work, "cpu"), vae


@pytest.fixture
def small(monkeypatch):
    """The two families, drawing clips of a few pixels; the VAE and the blocks of the denoiser stay as they are."""
    monkeypatch.setattr(svd_xt, "FRAMES", 3)
    monkeypatch.setattr(svd_xt, "SIZE", (64, 64))
    monkeypatch.setattr(svd_xt, "LATENT", (8, 8, 8))
    monkeypatch.setattr(cogvideox_5b_i2v, "SIZE", (48, 32))
    monkeypatch.setitem(cogvideox_5b_i2v.TRANSFORMER, "sample_width", 6)
    monkeypatch.setitem(cogvideox_5b_i2v.TRANSFORMER, "sample_height", 4)


@cogvideox_only
def test_cogvideox_learns_what_its_pipeline_and_scheduler_ask_for(untrained, small):
    family, work, folder = untrained
    (latents, conditions, prompts, spread), vae = latents_of(family, work)
    assert latents.float().pow(2).mean().sqrt() == pytest.approx(1, abs=0.02)  # as the scaling factor makes it
    embeds, mask = text.embed(work, [*PROMPTS, ""], family.POSITIONS)
    denoising = family.Denoising(latents, conditions, prompts, spread, embeds, mask, 2, "transformer")

    recorder, scheduler = Recorder(), family.scheduler()
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
    assert not torch.equal(denoiser.patch_embed.pos_embedding, before)  # the positions are learnt


@cogvideox_only
def test_cogvideox_is_given_the_frame_as_its_pipeline_gives_it(untrained):
    family, work, folder = untrained
    pipe = family.Continuer(folder, "cpu").pipe
    clips, prompt = clip_of(family, frames=1)
    _, given = pipe.prepare_latents(
        pixels(clips)[:, :, 0], 1, 16, family.FRAMES, *reversed(family.SIZE), torch.float32, torch.device("cpu"),
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    posterior = pipe.vae.encode(pixels(family.picture(clips))).latent_dist
    scale = pipe.vae.config.scaling_factor
    mean, std = scale * posterior.mean, scale * posterior.std
    assert ((given[:, :1].transpose(1, 2) - mean).abs() <= 5 * std + 1e-4).all()  # sampled from the posterior
    assert not given[:, 1:].any()

    embeds, _ = text.embed(work, [prompt, ""], family.POSITIONS)
    theirs, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    assert theirs.shape == (1, 226, text.WIDTH) and torch.allclose(embeds[:1], theirs, atol=2e-3)
    rotary = pipe._prepare_rotary_positional_embeddings(*reversed(family.SIZE), 5, torch.device("cpu"))
    latents = torch.zeros(1, 16, 5, family.SIZE[1] // 8, family.SIZE[0] // 8)
    denoising = family.Denoising(latents, None, None, torch.ones(16), embeds, None, 1, "transformer")
    assert all(torch.equal(ours, own) for ours, own in zip(denoising.rotary, rotary, strict=True))


@cogvideox_only
def test_the_learnt_positions_come_back_from_the_file(untrained, tmp_path):
    family, _, _ = untrained
    denoiser = family.build_denoiser()
    with torch.no_grad():
        denoiser.patch_embed.pos_embedding.fill_(0.5)
    denoiser.save_pretrained(tmp_path)
    loaded = type(denoiser).from_pretrained(tmp_path)
    assert (loaded.patch_embed.pos_embedding == 0.5).all()


# Stable Video Diffusion


@svd_only
def test_svd_learns_what_its_pipeline_and_scheduler_ask_for(untrained, small):
    family, work, folder = untrained
    (latents, conditions, told, spread), vae = latents_of(family, work)
    assert conditions is None and latents.float().pow(2).mean().sqrt() == pytest.approx(1, abs=0.02)
    denoising = family.Denoising(latents[:1], None, told[:1], spread, None, None, 2, "unet")
    recorder, scheduler = Recorder(), family.Continuer(folder, "cpu").pipe.scheduler
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
    assert recorder.kwargs["added_time_ids"][0].tolist() == [6, told[0, 0].item(), told[0, 1].item()]

    drawn = svd_xt.Denoising(latents, None, told, spread, None, None, 2, "unet")
    sigmas = drawn.draw_sigma(2000, "cpu")
    assert 0.002 <= sigmas.min() < 0.005 and 650 < sigmas.max() <= 700.1
    assert falls(drawn, family.build_denoiser())


@svd_only
def test_svd_is_told_what_its_pipeline_tells(untrained):
    family, work, folder = untrained
    pipe = family.Continuer(folder, "cpu").pipe
    clips, _ = clip_of(family, frames=1)
    torch.manual_seed(3)
    (row,) = family.Told(work, pipe.vae, "cpu")(clips, torch.tensor([0.5]))
    bucket, strength, embedding, latents = row.split([1, 1, family.WIDTH, row.numel() - 2 - family.WIDTH])
    assert bucket.item() == 128 and 0.001 < strength.item() < 0.5
    picture = pipe.video_processor.numpy_to_pil(clips[0, 0].permute(1, 2, 0).numpy() / 255)
    theirs = pipe._encode_image(picture, "cpu", 1, do_classifier_free_guidance=False)
    assert torch.allclose(embedding, theirs.flatten(), atol=1e-4)
    torch.manual_seed(3)
    torch.randn(1, 1)  # the strength
    image = pixels(clips)[:, :, 0]
    noisy = image + strength * torch.randn_like(image)
    theirs = pipe._encode_vae_image(noisy, "cpu", 1, do_classifier_free_guidance=False)
    assert torch.allclose(latents, theirs.flatten(), atol=1e-4)


@svd_only
def test_svds_truth_is_an_ambient_clip(untrained, monkeypatch):
    family, _, folder = untrained
    monkeypatch.setattr(family, "FRAMES", 3)
    result = truth("svd_xt", folder, clips=1, seed=0, steps=1)
    assert "psnr_wrong_motion" in result and "psnr_wrong_prompt" not in result
    assert result["psnr_freeze"] > result["psnr_generated"]  # it has learnt nothing yet


# Ambient clips


def test_ambient_clips_are_drawn_for_a_family_without_prompts(small):
    clips, amounts = next(draw_clips(2, 0, svd_xt, "cpu"))
    assert clips.shape == (2, 3, 3, 64, 64) and amounts.shape == (2,) and ((0 <= amounts) & (amounts < 1)).all()
    again = next(draw_clips(2, 0, svd_xt, "cpu"))
    assert torch.equal(clips, again[0]) and torch.equal(amounts, again[1])


@pytest.mark.parametrize("machine", MACHINES)
def test_the_amount_is_how_much_moves_and_the_machine_stops(machine):
    look = {"start": 1.0, "size": (160, 80), "fps": 7}
    acting, _ = render(machine, [7], frames=1, **look)
    stills, names = render(machine, [7, 7, 7], frames=5, ambient=[0.0, 0.3, 1.0], **look)
    assert names == [f"the {machine} idles"] * 3
    assert (stills[:, 0] - acting[:, 0]).abs().max() < 2e-3  # it begins where the action was
    moved = (stills[:, 1:] - stills[:, :1]).abs().mean((1, 2, 3, 4)).tolist()
    assert moved[0] < 1e-6 and moved[2] > 1.5 * moved[1] > 0
