"""The miniature of Wan2.2 I2V-A14B: two experts, each trained on its own side of the boundary, as GGUF files."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, GGUFQuantizationConfig, WanImageToVideoPipeline, WanTransformer3DModel
from transformers import T5TokenizerFast, UMT5EncoderModel

from helpers.architecture import GGUF_LAYOUT
from helpers.dummies import gguf_path
from helpers.gguf_files import original_name, quantized, write_gguf

from . import text, wan
from .stored import learn_as, q4_0
from .wan import BOUNDARY, ENCODER, halves, set_statistics, statistics  # noqa: F401 - part of what a family module offers

FRAMES, SIZE, FPS = 17, (256, 144), 16  # 4k+1 frames, sides that are multiples of 16; the real model makes 16 a second
DENOISERS = {"transformer": "high-noise expert", "transformer_2": "low-noise expert"}
SIGMAS = {"transformer": (BOUNDARY, 1.0), "transformer_2": (0.0, BOUNDARY)}
SHIFT = 3.0
KIND = "Q4_0"  # blocks of 32 weights, which fit small matrices; the Python package can pack it
PLAIN = ("patch_embedding", "proj_out", "time_embedder")  # matrices that stay unquantised
STORED = "The experts' matrices are stored in Q4_0, all else in fp16 or fp32."  # what the card says of it
VAE = dict(
    base_dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True],
    latents_mean=[0.0] * 16, latents_std=[1.0] * 16,
)  # fmt: skip
TRANSFORMER = wan.transformer_config(  # a token for each latent pixel: many for few weights
    in_channels=36, out_channels=16, num_attention_heads=3, attention_head_dim=64, ffn_dim=704, num_layers=4,
    patch_size=(1, 1, 1),
)  # fmt: skip


def build_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(**VAE)


def build_denoiser() -> WanTransformer3DModel:
    denoiser = wan.read_padding_once(WanTransformer3DModel(**TRANSFORMER))
    return learn_as(q4_0, denoiser, lambda name, layer: kind_of(f"{name}.weight", layer.weight) == KIND)


def kind_of(name: str, tensor: torch.Tensor) -> str:
    """The GGUF type that a tensor of the transformer is stored as."""
    if not name.endswith("weight") or tensor.dim() == 1:
        return "F32"
    return "F16" if tensor.dim() > 2 or tensor.shape[1] % 32 or any(part in name for part in PLAIN) else KIND


def picture(clips: torch.Tensor) -> torch.Tensor:
    """The given frame and grey after it, [B, T, 3, H, W] in 0..255: the pipeline encodes that at full length."""
    shown = torch.full_like(clips, 127.5, dtype=torch.float32)  # exactly 0 for the VAE
    shown[:, 0] = clips[:, 0]
    return shown


class Denoising(wan.Denoising):
    def __init__(self, latents, conditions, prompts, posterior_std, embeds, mask, batch_size, part):
        super().__init__(latents, conditions, prompts, posterior_std, embeds, mask, batch_size, SIGMAS[part], SHIFT)


def assemble(work: Path, folder: Path) -> None:
    """A pipeline folder in the diffusers layout, its experts as GGUF files under Wan's own tensor names."""
    for part in DENOISERS:
        expert = WanTransformer3DModel.from_pretrained(work / part, dtype=torch.float32)
        tensors = [
            quantized(original_name(name), tensor.detach().numpy(), kind_of(name, tensor))
            for name, tensor in expert.named_parameters()
        ]
        path = gguf_path(folder, part, KIND)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(path, tensors)
        expert.save_config(folder / part)
    vae = AutoencoderKLWan.from_pretrained(work / "vae", dtype=torch.float16)
    pipe = WanImageToVideoPipeline(
        scheduler=wan.scheduler(SHIFT), vae=vae, transformer=None, transformer_2=None, boundary_ratio=BOUNDARY,
        text_encoder=UMT5EncoderModel.from_pretrained(work / "text_encoder", dtype=torch.float16),
        tokenizer=T5TokenizerFast.from_pretrained(work / "tokenizer"),
    )  # fmt: skip
    text.save_pipeline(pipe, work, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {part: ["diffusers", "WanTransformer3DModel"] for part in DENOISERS}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    layout = {"type": KIND, "unquantized": list(PLAIN)}
    (folder / GGUF_LAYOUT).write_text(json.dumps(layout, indent=2) + "\n")


def read_expert(folder: Path, part: str) -> WanTransformer3DModel:
    """An expert from its GGUF file, computing in fp32."""
    return WanTransformer3DModel.from_single_file(
        str(gguf_path(folder, part, KIND)), config=str(folder), subfolder=part, torch_dtype=torch.float32,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
    )  # fmt: skip


def read_denoiser(path: Path) -> WanTransformer3DModel:
    """An expert to train on, from a part's folder: the weights there or, in the shipped one, those of its GGUF file."""
    if (path / "diffusion_pytorch_model.safetensors").exists():
        return WanTransformer3DModel.from_pretrained(path)
    expert = read_expert(path.parent, path.name)
    expert.dequantize()
    return expert


def load(folder: Path) -> WanImageToVideoPipeline:
    """The pipeline in fp32, its experts from their GGUF files."""
    experts = {part: read_expert(folder, part) for part in DENOISERS}
    return WanImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32, **experts)


class Continuer(wan.Continuer):
    def __init__(self, folder: Path, device: str):
        super().__init__(load(folder), FRAMES, device)
