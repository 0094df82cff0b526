"""CogVideoX-5B I2V: learned positions, and a VAE that normalises chunk by chunk."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch.nn import GroupNorm
from transformers import T5EncoderModel, T5TokenizerFast

from helpers.models import CONFIGS

from .. import prompts
from ..prompts import drop_some
from ..quantization_aware import in_fp8
from ..vaes import forward_replaced, maybe_compiled, scale_to_one
from .base import BaseFamily, PromptContinuer
from .protocol import Denoising

FRAMES, SIZE = 17, (240, 160)  # two chunks of the VAE; the aspect ratio of the real model's 720x480
# The VAE's tiles are half as large as this and overlap by a sixth. diffusers can only join them if the remainder is a
# multiple of 8 pixels, which it is for 192 (80) and not for 160 (66).
TILED_HEIGHT = 192
POSITIONS = 226  # of the prompt, padding included; the transformer attends to all of them
VAE = dict(
    block_out_channels=(24, 24, 32, 32), layers_per_block=1, latent_channels=16, norm_num_groups=8,
    sample_width=SIZE[0], sample_height=TILED_HEIGHT, scaling_factor=1.0,
)  # fmt: skip
TRANSFORMER = dict(
    in_channels=32, out_channels=16, num_attention_heads=4, attention_head_dim=32, num_layers=5, time_embed_dim=64,
    text_embed_dim=prompts.WIDTH, max_text_seq_length=POSITIONS, patch_size=2, sample_width=SIZE[0] // 8,
    sample_height=SIZE[1] // 8, sample_frames=FRAMES, use_rotary_positional_embeddings=True,
    use_learned_positional_embeddings=True,
)  # fmt: skip


def norm_of_chunks(layer: GroupNorm, x: torch.Tensor) -> torch.Tensor:
    """`GroupNorm.forward` that normalises the two chunks of a whole clip separately.

    Takes features [B, C, T, H, W] of one frame, or of a 17-frame clip at any stage: 9 + 8, 5 + 4 or 3 + 2.
    """
    assert x.shape[2] in (1, 17, 9, 5), "clips of 17 frames, or single frames"
    chunks = x.split((x.shape[2] // 2 + 1, x.shape[2] // 2), dim=2) if x.shape[2] > 1 else (x,)
    normed = [torch.nn.functional.group_norm(c, layer.num_groups, layer.weight, layer.bias, layer.eps) for c in chunks]
    return torch.cat(normed, dim=2)


def scheduler() -> CogVideoXDDIMScheduler:
    """The published scheduler."""
    return CogVideoXDDIMScheduler.from_pretrained(CONFIGS / "cogvideox_5b_i2v", subfolder="scheduler")


class CogVideoXDenoising(Denoising):
    """Denoising with the conditioning of `CogVideoXImageToVideoPipeline`.

    Args:
        latents: [N, C, T, H, W] fp16, scaled.
        conditions: [N, C, 1, H, W] fp16, those of the given frame, scaled.
        prompts: [N] long, the index of each clip's prompt in `embeds`, whose last entry is the empty prompt.
        posterior_std: [C], what sampling from the posterior adds to the latents of the given frame, scaled.
        embeds: [P + 1, POSITIONS, prompts.WIDTH].
    """

    def __init__(self, latents, conditions, prompts, posterior_std, embeds, batch_size):
        self.latents, self.conditions, self.prompts, self.embeds = latents, conditions, prompts, embeds
        self.posterior_std, self.batch_size = posterior_std.view(-1, 1, 1, 1), batch_size
        # the share of the latents in the noisy latents at each of the 1000 time steps, falling from 1 to 0
        self.left = scheduler().alphas_cumprod.float().to(latents.device)
        frames, height, width = latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2
        self.rotary = get_3d_rotary_pos_embed(
            TRANSFORMER["attention_head_dim"], ((0, 0), (height, width)), (height, width), frames, device=latents.device
        )

    def loss(self, denoiser) -> torch.Tensor:
        device, n = self.latents.device, self.batch_size
        pick = torch.randint(len(self.latents), (n,), device=device)
        clean, prompt = self.latents[pick].float(), drop_some(self.prompts[pick], len(self.embeds) - 1)
        u = torch.rand(n, device=device)
        timestep = (1000 * 2 * u / (1 + u)).long().clamp(max=999)  # more of the high noise levels
        left, noise = self.left[timestep].view(-1, 1, 1, 1, 1), torch.randn_like(clean)
        noisy = left.sqrt() * clean + (1 - left).sqrt() * noise
        given = torch.zeros_like(clean)
        first = self.conditions[pick].float()
        given[:, :, :1] = first + self.posterior_std * torch.randn_like(first)
        velocity = denoiser(
            hidden_states=torch.cat([noisy, given], dim=1).transpose(1, 2),
            encoder_hidden_states=self.embeds[prompt],
            timestep=timestep,
            image_rotary_emb=self.rotary,
            return_dict=False,
        )[0].transpose(1, 2)
        wanted = left.sqrt() * noise - (1 - left).sqrt() * clean
        # An error of velocity changes the final latents by sqrt(1 - left) times as much: the weight is a compromise.
        return ((1 - left).sqrt() * (velocity.float() - wanted) ** 2).mean()


class CogVideoX5BI2V(BaseFamily):
    frames, size, fps = FRAMES, SIZE, 8
    vae_class, denoiser_class = AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    positions = POSITIONS
    storage = "The transformer's feed-forward matrices are stored in fp8, everything else in fp16."

    def build_vae(self) -> AutoencoderKLCogVideoX:
        return AutoencoderKLCogVideoX(**VAE)

    def build_denoiser(self) -> CogVideoXTransformer3DModel:
        """As in the protocol; the positions become a parameter, because no optimizer sees the buffer of the class."""
        transformer = CogVideoXTransformer3DModel(**TRANSFORMER)
        positions = transformer.patch_embed._buffers.pop("pos_embedding")
        transformer.patch_embed.pos_embedding = torch.nn.Parameter(positions.float())  # the buffer is in fp64
        transformer._repeated_blocks = ["CogVideoXBlock"]  # diffusers does not declare it
        return transformer

    def encoder_and_decoder(self, vae: AutoencoderKLCogVideoX, compiled: bool):
        """As in the protocol, for a single frame or a whole clip.

        The class itself works on nine frames, then on eight, and keeps features in between. Its convolutions are causal
        and it resamples pairs of frames, so one pass gives the same values if the normalisation keeps to the chunks.
        """

        def encode(x):
            return vae.encoder(x)[0]

        def decode(z):
            return vae.decoder(z)[0]

        encode, decode = maybe_compiled(compiled, encode, decode)

        @forward_replaced(GroupNorm, norm_of_chunks)
        def posterior_of(x):
            return DiagonalGaussianDistribution(encode(x))

        return posterior_of, forward_replaced(GroupNorm, norm_of_chunks)(decode)

    def conditioning_frames(self, clips: torch.Tensor) -> torch.Tensor:
        """The given frame alone. Its latents differ from the clip's first ones because of the normalisation."""
        return clips[:, :1]

    def set_statistics(self, vae, mean: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return scale_to_one(vae, mean, std)

    def denoising(self, latents, conditions, prompts, posterior_std, embeds, mask, batch_size, component):
        return CogVideoXDenoising(latents, conditions, prompts, posterior_std, embeds, batch_size)

    def assemble(self, work: Path, folder: Path) -> None:
        """As in the protocol; storing the feed-forward matrices in fp8 changed the PSNR by -0.03 to 0.15 dB on five
        clips.
        """
        transformer = CogVideoXTransformer3DModel.from_pretrained(work / "transformer")
        pipe = CogVideoXImageToVideoPipeline(
            scheduler=scheduler(),
            vae=AutoencoderKLCogVideoX.from_pretrained(work / "vae", dtype=torch.float16),
            transformer=in_fp8(transformer, lambda name, layer: ".ff." in name),
            text_encoder=T5EncoderModel.from_pretrained(work / "text_encoder", dtype=torch.float16),
            tokenizer=T5TokenizerFast.from_pretrained(work / "tokenizer"),
        )
        prompts.save_pipeline(pipe, work, folder)

    def continuer(self, folder: Path, device: str) -> PromptContinuer:
        pipe = CogVideoXImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32)
        return PromptContinuer(pipe, self.frames, device)


FAMILY = CogVideoX5BI2V()
