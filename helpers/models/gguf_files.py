"""Check the GGUF files of Wan's experts before they are loaded, and write such files.

    config = WanTransformer3DModel.load_config(repo, subfolder="transformer")
    check_gguf("Wan2.2-I2V-A14B-HighNoise-Q4_K_M.gguf", "transformer", config)  # its elements and bytes by type
    write_gguf(path, [TensorFile("blocks.0.self_attn.q.weight", (5120, 5120), "Q4_K", pieces)])

`WanTransformer3DModel.from_single_file` reads these files with `GGUFQuantizationConfig`, which lesson 03 explains.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from helpers.charts.table import ShownAsTable, Table
from helpers.files import replacing

# From diffusers' names to Wan's own: the inverse of `convert_wan_transformer_to_diffusers` in diffusers 0.42,
# loaders/single_file_utils.py, for image-to-video models. Longer names come first.
ORIGINAL_NAMES = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "attn1": "self_attn",
    "attn2": "cross_attn",
    ".to_out.0.": ".o.",
    ".to_q.": ".q.",
    ".to_k.": ".k.",
    ".to_v.": ".v.",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",  # the original numbers its norms differently; the others have no weights
    "proj_out": "head.head",
}


def original_name(name: str) -> str:
    """Return the name in Wan's own files of the tensor that diffusers calls `name`."""
    if name == "scale_shift_table":
        return "head.modulation"
    if name.endswith(".scale_shift_table"):
        return name.replace("scale_shift_table", "modulation")
    for ours, theirs in ORIGINAL_NAMES.items():
        name = name.replace(ours, theirs)
    return name


class GGUFError(ValueError):
    """A GGUF file that cannot be the requested expert; the message says why, and what to do."""


@dataclass(frozen=True, repr=False)
class GGUFSummary(ShownAsTable):
    """What a checked GGUF file contains: its tensors, elements and bytes by type. Shows itself as a table."""

    path: Path
    tensors: Mapping[str, int]
    elements: Mapping[str, int]
    nbytes: Mapping[str, int]

    def table(self) -> Table:
        kinds = sorted(self.tensors)
        rows = [(kind, *_row(self.tensors[kind], self.elements[kind], self.nbytes[kind])) for kind in kinds]
        totals = (sum(counts.values()) for counts in (self.tensors, self.elements, self.nbytes))
        rows.append(("total", *_row(*totals)))
        return Table(self.path.name, ("type", "tensors", "million elements", "MiB", "bits per element"), rows)


def _row(tensors: int, elements: int, nbytes: int) -> tuple[str, str, str, str]:
    return str(tensors), f"{elements / 1e6:,.2f}", f"{nbytes / 2**20:,.2f}", f"{8 * nbytes / elements:.2f}"


def check_gguf(path: str | Path, component: str, config: Mapping[str, Any]) -> GGUFSummary:
    """Read a GGUF file's header, which takes no time, and check that it is the requested expert.

    Args:
        path: The file.
        component: "transformer" for the high-noise expert, "transformer_2" for the low-noise expert.
        config: The expert's configuration, from `WanTransformer3DModel.load_config`.

    Raises:
        GGUFError: If the file is missing, truncated, of another architecture or size, or the other expert.
    """
    import gguf
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    path = Path(path)
    if not path.is_file():
        raise GGUFError(f"{component}: there is no file {path}, but both experts are needed: download it.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise GGUFError(f"{component}: {path.name} is not a GGUF file: check what was downloaded.")
    try:
        reader = gguf.GGUFReader(path)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError) as error:
        raise GGUFError(
            f"{component}: {path.name} is truncated or damaged ({path.stat().st_size:,} bytes are here): download it "
            "again."
        ) from error
    field = reader.get_field("general.architecture")
    architecture = field.contents() if field else "unknown"
    if architecture != "wan" or "patch_embedding.weight" not in tensors:
        raise GGUFError(
            f"{component}: {path.name} holds a model of the architecture {architecture!r}, not of Wan: give one of "
            "Wan2.2 I2V-A14B's two experts."
        )
    *_, channels, width = (int(n) for n in tensors["patch_embedding.weight"].shape)
    blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    found = f"{blocks} blocks of width {width} for {channels} channels"
    expected = (
        f"{config['num_layers']} blocks of width {config['num_attention_heads'] * config['attention_head_dim']} "
        f"for {config['in_channels']} channels"
    )
    if found != expected:
        raise GGUFError(
            f"{component}: {path.name} has {found}, but this model has {expected}: it is another of Wan's models."
        )
    title = reader.get_field("general.name")
    names = f"{path.name} {title.contents() if title else ''}".lower()
    wanted, other = ("high", "low") if component == "transformer" else ("low", "high")
    if re.search(f"{other}[-_]?noise", names):
        raise GGUFError(
            f"{component}: {path.name} is the {other}-noise expert, but this is the place of the {wanted}-noise "
            "expert: swap the files."
        )
    readable = {kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES} | {"F16", "F32"}
    if unknown := {tensor.tensor_type.name for tensor in tensors.values()} - readable:
        raise GGUFError(
            f"{component}: {path.name} is packed as {', '.join(sorted(unknown))}, which diffusers cannot read: take a "
            f"file of another type, Q4_K_M for example."
        )
    counts, elements, nbytes = Counter(), Counter(), Counter()
    for tensor in tensors.values():
        kind = tensor.tensor_type.name
        counts[kind] += 1
        elements[kind] += math.prod(int(n) for n in tensor.shape)
        nbytes[kind] += int(tensor.n_bytes)
    return GGUFSummary(path, counts, elements, nbytes)


@dataclass(frozen=True)
class TensorFile:
    """One tensor to write.

    Attributes:
        name: Its name in Wan's own files.
        shape: Its shape in elements, not in packed bytes.
        kind: A GGUF type: "F32", "Q4_0", "Q4_K", ...
        pieces: Its bytes, in order, as arrays of any type. They are read once, while the file is written.
    """

    name: str
    shape: Sequence[int]
    kind: str
    pieces: Iterable[np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return packed_nbytes(self.shape, self.kind)


def packed_nbytes(shape: Sequence[int], kind: str) -> int:
    """Return the bytes that a tensor of this shape (in elements) takes as the GGUF type `kind`."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return math.prod(shape) // block * size


def write_gguf(path: Path, tensors: Sequence[TensorFile]) -> None:
    """Write a GGUF file of the architecture "wan", completely or not at all.

    Each piece is written as soon as it is read, so only one is in RAM at a time.

    Raises:
        ValueError: If a tensor's pieces have more or fewer bytes than its shape and type require.
        OSError: If the file cannot be written.
    """
    import gguf

    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "wan")
        for tensor in tensors:
            kind = gguf.GGMLQuantizationType[tensor.kind]
            shape = tuple(tensor.shape)
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=kind)
        writer.write_header_to_file()
        (file,) = writer.fout
        with file:
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors:
                writer.write_padding(file, file.tell())
                written = sum(file.write(np.ascontiguousarray(piece).data) for piece in tensor.pieces)
                if written != tensor.nbytes:
                    raise ValueError(f"{tensor.name}: expected {tensor.nbytes} bytes, but its pieces have {written}.")
                writer.write_padding(file, written)


def quantized(name: str, values: np.ndarray, kind: str) -> TensorFile:
    """Pack a tensor [rows, columns] as the GGUF type `kind` (Q4_0, Q8_0, F32, ...)."""
    import gguf

    packed = gguf.quants.quantize(values.astype(np.float32), gguf.GGMLQuantizationType[kind])
    return TensorFile(name, values.shape, kind, [packed])


def repeated(block: np.ndarray, nbytes: int) -> Iterator[np.ndarray]:
    """Yield `block` (bytes) repeatedly until `nbytes` bytes have been yielded; the last piece is shortened."""
    for start in range(0, nbytes, len(block)):
        yield block[: min(len(block), nbytes - start)]
