"""The levers, each pulled with the same call as in lesson 09, on a pipeline that is loaded but not yet offloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from helpers.models import Architecture

RANK = 64  # of the dummy LoRA, and the layers that it changes: as published ones for few steps have them
LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2")


@dataclass(frozen=True)
class Lever:
    """Something that saves time.

    Attributes:
        title: Its name, as the tables show it.
        pull: Changes the pipeline; gets it, its architecture and the number of steps.
        arguments: The arguments of the pipeline's call that change, by family; "*" is for all others.
    """

    title: str
    pull: Callable[[Any, Architecture, int], None] = lambda *_: None
    arguments: dict[str, dict[str, Any]] = field(default_factory=dict)

    def call(self, arch: Architecture) -> dict[str, Any]:
        """The arguments that change for this model."""
        return self.arguments.get(arch.family, self.arguments.get("*", {}))


def denoisers(pipe, arch: Architecture) -> dict[str, torch.nn.Module]:
    """The pipeline's denoisers, one or two, by name."""
    return {name: getattr(pipe, name) for name in arch.denoisers if getattr(pipe, name) is not None}


def dummy_lora(denoiser: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """A LoRA with random weights for the blocks' matrices, under the names that `load_lora_weights` takes."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, layer in denoiser.named_modules():
        if isinstance(layer, torch.nn.Linear) and "blocks." in name and name.endswith(LAYERS):
            for matrix, shape in (("A", (RANK, layer.in_features)), ("B", (layer.out_features, RANK))):
                weights[f"transformer.{name}.lora_{matrix}.weight"] = torch.randn(*shape, generator=generator) * 0.02
    return weights


def load_lora(pipe, arch: Architecture, steps: int) -> None:
    """A LoRA for each denoiser."""
    for name, denoiser in denoisers(pipe, arch).items():
        second = {"load_into_transformer_2": True} if name == "transformer_2" else {}
        pipe.load_lora_weights(dummy_lora(denoiser), adapter_name=name, **second)


def enable_cache(config: Callable[[int], Any]) -> Callable[[Any, Architecture, int], None]:
    """A cache in each denoiser, with what `config` returns for the number of steps."""

    def pull(pipe, arch: Architecture, steps: int) -> None:
        for denoiser in denoisers(pipe, arch).values():
            denoiser.enable_cache(config(steps))

    return pull


def first_block(steps: int):
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=0.3)


def taylorseer(steps: int):
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2, use_lite_mode=True)


def magcache(steps: int):
    from diffusers import MagCacheConfig

    return MagCacheConfig(num_inference_steps=steps, mag_ratios=[1.0] * steps, max_skip_steps=1, retention_ratio=0.3)


def set_backend(name: str) -> Callable[[Any, Architecture, int], None]:
    """Another kernel for attention."""

    def pull(pipe, arch: Architecture, steps: int) -> None:
        for denoiser in denoisers(pipe, arch).values():
            denoiser.set_attention_backend(name)

    return pull


def compile_blocks(backend: str) -> Callable[[Any, Architecture, int], None]:
    """Compile one block and use it for all of a kind."""

    def pull(pipe, arch: Architecture, steps: int) -> None:
        for denoiser in denoisers(pipe, arch).values():
            denoiser.compile_repeated_blocks(backend=backend)

    return pull


def cast_to_fp8(pipe, arch: Architecture, steps: int) -> None:
    """Keep the weights in fp8, and compute in the model's own precision."""
    for name, denoiser in denoisers(pipe, arch).items():
        denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=arch.dtype(name))


def quantize_to_int8(pipe, arch: Architecture, steps: int) -> None:
    """Keep the weights of linear layers in 8-bit integers, with torchao."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    for denoiser in denoisers(pipe, arch).values():
        quantize_(denoiser, Int8WeightOnlyConfig())


def levers(device: str) -> dict[str, Lever]:
    """All levers by name; on a CPU with the attention kernel and the compiler that it has."""
    cuda = device == "cuda"
    once = {"*": {"guidance_scale": 1.0}, "StableVideoDiffusion": {"max_guidance_scale": 1.0}}
    return {
        "guidance_off": Lever("guidance off", arguments=once),
        "lora": Lever("LoRA", load_lora),
        "first_block": Lever("FirstBlockCache", enable_cache(first_block)),
        "taylorseer": Lever("TaylorSeer, lite", enable_cache(taylorseer)),
        "magcache": Lever("MagCache", enable_cache(magcache)),
        "attention": Lever("attention backend", set_backend("_native_cudnn" if cuda else "_native_math")),
        "compile": Lever("compiled blocks", compile_blocks("inductor" if cuda else "eager")),
        "fp8": Lever("weights in fp8", cast_to_fp8),
        "int8": Lever("weights in int8", quantize_to_int8),
    }
