"""What each stage of the five pipelines computes, on meta tensors: the real forwards, and what stays alive around them.

    with tape:
        Stages(arch, request).denoise()

One class for each family. A stage follows its pipeline's own lines in diffusers 0.42 (the file is named in each
class), so that tensors which the pipeline keeps alive are alive here too. A denoising step is one whole step of the
loop: both passes of classifier-free guidance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from helpers.architecture import Architecture


class RequestError(ValueError):
    """A size, a number of frames or an option that the model cannot work with; the message names the nearest."""


@dataclass(frozen=True)
class Request:
    """What to generate.

    Attributes:
        width, height: Pixels.
        num_frames: Frames, the given one included.
        guidance: Whether classifier-free guidance is on, which doubles the denoiser's work.
        tiling: Whether the VAE works in tiles.
        chunking: Whether the feed-forward layers work in chunks (the SVD UNet's `enable_forward_chunking`).
        decode_chunk_size: Frames that the SVD decoder takes at once.
    """

    width: int
    height: int
    num_frames: int
    guidance: bool = True
    tiling: bool = True
    chunking: bool = True
    decode_chunk_size: int = 8


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


class Stages(ABC):
    """The stages of one family. `size_multiple` (pixels) and `frames_multiple` (m of mk+1, or `None`) are its rules."""

    prompt_tokens = 0
    size_multiple = 8
    frames_multiple: int | None = None
    tiles = True

    def __init__(self, arch: Architecture, request: Request) -> None:
        self.arch, self.request = arch, request
        self.vae = arch.part("vae")
        self.denoiser = arch.part(arch.denoisers[0])
        self.config = self.denoiser.config
        self.dtype = arch.dtype(arch.denoisers[0])
        self.batch = 2 if request.guidance else 1
        self.check()
        if self.tiles and hasattr(self.vae, "enable_tiling"):
            self.vae.enable_tiling() if request.tiling else self.vae.disable_tiling()
        elif request.tiling and not self.tiles:
            self.left_out = f"{type(self.vae).__name__} cannot tile: decode_chunk_size is what lowers its peak"

    left_out = ""

    def check(self) -> None:
        """Raise a RequestError for a size or a number of frames that the pipeline would refuse or round."""
        for name in ("width", "height"):
            side, multiple = getattr(self.request, name), self.size_multiple
            if side < multiple or side % multiple:
                near = multiple * max(1, round(side / multiple))
                raise RequestError(f"{name}={side}: this model makes multiples of {multiple}; nearest: {near}.")
        frames, multiple = self.request.num_frames, self.frames_multiple
        if multiple and (frames < 1 or (frames - 1) % multiple):
            near = multiple * max(1, round((frames - 1) / multiple)) + 1
            raise RequestError(f"num_frames={frames}: this model makes {multiple}k+1 frames; nearest: {near}.")
        if frames < 1:
            raise RequestError(f"num_frames={frames}: give at least 1.")

    @property
    def latent_frames(self) -> int:
        frames, multiple = self.request.num_frames, self.frames_multiple
        return (frames - 1) // multiple + 1 if multiple else frames

    def image(self, frames: int | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Pixels [1, 3, H, W], or [1, 3, frames, H, W], in the VAE's data type."""
        shape = (1, 3) if frames is None else (1, 3, frames)
        return empty(*shape, self.request.height, self.request.width, dtype=dtype or self.arch.dtype("vae"))

    def finish(self, video: torch.Tensor) -> None:
        """What `VideoProcessor.postprocess_video` does before the pixels leave the card."""
        from diffusers.image_processor import VaeImageProcessor

        pixels = VaeImageProcessor.denormalize(video[0].transpose(0, 1))
        del video, pixels

    @contextmanager
    def prepared(self, stage: str) -> Iterator[None]:
        """What a pipeline does to its parts around a stage."""
        yield

    def alike(self) -> list[list[tuple[torch.nn.Module, str]]]:
        """Methods that do the same to tensors of the same shapes, for `helpers.replay.remembering`.

        The VAE's two halves, which see tile after tile, and what blends the tiles; and the members of the denoiser's
        module lists that have the same class and the same parameters.
        """
        groups: dict[tuple, list[tuple[torch.nn.Module, str]]] = {}
        for owner in self.denoiser.modules():
            if not isinstance(owner, torch.nn.ModuleList):
                continue
            for member in owner:
                shapes = tuple((name, weight.shape, weight.dtype) for name, weight in member.named_parameters())
                if shapes:
                    groups.setdefault((type(member), shapes), []).append((member, "forward"))
        blends = [[(self.vae, name)] for name in ("blend_v", "blend_h") if hasattr(self.vae, name)]
        return [[(self.vae.encoder, "forward")], [(self.vae.decoder, "forward")], *blends, *groups.values()]

    @abstractmethod
    def encode_image(self) -> None:
        """From the given frame's pixels to what the denoiser is conditioned on."""

    @abstractmethod
    def denoise(self) -> None:
        """One step of the loop, with its guidance."""

    @abstractmethod
    def decode(self) -> None:
        """From latents to pixels, ready to leave the card."""


class LTX(Stages):
    """diffusers/pipelines/ltx/pipeline_ltx_image2video.py."""

    prompt_tokens = 128
    size_multiple = 32  # what the pipeline asks for, whatever the VAE

    @property
    def frames_multiple(self) -> int:
        return max(8, self.vae.temporal_compression_ratio)  # the pipeline's own rule is 8k+1

    @property
    def latent_shape(self) -> tuple[int, ...]:
        space, time = self.vae.spatial_compression_ratio, self.vae.temporal_compression_ratio
        r = self.request
        return (1, self.vae.config.latent_channels, (r.num_frames - 1) // time + 1, r.height // space, r.width // space)

    def encode_image(self) -> None:
        image = self.image(1)
        mean = self.vae.encode(image).latent_dist.mode().float()
        mean.repeat(1, 1, self.latent_shape[2], 1, 1)

    def denoise(self) -> None:
        channels, frames, height, width = self.latent_shape[1:]
        tokens = frames * height * width
        embeds = empty(self.batch, self.prompt_tokens, self.config.caption_channels, dtype=self.dtype)
        mask = empty(self.batch, self.prompt_tokens, dtype=torch.int64)
        latents, conditioning_mask = empty(1, tokens, channels), empty(self.batch, tokens)
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

    def latents(self, channels: int | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        channels = self.vae.config.z_dim if channels is None else channels
        height, width = self.request.height // self.space, self.request.width // self.space
        return empty(1, channels, self.latent_frames, height, width, dtype=dtype)

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


class CogVideoX(Stages):
    """diffusers/pipelines/cogvideo/pipeline_cogvideox_image2video.py."""

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

    def check(self) -> None:
        super().check()
        size = self.config.sample_width * self.space, self.config.sample_height * self.space
        if self.config.use_learned_positional_embeddings and (self.request.width, self.request.height) != size:
            raise RequestError(
                f"{self.request.width}x{self.request.height}: this model's positions were learned at one size; "
                f"nearest: {size[0]}x{size[1]}."
            )

    def latents(self, dtype: torch.dtype) -> torch.Tensor:
        size = self.request.height // self.space, self.request.width // self.space
        return empty(1, self.latent_frames, self.vae.config.latent_channels, *size, dtype=dtype)

    def encode_image(self) -> None:
        latents = self.vae.encode(self.image(1)).latent_dist.mode().permute(0, 2, 1, 3, 4)
        torch.cat([latents, empty(*self.latents(self.dtype)[:, 1:].shape, dtype=self.dtype)], dim=1)

    def denoise(self) -> None:
        latents, image = self.latents(self.dtype), self.latents(self.dtype)
        height, width = latents.shape[-2] // self.config.patch_size, latents.shape[-1] // self.config.patch_size
        positions = [empty(self.latent_frames * height * width, self.config.attention_head_dim) for _ in range(2)]
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


class StableVideoDiffusion(Stages):
    """diffusers/pipelines/stable_video_diffusion/pipeline_stable_video_diffusion.py. There is no prompt."""

    tiles = False
    space = 8

    @property
    def size_multiple(self) -> int:
        return self.space * 2 ** (len(self.config.block_out_channels) - 1)

    def check(self) -> None:
        super().check()
        if self.request.decode_chunk_size < 1:
            raise RequestError(f"decode_chunk_size={self.request.decode_chunk_size}: give at least 1 frame.")
        for module in self.denoiser.modules():  # as `enable_forward_chunking` does; there is no way back in 0.42
            if hasattr(module, "set_chunk_feed_forward"):
                module.set_chunk_feed_forward(chunk_size=1 if self.request.chunking else None, dim=0)

    @contextmanager
    def prepared(self, stage: str) -> Iterator[None]:
        """The pipeline encodes with the VAE in fp32 and casts it back, where the VAE's config says `force_upcast`."""
        upcast = stage == "encode_image" and self.vae.config.force_upcast
        try:
            if upcast:
                torch.nn.Module.to(self.vae, torch.float32)
            yield
        finally:
            torch.nn.Module.to(self.vae, self.dtype)

    def latents(self, channels: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        size = self.request.height // self.space, self.request.width // self.space
        return empty(1, self.request.num_frames, channels, *size, dtype=dtype or self.dtype)

    def encode_image(self) -> None:
        encoder = self.arch.part("image_encoder")
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
        for part in latents.split(self.request.decode_chunk_size):
            frames.append(self.vae.decode(part, num_frames=len(part)).sample)
        video = torch.cat(frames)
        self.finish(video[None].transpose(1, 2).float())


def stages(arch: Architecture, request: Request) -> Stages:
    """The stages of the architecture's family.

    Raises:
        RequestError: If the model cannot make what is asked for.
    """
    return {one.__name__: one for one in (LTX, Wan, CogVideoX, StableVideoDiffusion)}[arch.family](arch, request)
