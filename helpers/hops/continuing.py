"""Encode, continue and decode in the scale of a model's latents, so that one loop serves all models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import LTXConditionPipeline, LTXImageToVideoPipeline, WanImageToVideoPipeline
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from diffusers.video_processor import VideoProcessor
from PIL import Image

from helpers.hops.latents import ContinueLTX, ContinueWan
from helpers.hops.plan import latent_layout

EMPTY = Image.new("RGB", (32, 32))


def prompt_arguments(
    embeds: torch.Tensor, length: int, with_mask: bool, name: str = "prompt"
) -> dict[str, torch.Tensor]:
    """What a pipeline is called with for the embeddings [tokens, channels] of a prompt: padded with zeros to `length`
    tokens, and for LTX-Video a mask of the prompt's own.
    """
    padded = torch.cat([embeds, embeds.new_zeros(length - len(embeds), embeds.shape[1])])[None]
    mask = {f"{name}_attention_mask": torch.arange(length)[None] < len(embeds)} if with_mask else {}
    return {f"{name}_embeds": padded} | mask


class Continuing:
    """A pipeline that continues latents, and its VAE.

    Latents are [1, channels, frames, rows, columns] as the transformer sees them. The first latent frame holds a single
    frame, and each further one `per_latent` frames.

    Args:
        pipe: A `ContinueLTX` or a `ContinueWan`, in any offload mode.
        embed: What the pipeline is called with for a prompt: `prompt_embeds` and their mask, or the prompt itself.
        size: (width, height) in pixels.
        num_frames: How many one call returns, those that are given included.
        steps: Denoising steps.
        call: Further arguments of the pipeline, `callback_on_step_end` for example.
    """

    def __init__(
        self, pipe: ContinueLTX | ContinueWan, embed: Callable[[str], dict[str, Any]], size: tuple[int, int],
        num_frames: int, steps: int, **call: Any,
    ) -> None:  # fmt: skip
        self.pipe, self.embed, self.size, self.num_frames, self.steps = pipe, embed, size, num_frames, steps
        self.is_ltx = isinstance(pipe, LTXConditionPipeline)
        self.per_latent, self.per_side, _ = latent_layout(pipe.vae)
        self.call = call

    def _scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean and the deviation of the latents' channels."""
        vae = self.pipe.vae
        if self.is_ltx:
            mean, std = vae.latents_mean, vae.latents_std / vae.config.scaling_factor
        else:
            mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
        return mean.float().cpu().view(1, -1, 1, 1, 1), std.float().cpu().view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def encode(self, frames: np.ndarray) -> torch.Tensor:
        """Latents on the CPU of frames, `np.uint8` [1 + k * per_latent, H, W, 3]."""
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        vae, (mean, std) = self.pipe.vae, self._scale()
        encoded = vae.encode(video.to(self.pipe._execution_device, vae.dtype)).latent_dist.mode()
        return (encoded.float().cpu() - mean) / std

    @torch.no_grad()
    def denoise(self, given: torch.Tensor, prompt: str, seed: int) -> torch.Tensor:
        """Latents on the CPU that begin with `given` and continue it."""
        self.pipe.given = given
        seen: dict[str, Any] = {"image": EMPTY}
        if self.is_ltx:  # without noise on what is given, which is exact
            seen = {"conditions": [LTXVideoCondition(image=EMPTY)], "image_cond_noise_scale": 0.0}
        width, height = self.size
        return self.pipe(
            **seen, **self.embed(prompt), width=width, height=height, num_frames=self.num_frames,
            num_inference_steps=self.steps, generator=torch.Generator().manual_seed(seed), output_type="latent",
            **self.call,
        ).frames.cpu()  # fmt: skip

    @torch.no_grad()
    def denoise_frame(self, frame: np.ndarray, prompt: str, seed: int) -> torch.Tensor:
        """Latents on the CPU that continue a single frame, `np.uint8` [H, W, 3], by the published pipeline."""
        pipe = self.pipe
        if self.is_ltx:
            one = LTXImageToVideoPipeline(**pipe.components)
        else:
            one = WanImageToVideoPipeline(**pipe.components, expand_timesteps=pipe.config.expand_timesteps)
        one.set_progress_bar_config(disable=True)
        width, height = self.size
        latents = one(
            image=Image.fromarray(frame), **self.embed(prompt), width=width, height=height, num_frames=self.num_frames,
            num_inference_steps=self.steps, generator=torch.Generator().manual_seed(seed), output_type="latent",
            **self.call,
        ).frames.cpu()  # fmt: skip
        if latents.ndim == 3:  # LTX-Video's are a row of tokens
            count = (self.num_frames - 1) // self.per_latent + 1
            latents = latents.transpose(1, 2).unflatten(2, (count, height // self.per_side, width // self.per_side))
        return latents

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Frames, `np.uint8` [T, H, W, 3], of latents."""
        vae, (mean, std) = self.pipe.vae, self._scale()
        video = vae.decode((latents * std + mean).to(self.pipe._execution_device, vae.dtype), return_dict=False)[0]
        return (VideoProcessor().postprocess_video(video, output_type="np")[0] * 255).round().astype("uint8")


def hop_latents(model, seen, previous, prompt, seed, anchor=None):
    """The latents [1, channels, frames, rows, columns] of one hop, which begin with its context.

    `seen` are the last frames of the video, as many as the context has, and `previous` the latents of the hop before,
    or None to encode the frames again. `anchor` is the latent frame to look like, or None for the first of the context.
    """
    first = model.encode(seen[:1]) if anchor is None else anchor
    tail = model.encode(seen)[:, :, 1:] if previous is None else previous[:, :, -(len(seen) - 1) // model.per_latent :]
    return model.denoise(torch.cat([first, tail], dim=2), prompt, seed)


def hop_frames(model, seen, latents):
    """The frames of one hop, np.uint8 [1 + T, H, W, 3], the first of which repeats the last one seen."""
    return model.decode(torch.cat([model.encode(seen[:1]), latents[:, :, 1:]], dim=2))[len(seen) - 1 :]
