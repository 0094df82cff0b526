"""The miniature of Wan2.2 TI2V-5B: the residual VAE of 2.2 with its patches, and `expand_timesteps`."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
from transformers import T5TokenizerFast, UMT5EncoderModel

from . import text, wan
from .wan import ENCODER, halves, set_statistics  # noqa: F401 - part of what a family module offers

FRAMES, SIZE, FPS = 25, (288, 160), 24  # 4k+1 frames, sides that are multiples of 32
DENOISERS = {"transformer": "denoiser"}
COMPILES = False  # with a time for each token, the block that torch 2.11 compiles for a GPU has wrong gradients
SHIFT = 5.0
VAE = dict(
    base_dim=24, decoder_base_dim=24, z_dim=48, dim_mult=[1, 2, 2, 2], num_res_blocks=1,
    temperal_downsample=[False, True, True], is_residual=True, in_channels=12, out_channels=12, patch_size=2,
    scale_factor_temporal=4, scale_factor_spatial=16, latents_mean=[0.0] * 48, latents_std=[1.0] * 48,
)  # fmt: skip
TRANSFORMER = wan.transformer_config(  # a token holds 4 x 48 numbers: it is wider than that
    in_channels=48, out_channels=48, num_attention_heads=7, attention_head_dim=32, ffn_dim=896, num_layers=4
)


def build_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(**VAE)


def build_denoiser() -> WanTransformer3DModel:
    return wan.read_padding_once(WanTransformer3DModel(**TRANSFORMER))


def picture(clips: torch.Tensor) -> None:
    """The given frame needs no encoding of its own: the VAE is causal, so it is the clip's first latent frame."""


class Denoising(wan.Denoising):
    def __init__(self, latents, conditions, prompts, posterior_std, embeds, mask, batch_size, part):
        super().__init__(latents, conditions, prompts, posterior_std, embeds, mask, batch_size, (0.0, 1.0), SHIFT)


def assemble(work: Path, folder: Path) -> None:
    """Put the trained parts of `work` together as a pipeline folder in the diffusers layout.

    All is stored in fp16 but the transformer's matrices, in fp8 (e4m3): twice as many of them for the same bytes. What
    they lose is a hundredth of what the transformer gets wrong.
    """
    transformer = WanTransformer3DModel.from_pretrained(work / "transformer").half()
    for name, parameter in transformer.named_parameters():
        if parameter.dim() == 2 and name != "proj_out.weight":
            parameter.data = parameter.data.to(torch.float8_e4m3fn)
    pipe = WanImageToVideoPipeline(
        scheduler=wan.scheduler(SHIFT),
        vae=AutoencoderKLWan.from_pretrained(work / "vae", dtype=torch.float16),
        transformer=transformer,
        text_encoder=UMT5EncoderModel.from_pretrained(work / "text_encoder", dtype=torch.float16),
        tokenizer=T5TokenizerFast.from_pretrained(work / "tokenizer"),
        expand_timesteps=True,
    )
    text.save_pipeline(pipe, work, folder)


class Continuer(wan.Continuer):
    def __init__(self, folder: Path, device: str):
        super().__init__(WanImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32), FRAMES, device)
