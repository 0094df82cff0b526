"""Models without weights: a diffusers folder's components built on torch's `meta` device from their config files.

    arch = Architecture("wan22_i2v_a14b")
    arch.component("transformer")  # the real class, 14.3 billion parameters, no memory

Only the config files are read, so any member of the supported families works: the published models, a miniature, or a
relative such as LTX 13B or Wan 2.1 1.3B.
"""

from __future__ import annotations

import difflib
import importlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch

from helpers.models.catalogue import CONFIGS, INDEX, MODELS

FAMILIES = ("LTX", "Wan", "StableVideoDiffusion", "CogVideoX")  # what the supported pipelines' names start with
DENOISERS = ("transformer", "transformer_2", "unet")
GGUF_LAYOUT = "gguf_layout.json"


# What the names of published files mean, as ComfyUI-GGUF's tools/lcpp.patch quantizes Wan: a usual type, and the types
# of the layers whose names end so, the values of attention and the second layer of the feed-forward.
FINER = (".to_v", ".ffn.net.2")
MIXTURES = {
    "Q4_K_M": ("Q4_K", dict.fromkeys(FINER, "Q6_K")),
    "Q5_K_M": ("Q5_K", dict.fromkeys(FINER, "Q6_K")),
}


class ArchitectureError(ValueError):
    """A folder that does not hold a model of a supported family; the message says what is missing."""


class Architecture:
    """A diffusers folder's components on the meta device, in the data types that the lessons load them in.

    Args:
        source: A folder in the diffusers layout, with or without weights, or a name in `helpers.models.MODELS` for
            the architecture files that come with the project.
        quantization: A GGUF type such as "Q4_K" for the denoisers' matrices, "none" for no quantization, or `None`
            for what the folder itself specifies.
        dtype: The data type of every component on the GPU, or `None` for the one that the lessons load each in.

    Raises:
        ArchitectureError: If the folder does not exist, is not a checkpoint, or holds an unsupported family.
    """

    def __init__(self, source: str | Path, quantization: str | None = None, dtype: torch.dtype | None = None) -> None:
        self.folder = CONFIGS / source if str(source) in MODELS else Path(source).expanduser()
        self.index = self._read(self.folder / INDEX)
        self.pipeline = self.index.get("_class_name", "")
        self.family = next((family for family in FAMILIES if self.pipeline.startswith(family)), "")
        if not self.family:
            raise ArchitectureError(
                f"{self.folder} holds a pipeline of another family ({self.pipeline or 'unnamed'}): give a folder of an "
                "LTX, Wan, CogVideoX or Stable Video Diffusion pipeline."
            )
        layout = self.folder / GGUF_LAYOUT
        own = json.loads(layout.read_text(encoding="utf-8")) if layout.is_file() else {}
        self.quantization = {None: own.get("type"), "none": None}.get(quantization, quantization)
        self.unquantized = own.get("unquantized", ["patch_embedding", "proj_out"])
        self._dtype = dtype
        self._built: dict[str, torch.nn.Module] = {}

    def _read(self, path: Path) -> dict:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if self.folder.is_dir():
                raise ArchitectureError(
                    f"{self.folder} is not a diffusers checkpoint: {path.relative_to(self.folder)} is missing."
                ) from None
            near = difflib.get_close_matches(self.folder.name, MODELS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ArchitectureError(
                f"there is no model or folder {str(self.folder)!r}: {hint}The models are {', '.join(MODELS)}; a folder "
                f"needs {INDEX} and each component's config.json."
            ) from None
        except (ValueError, OSError) as error:
            raise ArchitectureError(f"cannot read {path}: {error}") from None

    @cached_property
    def components(self) -> tuple[str, ...]:
        """Names of all components with weights, in the pipeline's order."""
        names = (name for name, value in self.index.items() if isinstance(value, list) and value[0] is not None)
        return tuple(name for name in names if (self.folder / name / "config.json").is_file())

    @property
    def denoisers(self) -> tuple[str, ...]:
        """The components that run in a denoising step: `unet`, or `transformer` and a second expert `transformer_2`."""
        return tuple(name for name in DENOISERS if name in self.components)

    @cached_property
    def on_gpu(self) -> tuple[str, ...]:
        """All components except the text encoder, which the lessons run on the CPU, in the order of model offload."""
        import diffusers

        with _quiet():
            sequence = getattr(diffusers, self.pipeline).model_cpu_offload_seq.split("->")
        return tuple(name for name in sequence if name in self.components and name != "text_encoder")

    @property
    def text_encoder(self) -> str | None:
        """The name of the text encoder, or `None` for a model that takes no prompt."""
        return "text_encoder" if "text_encoder" in self.components else None

    def config(self, name: str) -> dict:
        """The config of one component.

        Raises:
            ArchitectureError: If it cannot be read.
        """
        return self._read(self.folder / name / "config.json")

    def component(self, name: str) -> torch.nn.Module:
        """One component on the meta device, built once, in evaluation mode.

        Raises:
            ArchitectureError: If its config cannot be read or built.
        """
        if name not in self._built:
            try:
                self._built[name] = self._build(name)
            except ArchitectureError:
                raise
            except (AttributeError, TypeError, ValueError, KeyError, ImportError) as error:
                raise ArchitectureError(f"{self.folder / name / 'config.json'} cannot be built: {error}") from None
        return self._built[name]

    def dtype(self, name: str) -> torch.dtype:
        """The data type the lessons load a component in: fp32 for the text encoder and Wan's VAE, half for the rest."""
        if self._dtype is not None and name != "text_encoder":
            return self._dtype
        if name == "text_encoder" or (self.family, name) == ("Wan", "vae"):
            return torch.float32
        return torch.float16 if self.family == "StableVideoDiffusion" else torch.bfloat16

    def _build(self, name: str) -> torch.nn.Module:
        library, class_name = self.index[name][:2]
        with _quiet(), torch.device("meta"):
            module_class = getattr(importlib.import_module(library), class_name)
            if library == "diffusers":
                module = module_class.from_config(self.config(name))
            else:
                module = module_class(module_class.config_class(**self.config(name)))
        module.to("meta")  # in the SVD UNet's blenders, `torch.device` misses scalars made from Python numbers
        kept = getattr(module_class, "_keep_in_fp32_modules", None) or [] if library == "diffusers" else []
        dtype = self.dtype(name)
        for path, parameter in module.named_parameters():
            # `from_pretrained` uses the same rule to keep some parameters in fp32.
            wanted = torch.float32 if any(one in path.split(".") for one in kept) else dtype
            parameter.data = torch.empty_like(parameter, dtype=wanted, device="meta")
        held = module.state_dict()
        for path, buffer in list(module.named_buffers()):
            if path in held and buffer.is_floating_point():  # buffers stored in files are cast on load
                parent, _, attribute = path.rpartition(".")
                module.get_submodule(parent)._buffers[attribute] = torch.empty_like(buffer, dtype=dtype)
        if name in DENOISERS and self.quantization:
            self._quantize(module, kept)
        return module.eval()

    def _quantize(self, module: torch.nn.Module, kept: list[str]) -> None:
        """Put packed GGUF weights where `from_single_file` does: in the linear layers that the file quantizes."""
        import gguf
        from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

        usual, others = MIXTURES.get(self.quantization, (self.quantization, {}))
        if usual not in gguf.GGMLQuantizationType.__members__:
            raise ArchitectureError(
                f"quantization={self.quantization!r} is not known here: give {', '.join(MIXTURES)}, or a GGUF tensor "
                "type, Q4_0, Q4_K, Q5_K, Q6_K or Q8_0, or none."
            )
        for path, layer in list(module.named_modules()):
            name = next((other for ending, other in others.items() if path.endswith(ending)), usual)
            kind = gguf.GGMLQuantizationType[name]
            block, size = gguf.GGML_QUANT_SIZES[kind]
            unquantized = any(one in path.split(".") for one in (*kept, *self.unquantized))
            if not isinstance(layer, torch.nn.Linear) or unquantized or layer.in_features % block:
                continue
            packed = GGUFLinear(
                layer.in_features, layer.out_features, layer.bias is not None, torch.bfloat16, device="meta"
            )
            packed.bias = layer.bias
            shape = (layer.out_features, layer.in_features // block * size)
            packed._parameters["weight"] = GGUFParameter(
                torch.empty(shape, dtype=torch.uint8, device="meta"), quant_type=kind
            )
            parent, _, attribute = path.rpartition(".")
            setattr(module.get_submodule(parent), attribute, packed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' warnings about their own defaults and about optional packages."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
