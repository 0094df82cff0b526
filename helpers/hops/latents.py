"""Pipelines that continue latents: what one hop has made is the context of the next, without decoding it in between.

Each replaces one method of its pipeline. That method makes the noise, and says which latent frames are given; the
published one encodes a picture for this, and here the latents are given as they are.
"""

from __future__ import annotations

import torch
from diffusers import LTXConditionPipeline, WanImageToVideoPipeline
from diffusers.utils.torch_utils import randn_tensor


class ContinueLTX(LTXConditionPipeline):
    """`LTXConditionPipeline` that continues `given`, latents [1, channels, frames, rows, columns] in its own scale.

    The frames of `conditions` are not looked at, but the pipeline wants some.
    """

    given: torch.Tensor

    def prepare_latents(self, conditions=None, condition_strength=None, condition_frame_index=None, *args, **kwargs):
        latents, _, positions, extra = super().prepare_latents([], [], [], *args, **kwargs)
        given = self._pack_latents(
            self.given.to(latents), self.transformer_spatial_patch_size, self.transformer_temporal_patch_size
        )
        known = torch.zeros(latents.shape[:2], device=latents.device)
        known[:, : given.shape[1]] = 1
        latents[:, : given.shape[1]] = given
        return latents, known, positions, extra


class ContinueWan(WanImageToVideoPipeline):
    """`WanImageToVideoPipeline` that continues `given`, latents [1, channels, frames, rows, columns] in its own scale.

    TI2V-5B takes them in the place of noise. A14B takes them beside the noise, `[anchor | tail | zeros]` with a mask
    that marks the anchor alone, as the published SVI weights have learned it (https://github.com/vita-epfl/
    Stable-Video-Infinity); without them it knows only the first. No picture is encoded.
    """

    given: torch.Tensor

    def prepare_latents(
        self, image, batch_size, num_channels_latents=16, height=480, width=832, num_frames=81, dtype=None, device=None,
        generator=None, latents=None, last_image=None,
    ):  # fmt: skip
        per_latent, per_pixel = self.vae_scale_factor_temporal, self.vae_scale_factor_spatial
        shape = (batch_size, num_channels_latents, (num_frames - 1) // per_latent + 1)
        latents = randn_tensor(
            (*shape, height // per_pixel, width // per_pixel), generator=generator, device=device, dtype=dtype
        )
        condition, count = torch.zeros_like(latents), self.given.shape[2]
        condition[:, :, :count] = self.given.to(latents)
        if self.config.expand_timesteps:
            unknown = torch.ones_like(latents[:1, :1])
            unknown[:, :, :count] = 0
            return latents, condition, unknown
        known = torch.zeros_like(latents[:, :1]).repeat(1, per_latent, 1, 1, 1)  # a channel for each frame of a latent
        known[:, :, 0] = 1
        return latents, torch.cat([known, condition], dim=1)
