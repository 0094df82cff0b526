"""Keep on disk what takes long to compute: the embeddings of a prompt, and the latents of a run.

    cache = CachedEmbeddings("outputs/embeddings", checkpoint, dtype=torch.float32)
    embeds = cache.load(prompt)  # [tokens, channels], or None if this prompt was never encoded
    cache.save(prompt, embeds)

    saved = SavedLatents(folder / "latents.safetensors", inputs, weights=checkpoint.identity(), steps=4, seed=0)
    latents = saved.load()  # None if there are none, or if they were made from anything else
    saved.save(latents, seconds=12.5)  # your own notes come back as `saved.notes`
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

from helpers.files import replacing
from helpers.lesson.parameters import Settings
from helpers.models.checkpoints import Checkpoint


class CachedEmbeddings:
    """The embeddings of one text encoder in one data type, a safetensors file per prompt.

    An entry belongs to an encoder, its data type and the exact prompt.

    Args:
        folder: Where the files are kept; it is created when the first one is saved.
        checkpoint: The checkpoint that the encoder belongs to.
        dtype: The data type that the encoder computes in.
    """

    def __init__(self, folder: str | Path, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self.folder = Path(folder)
        self.encoder = checkpoint.identity(("text_encoder", "tokenizer"))
        self.dtype = str(dtype).removeprefix("torch.")

    def path(self, prompt: str) -> Path:
        """The file of a prompt, which may not exist yet."""
        key = json.dumps([self.encoder, self.dtype, prompt])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"

    def load(self, prompt: str) -> torch.Tensor | None:
        """The embeddings [tokens, channels] of a prompt, or `None` if there are none or their file is damaged."""
        try:
            with safe_open(self.path(prompt), "pt") as file:
                return file.get_tensor("embeds") if (file.metadata() or {}).get("prompt") == prompt else None
        except (OSError, SafetensorError):
            return None

    def save(self, prompt: str, embeds: torch.Tensor) -> Path:
        """Save the embeddings [tokens, channels] of a prompt; the file appears when it is complete."""
        path = self.path(prompt)
        metadata = {"encoder": self.encoder, "dtype": self.dtype, "prompt": prompt}
        with replacing(path) as temporary:
            save_file({"embeds": embeds.detach().cpu().contiguous()}, temporary, metadata)
        return path


class SavedLatents:
    """The latents of one run in a safetensors file, with what they were made from: a stopped run resumes where it was.

    The offload mode is not part of what latents are made from, because no mode changes them.

    Args:
        path: The file, which may not exist yet.
        inputs: The arguments of the pipeline's call: tensors, pictures, numbers, texts, and `None`.
        more: Everything else that the result depends on: weights, steps, seed, data type.

    Attributes:
        path: The file.
        notes: What was passed to `save`; empty until latents are saved or found.
    """

    def __init__(self, path: str | Path, inputs: Mapping[str, object], **more: object) -> None:
        self.path, self.notes, self._found = Path(path), {}, False
        digest = hashlib.sha256()
        for name, value in sorted({**inputs, **more}.items()):
            digest.update(f"{name}: {_kind(value)}\n".encode() + _content(value))
        self._made_from = digest.hexdigest()

    @classmethod
    def for_run(
        cls, settings: Settings, inputs: Mapping[str, object], dtype: torch.dtype, **more: object
    ) -> SavedLatents:
        """The latents of a lesson's run, `latents.safetensors` in its folder, made in a data type.

        `inputs` are those of the pipeline's call; weights, steps and seed come from the settings, and `more` is what
        else the result depends on. Lesson 01 writes this out.
        """
        return cls(
            settings.folder / "latents.safetensors", inputs, weights=settings.checkpoint.identity(),
            steps=settings.steps, seed=settings.seed, dtype=dtype, **more,
        )  # fmt: skip

    def load(self) -> torch.Tensor | None:
        """The latents on the CPU, or `None` if there are none, their file is damaged, or anything differs."""
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("made_from") != self._made_from:
                    return None
                self.notes, self._found = json.loads(metadata["notes"]), True
                return file.get_tensor("latents").clone()  # the file may be replaced while the tensor is in use
        except (OSError, SafetensorError):
            return None

    def save(self, latents: torch.Tensor, **notes: object) -> Path:
        """Save latents of any shape, and notes that JSON can hold. The file appears when it is complete."""
        metadata = {"made_from": self._made_from, "notes": json.dumps(notes)}
        with replacing(self.path) as temporary:
            save_file({"latents": latents.detach().cpu().contiguous()}, temporary, metadata)
        self.notes = notes
        return self.path

    def __repr__(self) -> str:
        if not self.notes:
            return f"no latents in {self.path.name} match this run"
        state = "loaded, not recomputed" if self._found else "saved"
        return "; ".join([f"{self.path.name}: {state}", *(f"{name} {value}" for name, value in self._made().items())])

    def _made(self) -> dict[str, str]:
        """How `generate` made the latents, from its notes."""
        made = {"mode": self.notes.get("offload")}
        if meter := self.notes.get("meter"):
            made["denoised in"] = f"{meter['phases'][-1]['seconds']:.1f} s"
        if seconds := self.notes.get("step_seconds"):
            made["a step takes"] = f"{seconds:.2f} s"
        return {name: value for name, value in made.items() if value}


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return f"{value.mode} {value.size}" if isinstance(value, Image.Image) else type(value).__name__


def _content(value: object) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return value.tobytes() if isinstance(value, Image.Image) else repr(value).encode()
