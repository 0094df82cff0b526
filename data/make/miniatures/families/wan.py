"""What both Wan2.2 miniatures share: the chunked VAE in training, the denoising loss, the pipeline at work."""

import math
from functools import partial

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, patchify, unpatchify
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from .drafts import FROM, Drafts, prompt_or_none
from .stored import linear_as_stored
from .vaes import forward_replaced, worth_of_channels

ENCODER = "UMT5EncoderModel"
TOKENS = 512  # Wan's pipeline pads the prompt's embeddings with zeros to so many
BOUNDARY = 0.9  # of the noise: from here on up the high-noise expert denoises


def scheduler(shift: float) -> UniPCMultistepScheduler:
    """The published scheduler's settings but one: the transformer predicts the clean latents, not the velocity.

    A velocity holds all of the noise, which then has to pass through the transformer: two hundred numbers a token in
    TI2V, more than such a narrow one is wide. What it cannot carry stays in the picture.
    """
    return UniPCMultistepScheduler(
        prediction_type="sample", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )


def halves(vae: AutoencoderKLWan, compiled: bool):
    """Functions from pixels to the posterior, and from latents to pixels, for a whole clip at once.

    The class itself works chunk by chunk, with a cache of features in between, and so needs little memory. All its
    convolutions are causal, so one pass over the whole clip gives the same numbers, with a fifth of the kernels.
    """
    patch = vae.config.patch_size
    encode, decode = vae.encoder, partial(vae.decoder, first_chunk=True)
    if compiled:
        encode, decode = torch.compile(encode, dynamic=False), torch.compile(decode, dynamic=False)

    @forward_replaced(WanResample, resample_whole)
    def posterior_of(x):
        return DiagonalGaussianDistribution(vae.quant_conv(encode(patchify(x, patch) if patch else x)))

    @forward_replaced(WanResample, resample_whole)
    def rebuilt(z):
        x = decode(vae.post_quant_conv(z))
        return unpatchify(x, patch) if patch else x

    return posterior_of, rebuilt


def resample_whole(layer: WanResample, x: torch.Tensor, feat_cache=None, feat_idx=None) -> torch.Tensor:
    """`WanResample.forward` for the features [B, C, T, H, W] of a whole clip, whose first frame stands for itself."""
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        pairs = layer.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))  # [B, 2, C, T - 1, H, W]
        x = torch.cat([x[:, :, :1], pairs.movedim(1, 3).flatten(2, 3)], dim=2)
    batch = x.shape[0]
    x = layer.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, -1)).transpose(1, 2)
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)
    return x


def set_statistics(vae: AutoencoderKLWan, mean: torch.Tensor, std: torch.Tensor) -> None:
    rounded = [[round(float(value), 4) for value in values] for values in (mean, std)]
    vae.register_to_config(latents_mean=rounded[0], latents_std=rounded[1])


def statistics(vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents' channels [C], by which the pipeline normalises them."""
    return torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)


class PaddingOnce(WanAttnProcessor):
    """Attention to a prompt that is padded by a few zeros, with the result of padding it to `TOKENS`.

    All zeros have the same key and the same value. So the last one does for all that were left out if it counts as
    often as they occur.
    """

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        tokens = encoder_hidden_states.shape[1]
        counts = hidden_states.new_zeros(1, 1, 1, tokens)
        counts[..., -1] = math.log(TOKENS - tokens + 1)
        return super().__call__(attn, hidden_states, encoder_hidden_states, counts, rotary_emb)


def read_padding_once(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """For training: a third of the work would be reading zeros."""
    for block in transformer.blocks:
        block.attn2.set_processor(PaddingOnce())
    return transformer


class Denoising:
    """A transformer's training loss on normalised latents, conditioned as `WanImageToVideoPipeline` does it.

    The transformer is one that reads padding once.

    Args:
        latents: [N, C, T, H, W] fp16, normalised per channel.
        conditions: The same of the given frame followed by grey, or `None` where the given frame's latents take the
            place of the first ones (`expand_timesteps`).
        prompts: [N] long, index of each clip's prompt in `embeds`, whose last entry is the empty prompt.
        posterior_std: [C], of the VAE's posterior in normalised units: what each channel is worth.
        sigmas: The least and the most noise that this transformer sees.
        shift: The scheduler's `flow_shift`, by which most time steps lie at the noisy end.
    """

    def __init__(self, latents, conditions, prompts, posterior_std, embeds, mask, batch_size, sigmas, shift):
        self.latents, self.conditions, self.prompts, self.batch_size = latents, conditions, prompts, batch_size
        tokens = embeds.shape[1] // 8 * 8 + 8  # one of padding at least; attention likes a multiple of eight
        padded = embeds.new_zeros(len(embeds), tokens, embeds.shape[-1])
        padded[:, : embeds.shape[1]] = embeds * mask[..., None].to(embeds.dtype)
        self.embeds, self.sigmas, self.shift = padded, sigmas, shift
        self.worth = worth_of_channels(posterior_std).view(-1, 1, 1, 1)
        self.drafts, self.unknown = Drafts(latents), latents.new_ones(1, 1, *latents.shape[2:], dtype=torch.float32)
        if conditions is None:
            self.unknown[:, :, 0] = 0

    def draw_sigma(self, number: int, device) -> torch.Tensor:
        """Noise levels as densely as the scheduler's steps lie, within this transformer's own range."""
        low, high = (sigma / (self.shift - (self.shift - 1) * sigma) for sigma in self.sigmas)
        u = low + (high - low) * torch.rand(number, 1, 1, 1, 1, device=device)
        return self.shift * u / (1 + (self.shift - 1) * u)

    def levels(self, steps: int) -> list[float]:
        """The noise levels of the scheduler's steps."""
        return [self.shift * u / (1 + (self.shift - 1) * u) for u in torch.linspace(1, 0, steps + 1).tolist()[:-1]]

    @forward_replaced(torch.nn.Linear, linear_as_stored)
    def answer(self, transformer, pick, below, sigma, prompt) -> torch.Tensor:
        """What the transformer takes for the clean latents of the clips `pick` when it sees `below` under noise."""
        inputs = (1 - sigma) * below + sigma * torch.randn_like(below)
        clean = self.latents[pick].float()
        if self.conditions is None:
            inputs = torch.where(self.unknown.bool(), inputs, clean)
            timestep = (1000 * sigma * self.unknown)[:, 0, :, ::2, ::2].flatten(1)
        else:
            given = torch.zeros_like(below[:, :4])
            given[:, :, 0] = 1
            inputs = torch.cat([inputs, given, self.conditions[pick].float()], dim=1)
            timestep = 1000 * sigma.flatten()
        made = transformer(
            hidden_states=inputs, timestep=timestep, encoder_hidden_states=self.embeds[prompt], return_dict=False
        )[0]
        return torch.where(self.unknown.bool(), made.float(), clean)

    def loss(self, transformer) -> torch.Tensor:
        device, n = self.latents.device, self.batch_size
        pick, sigma = torch.randint(len(self.latents), (n,), device=device), self.draw_sigma(n, device)
        clean, prompt = self.latents[pick].float(), prompt_or_none(self.prompts[pick], len(self.embeds) - 1)
        made = self.answer(transformer, pick, self.drafts.under_noise(pick, clean), sigma, prompt)
        self.drafts.keep(pick, made, sigma.flatten() > FROM)
        # the less noise there was, the more exact it has to be; below a half, few steps of a miniature lie
        error = (made - clean) ** 2 / sigma.clamp(min=0.5) * self.worth
        return error.sum() / self.unknown.sum() / n / clean.shape[1]

    @torch.no_grad()
    def follow(self, transformer) -> None:
        """Let all drafts be answers of another expert, the one that works before this one."""
        for pick in torch.arange(len(self.latents), device=self.latents.device).split(self.batch_size):
            noise_only = torch.ones(len(pick), 1, 1, 1, 1, device=pick.device)
            below, prompt = self.latents[pick].float(), prompt_or_none(self.prompts[pick], len(self.embeds) - 1)
            made = self.answer(transformer, pick, below, noise_only, prompt)
            self.drafts.kept[pick] = made.to(self.drafts.kept.dtype)


class Continuer:
    """The finished folder at work: what `data.make.truth` asks of every family. One frame is all that Wan takes."""

    context = 1

    def __init__(self, pipe: WanImageToVideoPipeline, frames: int, device: str):
        self.pipe, self.frames = pipe.to(device), frames
        self.pipe.set_progress_bar_config(disable=True)

    def from_one(self, frame, prompt, steps, seed):
        height, width = frame.shape[-2:]
        out = self.pipe(
            image=frame[None], prompt=prompt, height=height, width=width, num_frames=self.frames,
            num_inference_steps=steps, guidance_scale=1.0, generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        )  # fmt: skip
        return out.frames[0].float().cpu()


def transformer_config(**own) -> dict:
    """Wan's transformer with small numbers; `own` are those that differ between the two miniatures."""
    return dict(
        patch_size=(1, 2, 2), text_dim=32, freq_dim=64, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        image_dim=None, added_kv_proj_dim=None, rope_max_seq_len=64,
    ) | own  # fmt: skip
