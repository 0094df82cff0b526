"""Write the Wan transformers as GGUF files, under the names that the published files use.

    write_gguf(path, [TensorFile("blocks.0.self_attn.q.weight", (5120, 5120), "Q4_K", pieces)])

`WanTransformer3DModel.from_single_file` reads such files with `GGUFQuantizationConfig`. Lesson 03 is about them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
