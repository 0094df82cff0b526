"""The stages of Wan's image-to-video pipeline: Wan 2.1, Wan2.2's two experts, and TI2V."""

from __future__ import annotations

import math

import torch

from helpers.forecast.pipelines.base import Stages, empty


class Wan(Stages):
    """diffusers/pipelines/wan/pipeline_wan_i2v.py: Wan 2.1, both Wan2.2 experts and TI2V (`expand_timesteps`)."""

    prompt_tokens = 512

    @property
    def space(self) -> int:
        return self.vae.config.scale_factor_spatial

    @property
    def size_multiple(self) -> int:
        return self.space * self.config.patch_size[1]

    @property
    def frames_multiple(self) -> int:
        return self.vae.config.scale_factor_temporal

    @property
    def expand_timesteps(self) -> bool:
        return bool(self.arch.index.get("expand_timesteps"))

    @property
    def encodes_in_tiles(self) -> bool:
        """Lesson 03 does so above 640x384, and with slices: this model encodes not one frame, but a whole video."""
        large = self.request.width * self.request.height > 640 * 384
        return not self.expand_timesteps and (large or self.request.slice_tokens is not None)

    def latents(self, channels: int | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        channels = self.vae.config.z_dim if channels is None else channels
        height, width = self.request.height // self.space, self.request.width // self.space
        return empty(1, channels, self.latent_frames, height, width, dtype=dtype)

    @property
    def tokens(self) -> int:
        return math.prod(self.latents().shape[2:]) // math.prod(self.config.patch_size)

    def encode_image(self) -> None:
        image, latents = self.image(1, torch.float32), self.latents()
        if self.expand_timesteps:
            video = image
        else:
            zeros = image.new_zeros(1, 3, self.request.num_frames - 1, self.request.height, self.request.width)
            video = torch.cat([image, zeros], dim=2)
            del zeros
        condition = self.vae.encode(video.to(self.vae.dtype)).latent_dist.mode()
        condition = (condition.float() - empty(1, self.vae.config.z_dim, 1, 1, 1)) * empty(1, 1, 1, 1, 1)
        del latents

    def denoise(self) -> None:
        latents, history = self.latents(), [self.latents(), self.latents()]  # UniPC keeps its last two predictions
        embeds = [empty(1, self.prompt_tokens, self.config.text_dim, dtype=self.dtype) for _ in range(self.batch)]
        if self.expand_timesteps:
            condition, mask = self.latents()[:, :, :1].clone(), self.latents(1)
            inputs = ((1 - mask) * condition + mask * latents).to(self.dtype)
            timestep = (mask[0][0][:, ::2, ::2] * empty()).flatten().unsqueeze(0)
        else:
            condition = self.latents(self.config.in_channels - latents.shape[1])
            inputs = torch.cat([latents, condition], dim=1).to(self.dtype)
            timestep = empty(1)
        image = empty(1, 257, self.config.image_dim, dtype=self.dtype) if self.config.image_dim else None
        noise = None
        for prompt in embeds:
            given, noise = noise, self.denoiser(
                hidden_states=inputs, timestep=timestep, encoder_hidden_states=prompt,
                encoder_hidden_states_image=image, return_dict=False,
            )[0]  # fmt: skip
        if given is not None:
            noise = noise + 5.0 * (given - noise)
        del history
        latents + noise

    def decode(self) -> None:
        latents = self.latents(dtype=self.vae.dtype)
        latents = latents / empty(1, latents.shape[1], 1, 1, 1) + empty(1, latents.shape[1], 1, 1, 1)
        self.finish(self.vae.decode(latents, return_dict=False)[0])
