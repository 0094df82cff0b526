"""Check the GGUF files of Wan's experts before they are loaded, and write such files.

    config = WanTransformer3DModel.load_config(repo, subfolder="transformer")
    check("Wan2.2-I2V-A14B-HighNoise-Q4_K_M.gguf", "transformer", config)  # its numbers and bytes by type
    write_gguf(path, [TensorFile("blocks.0.self_attn.q.weight", (5120, 5120), "Q4_K", pieces)])

`WanTransformer3DModel.from_single_file` reads such files with `GGUFQuantizationConfig`. Lesson 03 is about them.
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

from helpers.charts import Table

# diffusers' name: the original's. The inverse of `convert_wan_transformer_to_diffusers` in diffusers 0.42,
# loaders/single_file_utils.py, for image-to-video models; longer names come first.
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
    "norm2": "norm3",  # the original counts its norms in another order; the others have no weights
    "proj_out": "head.head",
}


def original_name(name: str) -> str:
    """The name in Wan's own files for a tensor's name in diffusers."""
    if name == "scale_shift_table":
        return "head.modulation"
    if name.endswith(".scale_shift_table"):
        return name.replace("scale_shift_table", "modulation")
    for ours, theirs in ORIGINAL_NAMES.items():
        name = name.replace(ours, theirs)
    return name


class GGUFError(ValueError):
    """A GGUF file that cannot be the expert that is asked for; the message says why, and what to do."""


@dataclass(frozen=True, repr=False)
class Opened:
    """A checked GGUF file: its tensors, numbers and bytes by type. Shows itself as text and as HTML."""

    path: Path
    tensors: Mapping[str, int]
    numbers: Mapping[str, int]
    nbytes: Mapping[str, int]

    def _table(self) -> Table:
        rows = [
            (kind, str(self.tensors[kind]), f"{self.numbers[kind] / 1e6:,.2f}", f"{self.nbytes[kind] / 2**20:,.2f}",
             f"{8 * self.nbytes[kind] / self.numbers[kind]:.2f}")
            for kind in sorted(self.tensors)
        ]  # fmt: skip
        numbers, nbytes = sum(self.numbers.values()), sum(self.nbytes.values())
        total = (str(sum(self.tensors.values())), f"{numbers / 1e6:,.2f}", f"{nbytes / 2**20:,.2f}")
        rows.append(("all", *total, f"{8 * nbytes / numbers:.2f}"))
        return Table(self.path.name, ("type", "tensors", "million numbers", "MiB", "bits a number"), rows)

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return self._table()._repr_mimebundle_()


def check(path: str | Path, part: str, config: Mapping[str, Any]) -> Opened:
    """Reads a GGUF file's header, which takes no time, and makes sure that it is the expert that is asked for.

    Args:
        path: The file.
        part: "transformer" for the expert of high noise, "transformer_2" for that of low noise.
        config: The expert's configuration, from `WanTransformer3DModel.load_config`.

    Raises:
        GGUFError: If the file is missing, cut off, of another architecture or size, or the other expert.
    """
    import gguf

    path = Path(path)
    if not path.is_file():
        raise GGUFError(f"{part}: there is no file {path}; both experts are needed.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise GGUFError(f"{part}: {path.name} is no GGUF file; look at what was downloaded.")
    try:
        reader = gguf.GGUFReader(path)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError) as error:
        raise GGUFError(
            f"{part}: {path.name} is cut off or damaged ({path.stat().st_size:,} bytes are here): download it again."
        ) from error
    field = reader.get_field("general.architecture")
    architecture = field.contents() if field else "unknown"
    if architecture != "wan" or "patch_embedding.weight" not in tensors:
        raise GGUFError(f"{part}: {path.name} holds a model of the architecture {architecture!r}, and not Wan.")
    *_, channels, width = (int(n) for n in tensors["patch_embedding.weight"].shape)
    blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    found = f"{blocks} blocks of width {width} for {channels} channels"
    asked = (
        f"{config['num_layers']} blocks of width {config['num_attention_heads'] * config['attention_head_dim']} "
        f"for {config['in_channels']} channels"
    )
    if found != asked:
        raise GGUFError(f"{part}: {path.name} has {found}, and this model has {asked}: it is another of Wan's models.")
    title = reader.get_field("general.name")
    names = f"{path.name} {title.contents() if title else ''}".lower()
    wanted, other = ("high", "low") if part == "transformer" else ("low", "high")
    if re.search(f"{other}[-_]?noise", names):
        raise GGUFError(
            f"{part}: {path.name} is the expert of {other} noise, and here goes that of {wanted} noise: swap the files."
        )
    counts, numbers, nbytes = Counter(), Counter(), Counter()
    for tensor in tensors.values():
        kind = tensor.tensor_type.name
        counts[kind] += 1
        numbers[kind] += math.prod(int(n) for n in tensor.shape)
        nbytes[kind] += int(tensor.n_bytes)
    return Opened(path, counts, numbers, nbytes)


@dataclass(frozen=True)
class TensorFile:
    """One tensor to write.

    Attributes:
        name: In Wan's own files.
        shape: Of its numbers, not of packed bytes.
        kind: A GGUF type: "F32", "Q4_0", "Q4_K", ...
        pieces: Its bytes, in order, as arrays of any type; made while the file is written.
    """

    name: str
    shape: Sequence[int]
    kind: str
    pieces: Iterable[np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        import gguf

        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind]]
        return int(np.prod(self.shape)) // block * size


def write_gguf(path: Path, tensors: Sequence[TensorFile]) -> None:
    """Write a GGUF file of the architecture "wan". The pieces are written as they come, so RAM stays small.

    The file is written under a temporary name and renamed when it is whole.
    """
    import gguf

    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, "wan")
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(tensor.name, tuple(tensor.shape), np.dtype(np.float32), tensor.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    try:
        for tensor in tensors:
            writer.write_padding(file, file.tell())
            written = sum(file.write(np.ascontiguousarray(piece).data) for piece in tensor.pieces)
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {written} bytes came, and {tensor.nbytes} were announced")
            writer.write_padding(file, written)
        file.close()
        part.replace(path)
    finally:
        file.close()
        part.unlink(missing_ok=True)


def quantized(name: str, values: np.ndarray, kind: str) -> TensorFile:
    """A trained tensor [rows, columns], fp32, packed as the type `kind` (Q4_0, Q8_0, F32, ...)."""
    import gguf

    packed = gguf.quants.quantize(values.astype(np.float32), gguf.GGMLQuantizationType[kind])
    return TensorFile(name, values.shape, kind, [packed])


def repeated(block: np.ndarray, nbytes: int) -> Iterator[np.ndarray]:
    """`nbytes` bytes as pieces of `block` (bytes), again and again."""
    for start in range(0, nbytes, len(block)):
        yield block[: min(len(block), nbytes - start)]
