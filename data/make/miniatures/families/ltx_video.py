"""LTX-Video: the clip's first latent frames are given, and time is counted in seconds."""

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

from helpers.hops import ContinueLTX, Continuing

from .. import prompts
from ..prompts import drop_some
from ..quantization_aware import fp8, in_fp8, inner_linear, prepare, quantized_conv, quantized_linear
from ..vaes import channel_weights, forward_replaced, maybe_compiled
from .base import BaseFamily
from .handed_over import HandedOver
from .on_own_predictions import ALMOST_PURE, OwnPredictions
from .protocol import Continuer, SteppedDenoising

FRAMES = 25  # 8k + 1, the rule of the real model
SPATIAL, TEMPORAL = 16, 4  # compression of the small VAE; the real one has 32 and 8
SEVERAL = 0.5  # share of the clips that are conditioned as `LTXConditionPipeline` does it
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
    caption_channels=prompts.WIDTH,
)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, T, H, W] to tokens [B, T*H*W, C], as the pipeline packs them."""
    return latents.flatten(2).transpose(1, 2)


class LTXDenoising(SteppedDenoising):
    """Denoising with the conditioning of both LTX pipelines.

    `LTXImageToVideoPipeline` gives the first latent frame, sampled from the VAE's posterior. `LTXConditionPipeline`
    gives several, adds a little noise to them, and counts time differently. The transformer learns both, the second
    with what an earlier hop would hand over.

    Args:
        latents: [N, C, T, H, W] fp16, normalised per channel.
        prompts: [N] long, the index of each clip's prompt in `embeds`, whose last entry is the empty prompt.
        hops: Clips per chain, see `HandedOver`.
        posterior_std: [C], what sampling from the posterior adds to a given latent frame, in normalised units.
        embeds, mask: [P + 1, L, width] and [P + 1, L].
    """

    def __init__(self, latents, prompts, hops, posterior_std, embeds, mask, batch_size):
        self.latents, self.prompts, self.embeds, self.mask = latents, prompts, embeds, mask.to(embeds.dtype)
        self.posterior_std, self.batch_size = posterior_std, batch_size
        self.channel_weights, self.own = channel_weights(posterior_std), OwnPredictions(latents)
        self.handed = HandedOver(latents, prompts, hops)
        frames, height, width = latents.shape[2:]
        grid = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
        self.at = torch.stack(grid).flatten(1).to(latents.device).float()  # frame, row, column of each token

    def coordinates(self, from_condition_pipeline: torch.Tensor, fps: torch.Tensor) -> torch.Tensor:
        """Seconds, row and column of each token as the pipeline counts them, [B, 3, tokens], for arguments [B, 1]."""
        frame, row, column = self.at.expand(len(fps), -1, -1).unbind(1)
        first = torch.where(from_condition_pipeline, 1 - TEMPORAL, 0)
        time = (frame * TEMPORAL + first).clamp(min=0)
        return torch.stack([time / fps, row * SPATIAL, column * SPATIAL], dim=1)

    def levels(self, steps: int) -> list[float]:
        return torch.linspace(1, 0, steps + 1).tolist()[:-1]

    @forward_replaced(torch.nn.Linear, quantized_linear)
    def predict(self, denoiser, pick, estimate, sigma, prompt, given=None) -> torch.Tensor:
        """As `SteppedDenoising.predict`; the clips for which `given` [B] is more than 1 are conditioned as
        `LTXConditionPipeline` does it, on that many latent frames. By default every other clip is.
        """
        latents, sigma = self.latents[pick].float(), sigma.flatten(2)
        clean, estimate, n = pack(latents), pack(estimate), len(pick)
        given = self.handed.given(pick, pick % 2 == 1) if given is None else given
        several, known = (given > 1).view(-1, 1, 1), self.at[0].view(1, -1, 1) < given.view(-1, 1, 1)
        context = torch.where(several, pack(self.handed.context(pick, latents)), clean)
        context = context + self.posterior_std * torch.randn_like(clean)
        # `image_cond_noise_scale` of `LTXConditionPipeline`; at work it continues slightly better without any
        context = context + several * 0.15 * sigma**2 * torch.randn_like(clean)
        fps = torch.where(torch.rand(n, 1, device=pick.device) < 0.2, 25.0, 24.0)
        noisy = torch.where(known, context, (1 - sigma) * estimate + sigma * torch.randn_like(clean))
        velocity = denoiser(
            hidden_states=noisy,
            encoder_hidden_states=self.embeds[prompt],
            encoder_attention_mask=self.mask[prompt],
            timestep=(sigma * 1000 * ~known)[..., 0],
            return_dict=False,
            video_coords=self.coordinates(several[..., 0], fps),
        )[0]
        predicted = torch.where(known, clean, noisy - sigma * velocity.float())
        return predicted.transpose(1, 2).unflatten(2, latents.shape[2:])

    def loss(self, denoiser) -> torch.Tensor:
        device, n = self.latents.device, self.batch_size
        pick = torch.randint(len(self.latents), (n,), device=device)
        clean, prompt = self.latents[pick].float(), drop_some(self.prompts[pick], len(self.embeds) - 1)
        given = self.handed.given(pick, torch.rand(n, device=device) < SEVERAL)
        u = torch.rand(n, 1, 1, 1, 1, device=device)
        sigma = 4.0 * u / (1 + 3 * u)  # more of the high noise levels, where the picture is decided
        predicted = self.predict(denoiser, pick, self.own.estimates(pick, clean), sigma, prompt, given)
        alone = (given == 1) | self.handed.changes[pick]  # the only kind of prediction that those can have
        self.own.keep(pick, predicted, (sigma.flatten() > ALMOST_PURE) & alone)
        self.handed.keep(pick, predicted, sigma, given)
        # the less noise, the more precise it has to be; no step of the lesson lies below a quarter
        error = (predicted - clean) ** 2 / sigma.clamp(min=0.25) * self.channel_weights.view(-1, 1, 1, 1)
        return error[:, :, 1:].mean()


class LTXContinuer(Continuer):
    """Continues one frame with `LTXImageToVideoPipeline` and several with `LTXConditionPipeline`."""

    def __init__(self, folder: Path, device: str):
        self.pipe = LTXImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
        self.several = LTXConditionPipeline(**self.pipe.components)
        for pipe in (self.pipe, self.several):
            pipe.set_progress_bar_config(disable=True)

    def _embed(self, prompt):
        # Encoded here for all pipelines: the others pad to 256 tokens and mask them, which changes every word.
        embeds, mask, _, _ = self.pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def _call(self, pipe, frames, prompt, steps, seed, output_type="pt", **given):
        height, width = frames.shape[-2:]
        out = pipe(
            **self._embed(prompt),
            height=height,
            width=width,
            num_frames=FRAMES,
            frame_rate=24,
            num_inference_steps=steps,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
            output_type=output_type,
            **given,
        )
        return out.frames[0].float().cpu()

    def from_one(self, frame, prompt, steps, seed, output_type="pt"):
        return self._call(self.pipe, frame[None], prompt, steps, seed, output_type, image=frame[None])

    def from_several(self, frames, prompt, steps, seed):
        images = self.pipe.video_processor.numpy_to_pil(frames.permute(0, 2, 3, 1).numpy())
        condition = LTXVideoCondition(video=images, frame_index=0)
        given = dict(conditions=[condition], image_cond_noise_scale=0.0)  # as in lesson 01: without noise
        return self._call(self.several, frames, prompt, steps, seed, **given)

    def continuing(self, steps):
        pipe = ContinueLTX(**self.pipe.components)
        pipe.set_progress_bar_config(disable=True)
        return Continuing(pipe, self._embed, LTXVideo.size, FRAMES, steps, guidance_scale=1.0, frame_rate=LTXVideo.fps)


def in_up_block(name: str, layer: torch.nn.Module) -> bool:
    """Whether a layer of the VAE is stored in fp8: those of the decoder, except the ones that read latents and write
    pixels.
    """
    return name.startswith("decoder.up_blocks")


class LTXVideo(BaseFamily):
    frames, size, fps, context, hops = FRAMES, (288, 160), 24, 9, 6
    vae_class, denoiser_class = AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
    storage = "The transformer's matrices and the decoder's kernels are stored in fp8, everything else in fp16."
    finishes_decoder = True

    def build_vae(self) -> AutoencoderKLLTXVideo:
        return AutoencoderKLLTXVideo(**VAE)

    def build_denoiser(self) -> LTXVideoTransformer3DModel:
        return prepare(LTXVideoTransformer3DModel(**TRANSFORMER), fp8, inner_linear)

    def encoder_and_decoder(self, vae, compiled: bool):
        """As in the protocol; the decoder uses its weights as the file will store them."""
        prepare(vae, fp8, in_up_block)
        encoder, decoder = maybe_compiled(compiled, vae.encoder, vae.decoder)

        @forward_replaced(torch.nn.Conv3d, quantized_conv)
        def decoded(latents):
            return decoder(latents)

        return lambda x: DiagonalGaussianDistribution(encoder(x)), decoded

    def set_statistics(self, vae, mean: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vae.latents_mean.copy_(mean), vae.latents_std.copy_(std)
        return mean, std

    def statistics(self, vae) -> tuple[torch.Tensor, torch.Tensor]:
        return vae.latents_mean, vae.latents_std

    def denoising(self, latents, conditions, prompts, posterior_std, embeds, mask, batch_size, component):
        return LTXDenoising(latents, prompts, self.hops, posterior_std, embeds, mask, batch_size)

    def assemble(self, work: Path, folder: Path) -> None:
        pipe = LTXImageToVideoPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
            vae=in_fp8(AutoencoderKLLTXVideo.from_pretrained(work / "vae"), in_up_block),
            transformer=in_fp8(LTXVideoTransformer3DModel.from_pretrained(work / "transformer")),
            text_encoder=T5EncoderModel.from_pretrained(work / "text_encoder", dtype=torch.float16),
            tokenizer=T5TokenizerFast.from_pretrained(work / "tokenizer"),
        )
        prompts.save_pipeline(pipe, work, folder)

    def continuer(self, folder: Path, device: str) -> LTXContinuer:
        return LTXContinuer(folder, device)


FAMILY = LTXVideo()
