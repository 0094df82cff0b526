"""From a model's name and a kind of weights to one `Checkpoint`, which says where its files are and which they are.

    from helpers.models.checkpoints import checkpoint

    ltx = checkpoint("ltx_video", "miniature")
    pipe = LTXImageToVideoPipeline.from_pretrained(ltx.repo, revision=ltx.revision)

Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from helpers.models.catalogue import INDEX, MINIATURES, model


class CheckpointError(ValueError):
    """A checkpoint that does not exist or is not complete; the message says what is missing and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in the diffusers layout: a folder on this machine, or a repository on the Hub at one revision.

    Args:
        repo: What `from_pretrained` takes: a folder, or a repository's id on the Hub.
        revision: Branch, tag or commit of the repository; `None` for its main branch. Ignored for a folder.

    Raises:
        CheckpointError: If `revision` is neither `None` nor a non-empty text.
    """

    repo: str
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.revision is not None and (not isinstance(self.revision, str) or not self.revision):
            raise CheckpointError(f"revision={self.revision!r}: give a branch, tag or commit in quotes, or None.")

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine."""
        return Path(self.repo).is_dir()

    def file(self, name: str) -> Path:
        """Return the path of one file, downloading it first if it is on the Hub and not in the cache.

        Args:
            name: The file's path inside the checkpoint, `vae/config.json` for example.

        Raises:
            CheckpointError: If the checkpoint has no such file.
        """
        if self.is_local:
            path = Path(self.repo) / name
            if not path.is_file():
                raise CheckpointError(f"{self.repo} is not complete: {name} is missing.")
            return path
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(self.repo, name, revision=self.revision))
        except EntryNotFoundError:
            raise CheckpointError(
                f"{self.repo} has no file {name} on the Hub, or the Hub cannot be reached and the file is not in the "
                "cache: check the name and the connection."
            ) from None

    def local_folder(self) -> str:
        """Return the folder that holds the checkpoint on this machine. Downloads nothing.

        Raises:
            CheckpointError: If the repository has not been downloaded at this revision.
        """
        if self.is_local:
            return self.repo
        from huggingface_hub import try_to_load_from_cache

        index = try_to_load_from_cache(self.repo, INDEX, revision=self.revision)
        if not isinstance(index, str):  # None, or a mark that the repository has no such file
            raise CheckpointError(
                f"{self.repo} at revision {self.revision or 'main'} is not on this machine: load it first."
            )
        return str(Path(index).parent)

    def identity(self, components: Iterable[str] = ("*",)) -> str:
        """Return a text that distinguishes this checkpoint's weights from any others.

        For a repository, this is its id and commit. If it is not on this machine yet, its small index is downloaded,
        because only the Hub knows which commit a branch points to. For a folder, it is the path and a hash of its
        files' names, sizes and modification times.

        Args:
            components: The components of a folder that count, as glob patterns; all of them by default.
        """
        if not self.is_local:
            # The Hub's cache names its folders after the commit.
            return f"{self.repo}@{self.file(INDEX).parent.name}"
        folder = Path(self.repo)
        files = sorted(file for pattern in components for file in folder.glob(f"{pattern}/*") if file.is_file())
        states = [(str(f.relative_to(folder)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return f"{folder.resolve()}@{hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]}"


def checkpoint(model_name: str, weights: str = "miniature", revision: str | None = None) -> Checkpoint:
    """Return the checkpoint of a model for one kind of weights.

    Args:
        model_name: A name in `helpers.models.MODELS`.
        weights: "miniature" for the bundled small checkpoint, "pretrained" for the published weights on the Hub,
            "dummy" for random weights at full size, written to a cache on first use (tens of GB, see
            `helpers.models.dummies`), or the path of your own folder in the diffusers layout.
        revision: Branch, tag or commit of the published weights; `None` for the main branch. Ignored for folders.

    Raises:
        ValueError: If there is no such model.
        CheckpointError: If there is no such kind of weights, or if the folder is missing or not complete.
        DummyError: If the disk has no room for a dummy.
    """
    entry = model(model_name)
    if weights == "pretrained":
        return Checkpoint(entry.hub, revision)
    if weights == "dummy":
        from helpers.models.dummies import dummy_folder  # late, because it imports torch

        return Checkpoint(str(dummy_folder(entry.name)), revision)
    if weights == "miniature":
        return Checkpoint(str(_miniature(entry.name)), revision)
    folder = Path(weights).expanduser()
    if not folder.is_dir():
        raise CheckpointError(
            f'no weights are called {weights!r}: give "miniature", "pretrained", "dummy" or a diffusers folder.'
        )
    if missing := _missing_file(folder):
        raise CheckpointError(f"{weights!r} is not a complete diffusers checkpoint: {missing} is missing.")
    return Checkpoint(str(folder), revision)


def _miniature(name: str) -> Path:
    """Return the folder of a model's miniature, or raise CheckpointError if there is none or it is not complete."""
    entry, folder = model(name), MINIATURES / name
    if "miniature" not in entry.defaults:
        raise CheckpointError(f'there is no miniature of {entry.title}: use weights="pretrained".')
    if missing := _missing_file(folder):
        raise CheckpointError(
            f"{entry.title}'s miniature is incomplete: data/miniatures/{name} lacks {missing}. Restore it with "
            f"`git checkout -- data/miniatures/{name}`, or train it again with "
            f"`python -m data.make.miniatures.train {name}`."
        )
    return folder


def _missing_file(folder: Path) -> str:
    """Return the first thing a diffusers folder lacks, its index or a component's folder, or "" if complete."""
    if not (folder / INDEX).is_file():
        return INDEX
    for name, value in json.loads((folder / INDEX).read_text(encoding="utf-8")).items():
        is_component = isinstance(value, list) and value and value[0] is not None
        if is_component and not (folder / name).is_dir():
            return f"{name}/"
    return ""
