"""The miniature of Stable Video Diffusion XT: no prompt, only a picture and how much shall move.

There are no actions in its clips: `data.make.scenes` draws a machine that has stopped, and all that goes on around it.
How much goes on is what the model is told as `motion_bucket_id`.
"""

import json
import math
from pathlib import Path

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

from .vaes import scale_to_one as set_statistics  # noqa: F401 - part of what a family module offers

FRAMES, SIZE, FPS = 25, (256, 128), 7  # sides that are multiples of 64; the real model's frames and frame rate
AMBIENT = True  # no prompt: clips are ambient, and each has an amount of motion, 0 to 1
DENOISERS = {"unet": "denoiser"}
ENCODER = "CLIPVisionModelWithProjection"
BUCKETS = 255  # the `motion_bucket_id` of an amount of 1
SIGMAS = (0.002, 700.0)  # the least and the most noise, as the published scheduler has them
PUBLISHED = Path(__file__).resolve().parents[1] / "configs" / "svd_xt"
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


def build_vae() -> AutoencoderKLTemporalDecoder:
    return AutoencoderKLTemporalDecoder(**VAE)


def build_denoiser() -> UNetSpatioTemporalConditionModel:
    return UNetSpatioTemporalConditionModel(**UNET)


def save_encoder(work: Path) -> None:
    """Make the small image encoder from a seed: random weights already give every picture its own embedding."""
    torch.manual_seed(0)
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**IMAGE_ENCODER))
    encoder.half().save_pretrained(work / "image_encoder")


def halves(vae: AutoencoderKLTemporalDecoder, compiled: bool):
    """Functions from pixels to the posterior, and from latents to pixels, of clips [B, C, T, H, W]."""
    encode, decode = vae.encoder, vae.decoder
    if compiled:
        encode, decode = torch.compile(encode, dynamic=False), torch.compile(decode, dynamic=False)

    def posterior_of(x):
        return DiagonalGaussianDistribution(as_clips(vae.quant_conv(encode(as_frames(x))), len(x)))

    def rebuilt(z):
        batch, frames = z.shape[0], z.shape[2]
        none_alone = z.new_zeros(batch, frames)
        return as_clips(decode(as_frames(z), num_frames=frames, image_only_indicator=none_alone), batch)

    return posterior_of, rebuilt


def as_frames(clips: torch.Tensor) -> torch.Tensor:
    """[B, C, T, H, W] to [B * T, C, H, W]."""
    return clips.transpose(1, 2).flatten(0, 1)


def as_clips(frames: torch.Tensor, batch: int) -> torch.Tensor:
    """[B * T, C, H, W] to [B, C, T, H, W]."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def picture(clips: torch.Tensor) -> None:
    """The given frame is a part of what `Told` keeps for each clip."""


class Told:
    """What the pipeline tells the UNet about a clip, as one row of numbers.

    A row holds the `motion_bucket_id`, the strength of the noise added to the given frame, that frame's embedding
    [WIDTH], and the latents [LATENT] of the frame with its noise: the VAE's mode, not scaled.
    """

    def __init__(self, work: Path, vae: AutoencoderKLTemporalDecoder, device):
        self.encoder = CLIPVisionModelWithProjection.from_pretrained(work / "image_encoder", dtype=torch.float32)
        self.encoder.to(device).eval()
        self.posterior_of, _ = halves(vae, compiled=False)
        published = CLIPImageProcessor()
        self.mean, self.std = (
            torch.tensor(values, device=device).view(3, 1, 1) for values in (published.image_mean, published.image_std)
        )

    @torch.no_grad()
    def __call__(self, clips: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
        """Rows [B, 2 + WIDTH + latents] of uint8 clips [B, T, 3, H, W] and their amounts of motion [B]."""
        image = clips[:, 0].float() / 127.5 - 1
        strength = torch.exp(0.8 * torch.randn(len(image), 1, device=image.device) - 3.5)  # around the usual 0.02
        noisy = image + strength.view(-1, 1, 1, 1) * torch.randn_like(image)
        latents = self.posterior_of(noisy[:, :, None]).mode().float().flatten(1)
        bucket = (BUCKETS * amounts).round().view(-1, 1)
        return torch.cat([bucket, strength, self.embed(image), latents], dim=1)

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, WIDTH] of pictures [B, 3, H, W] in -1..1, resized and normalised as the pipeline does it."""
        image = (_resize_with_antialiasing(image, (224, 224)) + 1) / 2
        return self.encoder((image - self.mean) / self.std).image_embeds.float()


class Denoising:
    """The UNet's training loss on scaled latents, conditioned as `StableVideoDiffusionPipeline` does it.

    Args:
        latents: [N, C, T, H, W] fp16, scaled.
        told: [N, 2 + WIDTH + latents], see `Told`.
    """

    def __init__(self, latents, _, told, posterior_std, embeds, mask, batch_size, part):
        self.latents, self.told, self.batch_size = latents, told, batch_size

    def draw_sigma(self, number: int, device) -> torch.Tensor:
        """Noise levels [N, 1, 1, 1, 1] as densely as the scheduler's steps lie (Karras et al., 2022, rho 7)."""
        low, high = (sigma ** (1 / 7) for sigma in SIGMAS)
        return (low + (high - low) * torch.rand(number, 1, 1, 1, 1, device=device)) ** 7

    def loss(self, unet) -> torch.Tensor:
        device, n = self.latents.device, self.batch_size
        pick = torch.randint(len(self.latents), (n,), device=device)
        clean = self.latents[pick].float().transpose(1, 2)  # [B, T, C, H, W], as this UNet takes it
        bucket, strength, embeds, image = self.told[pick].split([1, 1, WIDTH, math.prod(LATENT)], dim=1)
        kept = (torch.rand(n, 1, device=device) > 0.08).float()  # for guidance, whose other half is given zeros
        image = (kept * image).unflatten(1, LATENT)[:, None].expand_as(clean)
        sigma, noise = self.draw_sigma(n, device), torch.randn_like(clean)
        size = (sigma**2 + 1).sqrt()  # of the noisy latents
        velocity = unet(
            torch.cat([(clean + sigma * noise) / size, image], dim=2),
            0.25 * sigma.flatten().log(),
            encoder_hidden_states=(kept * embeds)[:, None],
            added_time_ids=torch.cat([torch.full_like(bucket, FPS - 1), bucket, strength], dim=1),
            return_dict=False,
        )[0]
        wanted = (noise - sigma * clean) / size
        # an error of velocity moves the final latents by sigma / size times as much: weighted between the two
        return (sigma / size * (velocity.float() - wanted) ** 2).mean()


def assemble(work: Path, folder: Path) -> None:
    """Put the trained parts of `work` together as a pipeline folder in fp16, in the diffusers layout."""
    pipe = StableVideoDiffusionPipeline(
        scheduler=EulerDiscreteScheduler.from_pretrained(PUBLISHED, subfolder="scheduler"),
        vae=AutoencoderKLTemporalDecoder.from_pretrained(work / "vae", dtype=torch.float16),
        unet=UNetSpatioTemporalConditionModel.from_pretrained(work / "unet", dtype=torch.float16),
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(work / "image_encoder", dtype=torch.float16),
        feature_extractor=CLIPImageProcessor(),
    )
    pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["feature_extractor"][1] = "CLIPImageProcessor"  # as published; without torchvision its stand-in was written
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


class Continuer:
    """The finished folder at work: what `data.make.truth` asks of every family, with an amount in a prompt's place."""

    context = 1

    def __init__(self, folder: Path, device: str):
        self.pipe = StableVideoDiffusionPipeline.from_pretrained(folder, dtype=torch.float32).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.frames = FRAMES

    def from_one(self, frame, amount, steps, seed):
        height, width = frame.shape[-2:]
        out = self.pipe(
            image=self.pipe.video_processor.numpy_to_pil(frame.permute(1, 2, 0).numpy())[0],
            height=height, width=width, num_frames=self.frames, num_inference_steps=steps, fps=FPS,
            motion_bucket_id=round(BUCKETS * amount), max_guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed), output_type="pt",
        )  # fmt: skip
        return out.frames[0].float().cpu()
