"""Stable Video Diffusion XT: no prompt, only a picture and the amount of motion.

Its clips show no actions: `data.make.clips.scenes` draws a machine that has stopped and the motion around it. The model
gets the amount of motion as `motion_bucket_id`.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from helpers.models import CONFIGS

from ..vaes import maybe_compiled, scale_to_one
from .base import BaseFamily, PromptContinuer
from .protocol import Denoising

FRAMES, SIZE, FPS = 25, (256, 128), 7  # sides that are multiples of 64; the real model's frames and frame rate
BUCKETS = 255  # the `motion_bucket_id` of an amount of 1
SIGMAS = (0.002, 700.0)  # the lowest and the highest noise level of the published scheduler
WIDTH = 32  # of a picture's embedding
LATENT = (8, SIZE[1] // 8, SIZE[0] // 8)  # channels, height and width of a frame's latents
VAE = dict(
    block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=1,
    latent_channels=LATENT[0], sample_size=SIZE[1], scaling_factor=1.0,
)  # fmt: skip
UNET = dict(
    block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlockSpatioTemporal",) * 2,
    up_block_types=("CrossAttnUpBlockSpatioTemporal",) * 2, layers_per_block=1, num_attention_heads=(1, 2),
    in_channels=2 * LATENT[0], out_channels=LATENT[0], cross_attention_dim=WIDTH, addition_time_embed_dim=32,
    projection_class_embeddings_input_dim=3 * 32, num_frames=FRAMES, sample_size=LATENT[2],
)  # fmt: skip
IMAGE_ENCODER = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=224,
    projection_dim=WIDTH,
)  # fmt: skip


def as_frames(clips: torch.Tensor) -> torch.Tensor:
    """[B, C, T, H, W] to [B * T, C, H, W]."""
    return clips.transpose(1, 2).flatten(0, 1)


def as_clips(frames: torch.Tensor, batch: int) -> torch.Tensor:
    """[B * T, C, H, W] to [B, C, T, H, W]."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


class MotionConditioning:
    """Everything that the pipeline passes to the UNet about a clip, as one row of values.

    A row holds the `motion_bucket_id`, the strength of the noise added to the given frame, the embedding of that frame
    [WIDTH], and the latents [LATENT] of the noisy frame: the VAE's mode, not scaled.
    """

    def __init__(self, work: Path, vae: AutoencoderKLTemporalDecoder, device: str):
        self.encoder = CLIPVisionModelWithProjection.from_pretrained(work / "image_encoder", dtype=torch.float32)
        self.encoder.to(device).eval()
        self.posterior_of, _ = FAMILY.encoder_and_decoder(vae, compiled=False)
        published = CLIPImageProcessor()
        self.mean, self.std = (
            torch.tensor(values, device=device).view(3, 1, 1) for values in (published.image_mean, published.image_std)
        )

    @torch.no_grad()
    def __call__(self, clips: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
        """Rows [B, 2 + WIDTH + latents] for uint8 clips [B, T, 3, H, W] and their amounts of motion [B]."""
        image = clips[:, 0].float() / 127.5 - 1
        strength = torch.exp(0.8 * torch.randn(len(image), 1, device=image.device) - 3.5)  # around the default of 0.02
        noisy = image + strength.view(-1, 1, 1, 1) * torch.randn_like(image)
        latents = self.posterior_of(noisy[:, :, None]).mode().float().flatten(1)
        bucket = (BUCKETS * amounts).round().view(-1, 1)
        return torch.cat([bucket, strength, self.embed(image), latents], dim=1)

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, WIDTH] of pictures [B, 3, H, W] in -1..1, resized and normalised as in the pipeline."""
        image = (_resize_with_antialiasing(image, (224, 224)) + 1) / 2
        return self.encoder((image - self.mean) / self.std).image_embeds.float()


class SVDDenoising(Denoising):
    """Denoising with the conditioning of `StableVideoDiffusionPipeline`.

    Args:
        latents: [N, C, T, H, W] fp16, scaled.
        rows: [N, 2 + WIDTH + latents], from `MotionConditioning`.
    """

    def __init__(self, latents: torch.Tensor, rows: torch.Tensor, batch_size: int):
        self.latents, self.prompts, self.batch_size = latents, rows, batch_size

    def draw_sigma(self, number: int, device) -> torch.Tensor:
        """Noise levels [number, 1, 1, 1, 1] distributed like the scheduler's steps (Karras et al., 2022, rho 7)."""
        low, high = (sigma ** (1 / 7) for sigma in SIGMAS)
        return (low + (high - low) * torch.rand(number, 1, 1, 1, 1, device=device)) ** 7

    def loss(self, denoiser) -> torch.Tensor:
        device, n = self.latents.device, self.batch_size
        pick = torch.randint(len(self.latents), (n,), device=device)
        clean = self.latents[pick].float().transpose(1, 2)  # [B, T, C, H, W], as this UNet takes it
        bucket, strength, embeds, image = self.prompts[pick].split([1, 1, WIDTH, math.prod(LATENT)], dim=1)
        kept = (torch.rand(n, 1, device=device) > 0.08).float()  # for guidance, whose unconditional half gets zeros
        image = (kept * image).unflatten(1, LATENT)[:, None].expand_as(clean)
        sigma, noise = self.draw_sigma(n, device), torch.randn_like(clean)
        size = (sigma**2 + 1).sqrt()  # of the noisy latents
        velocity = denoiser(
            torch.cat([(clean + sigma * noise) / size, image], dim=2),
            0.25 * sigma.flatten().log(),
            encoder_hidden_states=(kept * embeds)[:, None],
            added_time_ids=torch.cat([torch.full_like(bucket, FPS - 1), bucket, strength], dim=1),
            return_dict=False,
        )[0]
        wanted = (noise - sigma * clean) / size
        # An error of the velocity changes the final latents by sigma / size times as much: the weight is a compromise.
        return (sigma / size * (velocity.float() - wanted) ** 2).mean()


class SVDContinuer(PromptContinuer):
    """Continues one frame with `StableVideoDiffusionPipeline`, given an amount of motion."""

    def arguments(self, frame: torch.Tensor, prompt: str | float) -> dict[str, Any]:
        return {
            "image": self.pipe.video_processor.numpy_to_pil(frame.permute(1, 2, 0).numpy())[0],
            "fps": FPS, "motion_bucket_id": round(BUCKETS * float(prompt)), "max_guidance_scale": 1.0,
        }  # fmt: skip


class StableVideoDiffusionXT(BaseFamily):
    frames, size, fps = FRAMES, SIZE, FPS
    ambient = True
    vae_class, denoiser_class = AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    denoisers = {"unet": "denoiser"}
    encoder = "CLIPVisionModelWithProjection"

    def build_vae(self) -> AutoencoderKLTemporalDecoder:
        return AutoencoderKLTemporalDecoder(**VAE)

    def build_denoiser(self) -> UNetSpatioTemporalConditionModel:
        return UNetSpatioTemporalConditionModel(**UNET)

    def save_encoder(self, work: Path, start_from: Path | None = None) -> None:
        """As in the protocol: random weights from a seed already give every picture a distinct embedding."""
        torch.manual_seed(0)
        encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**IMAGE_ENCODER))
        encoder.half().save_pretrained(work / "image_encoder")

    def embed_prompts(self, work: Path) -> tuple[None, None]:
        return None, None

    def motion_conditioning(self, work: Path, vae, device: str) -> MotionConditioning:
        return MotionConditioning(work, vae, device)

    def encoder_and_decoder(self, vae: AutoencoderKLTemporalDecoder, compiled: bool):
        encode, decode = maybe_compiled(compiled, vae.encoder, vae.decoder)

        def posterior_of(x):
            return DiagonalGaussianDistribution(as_clips(vae.quant_conv(encode(as_frames(x))), len(x)))

        def rebuilt(z):
            batch, frames = z.shape[0], z.shape[2]
            no_single_images = z.new_zeros(batch, frames)
            return as_clips(decode(as_frames(z), num_frames=frames, image_only_indicator=no_single_images), batch)

        return posterior_of, rebuilt

    def set_statistics(self, vae, mean: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return scale_to_one(vae, mean, std)

    def denoising(self, latents, conditions, prompts, posterior_std, embeds, mask, batch_size, component):
        return SVDDenoising(latents, prompts, batch_size)

    def assemble(self, work: Path, folder: Path) -> None:
        pipe = StableVideoDiffusionPipeline(
            scheduler=EulerDiscreteScheduler.from_pretrained(CONFIGS / "svd_xt", subfolder="scheduler"),
            vae=AutoencoderKLTemporalDecoder.from_pretrained(work / "vae", dtype=torch.float16),
            unet=UNetSpatioTemporalConditionModel.from_pretrained(work / "unet", dtype=torch.float16),
            image_encoder=CLIPVisionModelWithProjection.from_pretrained(work / "image_encoder", dtype=torch.float16),
            feature_extractor=CLIPImageProcessor(),
        )
        pipe.save_pretrained(folder)
        index = json.loads((folder / "model_index.json").read_text())
        index["feature_extractor"][1] = "CLIPImageProcessor"  # as published; without torchvision it is a stand-in
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")

    def continuer(self, folder: Path, device: str) -> SVDContinuer:
        pipe = StableVideoDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
        return SVDContinuer(pipe, self.frames, device)


FAMILY = StableVideoDiffusionXT()
