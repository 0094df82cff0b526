"""The stages of CogVideoX's image-to-video pipeline."""

from __future__ import annotations

import torch

from helpers.forecast.pipelines.base import RequestError, Stages, empty


class CogVideoX(Stages):
    """diffusers/pipelines/cogvideo/pipeline_cogvideox_image2video.py."""

    encodes_in_tiles = True

    @property
    def prompt_tokens(self) -> int:
        return self.config.max_text_seq_length

    @property
    def space(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size_multiple(self) -> int:
        return self.space * self.config.patch_size

    @property
    def frames_multiple(self) -> int:
        return int(self.vae.config.temporal_compression_ratio)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        if not self.config.use_learned_positional_embeddings:
            return None
        return self.config.sample_width * self.space, self.config.sample_height * self.space

    def check(self) -> None:
        super().check()
        size = self.fixed_size
        if size is not None and (self.request.width, self.request.height) != size:
            raise RequestError(
                f"{self.request.width}x{self.request.height}: this model's positions were learned at one size; "
                f"nearest: {size[0]}x{size[1]}."
            )

    def latents(self, dtype: torch.dtype) -> torch.Tensor:
        size = self.request.height // self.space, self.request.width // self.space
        return empty(1, self.latent_frames, self.vae.config.latent_channels, *size, dtype=dtype)

    @property
    def tokens(self) -> int:
        _, frames, _, height, width = self.latents(self.dtype).shape
        return frames * (height // self.config.patch_size) * (width // self.config.patch_size)

    def encode_image(self) -> None:
        latents = self.vae.encode(self.image(1)).latent_dist.mode().permute(0, 2, 1, 3, 4)
        torch.cat([latents, empty(*self.latents(self.dtype)[:, 1:].shape, dtype=self.dtype)], dim=1)

    def denoise(self) -> None:
        latents, image = self.latents(self.dtype), self.latents(self.dtype)
        positions = [empty(self.tokens, self.config.attention_head_dim) for _ in range(2)]
        embeds = empty(self.batch, self.prompt_tokens, self.config.text_embed_dim, dtype=self.dtype)
        inputs = torch.cat([torch.cat([latents] * self.batch), torch.cat([image] * self.batch)], dim=2)
        noise = self.denoiser(
            hidden_states=inputs, encoder_hidden_states=embeds, timestep=empty(self.batch),
            image_rotary_emb=tuple(positions) if self.config.use_rotary_positional_embeddings else None,
            return_dict=False,
        )[0].float()  # fmt: skip
        if self.batch > 1:
            without, given = noise.chunk(2)
            noise = without + 6.0 * (given - without)
        (latents + noise).to(self.dtype)

    def decode(self) -> None:
        latents = self.latents(self.dtype).permute(0, 2, 1, 3, 4)
        self.finish(self.vae.decode(1 / 0.7 * latents).sample)
