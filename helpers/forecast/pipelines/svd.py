"""The stages of Stable Video Diffusion's pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from helpers.forecast.pipelines.base import RequestError, Stages, empty


class StableVideoDiffusion(Stages):
    """diffusers/pipelines/stable_video_diffusion/pipeline_stable_video_diffusion.py, which takes no prompt."""

    space = 8
    options = {
        "encode_image": ("guidance",),
        "denoise": ("guidance", "chunking", "slice_tokens"),
        "decode": ("decode_chunk_size", "lean_decoding"),
    }
    blends = ()  # this VAE has no tiling

    @property
    def size_multiple(self) -> int:
        return self.space * 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def left_out(self) -> str:
        if self.request.tiling is False:
            return ""
        return f"{type(self.vae).__name__} cannot tile: decode_chunk_size is what lowers its peak"

    def check(self) -> None:
        super().check()
        if self.request.decode_chunk_size < 1:
            raise RequestError(f"decode_chunk_size={self.request.decode_chunk_size}: give at least 1 frame.")

    @contextmanager
    def prepared(self, stage: str) -> Iterator[None]:
        """Chunk the UNet's feed-forward layers if requested, and encode in fp32 if the VAE's config says so.

        The pipeline casts the VAE to fp32 for encoding, and back, where the config has `force_upcast`.
        """
        from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock

        chunked = (BasicTransformerBlock, TemporalBasicTransformerBlock)
        blocks = [module for module in self.denoiser.modules() if isinstance(module, chunked)]
        upcast = stage == "encode_image" and self.vae.config.force_upcast
        try:
            if self.request.chunking:
                for block in blocks:  # as `enable_forward_chunking` does
                    block.set_chunk_feed_forward(chunk_size=1, dim=0)
            if upcast:
                torch.nn.Module.to(self.vae, torch.float32)
            yield
        finally:
            for block in blocks:
                block.set_chunk_feed_forward(chunk_size=None, dim=0)
            torch.nn.Module.to(self.vae, self.arch.dtype("vae"))

    def latents(self, channels: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        size = self.request.height // self.space, self.request.width // self.space
        return empty(1, self.request.num_frames, channels, *size, dtype=dtype or self.dtype)

    @property
    def tokens(self) -> int:
        return self.request.num_frames * (self.request.height // self.space) * (self.request.width // self.space)

    @property
    def pieces(self) -> int:
        if self.request.slice_tokens is None:
            return 1
        return -(-self.batch // max(1, self.request.slice_tokens // self.tokens))  # a slice is an entry of the batch

    def encode_image(self) -> None:
        encoder = self.arch.component("image_encoder")
        side = encoder.config.image_size
        embeds = encoder(empty(1, 3, side, side, dtype=self.dtype)).image_embeds
        embeds = torch.cat([embeds] * self.batch)
        image = self.image(dtype=torch.float32)
        image = image + 0.02 * torch.empty_like(image)
        torch.cat([self.vae.encode(image.to(self.vae.dtype)).latent_dist.mode()] * self.batch)

    def denoise(self) -> None:
        channels = self.config.in_channels // 2
        latents, image = self.latents(channels), torch.cat([self.latents(channels)] * self.batch)
        inputs = torch.cat([torch.cat([latents] * self.batch), image], dim=2)
        embeds = empty(self.batch, 1, self.config.cross_attention_dim, dtype=self.dtype)
        noise = self.denoiser(
            inputs, empty(), encoder_hidden_states=embeds,
            added_time_ids=empty(self.batch, 3, dtype=self.dtype), return_dict=False,
        )[0]  # fmt: skip
        if self.batch > 1:
            without, given = noise.chunk(2)
            noise = without + 3.0 * (given - without)
        latents.float() + noise.float()

    def decode(self) -> None:
        frames = []
        latents = 1 / 0.18 * self.latents(self.vae.config.latent_channels)[0]
        for chunk in latents.split(self.request.decode_chunk_size):
            frames.append(self.vae.decode(chunk, num_frames=len(chunk)).sample)
        video = torch.cat(frames)
        self.finish(video[None].transpose(1, 2).float())
