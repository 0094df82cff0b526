"""Wan2.2 TI2V-5B: the residual VAE of 2.2 with its patches, and `expand_timesteps`."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
from transformers import T5TokenizerFast, UMT5EncoderModel

from helpers.hops import ContinueWan, Continuing

from .. import prompts
from ..quantization_aware import fp8, in_fp8, inner_linear, prepare
from .base import PromptContinuer
from .wan import WanDenoising, WanFamily, reading_padding_once, scheduler, transformer_config

SHIFT = 5.0
VAE = dict(  # compresses 8 x 8 pixels and 4 frames; the real one 16 x 16 and 4
    base_dim=24, decoder_base_dim=32, z_dim=24, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[True, True],
    is_residual=True, in_channels=12, out_channels=12, patch_size=2, scale_factor_temporal=4, scale_factor_spatial=8,
    latents_mean=[0.0] * 24, latents_std=[1.0] * 24,
)  # fmt: skip
TRANSFORMER = transformer_config(
    in_channels=24, out_channels=24, num_attention_heads=3, attention_head_dim=64, ffn_dim=768, num_layers=6
)


class Wan22TI2V5B(WanFamily):
    frames, size, fps, context, hops = 25, (288, 160), 24, 9, 6  # 4k + 1 frames, sides that are multiples of 32
    storage = "The transformer's matrices are stored in fp8, everything else in fp16."

    def build_vae(self) -> AutoencoderKLWan:
        return AutoencoderKLWan(**VAE)

    def build_denoiser(self) -> WanTransformer3DModel:
        return prepare(reading_padding_once(WanTransformer3DModel(**TRANSFORMER)), fp8, inner_linear)

    def denoising(self, latents, conditions, prompts, posterior_std, embeds, mask, batch_size, component):
        return WanDenoising(
            latents, conditions, prompts, self.hops, posterior_std, embeds, mask, batch_size, (0.0, 1.0), SHIFT
        )

    def assemble(self, work: Path, folder: Path) -> None:
        pipe = WanImageToVideoPipeline(
            scheduler=scheduler(SHIFT),
            vae=AutoencoderKLWan.from_pretrained(work / "vae", dtype=torch.float16),
            transformer=in_fp8(WanTransformer3DModel.from_pretrained(work / "transformer")),
            text_encoder=UMT5EncoderModel.from_pretrained(work / "text_encoder", dtype=torch.float16),
            tokenizer=T5TokenizerFast.from_pretrained(work / "tokenizer"),
            expand_timesteps=True,
        )
        prompts.save_pipeline(pipe, work, folder)

    def continuer(self, folder: Path, device: str) -> "TI2VContinuer":
        pipe = WanImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32)
        return TI2VContinuer(pipe, self.frames, device)


class TI2VContinuer(PromptContinuer):
    """Continues several frames as well, by their latents."""

    def from_several(self, frames, prompt, steps, seed):
        model = self.continuing(steps)
        given = model.encode((frames * 255).round().byte().permute(0, 2, 3, 1).numpy())
        made = model.decode(model.denoise(given, prompt, seed))
        return torch.from_numpy(made).permute(0, 3, 1, 2).float() / 255

    def continuing(self, steps):
        pipe = ContinueWan(**self.pipe.components, expand_timesteps=True)
        pipe.set_progress_bar_config(disable=True)
        size = Wan22TI2V5B.size
        return Continuing(pipe, lambda prompt: {"prompt": prompt}, size, self.frames, steps, guidance_scale=1.0)


FAMILY = Wan22TI2V5B()
