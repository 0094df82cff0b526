"""Dummy checkpoints: full-size models with random weights, to measure real memory and time without a download.

    folder = dummy_folder("wan22_i2v_a14b", components=("transformer", "transformer_2", "vae"))
    WanImageToVideoPipeline.from_pretrained(folder, ...)

The term is vLLM's (`--load-format dummy`). The files lie in a cache outside the project, in the published layout:
sharded safetensors, and GGUF files for Wan2.2 A14B's experts. The weights are random rather than zero, because a GPU
multiplies zeros faster. Norms are ones and everything else is small, so that activations stay finite; the pictures are
noise.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from helpers.files import replacing
from helpers.models.architecture import DENOISERS, Architecture
from helpers.models.catalogue import CONFIGS, MINIATURES
from helpers.models.gguf_files import TensorFile, original_name, packed_nbytes, repeated, write_gguf

CACHE = Path(os.environ.get("CLIP_LESSONS_CACHE", "~/.cache/clip-extension-lessons")).expanduser() / "dummy"
SHARD = 5 * 10**9  # bytes per safetensors file, as on the Hub
BLOCK = 2**22  # random elements, written repeatedly
TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
SPREAD = 0.02  # standard deviation of the weights
GGUF_NAMES = {"transformer": "HighNoise", "transformer_2": "LowNoise"}


class DummyError(RuntimeError):
    """A dummy checkpoint cannot be written; the message says what is missing."""


def dummy_folder(
    model: str, components: Iterable[str] | None = None, cache: Path = CACHE, configs: Path = CONFIGS
) -> Path:
    """Return the folder of a model's dummy checkpoint, and write what is missing in it.

    Args:
        model: A name in `helpers.models.MODELS`.
        components: The components that a run needs; `None` for all. Later calls may add others.
        cache: The folder that holds dummy checkpoints.
        configs: The folder that holds the architecture files.

    Raises:
        ArchitectureError: If there is no such model.
        DummyError: If the disk has too little room, or if the model has no such component.
    """
    arch = Architecture(configs / model)
    folder = cache / model
    wanted = tuple(arch.components if components is None else components)
    if unknown := set(wanted) - set(arch.components):
        names = ", ".join(arch.components)
        raise DummyError(f"{model} has no component {', '.join(sorted(unknown))}: there are {names}.")
    missing: dict[str, int] = {}  # bytes to write, by component
    for component in wanted:
        files = planned_files(arch, component)
        missing[component] = sum(size for path, size in files.items() if not _is_whole(folder / path, size))
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = sum(missing.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise DummyError(
            f"the dummy checkpoint of {model} needs {needed / 1e9:.1f} GB more, but {folder} has only "
            f"{free / 1e9:.1f} GB free: make room, name another folder in CLIP_LESSONS_CACHE, or ask for fewer "
            "components."
        )
    if needed:
        print(f"writing random weights of {model}: {needed / 1e9:.1f} GB, once, to {folder}", flush=True)
    _copy_small_files(arch, folder)
    for component, nbytes in missing.items():
        if nbytes:
            _write_component(arch, component, folder)
    return folder


def gguf_path(folder: Path, component: str, kind: str) -> Path:
    """Return the path of an expert's GGUF file, laid out as in QuantStack/Wan2.2-I2V-A14B-GGUF."""
    noise = GGUF_NAMES[component]
    return folder / noise / f"Wan2.2-I2V-A14B-{noise}-{kind}.gguf"


def planned_files(arch: Architecture, component: str) -> dict[str, int]:
    """The component's weight files, relative to the checkpoint's folder, and the least bytes each has."""
    if component in DENOISERS and arch.quantization:
        tensors = _gguf_tensors(arch, component)
        return {str(gguf_path(Path(), component, arch.quantization)): sum(tensor.nbytes for tensor in tensors)}
    return {f"{component}/{name}": _nbytes(shard) for name, shard in _shards(arch, component).items()}


def _is_whole(path: Path, least: int) -> bool:
    return path.is_file() and path.stat().st_size >= least


def _nbytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _copy_small_files(arch: Architecture, folder: Path) -> None:
    """Configs and, for a model with a prompt, a miniature's tokenizer: with random weights, any tokens will do."""
    for source in arch.folder.rglob("*.json"):
        target = folder / source.relative_to(arch.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    if "tokenizer" in arch.index:
        shutil.copytree(MINIATURES / "ltx_video" / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    if "feature_extractor" in arch.index:
        settings = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "crop_size": 224}
        (folder / "feature_extractor").mkdir(exist_ok=True)
        (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(settings))


def _write_component(arch: Architecture, component: str, folder: Path) -> None:
    if component in DENOISERS and arch.quantization:
        write_gguf(gguf_path(folder, component, arch.quantization), _gguf_tensors(arch, component))
        return
    shards = _shards(arch, component)
    for name, tensors in shards.items():
        if not _is_whole(folder / component / name, _nbytes(tensors)):
            _write_safetensors(folder / component / name, tensors)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(map(_nbytes, shards.values()))},
            "weight_map": {key: name for name, shard in shards.items() for key in shard},
        }
        stem = next(iter(shards)).split("-00001")[0]
        (folder / component / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def _shards(arch: Architecture, component: str) -> dict[str, dict[str, torch.Tensor]]:
    """Meta tensors by name, by file name. The text encoder is in half precision, as published."""
    stem = "diffusion_pytorch_model" if arch.index[component][0] == "diffusers" else "model"
    half = torch.float16 if arch.family == "StableVideoDiffusion" else torch.bfloat16
    tensors = arch.component(component).state_dict()
    if component == "text_encoder":
        tensors.pop("encoder.embed_tokens.weight", None)  # the same as shared.weight
        tensors = {name: torch.empty_like(tensor, dtype=half) for name, tensor in tensors.items()}
    groups: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in tensors.items():
        if groups[-1] and _nbytes(groups[-1]) + tensor.nbytes > SHARD:
            groups.append({})
        groups[-1][name] = tensor
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def _write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Stream a safetensors file to disk, because the library's own writer needs all tensors in RAM at once."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            for piece in repeated(_values(name, tensor), tensor.nbytes):
                file.write(piece.data)


def _values(name: str, tensor: torch.Tensor) -> np.ndarray:
    """A block of bytes to repeat: ones for a norm, random values of the tensor's data type for the rest."""
    count = min(BLOCK, max(1, tensor.numel()))
    values = torch.ones(count) if _is_norm(name, tensor) else _random_block()[:count]
    return values.to(tensor.dtype).view(torch.uint8).numpy()


def _is_norm(name: str, tensor: torch.Tensor) -> bool:
    """Whether a tensor scales the output of a norm: decided by its name, and never true of a matrix."""
    return "norm" in name and name.endswith(("weight", "gamma")) and tensor.numel() == max(tensor.shape, default=1)


@functools.cache
def _random_block() -> torch.Tensor:
    return SPREAD * torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))


def _gguf_tensors(arch: Architecture, component: str) -> list[TensorFile]:
    """The expert's tensors under Wan's own names: packed where the architecture packs them, fp32 elsewhere."""
    tensors = []
    for name, tensor in arch.component(component).named_parameters():
        if hasattr(tensor, "quant_shape"):
            kind, shape = tensor.quant_type.name, tuple(tensor.quant_shape)
            block = _random_packed(tensor.quant_type)
        else:
            kind, shape = "F32", tuple(tensor.shape)
            block = _values(name, torch.empty(shape, device="meta"))
        pieces = repeated(block, packed_nbytes(shape, kind))
        tensors.append(TensorFile(original_name(name), shape, kind, pieces))
    return tensors


@functools.cache
def _random_packed(kind) -> np.ndarray:
    """Bytes of random packed weights: random quants, and scales that give roughly the standard deviation SPREAD."""
    import gguf

    _, size = gguf.GGML_QUANT_SIZES[kind]
    rows = np.random.default_rng(0).integers(0, 256, (2**14, size), dtype=np.uint8)
    if kind is gguf.GGMLQuantizationType.Q4_K:  # d, dmin (fp16), 12 bytes of 6-bit scales, 128 bytes of quants
        rows[:, 0:2] = np.frombuffer(np.float16(SPREAD / 100).tobytes(), np.uint8)
        rows[:, 2:4] = np.frombuffer(np.float16(SPREAD / 13).tobytes(), np.uint8)
    elif kind in (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0):  # d (fp16), quants
        steps = 4 if kind is gguf.GGMLQuantizationType.Q4_0 else 74
        rows[:, 0:2] = np.frombuffer(np.float16(SPREAD / steps).tobytes(), np.uint8)
    else:
        raise DummyError(f"dummy weights can be packed as Q4_K, Q4_0 or Q8_0, not as {kind.name}.")
    return rows.reshape(-1)
