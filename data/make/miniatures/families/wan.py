"""What both Wan2.2 miniatures share: the chunked VAE in training, the denoising task, the scheduler."""

import math
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from ..prompts import drop_some
from ..quantization_aware import quantized_linear
from ..vaes import channel_weights, forward_replaced, maybe_compiled
from .base import BaseFamily
from .handed_over import HandedOver
from .on_own_predictions import ALMOST_PURE, OwnPredictions
from .protocol import ExpertDenoising

SEVERAL = 0.5  # share of the clips that are conditioned on several latent frames, where the model takes them
TOKENS = 512  # Wan's pipeline pads the embeddings of a prompt with zeros to this length


def scheduler(shift: float) -> UniPCMultistepScheduler:
    """A scheduler with the published settings except one: the transformer predicts clean latents instead of velocity.

    A velocity contains all of the noise, which then has to pass through the transformer. In TI2V that is two hundred
    values per token, more than the width of this narrow transformer; what it cannot carry would remain in the picture.

    Args:
        shift: `flow_shift`, which moves the time steps towards high noise levels.
    """
    return UniPCMultistepScheduler(
        prediction_type="sample", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )


def resample_whole(layer: WanResample, x: torch.Tensor, feat_cache=None, feat_idx=None) -> torch.Tensor:
    """`WanResample.forward` for the features [B, C, T, H, W] of a whole clip, whose first frame is a chunk."""
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        pairs = layer.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))  # [B, 2, C, T - 1, H, W]
        x = torch.cat([x[:, :, :1], pairs.movedim(1, 3).flatten(2, 3)], dim=2)
    batch = x.shape[0]
    x = layer.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, -1)).transpose(1, 2)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)
    return x


class PaddingOnce(WanAttnProcessor):
    """Cross-attention to a prompt padded with a few zeros that gives the result of padding it to `TOKENS`.

    All zeros have the same key and the same value, so the last one can stand in for those left out if it is weighted by
    their number.
    """

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        tokens = encoder_hidden_states.shape[1]
        counts = hidden_states.new_zeros(1, 1, 1, tokens)
        counts[..., -1] = math.log(TOKENS - tokens + 1)
        return super().__call__(attn, hidden_states, encoder_hidden_states, counts, rotary_emb)


def reading_padding_once(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """The transformer, prepared for training: without this, a third of the work is attention to zeros."""
    for block in transformer.blocks:
        block.attn2.set_processor(PaddingOnce())
    return transformer


class WanDenoising(ExpertDenoising):
    """Denoising with the conditioning of `WanImageToVideoPipeline`, for a transformer from `reading_padding_once`.

    Args:
        latents: [N, C, T, H, W] fp16, normalised per channel.
        conditions: The latents of the given frame followed by grey, same shape, or `None` if the latents of the given
            frame replace the first ones (`expand_timesteps`).
        prompts: [N] long, the index of each clip's prompt in `embeds`, whose last entry is the empty prompt.
        hops: Clips per chain, see `HandedOver`; if more than 1, the denoiser learns to continue several latent frames.
        posterior_std: [C], of the VAE's posterior in normalised units.
        embeds, mask: [P + 1, L, width] and [P + 1, L].
        sigmas: The lowest and the highest noise level that this transformer sees.
        shift: The scheduler's `flow_shift`.
    """

    def __init__(self, latents, conditions, prompts, hops, posterior_std, embeds, mask, batch_size, sigmas, shift):
        self.latents, self.conditions, self.prompts, self.batch_size = latents, conditions, prompts, batch_size
        tokens = embeds.shape[1] // 8 * 8 + 8  # at least one of padding, and a multiple of 8, which attention prefers
        padded = embeds.new_zeros(len(embeds), tokens, embeds.shape[-1])
        padded[:, : embeds.shape[1]] = embeds * mask[..., None].to(embeds.dtype)
        self.embeds, self.sigmas, self.shift = padded, sigmas, shift
        self.channel_weights = channel_weights(posterior_std).view(-1, 1, 1, 1)
        self.own = OwnPredictions(latents)
        self.handed = HandedOver(latents, prompts, hops) if hops > 1 else None
        self.at = torch.arange(latents.shape[2], device=latents.device).view(1, 1, -1, 1, 1)

    def draw_sigma(self, number: int, device) -> torch.Tensor:
        """Noise levels [number, 1, 1, 1, 1] distributed like the scheduler's steps, within this transformer's range."""
        low, high = (sigma / (self.shift - (self.shift - 1) * sigma) for sigma in self.sigmas)
        u = low + (high - low) * torch.rand(number, 1, 1, 1, 1, device=device)
        return self.shift * u / (1 + (self.shift - 1) * u)

    def levels(self, steps: int) -> list[float]:
        return [self.shift * u / (1 + (self.shift - 1) * u) for u in torch.linspace(1, 0, steps + 1).tolist()[:-1]]

    def given(self, pick: torch.Tensor, several: torch.Tensor) -> torch.Tensor:
        """How many latent frames the pipeline would replace by given ones, [n]; more than 1 where `several` is true."""
        if self.handed:
            return self.handed.given(pick, several)
        return torch.full_like(pick, int(self.conditions is None))

    @forward_replaced(torch.nn.Linear, quantized_linear)
    def predict(self, denoiser, pick, estimate, sigma, prompt, given=None) -> torch.Tensor:
        """As `SteppedDenoising.predict`, with `given` [B] latent frames; by default several for every other clip."""
        inputs = (1 - sigma) * estimate + sigma * torch.randn_like(estimate)
        clean = self.latents[pick].float()
        given = (self.given(pick, pick % 2 == 1) if given is None else given).view(-1, 1, 1, 1, 1)
        unknown = self.at >= given
        if self.conditions is None:
            context = torch.where(given > 1, self.handed.context(pick, clean), clean) if self.handed else clean
            inputs = torch.where(unknown, inputs, context)
            timestep = (1000 * sigma * unknown).expand(*inputs[:, :1].shape)[:, 0, :, ::2, ::2].flatten(1)
        else:
            given = torch.zeros_like(estimate[:, :4])
            given[:, :, 0] = 1
            inputs = torch.cat([inputs, given, self.conditions[pick].float()], dim=1)
            timestep = 1000 * sigma.flatten()
        predicted = denoiser(
            hidden_states=inputs, timestep=timestep, encoder_hidden_states=self.embeds[prompt], return_dict=False
        )[0]
        return torch.where(unknown, predicted.float(), clean)

    def loss(self, denoiser) -> torch.Tensor:
        device, n = self.latents.device, self.batch_size
        pick, sigma = torch.randint(len(self.latents), (n,), device=device), self.draw_sigma(n, device)
        clean, prompt = self.latents[pick].float(), drop_some(self.prompts[pick], len(self.embeds) - 1)
        given = self.given(pick, torch.rand(n, device=device) < SEVERAL)
        predicted = self.predict(denoiser, pick, self.own.estimates(pick, clean), sigma, prompt, given)
        pure = sigma.flatten() > ALMOST_PURE
        if self.handed:
            pure = pure & ((given == 1) | self.handed.changes[pick])
            self.handed.keep(pick, predicted, sigma, given)
        self.own.keep(pick, predicted, pure)
        # the less noise, the more precise it has to be; few steps of a miniature lie below a half
        error = (predicted - clean) ** 2 / sigma.clamp(min=0.5) * self.channel_weights
        unknown = (self.at >= given.view(-1, 1, 1, 1, 1)).sum() * clean[0, :, 0].numel()
        return error.sum() / unknown.clamp(min=1)

    @torch.no_grad()
    def follow(self, denoiser) -> None:
        for pick in torch.arange(len(self.latents), device=self.latents.device).split(self.batch_size):
            noise_only = torch.ones(len(pick), 1, 1, 1, 1, device=pick.device)
            estimate, prompt = self.latents[pick].float(), drop_some(self.prompts[pick], len(self.embeds) - 1)
            predicted = self.predict(denoiser, pick, estimate, noise_only, prompt)
            self.own.latest[pick] = predicted.to(self.own.latest.dtype)


def transformer_config(**own: Any) -> dict[str, Any]:
    """The configuration of a small Wan transformer; `own` are the entries that differ between the two miniatures."""
    return dict(
        patch_size=(1, 2, 2), text_dim=32, freq_dim=64, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        image_dim=None, added_kv_proj_dim=None, rope_max_seq_len=64,
    ) | own  # fmt: skip


class WanFamily(BaseFamily):
    """What both models have in common."""

    vae_class, denoiser_class = AutoencoderKLWan, WanTransformer3DModel
    encoder = "UMT5EncoderModel"
    finishes_decoder = True

    def encoder_and_decoder(self, vae: AutoencoderKLWan, compiled: bool):
        """As in the protocol.

        The class itself works chunk by chunk with a cache of features in between, which saves memory. All its
        convolutions are causal, so one pass over the whole clip gives the same values with a fifth of the kernels.
        """
        patch = vae.config.patch_size
        encode, decode = maybe_compiled(compiled, vae.encoder, partial(vae.decoder, first_chunk=True))

        @forward_replaced(WanResample, resample_whole)
        def posterior_of(x):
            return DiagonalGaussianDistribution(vae.quant_conv(encode(patchify(x, patch) if patch else x)))

        @forward_replaced(WanResample, resample_whole)
        def rebuilt(z):
            x = decode(vae.post_quant_conv(z))
            return unpatchify(x, patch) if patch else x

        return posterior_of, rebuilt

    def set_statistics(self, vae, mean: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rounded = [[round(float(value), 4) for value in values] for values in (mean, std)]
        vae.register_to_config(latents_mean=rounded[0], latents_std=rounded[1])
        return mean, std

    def statistics(self, vae) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
