"""A text encoder's weights, read from disk while it runs: for machines with less RAM than the encoder needs.

    weights = LazyWeights(checkpoint, "text_encoder")
    with torch.device("meta"):  # shapes without values
        encoder = UMT5EncoderModel(UMT5Config.from_json_file(weights.config)).eval()
    encoder.set_input_embeddings(weights.rows("shared.weight"))
    attach_align_device_hook(encoder, execution_device=torch.device("cpu"), offload=True, weights_map=weights)

The hooks are those of accelerate's sequential offload. Before a layer runs, they read its tensors from `weights_map`
and cast them to the data type the model was built in; afterwards they drop them. A file is open only while one tensor
is read, because the pages of an open file count as RAM once they have been read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from helpers.models.checkpoints import Checkpoint, CheckpointError

SINGLE = "model.safetensors"


class LazyWeights(Mapping[str, torch.Tensor]):
    """The tensors of one component by name, each read from its safetensors file on access.

    Args:
        checkpoint: The checkpoint; files on the Hub are downloaded if they are not on this machine.
        component: The component's folder in it.

    Attributes:
        config: The path of the component's `config.json`.

    Raises:
        CheckpointError: If a file is missing or truncated, or lacks a tensor that the index lists.
    """

    def __init__(self, checkpoint: Checkpoint, component: str = "text_encoder") -> None:
        self.config = checkpoint.file(f"{component}/config.json")
        try:
            index_path = checkpoint.file(f"{component}/{SINGLE}.index.json")
        except CheckpointError:  # small enough for a single file
            index, names = {}, [SINGLE]
        else:
            index = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(index.values()))
        paths = [checkpoint.file(f"{component}/{name}") for name in names]
        self._paths = {tensor: path for path in paths for tensor in _tensors(path)}
        if lacking := sorted(index.keys() - self._paths.keys()):
            tensor = lacking[0]
            raise CheckpointError(f"{checkpoint.repo}: {component}/{index[tensor]} lacks {tensor}: download it again.")

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self._paths[name], "pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def rows(self, name: str, dtype: torch.dtype = torch.float32) -> LazyRows:
        """Return the matrix `name` as an embedding that reads only the rows it needs."""
        return LazyRows(self._paths[name], name, dtype)


class LazyRows(torch.nn.Module):
    """An embedding whose matrix stays in its safetensors file, because a vocabulary is large and a prompt short."""

    def __init__(self, path: Path, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.path, self.name, self.dtype = path, name, dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [..., channels] of token ids [...]."""
        wanted, places = ids.unique(return_inverse=True)
        with safe_open(self.path, "pt") as file:
            matrix = file.get_slice(self.name)
            rows = torch.cat([matrix[one : one + 1] for one in wanted.tolist()])
        return rows.to(self.dtype)[places]


def _tensors(path: Path) -> list[str]:
    """Names of the tensors in a file. Only its header is read, and checked against the file's length."""
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}): download it again.") from None
