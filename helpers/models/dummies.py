"""Dummy checkpoints: the full-size models with random weights, to measure real memory and time without a download.

    folder = dummy_folder("wan22_i2v_a14b", parts=("transformer", "transformer_2", "vae"))
    WanImageToVideoPipeline.from_pretrained(folder, ...)

The term is vLLM's (`--load-format dummy`). The files lie outside the project, in the published layout: sharded
safetensors, and GGUF files for Wan2.2 A14B's experts. The numbers are random, not zeros, because a GPU multiplies zeros
faster; norms are ones and all else is small, so that activations stay finite. The pictures are noise.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from helpers.architecture import CONFIGS, DENOISERS, Architecture
from helpers.gguf_files import TensorFile, original_name, repeated, write_gguf
from helpers.placement import tensor_bytes

MINIATURES = CONFIGS.parent / "miniatures"
CACHE = Path(os.environ.get("CLIP_LESSONS_CACHE", "~/.cache/clip-extension-lessons")).expanduser() / "dummy"
SHARD = 5 * 10**9  # bytes of one safetensors file, as on the Hub
BLOCK = 2**22  # random numbers that are written again and again
TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
SPREAD = 0.02  # standard deviation of the weights
GGUF_NAMES = {"transformer": "HighNoise", "transformer_2": "LowNoise"}


class DummyError(RuntimeError):
    """A dummy checkpoint cannot be written; the message says what is missing."""


def dummy_folder(
    model: str, parts: Iterable[str] | None = None, cache: Path = CACHE, configs: Path = CONFIGS
) -> Path:
    """The folder of a model's dummy checkpoint, written on first use.

    Args:
        model: A name in `helpers.models.MODELS`.
        parts: The parts that a run needs; `None` for all. Others may be added by a later call.
        cache: Where dummy checkpoints lie.
        configs: Where the architecture files lie.

    Raises:
        ArchitectureError: If there is no such model.
        DummyError: If the disk has too little room, or if there is no such part.
    """
    arch = Architecture(configs / model)
    folder = cache / model
    wanted = tuple(arch.parts if parts is None else parts)
    if unknown := set(wanted) - set(arch.parts):
        raise DummyError(f"{model} has no part {', '.join(sorted(unknown))}: there are {', '.join(arch.parts)}.")
    files = {path: size for part in wanted for path, size in planned_files(arch, part).items()}
    missing = {path: size for path, size in files.items() if not _is_whole(folder / path, size)}
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = sum(missing.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise DummyError(
            f"the dummy checkpoint of {model} needs {needed / 1e9:.1f} GB more and {folder} has {free / 1e9:.1f} GB "
            "free: make room, name another folder in CLIP_LESSONS_CACHE, or ask for fewer parts."
        )
    _copy_small_files(arch, folder, model)
    for part in wanted:
        if any(path in missing for path in planned_files(arch, part)):
            _write_part(arch, part, folder)
    return folder


def gguf_path(folder: Path, part: str, kind: str) -> Path:
    """Where an expert's GGUF file lies, as in QuantStack/Wan2.2-I2V-A14B-GGUF."""
    noise = GGUF_NAMES[part]
    return folder / noise / f"Wan2.2-I2V-A14B-{noise}-{kind}.gguf"


def planned_files(arch: Architecture, part: str) -> dict[str, int]:
    """The part's weight files, relative to the checkpoint's folder, and the least bytes that each has."""
    if part in DENOISERS and arch.quantization:
        tensors = _gguf_tensors(arch, part)
        return {str(gguf_path(Path(), part, arch.quantization)): sum(tensor.nbytes for tensor in tensors)}
    return {f"{part}/{name}": sum(map(tensor_bytes, shard.values())) for name, shard in _shards(arch, part).items()}


def _is_whole(path: Path, least: int) -> bool:
    return path.is_file() and path.stat().st_size >= least


def _copy_small_files(arch: Architecture, folder: Path, model: str) -> None:
    """Configs and, where the model has a prompt, a miniature's tokenizer: any tokens will do for random weights."""
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


def _write_part(arch: Architecture, part: str, folder: Path) -> None:
    if part in DENOISERS and arch.quantization:
        path = gguf_path(folder, part, arch.quantization)
        path.parent.mkdir(exist_ok=True)
        write_gguf(path, _gguf_tensors(arch, part))
        return
    shards = _shards(arch, part)
    (folder / part).mkdir(exist_ok=True)
    for name, tensors in shards.items():
        if not _is_whole(folder / part / name, sum(map(tensor_bytes, tensors.values()))):
            _write_safetensors(folder / part / name, tensors)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor_bytes(t) for shard in shards.values() for t in shard.values())},
            "weight_map": {key: name for name, shard in shards.items() for key in shard},
        }
        stem = next(iter(shards)).split("-00001")[0]
        (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def _shards(arch: Architecture, part: str) -> dict[str, dict[str, torch.Tensor]]:
    """Meta tensors by name, by the file that holds them; the text encoder in half precision, as it is published."""
    stem = "diffusion_pytorch_model" if arch.index[part][0] == "diffusers" else "model"
    half = torch.float16 if arch.family == "StableVideoDiffusion" else torch.bfloat16
    tensors = arch.part(part).state_dict()
    if part == "text_encoder":
        tensors.pop("encoder.embed_tokens.weight", None)  # the same as shared.weight
        tensors = {name: torch.empty_like(tensor, dtype=half) for name, tensor in tensors.items()}
    groups: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in tensors.items():
        if groups[-1] and sum(map(tensor_bytes, groups[-1].values())) + tensor_bytes(tensor) > SHARD:
            groups.append({})
        groups[-1][name] = tensor
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def _write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The safetensors format, written as a stream: the library's own writer wants all tensors in RAM at once."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor_bytes(tensor)
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, tensor in tensors.items():
                for piece in repeated(_numbers(name, tensor), tensor_bytes(tensor)):
                    file.write(piece.data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _is_norm(name: str, tensor: torch.Tensor) -> bool:
    """Whether it scales what a norm has made even; by name, and never a matrix."""
    return "norm" in name and name.endswith(("weight", "gamma")) and tensor.numel() == max(tensor.shape, default=1)


def _numbers(name: str, tensor: torch.Tensor) -> np.ndarray:
    """A block of bytes to repeat: ones for a norm, else random numbers of the tensor's data type."""
    count = min(BLOCK, max(1, tensor.numel()))
    if _is_norm(name, tensor):
        values = torch.ones(count)
    else:
        values = _random_block()[:count]
    return values.to(tensor.dtype).view(torch.uint8).numpy()


def _random_block(made: dict = {}) -> torch.Tensor:  # noqa: B006 - made once
    if not made:
        made["block"] = SPREAD * torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))
    return made["block"]


def _gguf_tensors(arch: Architecture, part: str) -> list[TensorFile]:
    """The expert's tensors under Wan's own names: packed where the architecture has them packed, else fp32."""
    tensors = []
    for name, tensor in arch.part(part).named_parameters():
        packed = hasattr(tensor, "quant_shape")
        kind = tensor.quant_type.name if packed else "F32"
        shape = tuple(tensor.quant_shape if packed else tensor.shape)
        plain = torch.empty(shape, device="meta")
        block = _random_packed(tensor.quant_type) if packed else _numbers(name, plain)
        one = TensorFile(original_name(name), shape, kind, ())
        tensors.append(TensorFile(one.name, shape, kind, _Pieces(block, one.nbytes)))
    return tensors


class _Pieces:
    """Bytes that can be gone through more than once."""

    def __init__(self, block: np.ndarray, nbytes: int) -> None:
        self.block, self.nbytes = block, nbytes

    def __iter__(self) -> Iterator[np.ndarray]:
        return repeated(self.block, self.nbytes)


def _random_packed(kind) -> np.ndarray:
    """Bytes of random packed weights: random quants, and scales that give about the usual spread."""
    import gguf

    _, size = gguf.GGML_QUANT_SIZES[kind]
    rows = np.random.default_rng(0).integers(0, 256, (2**14, size), dtype=np.uint8)
    if kind is gguf.GGMLQuantizationType.Q4_K:  # d, dmin (fp16), 12 bytes of scales of 6 bits, 128 bytes of quants
        rows[:, 0:2] = np.frombuffer(np.float16(SPREAD / 100).tobytes(), np.uint8)
        rows[:, 2:4] = np.frombuffer(np.float16(SPREAD / 13).tobytes(), np.uint8)
    elif kind in (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q8_0):  # d (fp16), quants
        steps = 4 if kind is gguf.GGMLQuantizationType.Q4_0 else 74
        rows[:, 0:2] = np.frombuffer(np.float16(SPREAD / steps).tobytes(), np.uint8)
    else:
        raise DummyError(f"dummy weights can be packed as Q4_K, Q4_0 or Q8_0, not as {kind.name}.")
    return rows.reshape(-1)
