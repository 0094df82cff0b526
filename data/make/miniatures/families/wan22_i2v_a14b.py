"""Wan2.2 I2V-A14B: two experts, each trained on its side of the boundary and stored as a GGUF file."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, GGUFQuantizationConfig, WanImageToVideoPipeline, WanTransformer3DModel
from transformers import T5TokenizerFast, UMT5EncoderModel

from helpers.models import GGUF_LAYOUT, gguf_path, original_name, quantized, write_gguf

from .. import prompts
from ..quantization_aware import prepare, q4_0
from .base import PromptContinuer
from .wan import WanDenoising, WanFamily, reading_padding_once, scheduler, transformer_config

BOUNDARY = 0.9  # noise level from which the high-noise expert denoises
SIGMAS = {"transformer": (BOUNDARY, 1.0), "transformer_2": (0.0, BOUNDARY)}
SHIFT = 3.0
KIND = "Q4_0"  # its blocks of 32 weights fit small matrices, and the gguf package can pack it
UNQUANTIZED = ("patch_embedding", "proj_out", "time_embedder")  # matrices that are not quantized
VAE = dict(
    base_dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True],
    latents_mean=[0.0] * 16, latents_std=[1.0] * 16,
)  # fmt: skip
TRANSFORMER = transformer_config(  # one token per latent pixel: many tokens for few weights
    in_channels=36, out_channels=16, num_attention_heads=3, attention_head_dim=64, ffn_dim=704, num_layers=4,
    patch_size=(1, 1, 1),
)  # fmt: skip


def kind_of(name: str, tensor: torch.Tensor) -> str:
    """The GGUF type in which a tensor of the transformer is stored."""
    if not name.endswith("weight") or tensor.dim() == 1:
        return "F32"
    if tensor.dim() > 2 or tensor.shape[1] % 32 or any(unquantized in name for unquantized in UNQUANTIZED):
        return "F16"
    return KIND


def read_expert(folder: Path, component: str) -> WanTransformer3DModel:
    """An expert from the GGUF file in an assembled miniature, computing in fp32."""
    return WanTransformer3DModel.from_single_file(
        str(gguf_path(folder, component, KIND)), config=str(folder), subfolder=component, torch_dtype=torch.float32,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
    )  # fmt: skip


class Wan22I2VA14B(WanFamily):
    frames, size, fps = 17, (256, 144), 16  # 4k + 1 frames, sides that are multiples of 16, the real model's frame rate
    denoisers = {"transformer": "high-noise expert", "transformer_2": "low-noise expert"}
    storage = "The experts' matrices are stored in Q4_0, everything else in fp16 or fp32."

    def build_vae(self) -> AutoencoderKLWan:
        return AutoencoderKLWan(**VAE)

    def build_denoiser(self) -> WanTransformer3DModel:
        denoiser = reading_padding_once(WanTransformer3DModel(**TRANSFORMER))
        return prepare(denoiser, q4_0, lambda name, layer: kind_of(f"{name}.weight", layer.weight) == KIND)

    def read_denoiser(self, folder: Path) -> WanTransformer3DModel:
        if (folder / "diffusion_pytorch_model.safetensors").exists():
            return WanTransformer3DModel.from_pretrained(folder)
        expert = read_expert(folder.parent, folder.name)
        expert.dequantize()
        return expert

    def conditioning_frames(self, clips: torch.Tensor) -> torch.Tensor:
        """The given frame followed by grey: the pipeline encodes it at full length."""
        shown = torch.full_like(clips, 127.5, dtype=torch.float32)  # exactly 0 for the VAE
        shown[:, 0] = clips[:, 0]
        return shown

    def least_noise(self, component: str) -> float:
        return SIGMAS[component][0]

    def denoising(self, latents, conditions, prompts, posterior_std, embeds, mask, batch_size, component):
        sigmas = SIGMAS[component]
        return WanDenoising(
            latents, conditions, prompts, self.hops, posterior_std, embeds, mask, batch_size, sigmas, SHIFT
        )

    def assemble(self, work: Path, folder: Path) -> None:
        """As in the protocol; the experts become GGUF files with Wan's original tensor names."""
        for component in self.denoisers:
            expert = WanTransformer3DModel.from_pretrained(work / component, dtype=torch.float32)
            tensors = [
                quantized(original_name(name), tensor.detach().numpy(), kind_of(name, tensor))
                for name, tensor in expert.named_parameters()
            ]
            path = gguf_path(folder, component, KIND)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_gguf(path, tensors)
            expert.save_config(folder / component)
        vae = AutoencoderKLWan.from_pretrained(work / "vae", dtype=torch.float16)
        pipe = WanImageToVideoPipeline(
            scheduler=scheduler(SHIFT), vae=vae, transformer=None, transformer_2=None, boundary_ratio=BOUNDARY,
            text_encoder=UMT5EncoderModel.from_pretrained(work / "text_encoder", dtype=torch.float16),
            tokenizer=T5TokenizerFast.from_pretrained(work / "tokenizer"),
        )  # fmt: skip
        prompts.save_pipeline(pipe, work, folder)
        index = json.loads((folder / "model_index.json").read_text())
        index |= {component: ["diffusers", "WanTransformer3DModel"] for component in self.denoisers}
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        layout = {"type": KIND, "unquantized": list(UNQUANTIZED)}
        (folder / GGUF_LAYOUT).write_text(json.dumps(layout, indent=2) + "\n")

    def continuer(self, folder: Path, device: str) -> PromptContinuer:
        experts = {component: read_expert(folder, component) for component in self.denoisers}
        pipe = WanImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32, **experts)
        return PromptContinuer(pipe, self.frames, device)


FAMILY = Wan22I2VA14B()
