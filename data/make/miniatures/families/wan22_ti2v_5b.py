"""The miniature of Wan2.2 TI2V-5B: the residual VAE of 2.2 with its patches, and `expand_timesteps`."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
from transformers import T5TokenizerFast, UMT5EncoderModel

from . import text, wan
from .stored import fp8, in_fp8, is_fp8, learn_as
from .wan import ENCODER, halves, set_statistics, statistics  # noqa: F401 - part of what a family module offers

FRAMES, SIZE, FPS = 25, (288, 160), 24  # 4k+1 frames, sides that are multiples of 32
DENOISERS = {"transformer": "denoiser"}
SHIFT = 5.0
STORED = "The transformer's matrices are stored in fp8, all else in fp16."  # what the card says of it
VAE = dict(  # compresses 8 x 8 pixels and 4 frames; the real one 16 x 16 and 4
    base_dim=24, decoder_base_dim=32, z_dim=24, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[True, True],
    is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_temporal=4, scale_factor_spatial=8,
    latents_mean=[0.0] * 24, latents_std=[1.0] * 24,
)  # fmt: skip
TRANSFORMER = wan.transformer_config(
    in_channels=24, out_channels=24, num_attention_heads=3, attention_head_dim=64, ffn_dim=768, num_layers=6
)


def build_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(**VAE)


def build_denoiser() -> WanTransformer3DModel:
    return learn_as(fp8, wan.read_padding_once(WanTransformer3DModel(**TRANSFORMER)), is_fp8)


def picture(clips: torch.Tensor) -> None:
    """The given frame needs no encoding of its own: the VAE is causal, so it is the clip's first latent frame."""


class Denoising(wan.Denoising):
    def __init__(self, latents, conditions, prompts, posterior_std, embeds, mask, batch_size, part):
        super().__init__(latents, conditions, prompts, posterior_std, embeds, mask, batch_size, (0.0, 1.0), SHIFT)


def assemble(work: Path, folder: Path) -> None:
    """Put the trained parts of `work` together as a pipeline folder in the diffusers layout: the transformer's matrices
    in fp8, all else in fp16.
    """
    pipe = WanImageToVideoPipeline(
        scheduler=wan.scheduler(SHIFT),
        vae=AutoencoderKLWan.from_pretrained(work / "vae", dtype=torch.float16),
        transformer=in_fp8(WanTransformer3DModel.from_pretrained(work / "transformer")),
        text_encoder=UMT5EncoderModel.from_pretrained(work / "text_encoder", dtype=torch.float16),
        tokenizer=T5TokenizerFast.from_pretrained(work / "tokenizer"),
        expand_timesteps=True,
    )
    text.save_pipeline(pipe, work, folder)


class Continuer(wan.Continuer):
    def __init__(self, folder: Path, device: str):
        super().__init__(WanImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32), FRAMES, device)
