"""What a lesson is about to download, and whether the disk and the RAM are large enough for it.

    from helpers import downloads

    downloads.plan("Lightricks/LTX-Video", in_memory=[{"text_encoder": torch.float32}, {"vae": torch.bfloat16}])

The plan asks the Hub for its list of files, and reads the pipeline's index and the headers of the weights. It counts
the files that `from_pretrained(..., use_safetensors=True)` of diffusers fetches, and the tests hold the two together.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from helpers.charts import Table
from helpers.checkpoints import GIB
from helpers.hub_errors import advice, http_errors, page

INDEX = "model_index.json"
# Small files at the top of a repository that diffusers takes along wherever there are any.
TOP_FILES = {
    INDEX, "config.json", "scheduler_config.json", "pipeline.py", "chat_template.jinja", "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
WEIGHT_ENDINGS = (".safetensors", ".bin", ".onnx", ".pb", ".msgpack", ".flashpack")
WEIGHTS = r"(?:diffusion_pytorch_model|pytorch_model|model)"
SHARD = r"-\d{5}-of-\d{5}"
RESERVE = GIB  # bytes of disk that stay free: the lesson writes its results, and a full disk stops other programs


class DownloadError(RuntimeError):
    """The weights cannot be had, or do not fit on this machine; the message says what to do."""


@dataclass(frozen=True)
class PartPlan:
    """One part of a pipeline: its files, their bytes, the bytes not on this machine yet, and those in RAM.

    Attributes:
        name: The part's name in the pipeline, or "" for the files that belong to none.
        files: Names of its files in the repository.
        missing: Those of them that will be downloaded.
        stored: Bytes of all its files.
        download: Bytes of those that will be downloaded.
        ram: Bytes of its weights once loaded, `None` where the plan was not asked.
        dtype: The data type that it is loaded in.
    """

    name: str
    files: tuple[str, ...]
    missing: tuple[str, ...]
    stored: int
    download: int
    ram: int | None = None
    dtype: str = ""


@dataclass(frozen=True, repr=False)
class Plan:
    """What will be downloaded and loaded, beside what the machine has. Shows itself as text and as HTML.

    Attributes:
        title: Where the weights come from, in a sentence.
        parts: A `PartPlan` for each part.
        ram: Bytes of the parts that are in memory together, the largest such sum.
        disk_free: Free bytes where downloads are kept.
        ram_available: Bytes of RAM that are free for use.
    """

    title: str
    parts: tuple[PartPlan, ...]
    ram: int
    disk_free: int
    ram_available: int

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that will be downloaded."""
        return tuple(sorted(name for part in self.parts for name in part.missing))

    @property
    def download(self) -> int:
        """Bytes that will be downloaded."""
        return sum(part.download for part in self.parts)

    def _table(self) -> Table:
        rows = [
            (
                part.name or "(pipeline)",
                str(len(part.files)),
                _size(part.stored),
                _size(part.download),
                "" if part.ram is None else f"{_size(part.ram)} in {part.dtype}",
            )
            for part in self.parts
        ]
        count, stored = sum(len(part.files) for part in self.parts), sum(part.stored for part in self.parts)
        most = f"{_size(self.ram)} at a time" if self.ram else ""
        rows.append(("together", str(count), _size(stored), _size(self.download), most))
        rows.append(("this machine", "", "", f"{_size(self.disk_free)} free", f"{_size(self.ram_available)} available"))
        enough = "yes" if self.ram <= self.ram_available else "no: close other programs first"
        rows.append(("enough", "", "", "yes", enough))  # a plan that the disk cannot hold is an error
        return Table(self.title, ("part", "files", "stored", "to download", "in RAM when loaded"), rows)

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return self._table()._repr_mimebundle_()


@dataclass(frozen=True)
class _File:
    """One file of a checkpoint: its name in it, its bytes, and its path if it is on this machine."""

    name: str
    size: int
    path: Path | None


def plan(
    repo: str,
    *,
    revision: str | None = None,
    in_memory: Sequence[Mapping[str, Any]] = (),
    without: Collection[str] = (),
    variant: str | None = None,
    files: Collection[str] = (),
    ram_budget_gb: float | None = None,
) -> Plan:
    """Lists what loading a checkpoint downloads, and compares it with the disk and the RAM.

    Args:
        repo: What `from_pretrained` takes: a repository on the Hub, or a folder in the diffusers layout.
        revision: Branch, tag or commit of the repository; `None` for its main branch. A folder has none.
        in_memory: The parts that are in RAM at the same time, a mapping for each such time: the part's name and
            the data type that it is loaded in (of torch or of numpy).
        without: Parts that are not loaded from here.
        variant: The variant of the weights, "fp16" for example, as for `from_pretrained`.
        files: Names of files, for a repository that is no pipeline (GGUF); all else is then left alone.
        ram_budget_gb: GiB of RAM to stay within, or `None` for what the machine has.

    Returns:
        The plan. Where the Hub cannot be reached and all files are here already, they are used, and it says so.

    Raises:
        DownloadError: If the Hub cannot be reached or refuses, if it has no such repository, revision or files, or
            if disk or RAM are too small. The message says what to do.
        ValueError: If `in_memory` names a part that the checkpoint has not.
    """
    from huggingface_hub import HfApi, constants

    if revision is not None and (not isinstance(revision, str) or not revision):
        raise DownloadError(f"revision={revision!r}: give a branch, tag or commit in quotes, or None.")

    def choose(index: Mapping[str, Any], names: Iterable[str]) -> dict[str, list[str]]:
        return _named(repo, files, names) if files else _chosen(repo, index, names, without, variant)

    if Path(repo).is_dir():
        parts, found = _in_folder(Path(repo), choose)
        title = f"Nothing to download: the weights are in {_short(repo)}"
        numbers = _local_numbers
    else:
        api = HfApi()
        try:
            parts, found, commit = _on_the_hub(api, repo, revision, choose, with_index=not files)
            missing = [file for file in found.values() if file.path is None]
            where = f"{repo}, revision {revision or 'main'} (commit {commit[:8]})"
            title = f"To download: {len(missing)} files, {_size(sum(f.size for f in missing))}, from {where}"
            if not missing:
                title = f"Nothing to download: {where} is on this machine"

            def numbers(file: _File) -> int:
                return _local_numbers(file) if file.path else _hub_numbers(api, repo, commit, file)
        except http_errors() as error:
            reason, remedy = advice(error, repo, revision)
            known = next(iter(files)) if files else INDEX
            parts, found = _in_cache(repo, revision, choose, known, f"{reason}: {remedy}")
            title = f"Nothing to download: {repo} is on this machine, and used without the Hub, for {reason}"
            numbers = _local_numbers

    unknown = {name for load in in_memory for name in load} - set(parts)
    if unknown:
        raise ValueError(f"in_memory: {repo} has no part {', '.join(sorted(unknown))}; it has {', '.join(parts)}.")
    try:
        rows = tuple(_part(name, [found[n] for n in names], in_memory, numbers) for name, names in parts.items())
    except http_errors() as error:
        raise DownloadError(": ".join(advice(error, repo, revision))) from None
    held = {row.name: row.ram or 0 for row in rows}
    ram = max((sum(held[name] for name in load) for load in in_memory), default=0)
    memory = psutil.virtual_memory()
    result = Plan(title, rows, ram, _disk_free(Path(constants.HF_HUB_CACHE)), memory.available)
    _check(result, repo, memory.total + psutil.swap_memory().total, ram_budget_gb)
    return result


# --- which files ---


def _chosen(
    repo: str, index: Mapping[str, Any], names: Iterable[str], without: Collection[str], variant: str | None
) -> dict[str, list[str]]:
    """The files that diffusers fetches for each part, and under "" those at the top. Safetensors only."""
    names = sorted(names)
    chosen = {}
    for part, value in index.items():
        if not (isinstance(value, list) and value and value[0]) or part in without:
            continue
        inside = {name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")}
        files = inside
        if any(name.endswith(WEIGHT_ENDINGS) for name in inside):
            weights = _weights(inside, variant) if variant else set()
            weights = weights or _weights(inside, None)
            if not any(name.endswith(".safetensors") for name in weights):
                raise DownloadError(
                    f"{repo} has no {part} in safetensors, and the lessons load nothing else, because other formats "
                    "can run code: give another revision, or a folder of your own as weights."
                )
            files = weights | (inside & {"config.json"})
        chosen[part] = [f"{part}/{name}" for name in sorted(files)]
    return chosen | {"": [name for name in names if name in TOP_FILES]}


def _weights(inside: Collection[str], variant: str | None) -> set[str]:
    """A part's weight files of a variant, or those of none: one safetensors file, or shards and their index."""
    plain = rf"{WEIGHTS}(?:{SHARD})?\.safetensors|{WEIGHTS}\.safetensors\.index\.json"
    v = re.escape(variant or "")
    of_variant = rf"{WEIGHTS}\.{v}(?:{SHARD})?\.safetensors|{WEIGHTS}\.safetensors\.index\.{v}\.json"
    return {name for name in inside if re.fullmatch(of_variant if variant else plain, name)}


def _named(repo: str, files: Collection[str], names: Iterable[str]) -> dict[str, list[str]]:
    """The files asked for by name, if they are there."""
    if absent := sorted(set(files) - set(names)):
        raise DownloadError(f"{repo} has no file {', '.join(absent)}: look at the names at {page(repo)}/tree/main.")
    return {"": sorted(files)}


# --- where they are ---


def _on_the_hub(
    api: Any, repo: str, revision: str | None, choose: Any, with_index: bool
) -> tuple[dict[str, list[str]], dict[str, _File], str]:
    """The chosen files by part, each of them by name, and the commit, as the Hub has them now."""
    from huggingface_hub import hf_hub_download, snapshot_download

    info = api.model_info(repo, revision=revision)  # first, because it fails at once where others try six times
    names = [sibling.rfilename for sibling in info.siblings]
    index = {}
    if with_index:
        if INDEX not in names:
            raise DownloadError(f"{repo} is no diffusers pipeline: it has no {INDEX}.")
        path = hf_hub_download(repo, INDEX, revision=info.sha, tqdm_class=_silent())
        index = json.loads(Path(path).read_text(encoding="utf-8"))
    parts = choose(index, names)
    wanted = [name for files in parts.values() for name in files]
    dry_run = snapshot_download(repo, revision=info.sha, allow_patterns=wanted, dry_run=True, tqdm_class=_silent())
    found = {f.filename: _File(f.filename, f.file_size, Path(f.local_path) if f.is_cached else None) for f in dry_run}
    return parts, found, info.sha


def _in_folder(folder: Path, choose: Any) -> tuple[dict[str, list[str]], dict[str, _File]]:
    """The chosen files by part, and each of them by name, in a folder in the diffusers layout."""
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    index = json.loads(paths[INDEX].read_text(encoding="utf-8")) if INDEX in paths else {}
    parts = choose(index, paths)
    found = {name: _File(name, paths[name].stat().st_size, paths[name]) for files in parts.values() for name in files}
    return parts, found


def _in_cache(
    repo: str, revision: str | None, choose: Any, known: str, said: str
) -> tuple[dict[str, list[str]], dict[str, _File]]:
    """What an earlier download left, which the file `known` was part of.

    Raises DownloadError, with what the Hub `said`, unless it is complete.
    """
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, known, revision=revision)
    if not isinstance(path, str):  # None, or a mark that the repository has no such file
        raise DownloadError(said)
    try:
        parts, found = _in_folder(Path(path.removesuffix(known)), choose)
    except DownloadError:
        raise DownloadError(said) from None
    shards = {
        f"{name.rpartition('/')[0]}/{shard}"
        for name in found
        if name.endswith(".safetensors.index.json")
        for shard in json.loads(found[name].path.read_text(encoding="utf-8"))["weight_map"].values()
    }
    if absent := sorted({part for part, files in parts.items() if part and not files} | (shards - set(found))):
        raise DownloadError(f"{said}\nAn earlier download is not complete: {', '.join(absent)} is missing.")
    return parts, found


# --- sizes ---


def _part(name: str, files: list[_File], in_memory: Sequence[Mapping[str, Any]], numbers: Any) -> PartPlan:
    missing = [file for file in files if file.path is None]
    dtypes = {load[name] for load in in_memory if name in load}
    ram = None
    if dtypes:
        count = sum(numbers(file) for file in files if file.name.endswith(".safetensors"))
        ram = count * max(dtype.itemsize for dtype in dtypes)
    return PartPlan(
        name=name,
        files=tuple(file.name for file in files),
        missing=tuple(file.name for file in missing),
        stored=sum(file.size for file in files),
        download=sum(file.size for file in missing),
        ram=ram,
        dtype=" and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)),
    )


def _local_numbers(file: _File) -> int:
    """How many numbers a safetensors file holds. Its format: eight bytes of length, then a header in JSON."""
    with file.path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _hub_numbers(api: Any, repo: str, commit: str, file: _File) -> int:
    """The same of a file on the Hub: only its beginning is read."""
    return sum(api.parse_safetensors_file_metadata(repo, file.name, revision=commit).parameter_count.values())


def _disk_free(folder: Path) -> int:
    """Free bytes on the disk of a folder that need not exist yet."""
    return shutil.disk_usage(next(f for f in (folder, *folder.absolute().parents) if f.exists())).free


def _check(plan: Plan, repo: str, ram_total: int, ram_budget_gb: float | None) -> None:
    """Raises DownloadError where disk or RAM cannot be enough."""
    from huggingface_hub import constants

    short = plan.download + RESERVE - plan.disk_free if plan.download else 0
    if short > 0:
        raise DownloadError(
            f"{repo} needs {_size(plan.download)} of disk and 1 GiB to spare, and {constants.HF_HUB_CACHE} has "
            f"{_size(plan.disk_free)} free: free {max(0.1, math.ceil(10 * short / GIB) / 10):.1f} GiB, or set HF_HOME "
            "to a folder on a larger disk and start again."
        )
    if ram_budget_gb is not None and plan.ram > ram_budget_gb * GIB:
        raise DownloadError(
            f"{repo} takes {_size(plan.ram)} of RAM to load, more than ram_budget_gb={ram_budget_gb:g}: raise it, or "
            "load in a data type of fewer bytes."
        )
    if plan.ram > ram_total:
        raise DownloadError(
            f"{repo} takes {_size(plan.ram)} of RAM to load, and this machine has {_size(ram_total)}, swap included: "
            'load in a data type of fewer bytes, or run with weights="miniature".'
        )


# --- showing ---


def _silent() -> type:
    """A progress bar that shows nothing: a plan takes a second."""
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | {"disable": True})

    return Silent


def _short(folder: str) -> str:
    """A folder as the reader would type it, from the project's top where it lies in it."""
    root = Path(__file__).resolve().parent.parent
    path = Path(folder).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(folder)


def _size(count: int) -> str:
    """Bytes in the largest unit of which there is a tenth at least."""
    for power, digits, name in ((30, 2, "GiB"), (20, 1, "MiB"), (10, 1, "KiB")):
        if 10 * count >= 2**power:
            return f"{count / 2**power:.{digits}f} {name}"
    return f"{count} B"
