"""Check a lever of lesson 09 before anything is loaded: a LoRA, a cache, an attention backend, weights in fp8.

    check_lora("few_steps.safetensors", LTXImageToVideoPipeline, architecture.component("transformer"))
    check_cache("first_block", architecture.component("transformer"))

All of them raise `LeverError`, which says what would work.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn

CACHES = ("none", "first_block", "magcache", "taylorseer")
EXPERTS = {"transformer": "high_noise", "transformer_2": "low_noise"}  # in the names of published files


class LeverError(ValueError):
    """A lever that cannot work with this model or on this device; the message says what would."""


def check_lora(path: str | Path, pipeline: Any, denoiser: torch.nn.Module, component: str = "transformer") -> int:
    """Whether a LoRA file changes layers that a denoiser has, in their shapes.

    Args:
        path: A safetensors file, in any of the layouts that the pipeline's `load_lora_weights` reads.
        pipeline: The pipeline's class.
        denoiser: The model, on the meta device or loaded.
        component: Its name in the pipeline, of two experts.

    Returns:
        The number of layers that it changes.

    Raises:
        LeverError: If the file does not exist, is no LoRA, or is one for another model or expert.
    """
    path = Path(path)
    if not path.is_file():
        raise LeverError(f"lora={str(path)!r}: no such file; give the path of a .safetensors file.")
    if importlib.util.find_spec("peft") is None:
        raise LeverError(f"lora={str(path)!r}: LoRAs need the package peft: pip install peft.")
    if not hasattr(pipeline, "lora_state_dict"):
        raise LeverError(f"lora={str(path)!r}: {pipeline.__name__} loads no LoRA; leave it None.")
    other = next((name for name, word in EXPERTS.items() if word in path.name.lower() and name != component), None)
    if other and component in EXPERTS and pipeline.__name__.startswith("Wan"):
        raise LeverError(f"lora={str(path)!r}: its name says that it is for {other}, not for {component}.")
    try:
        weights = pipeline.lora_state_dict(str(path))
    except Exception as error:  # whatever a file that is something else makes the readers raise
        raise LeverError(f"lora={str(path)!r}: no LoRA that {pipeline.__name__} can read: {error}") from error
    layers_of = {name: one for name, one in denoiser.named_modules() if isinstance(one, torch.nn.Linear)}
    shapes = {name: (one.out_features, one.in_features) for name, one in layers_of.items()}
    layers = set()
    for key, weight in weights.items():
        name, _, matrix = key.removeprefix("transformer.").partition(".lora_")
        if matrix[:1] not in ("A", "B"):
            continue
        at, side = (1, "inputs") if matrix.startswith("A") else (0, "outputs")
        if name not in shapes:
            raise LeverError(
                f"lora={str(path)!r}: it changes a layer {name}, which {type(denoiser).__name__} lacks: "
                "it is for another model."
            )
        has, wants = shapes[name][at], weight.shape[at]
        if has != wants:
            raise LeverError(
                f"lora={str(path)!r}: its layer {name} has {wants} {side}, and the model's {has}: "
                "it is for another size of the model."
            )
        layers.add(name)
    if not layers:
        raise LeverError(f"lora={str(path)!r}: no weights of a LoRA in this file.")
    return len(layers)


def check_cache(name: str, denoiser: torch.nn.Module) -> None:
    """Whether diffusers has this cache for a denoiser.

    Raises:
        LeverError: If there is no such cache, or if the denoiser takes none.
    """
    if name not in CACHES:
        raise LeverError(f"cache={name!r}: choose one of {', '.join(CACHES)}.")
    if name == "none":
        return
    kind = type(denoiser).__name__
    if not hasattr(denoiser, "enable_cache"):
        raise LeverError(f"cache={name!r}: {kind} takes no cache; only cache='none' works.")
    blocks = getattr(denoiser, "transformer_blocks", None) or denoiser.blocks
    try:
        TransformerBlockRegistry.get(type(blocks[0]))
    except ValueError as error:
        if name != "taylorseer":
            works = "cache='taylorseer' or 'none' works"
            raise LeverError(f"cache={name!r}: diffusers does not know the blocks of {kind}; {works}.") from error


def backend_fails(name: str, device: str, dtype: torch.dtype) -> str | None:
    """Why an attention backend does not work here, or `None`: it is tried on a few tokens."""
    query = torch.zeros(1, 16, 2, 64, device=device, dtype=dtype)  # [batch, tokens, heads, channels]
    try:
        with torch.no_grad(), attention_backend(name), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dispatch_attention_fn(query, query, query)
    except Exception as error:  # missing packages, other data types, no kernel for this card: each has its own
        return " ".join(str(error).split()).split(". ")[0]
    return None


def usable_backends(device: str, dtype: torch.dtype) -> list[str]:
    """The attention backends that work on a device without a download, by trying each."""
    names = [one.value for one in AttentionBackendName if "hub" not in one.value]
    return [name for name in names if backend_fails(name, device, dtype) is None]


def check_backend(name: str, device: str, dtype: torch.dtype) -> None:
    """Whether an attention backend works on this device.

    Raises:
        LeverError: If there is no such backend, or if it does not work here; the message lists those that do.
    """
    known = [one.value for one in AttentionBackendName]
    why = backend_fails(name, device, dtype) if name in known else "diffusers has no such backend"
    if why:
        raise LeverError(f"attention={name!r}: {why}. Here work: {', '.join(usable_backends(device, dtype))}.")


def check_fp8(device: str, dtype: torch.dtype) -> None:
    """Whether weights can be kept in fp8 on this device, and computed in `dtype`.

    Raises:
        LeverError: If the device cannot convert them.
    """
    try:
        torch.ones(8, device=device, dtype=dtype).to(torch.float8_e4m3fn).to(dtype)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise LeverError(f"fp8=True: {device} cannot convert fp8 ({error}); leave it False.") from error
