"""Which files of a checkpoint diffusers loads, where they are now, and how many elements their tensors have.

    files = locate(Checkpoint("Lightricks/LTX-Video"), Wanted(without=("vae",)))
    files.components["transformer"]  # its files, each with its size and, if it is on this machine, its path

The rules are those of `DiffusionPipeline.from_pretrained(..., use_safetensors=True)`; a test compares the two.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.models.catalogue import INDEX
from helpers.models.checkpoints import Checkpoint
from helpers.models.hub_errors import DownloadError, advice, http_errors, page
from helpers.units import size_text

# Small files at the top of a repository that diffusers downloads wherever they exist.
TOP_FILES = {
    INDEX, "config.json", "scheduler_config.json", "pipeline.py", "chat_template.jinja", "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
WEIGHT_ENDINGS = (".safetensors", ".bin", ".onnx", ".pb", ".msgpack", ".flashpack")
WEIGHTS = r"(?:diffusion_pytorch_model|pytorch_model|model)"
SHARD = r"-\d{5}-of-\d{5}"


@dataclass(frozen=True)
class StoredFile:
    """One file of a checkpoint: its name inside it, its size in bytes, and its path if it is on this machine."""

    name: str
    size: int
    path: Path | None


@dataclass(frozen=True)
class Located:
    """The files of a checkpoint, as `locate` found them.

    Attributes:
        title: Where they are, in a sentence.
        components: Files by component; those that belong to no component under "".
        elements: A function that counts the elements of all tensors in a safetensors file. For a file that is not on
            this machine it asks the Hub, and may raise one of `http_errors()`.
    """

    title: str
    components: Mapping[str, list[StoredFile]]
    elements: Callable[[StoredFile], int]


@dataclass(frozen=True)
class Wanted:
    """Which files of a checkpoint to load.

    Attributes:
        without: Components to leave out.
        variant: Variant of the weights, "fp16" for example, as in `from_pretrained`.
        files: If given, exactly these files, for a repository that is not a pipeline.
    """

    without: Collection[str] = ()
    variant: str | None = None
    files: Collection[str] = ()

    def choose(self, repo: str, index: Mapping[str, Any], names: Iterable[str]) -> dict[str, list[str]]:
        """Return the names of the wanted files by component, out of all `names` in the checkpoint.

        Raises:
            DownloadError: If a file asked for by name does not exist, or a component has no safetensors.
        """
        names = sorted(names)
        if self.files:
            if absent := sorted(set(self.files) - set(names)):
                raise DownloadError(f"{repo} has no file {', '.join(absent)}: see the names at {page(repo)}/tree/main.")
            return {"": sorted(self.files)}
        chosen = {}
        for component, value in index.items():
            if not (isinstance(value, list) and value and value[0]) or component in self.without:
                continue
            inside = {name.removeprefix(f"{component}/") for name in names if name.startswith(f"{component}/")}
            files = inside
            if any(name.endswith(WEIGHT_ENDINGS) for name in inside):
                weights = (self.variant and _weights(inside, self.variant)) or _weights(inside, None)
                if not any(name.endswith(".safetensors") for name in weights):
                    raise DownloadError(
                        f"{repo} has no {component} in safetensors, and the lessons load no other format, because "
                        "others can run code: give another revision, or your own folder as weights."
                    )
                files = weights | (inside & {"config.json"})
            chosen[component] = [f"{component}/{name}" for name in sorted(files)]
        return chosen | {"": [name for name in names if name in TOP_FILES]}


def locate(checkpoint: Checkpoint, wanted: Wanted) -> Located:
    """Find the wanted files of a checkpoint: in its folder, on the Hub or, if that fails, in the Hub's cache.

    Only the list of files and the pipeline's index are fetched.

    Raises:
        DownloadError: If the Hub cannot be reached or refuses and the files are not in the cache, or if the
            repository, the revision or the files do not exist. The message says what to do.
    """
    repo, revision = checkpoint.repo, checkpoint.revision
    if checkpoint.is_local:
        files = _in_folder(repo, Path(repo), wanted)
        return Located(f"Nothing to download: the weights are in {_short(repo)}", files, local_elements)
    try:
        return _on_the_hub(repo, revision, wanted)
    except http_errors() as error:
        reason, remedy = advice(error, repo, revision)
        files = _in_cache(repo, revision, wanted, said=f"{reason}: {remedy}")
        title = f"Nothing to download: {repo} is on this machine, used without the Hub because {reason}"
        return Located(title, files, local_elements)


def local_elements(file: StoredFile) -> int:
    """Count the elements in a safetensors file. Its format: eight bytes of length, then a header in JSON."""
    with file.path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _weights(inside: Collection[str], variant: str | None) -> set[str]:
    """The weight files of one variant, or of none: one safetensors file, or shards and their index."""
    default = rf"{WEIGHTS}(?:{SHARD})?\.safetensors|{WEIGHTS}\.safetensors\.index\.json"
    v = re.escape(variant or "")
    of_variant = rf"{WEIGHTS}\.{v}(?:{SHARD})?\.safetensors|{WEIGHTS}\.safetensors\.index\.{v}\.json"
    return {name for name in inside if re.fullmatch(of_variant if variant else default, name)}


def _on_the_hub(repo: str, revision: str | None, wanted: Wanted) -> Located:
    """The wanted files as the Hub has them now."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    api = HfApi()
    info = api.model_info(repo, revision=revision)  # first, because it fails at once where others try six times
    names = [sibling.rfilename for sibling in info.siblings]
    index = {}
    if not wanted.files:
        if INDEX not in names:
            raise DownloadError(f"{repo} is not a diffusers pipeline: it has no {INDEX}.")
        path = hf_hub_download(repo, INDEX, revision=info.sha, tqdm_class=_silent())
        index = json.loads(Path(path).read_text(encoding="utf-8"))
    chosen = wanted.choose(repo, index, names)
    patterns = [name for files in chosen.values() for name in files]
    dry_run = snapshot_download(repo, revision=info.sha, allow_patterns=patterns, dry_run=True, tqdm_class=_silent())
    found = {
        file.filename: StoredFile(file.filename, file.file_size, Path(file.local_path) if file.is_cached else None)
        for file in dry_run
    }
    missing = [file for file in found.values() if file.path is None]
    where = f"{repo}, revision {revision or 'main'} (commit {info.sha[:8]})"
    title = f"To download: {len(missing)} files, {size_text(sum(file.size for file in missing))}, from {where}"
    if not missing:
        title = f"Nothing to download: {where} is on this machine"

    def elements(file: StoredFile) -> int:
        if file.path is not None:
            return local_elements(file)
        metadata = api.parse_safetensors_file_metadata(repo, file.name, revision=info.sha)  # reads only its beginning
        return sum(metadata.parameter_count.values())

    return Located(title, {name: [found[n] for n in files] for name, files in chosen.items()}, elements)


def _in_folder(repo: str, folder: Path, wanted: Wanted) -> dict[str, list[StoredFile]]:
    """The wanted files in a folder in the diffusers layout."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    index = json.loads(paths[INDEX].read_text(encoding="utf-8")) if INDEX in paths else {}
    chosen = wanted.choose(repo, index, paths)
    return {
        component: [StoredFile(name, paths[name].stat().st_size, paths[name]) for name in names]
        for component, names in chosen.items()
    }


def _in_cache(repo: str, revision: str | None, wanted: Wanted, said: str) -> dict[str, list[StoredFile]]:
    """The wanted files of an earlier download; raises DownloadError with what the Hub `said` if any are missing."""
    from huggingface_hub import try_to_load_from_cache

    known = next(iter(wanted.files), INDEX)
    path = try_to_load_from_cache(repo, known, revision=revision)
    if not isinstance(path, str):  # None, or a mark that the repository has no such file
        raise DownloadError(said)
    try:
        found = _in_folder(repo, Path(path.removesuffix(known)), wanted)
    except DownloadError:
        raise DownloadError(said) from None
    files = {file.name: file for files in found.values() for file in files}
    shards = {
        f"{name.rpartition('/')[0]}/{shard}"
        for name, file in files.items()
        if name.endswith(".safetensors.index.json")
        for shard in json.loads(file.path.read_text(encoding="utf-8"))["weight_map"].values()
    }
    empty = {component for component, inside in found.items() if component and not inside}
    if absent := sorted(empty | (shards - set(files))):
        raise DownloadError(f"{said}\nAn earlier download is not complete: {', '.join(absent)} is missing.")
    return found


def _silent() -> type:
    """A progress bar that shows nothing, because locating files takes only a second."""
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | {"disable": True})

    return Silent


def _short(folder: str) -> str:
    """A folder as the reader would type it: relative to the project's root if it is inside."""
    root = Path(__file__).resolve().parents[2]
    path = Path(folder).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(folder)
