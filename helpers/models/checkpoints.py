"""From a model's name and a kind of weights to what `from_pretrained` takes, and the sizes of what it loaded.

    from helpers.checkpoints import checkpoint, part_sizes

    repo = checkpoint("ltx_video", "miniature")
    pipe = LTXImageToVideoPipeline.from_pretrained(repo)
    part_sizes(pipe.components)

They work without torch being imported here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from helpers.charts import Table
from helpers.models import model

MINIATURES = Path(__file__).resolve().parent.parent / "data" / "miniatures"
GIB = 2**30


class CheckpointError(ValueError):
    """A kind of weights that does not exist, or a checkpoint folder that is not there or not complete."""


def checkpoint(model_name: str, weights: str = "miniature") -> str:
    """Returns what `from_pretrained` takes for a model and a kind of weights.

    Args:
        model_name: A name in `helpers.models.MODELS`.
        weights: "miniature" for the bundled small checkpoint, "pretrained" for the published weights on the
            Hub, "dummy" for random weights of the full size, written to a cache on first use (tens of GB, see
            `helpers.dummies`), or the path of a folder of your own in the diffusers layout.

    Returns:
        The absolute path of the miniature's or the dummy's folder, the Hub id, or the folder as it was given.

    Raises:
        ValueError: If there is no such model.
        CheckpointError: If `weights` is none of these, or if the folder is missing or not complete.
        DummyError: If the disk has no room for a dummy.
    """
    entry = model(model_name)
    if weights == "pretrained":
        return entry.hub
    if weights == "dummy":
        from helpers.dummies import dummy_folder  # late, because it imports torch

        return str(dummy_folder(entry.name))
    if weights == "miniature":
        if "miniature" not in entry.defaults:
            raise CheckpointError(f'there is no miniature of {entry.title}: use weights="pretrained".')
        folder = MINIATURES / entry.name
        if missing := _missing_files(folder):
            raise CheckpointError(
                f"{entry.title}'s miniature is incomplete: data/miniatures/{entry.name} lacks {missing}. "
                f"Bring it back with `git checkout -- data/miniatures/{entry.name}`, or train it again with "
                f"`python -m data.make.train {entry.name}`."
            )
        return str(folder)
    folder = Path(weights).expanduser()
    if folder.is_dir():
        if missing := _missing_files(folder):
            raise CheckpointError(f"{weights!r} is no complete diffusers checkpoint: {missing} is missing.")
        return str(weights)
    raise CheckpointError(
        f'no weights are called {weights!r}: give "miniature", "pretrained", "dummy" or a diffusers folder.'
    )


def _missing_files(folder: Path) -> str:
    """Returns the first thing that a diffusers folder lacks: its index, a part's folder, or "" for
    nothing."""
    index = folder / "model_index.json"
    if not index.is_file():
        return index.name
    for name, value in json.loads(index.read_text(encoding="utf-8")).items():
        is_part = isinstance(value, list) and value and value[0] is not None
        if is_part and not (folder / name).is_dir():
            return f"{name}/"
    return ""


def local_folder(repo: str, revision: str | None = None) -> str:
    """Returns the folder in which a checkpoint lies on this machine. Nothing is downloaded.

    Args:
        repo: What `from_pretrained` takes: a repository on the Hub, or a folder, which is returned as it is.
        revision: Branch, tag or commit of the repository; `None` for its main branch.

    Raises:
        CheckpointError: If the repository has not been downloaded at this revision.
    """
    if Path(repo).is_dir():
        return repo
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(repo, "model_index.json", revision=revision)
    if not isinstance(index, str):  # None, or a mark that the repository has no such file
        raise CheckpointError(f"{repo} at revision {revision or 'main'} is not on this machine: load it first.")
    return str(Path(index).parent)


def identity(repo: str, revision: str | None = None, parts: Iterable[str] = ("*",)) -> str:
    """Returns what tells a checkpoint from others: its repository and commit, or its folder's files as they are now.

    Of a repository that is not on this machine yet, its small index is downloaded: the Hub knows a branch's commit.

    Args:
        repo, revision: As for `local_folder`.
        parts: Folders in it that count, as patterns; all by default.
    """
    folder = Path(repo)
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download

        index = hf_hub_download(repo, "model_index.json", revision=revision)
        return f"{repo}@{Path(index).parent.name}"  # the cache of the Hub names its folders by the commit
    files = sorted(file for part in parts for file in folder.glob(f"{part}/*") if file.is_file())
    states = [(str(f.relative_to(folder)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return f"{folder.resolve()}@{hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class PartSize:
    """Size of one loaded part: its class, parameters, GiB (buffers included), data types and device."""

    name: str
    class_name: str
    parameters: int
    gib: float
    dtype: str
    device: str


@dataclass(frozen=True, repr=False)
class PartSizes:
    """A table of `PartSize` rows that shows itself as text and as HTML."""

    rows: tuple[PartSize, ...]

    @property
    def gib(self) -> float:
        """GiB of all parts together."""
        return sum(row.gib for row in self.rows)

    def _table(self) -> Table:
        rows = [
            (r.name, r.class_name, f"{r.parameters / 1e6:,.1f}", f"{r.gib:.2f}", r.dtype, r.device)
            for r in self.rows
        ]
        millions = sum(r.parameters for r in self.rows) / 1e6
        rows.append(("all", "", f"{millions:,.1f}", f"{self.gib:.2f}", "", ""))
        return Table("Parts", ("part", "class", "million parameters", "GiB", "dtype", "device"), rows)

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return self._table()._repr_mimebundle_()


def part_sizes(parts: Mapping[str, object]) -> PartSizes:
    """Lists the size of each loaded part, as it is held in memory now.

    Args:
        parts: `torch.nn.Module` by name, `pipe.components` for example. What holds no weights (a tokenizer, a
            scheduler, `None`) is left out.

    Returns:
        A table with a row for each part, in the given order, and their sum.
    """
    rows = []
    for name, part in parts.items():
        if not hasattr(part, "parameters"):
            continue
        weights = list(part.parameters())
        tensors = weights + list(part.buffers())
        rows.append(
            PartSize(
                name=name,
                class_name=type(part).__name__,
                # A GGUF parameter is a tensor of packed bytes; the number of weights in them is in
                # `quant_shape`.
                parameters=sum(math.prod(getattr(w, "quant_shape", w.shape)) for w in weights),
                gib=sum(t.numel() * t.element_size() for t in tensors) / GIB,
                dtype=" + ".join(sorted({str(w.dtype).removeprefix("torch.") for w in weights})),
                device=" + ".join(sorted({str(w.device) for w in weights})),
            )
        )
    return PartSizes(tuple(rows))
