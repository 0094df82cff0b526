"""Keep a prompt's embeddings on disk: the text encoder is then needed once for each prompt, not once for each run.

    cache = Cache("outputs/embeddings", encoder=repo, revision=None, dtype=torch.float32)
    embeds = cache.load(prompt)  # [tokens, channels], or None if this prompt was never encoded
    cache.save(prompt, embeds)

An entry belongs to an encoder, its data type and the prompt, letter by letter.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from helpers.checkpoints import identity
from helpers.clips import only_complete


class Cache:
    """Embeddings of one text encoder in one data type, a safetensors file for each prompt.

    Args:
        folder: Where the files are kept; it is made when the first one is saved.
        encoder: What `from_pretrained` takes: a repository on the Hub, or a folder in the diffusers layout.
        revision: Branch, tag or commit of the repository; `None` for its main branch.
        dtype: The data type that the encoder computes in.
    """

    def __init__(self, folder: str | Path, *, encoder: str, revision: str | None = None, dtype: torch.dtype) -> None:
        self.folder = Path(folder)
        parts = ("text_encoder", "tokenizer")
        self.encoder, self.dtype = identity(encoder, revision, parts), str(dtype).removeprefix("torch.")

    def path(self, prompt: str) -> Path:
        """The file of a prompt, which need not exist."""
        key = json.dumps([self.encoder, self.dtype, prompt])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"

    def load(self, prompt: str) -> torch.Tensor | None:
        """The embeddings [tokens, channels] of a prompt, or `None` if there are none, or their file is damaged."""
        try:
            with safe_open(self.path(prompt), "pt") as file:
                return file.get_tensor("embeds") if (file.metadata() or {}).get("prompt") == prompt else None
        except (OSError, SafetensorError):
            return None

    def save(self, prompt: str, embeds: torch.Tensor) -> Path:
        """Keep the embeddings [tokens, channels] of a prompt. The file appears when it is whole."""
        path = self.path(prompt)
        metadata = {"encoder": self.encoder, "dtype": self.dtype, "prompt": prompt}
        with only_complete(path) as part:
            save_file({"embeds": embeds.detach().cpu().contiguous()}, part, metadata)
        return path
