"""Models without weights: the parts of a diffusers folder built on torch's `meta` device from its config files.

    arch = Architecture("data/configs/wan22_i2v_a14b")
    arch.part("transformer")  # the real class, 14.3 billion parameters, no memory

Only the config files are read, so any member of the five families works: the real models, a miniature, or a
relative such as LTX 13B or Wan 2.1 1.3B.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch

from helpers.models import MODELS

CONFIGS = Path(__file__).resolve().parent.parent / "data" / "configs"
FAMILIES = ("LTX", "Wan", "StableVideoDiffusion", "CogVideoX")  # how the supported pipelines' names begin
DENOISERS = ("transformer", "transformer_2", "unet")
GGUF_LAYOUT = "gguf_layout.json"


class ArchitectureError(ValueError):
    """A folder that holds no model of a supported family; the message says what it should hold."""


class Architecture:
    """A diffusers folder's parts on the meta device, in the data types that the lessons load them in.

    Args:
        checkpoint: A folder in the diffusers layout; weights may be there or not. Or a name in
            `helpers.models.MODELS`, for the architecture files that come with the project.
        quantization: A GGUF type such as "Q4_K" for the denoisers' matrices, "none" for no quantization, or `None`
            for what the folder itself says.
        dtype: The data type of all that goes to the card, or `None` for the one that the lessons load each part in.

    Raises:
        ArchitectureError: If there is no such folder, if it is no checkpoint, or of another family.
    """

    def __init__(
        self, checkpoint: str | Path, quantization: str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.folder = CONFIGS / checkpoint if str(checkpoint) in MODELS else Path(checkpoint).expanduser()
        self.index = self._read(self.folder / "model_index.json")
        self.pipeline = self.index.get("_class_name", "")
        self.family = next((family for family in FAMILIES if self.pipeline.startswith(family)), "")
        if not self.family:
            raise ArchitectureError(
                f"{self.folder} is for {self.pipeline or 'no pipeline that it names'}: there are forecasts for LTX, "
                "Wan, CogVideoX and Stable Video Diffusion pipelines."
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
                    f"{self.folder} is no diffusers checkpoint: {path.relative_to(self.folder)} is missing."
                ) from None
            near = difflib.get_close_matches(self.folder.name, MODELS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ArchitectureError(
                f"there is no model and no folder {str(self.folder)!r}: {hint}Models are {', '.join(MODELS)}; a folder "
                "needs model_index.json and each part's config.json."
            ) from None
        except (ValueError, OSError) as error:
            raise ArchitectureError(f"cannot read {path}: {error}") from None

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Names of all parts with weights, in the pipeline's order."""
        names = (name for name, value in self.index.items() if isinstance(value, list) and value[0] is not None)
        return tuple(name for name in names if (self.folder / name / "config.json").is_file())

    @property
    def denoisers(self) -> tuple[str, ...]:
        """The parts that run in every denoising step: `unet`, `transformer`, and an expert's `transformer_2`."""
        return tuple(name for name in DENOISERS if name in self.parts)

    @cached_property
    def on_card(self) -> tuple[str, ...]:
        """All parts but the text encoder, which the lessons run on the CPU; in the order of model offload."""
        import diffusers

        with _quiet():
            sequence = getattr(diffusers, self.pipeline).model_cpu_offload_seq.split("->")
        return tuple(name for name in sequence if name in self.parts and name != "text_encoder")

    @property
    def text_encoder(self) -> str | None:
        return "text_encoder" if "text_encoder" in self.parts else None

    def config(self, part: str) -> dict:
        return self._read(self.folder / part / "config.json")

    def part(self, name: str) -> torch.nn.Module:
        """The part on the meta device, built once, in evaluation mode.

        Raises:
            ArchitectureError: If its config cannot be built.
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
        """How the lessons load the part: the text encoder in fp32, for the CPU; Wan's VAE in fp32; else half."""
        if self._dtype is not None and name != "text_encoder":
            return self._dtype
        if name == "text_encoder" or (self.family, name) == ("Wan", "vae"):
            return torch.float32
        return torch.float16 if self.family == "StableVideoDiffusion" else torch.bfloat16

    def _build(self, name: str) -> torch.nn.Module:
        library, class_name = self.index[name][:2]
        with _quiet(), torch.device("meta"):
            module_class = getattr(__import__(library), class_name)
            if library == "diffusers":
                module = module_class.from_config(self.config(name))
            else:
                module = module_class(module_class.config_class(**self.config(name)))
        module.to("meta")  # scalars made of Python numbers escape `torch.device` in the SVD UNet's blenders
        kept = getattr(module_class, "_keep_in_fp32_modules", None) or [] if library == "diffusers" else []
        dtype = self.dtype(name)
        for path, parameter in module.named_parameters():
            # The rule by which `from_pretrained` keeps some parameters in fp32.
            wanted = torch.float32 if any(one in path.split(".") for one in kept) else dtype
            parameter.data = torch.empty_like(parameter, dtype=wanted, device="meta")
        held = module.state_dict()
        for path, buffer in list(module.named_buffers()):
            if path in held and buffer.is_floating_point():  # buffers that files hold are cast as they are loaded
                parent, _, attribute = path.rpartition(".")
                module.get_submodule(parent)._buffers[attribute] = torch.empty_like(buffer, dtype=dtype)
        if name in DENOISERS and self.quantization:
            self._quantize(module, kept)
        return module.eval()

    def _quantize(self, module: torch.nn.Module, kept: list[str]) -> None:
        """Put packed GGUF weights where `from_single_file` would: in the linear layers that the file quantizes."""
        import gguf
        from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

        try:
            kind = gguf.GGMLQuantizationType[self.quantization]
        except KeyError:
            raise ArchitectureError(
                f"quantization={self.quantization!r} is no GGUF tensor type: give Q4_0, Q4_K, Q5_K, Q6_K, Q8_0 or "
                "none. A name such as Q4_K_M is a mixture of them."
            ) from None
        block, size = gguf.GGML_QUANT_SIZES[kind]
        for path, layer in list(module.named_modules()):
            plain = any(one in path.split(".") for one in (*kept, *self.unquantized))
            if not isinstance(layer, torch.nn.Linear) or plain or layer.in_features % block:
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
    """Hold back the libraries' warnings of their own defaults and of optional packages."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
