"""The stages of LTX-Video's image-to-video pipeline."""

from __future__ import annotations

import math

import torch

from helpers.forecast.pipelines.base import Stages, empty


class LTX(Stages):
    """diffusers/pipelines/ltx/pipeline_ltx_image2video.py."""

    prompt_tokens = 128
    size_multiple = 32  # required by the pipeline, whatever the VAE's compression

    @property
    def frames_multiple(self) -> int:
        return max(8, self.vae.temporal_compression_ratio)  # the pipeline's own rule is 8k+1

    @property
    def latent_shape(self) -> tuple[int, ...]:
        space, time = self.vae.spatial_compression_ratio, self.vae.temporal_compression_ratio
        r = self.request
        return (1, self.vae.config.latent_channels, (r.num_frames - 1) // time + 1, r.height // space, r.width // space)

    @property
    def tokens(self) -> int:
        return math.prod(self.latent_shape[2:])

    def encode_image(self) -> None:
        image = self.image(1)
        mean = self.vae.encode(image).latent_dist.mode().float()
        mean.repeat(1, 1, self.latent_shape[2], 1, 1)

    def denoise(self) -> None:
        channels, frames, height, width = self.latent_shape[1:]
        embeds = empty(self.batch, self.prompt_tokens, self.config.caption_channels, dtype=self.dtype)
        mask = empty(self.batch, self.prompt_tokens, dtype=torch.int64)
        latents, conditioning_mask = empty(1, self.tokens, channels), empty(self.batch, self.tokens)
        inputs = torch.cat([latents] * self.batch).to(self.dtype) if self.batch > 1 else latents.to(self.dtype)
        timestep = empty(self.batch, 1) * (1 - conditioning_mask)
        vae = self.vae
        scale = (vae.temporal_compression_ratio / 25, vae.spatial_compression_ratio, vae.spatial_compression_ratio)
        noise = self.denoiser(
            hidden_states=inputs, encoder_hidden_states=embeds, timestep=timestep, encoder_attention_mask=mask,
            num_frames=frames, height=height, width=width, rope_interpolation_scale=scale, return_dict=False,
        )[0].float()  # fmt: skip
        if self.batch > 1:
            without, given = noise.chunk(2)
            noise = without + 3.0 * (given - without)
        torch.cat([latents[:, :1], latents[:, 1:] + noise[:, 1:]], dim=1)

    def decode(self) -> None:
        latents = empty(*self.latent_shape)
        latents = (latents * empty(1, latents.shape[1], 1, 1, 1) + empty(1, latents.shape[1], 1, 1, 1)).to(self.dtype)
        timestep = empty(1, dtype=self.dtype) if self.vae.config.timestep_conditioning else None
        self.finish(self.vae.decode(latents, timestep, return_dict=False)[0])
