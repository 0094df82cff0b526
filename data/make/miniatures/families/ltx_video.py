"""The LTX-Video miniature: how its parts are built, what its transformer learns, how its folder is put together.

A family module like this one is all that `data.make.train` needs to know of a model; the other families are siblings.
"""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from transformers import T5EncoderModel, T5TokenizerFast

from . import text
from .drafts import FROM, Drafts, prompt_or_none
from .stored import conv_as_stored, fp8, in_fp8, is_fp8, learn_as, linear_as_stored
from .vaes import forward_replaced, worth_of_channels

FRAMES = 25  # 8k+1, as the real model's rule
SIZE, FPS = (288, 160), 24
SPATIAL, TEMPORAL = 16, 4  # compression of the small VAE; the real one has 32 and 8
SEVERAL = 0.4  # of the draws are as `LTXConditionPipeline` has them,
GIVEN = (1, 2, 3, 3, 3, 3, 4, 5)  # with one of these numbers of latent frames to begin with
STORED = "The transformer's matrices and the decoder's kernels are stored in fp8, all else in fp16."  # for the card
VAE = dict(
    latent_channels=64,
    block_out_channels=(48, 64, 128),
    down_block_types=("LTXVideo095DownBlock3D",) * 2,
    downsample_type=("spatiotemporal",) * 2,
    spatio_temporal_scaling=(True, True),
    layers_per_block=(1, 1, 0),
    decoder_block_out_channels=(48, 72),
    decoder_spatio_temporal_scaling=(True, True),
    decoder_layers_per_block=(2, 1, 0),
    decoder_inject_noise=(False,) * 3,
    upsample_residual=(True, True),
    upsample_factor=(1, 2),
    timestep_conditioning=False,
    patch_size=4,
    patch_size_t=1,
    scaling_factor=1.0,
    spatial_compression_ratio=SPATIAL,
    temporal_compression_ratio=TEMPORAL,
)
TRANSFORMER = dict(
    in_channels=64,
    out_channels=64,
    num_attention_heads=3,
    attention_head_dim=64,
    cross_attention_dim=192,
    num_layers=8,
    caption_channels=text.WIDTH,
)


def build_vae() -> AutoencoderKLLTXVideo:
    return AutoencoderKLLTXVideo(**VAE)


def build_denoiser() -> LTXVideoTransformer3DModel:
    return learn_as(fp8, LTXVideoTransformer3DModel(**TRANSFORMER), is_fp8)


DENOISERS = {"transformer": "denoiser"}  # the pipeline's part, and the name of the stage that trains it
ENCODER = "T5EncoderModel"


def in_a_block(name: str, layer: torch.nn.Module) -> bool:
    """Whether a layer of the VAE is stored in fp8: the decoder's, but those that read latents and write pixels."""
    return name.startswith("decoder.up_blocks")


def halves(vae, compiled: bool):
    """Functions from pixels to the posterior, and from latents to pixels, with the decoder's weights as stored."""
    learn_as(fp8, vae, in_a_block)
    encoder, decoder = vae.encoder, vae.decoder
    if compiled:
        encoder, decoder = torch.compile(encoder, dynamic=False), torch.compile(decoder, dynamic=False)

    @forward_replaced(torch.nn.Conv3d, conv_as_stored)
    def decoded(latents):
        return decoder(latents)

    return lambda x: DiagonalGaussianDistribution(encoder(x)), decoded


def picture(clips: torch.Tensor) -> None:
    """The given frame needs no encoding of its own: it is the clip's first latent frame."""


def set_statistics(vae, mean: torch.Tensor, std: torch.Tensor) -> None:
    vae.latents_mean.copy_(mean), vae.latents_std.copy_(std)


def statistics(vae) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents' channels [C], by which the pipeline normalises them."""
    return vae.latents_mean, vae.latents_std


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, T, H, W] to tokens [B, T*H*W, C], as the pipeline packs them."""
    return latents.flatten(2).transpose(1, 2)


class Denoising:
    """The transformer's training loss on normalised latents, the same conditioning as in the two LTX pipelines.

    `LTXImageToVideoPipeline` gives the first latent frame, sampled from the VAE's posterior; `LTXConditionPipeline`
    gives several, adds a little noise to them, and counts time in another way. Both are learnt.

    Args:
        latents: [N, C, T, H, W] fp16, normalised per channel.
        prompts: [N] long, index of each clip's prompt in `embeds` (the last entry of `embeds` is the empty prompt).
        posterior_std: [C], what sampling from the posterior adds to a conditioning latent, in normalised units.
    """

    def __init__(self, latents, _, prompts, posterior_std, embeds, mask, batch_size, part):
        self.latents, self.prompts, self.embeds, self.mask = latents, prompts, embeds, mask.to(embeds.dtype)
        self.posterior_std, self.batch_size = posterior_std, batch_size
        self.worth, self.drafts = worth_of_channels(posterior_std), Drafts(latents)
        frames, height, width = latents.shape[2:]
        grid = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
        self.at = torch.stack(grid).flatten(1).to(latents.device).float()  # frame, row, column of each token
        self.often = torch.tensor(GIVEN, device=latents.device)

    def coordinates(self, from_condition_pipeline: torch.Tensor, fps: torch.Tensor) -> torch.Tensor:
        """Seconds, row and column of each token as the pipeline has them, [B, 3, N], for arguments [B, 1]."""
        frame, row, column = self.at.expand(len(fps), -1, -1).unbind(1)
        first = torch.where(from_condition_pipeline, 1 - TEMPORAL, 0)
        time = (frame * TEMPORAL + first).clamp(min=0)
        return torch.stack([time / fps, row * SPATIAL, column * SPATIAL], dim=1)

    def levels(self, steps: int) -> list[float]:
        """The noise levels of the scheduler's steps."""
        return torch.linspace(1, 0, steps + 1).tolist()[:-1]

    @forward_replaced(torch.nn.Linear, linear_as_stored)
    def answer(self, transformer, pick, below, sigma, prompt, several=None) -> torch.Tensor:
        """What the transformer takes for the clean latents of the clips `pick` when it sees `below` under noise.

        Latents are [B, C, T, H, W], `sigma` is [B, 1, 1, 1, 1]. For the clips with `several` [B] all is as the pipeline
        for several conditions has it.
        """
        latents, sigma = self.latents[pick].float(), sigma.flatten(2)
        clean, below, n = pack(latents), pack(below), len(pick)
        several = torch.zeros(n, 1, 1, device=pick.device).bool() if several is None else several.view(-1, 1, 1)
        often = self.often[torch.randint(len(GIVEN), (n, 1, 1), device=pick.device)]
        given = torch.where(several, often, 1)
        known = self.at[0].view(1, -1, 1) < given
        context = clean + self.posterior_std * torch.randn_like(clean)
        # `image_cond_noise_scale` of the pipeline for several; with no noise at all it continues a little better still
        context = context + several * 0.15 * sigma**2 * torch.randn_like(clean)
        fps = torch.where(torch.rand(n, 1, device=pick.device) < 0.2, 25.0, 24.0)
        noisy = torch.where(known, context, (1 - sigma) * below + sigma * torch.randn_like(clean))
        velocity = transformer(
            hidden_states=noisy,
            encoder_hidden_states=self.embeds[prompt],
            encoder_attention_mask=self.mask[prompt],
            timestep=(sigma * 1000 * ~known)[..., 0],
            return_dict=False,
            video_coords=self.coordinates(several[..., 0], fps),
        )[0]
        made = torch.where(known, clean, noisy - sigma * velocity.float())
        return made.transpose(1, 2).unflatten(2, latents.shape[2:])

    def loss(self, transformer) -> torch.Tensor:
        device, n = self.latents.device, self.batch_size
        pick = torch.randint(len(self.latents), (n,), device=device)
        clean, prompt = self.latents[pick].float(), prompt_or_none(self.prompts[pick], len(self.embeds) - 1)
        several = torch.rand(n, device=device) < SEVERAL
        u = torch.rand(n, 1, 1, 1, 1, device=device)
        sigma = 4.0 * u / (1 + 3 * u)  # more of the noisy end, where the picture is decided
        made = self.answer(transformer, pick, self.drafts.under_noise(pick, clean), sigma, prompt, several)
        self.drafts.keep(pick, made, (sigma.flatten() > FROM) & ~several)
        # the less noise there was, the more exact it has to be; below a quarter no step of the lesson lies
        error = (made - clean) ** 2 / sigma.clamp(min=0.25) * self.worth.view(-1, 1, 1, 1)
        return error[:, :, 1:].mean()


def assemble(work: Path, folder: Path) -> None:
    """Put the trained parts of `work` together as a pipeline folder in the diffusers layout: the transformer's matrices
    and the decoder's kernels in fp8, all else in fp16.
    """
    pipe = LTXImageToVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=in_fp8(AutoencoderKLLTXVideo.from_pretrained(work / "vae"), in_a_block),
        transformer=in_fp8(LTXVideoTransformer3DModel.from_pretrained(work / "transformer")),
        text_encoder=T5EncoderModel.from_pretrained(work / "text_encoder", dtype=torch.float16),
        tokenizer=T5TokenizerFast.from_pretrained(work / "tokenizer"),
    )
    text.save_pipeline(pipe, work, folder)


class Continuer:
    """The finished folder at work: what `data.make.truth` asks of every family.

    Frames are float tensors [T, 3, H, W] in 0..1; a continuation's first frames repeat the frames it was given.
    """

    context = 9  # frames that `from_several` takes

    def __init__(self, folder: Path, device: str):
        self.pipe = LTXImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
        self.several = LTXConditionPipeline(**self.pipe.components)
        for pipe in (self.pipe, self.several):
            pipe.set_progress_bar_config(disable=True)

    def _call(self, pipe, frames, prompt, steps, seed, **given):
        height, width = frames.shape[-2:]
        # encoded once for both pipelines: the second one would pad to 256 tokens, and a T5 encoder sees the padding
        embeds, mask, _, _ = self.pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        out = pipe(
            prompt_embeds=embeds,
            prompt_attention_mask=mask,
            height=height,
            width=width,
            num_frames=FRAMES,
            frame_rate=24,
            num_inference_steps=steps,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
            **given,
        )
        return out.frames[0].float().cpu()

    def from_one(self, frame, prompt, steps, seed):
        return self._call(self.pipe, frame[None], prompt, steps, seed, image=frame[None])

    def from_several(self, frames, prompt, steps, seed):
        pictures = self.pipe.video_processor.numpy_to_pil(frames.permute(0, 2, 3, 1).numpy())
        condition = LTXVideoCondition(video=pictures, frame_index=0)
        given = dict(conditions=[condition], image_cond_noise_scale=0.0)  # as in lesson 01: the frames are exact
        return self._call(self.several, frames, prompt, steps, seed, **given)
