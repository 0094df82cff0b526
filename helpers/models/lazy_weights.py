"""A text encoder's weights, read from their files while it works: for machines with less RAM than the encoder needs.

    weights = WeightFiles(repo, "text_encoder", revision=revision)
    with torch.device("meta"):  # shapes without numbers
        encoder = UMT5EncoderModel(UMT5Config.from_json_file(weights.config)).eval()
    encoder.set_input_embeddings(weights.rows("shared.weight"))
    attach_align_device_hook(encoder, execution_device=torch.device("cpu"), offload=True, weights_map=weights)

The hooks are those of accelerate's sequential offload: before a layer runs they take its tensors from `weights_map`,
in the data type that the model was built in, and afterwards they let go of them. The lessons on LTX-Video and Wan2.2
use it. Files are opened for one tensor at a time, because pages of an open file count as RAM once they are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open

from helpers.checkpoints import CheckpointError

SINGLE = "model.safetensors"


class WeightFiles(Mapping[str, torch.Tensor]):
    """The tensors of one part of a checkpoint by name, each read from its safetensors file when it is asked for.

    Args:
        repo: What `from_pretrained` takes: a folder in the diffusers layout, or a repository on the Hub, whose files
            are downloaded as far as they are not here.
        part: The part's folder in it, `text_encoder` for example.
        revision: Branch, tag or commit of the repository; `None` for its main branch.

    Attributes:
        config: The path of the part's `config.json`.

    Raises:
        CheckpointError: If a file is missing, cut off, or lacks a tensor that the index promises.
    """

    def __init__(self, repo: str, part: str = "text_encoder", revision: str | None = None) -> None:
        self._repo, self._part, self._revision = repo, part, revision
        self.config = self._path("config.json")
        try:
            index = json.loads(self._path(f"{SINGLE}.index.json").read_text(encoding="utf-8"))["weight_map"]
        except CheckpointError:  # small enough for one file
            index = None
        names = sorted(set(index.values())) if index else [SINGLE]
        holders = {tensor: (path, name) for name in names for path in [self._path(name)] for tensor in _tensors(path)}
        lacking = sorted((index or {}).keys() - holders.keys())
        if lacking:
            raise CheckpointError(f"{repo}: {part}/{index[lacking[0]]} lacks {lacking[0]}: fetch it again.")
        self._paths = {tensor: path for tensor, (path, _) in holders.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self._paths[name], "pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def rows(self, name: str, dtype: torch.dtype = torch.float32) -> Rows:
        """The matrix `name` as an embedding that reads only the rows it is asked for."""
        return Rows(self._paths[name], name, dtype)

    def _path(self, name: str) -> Path:
        if Path(self._repo).is_dir():
            path = Path(self._repo) / self._part / name
            if not path.is_file():
                raise CheckpointError(f"{self._repo} is not complete: {self._part}/{name} is missing.")
            return path
        try:
            return Path(hf_hub_download(self._repo, f"{self._part}/{name}", revision=self._revision))
        except EntryNotFoundError:
            raise CheckpointError(f"{self._repo} has no file {self._part}/{name} on the Hub, or not here.") from None


class Rows(torch.nn.Module):
    """An embedding whose matrix stays in its safetensors file: a vocabulary is large, and a prompt is short."""

    def __init__(self, path: Path, name: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.path, self.name, self.dtype = path, name, dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., channels] of token ids [...]."""
        wanted, places = ids.unique(return_inverse=True)
        with safe_open(self.path, "pt") as file:
            matrix = file.get_slice(self.name)
            rows = torch.cat([matrix[one : one + 1] for one in wanted.tolist()])
        return rows.to(self.dtype)[places]


def _tensors(path: Path) -> list[str]:
    """Names of the tensors in a file. Its header alone is read, and held against the file's length."""
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}): fetch it again.") from None
