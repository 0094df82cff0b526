"""Latents on disk, with what they were made from: a run that broke off goes on where it stopped.

    kept = Latents(folder / "latents.safetensors", inputs, weights=identity(repo, revision), steps=4, seed=0)
    latents = kept.load()  # None, if there are none, or if they were made from anything else
    kept.save(latents, seconds=12.5)  # notes of your own come back as `kept.notes`

The offload mode is not among what latents are made from, because it changes none of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from helpers.clips import only_complete


class Latents:
    """The latents of one run, in one safetensors file.

    Args:
        path: The file, which need not exist.
        inputs: What the pipeline is called with: tensors, pictures, numbers, texts, and `None`.
        more: What else decides the result: weights, steps, seed, data type.

    Attributes:
        path: The file.
        notes: What was given to `save`; empty before `load` has found anything.
    """

    def __init__(self, path: str | Path, inputs: Mapping[str, object], **more: object) -> None:
        self.path, self.notes = Path(path), {}
        digest = hashlib.sha256()
        for name, value in sorted({**inputs, **more}.items()):
            digest.update(f"{name}: {_kind(value)}\n".encode() + _content(value))
        self._made_from = digest.hexdigest()

    def load(self) -> torch.Tensor | None:
        """The latents, on the CPU; or `None` where there are none, their file is damaged, or anything differs."""
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("made_from") != self._made_from:
                    return None
                self.notes = json.loads(metadata["notes"])
                return file.get_tensor("latents").clone()  # the file may be replaced while the tensor lives
        except (OSError, SafetensorError):
            return None

    def save(self, latents: torch.Tensor, **notes: object) -> Path:
        """Keep latents of any one shape, and notes that JSON can hold. The file appears when it is whole."""
        metadata = {"made_from": self._made_from, "notes": json.dumps(notes)}
        with only_complete(self.path) as part:
            save_file({"latents": latents.detach().cpu().contiguous()}, part, metadata)
        self.notes = notes
        return self.path


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return f"{value.mode} {value.size}" if isinstance(value, Image.Image) else type(value).__name__


def _content(value: object) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return value.tobytes() if isinstance(value, Image.Image) else repr(value).encode()
