"""Preview what loading a checkpoint downloads, and whether disk and RAM are large enough for it.

    ltx = checkpoint("ltx_video", "pretrained")
    preview_download(ltx, in_memory=[{"text_encoder": torch.float32}, {"vae": torch.bfloat16}])

The preview takes a second: it asks the Hub for its list of files, and reads the pipeline's index and the headers of
the weights. It counts the files that `from_pretrained(..., use_safetensors=True)` of diffusers downloads.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from helpers.charts.table import ShownAsTable, Table
from helpers.models.checkpoints import Checkpoint
from helpers.models.hub_errors import DownloadError, advice, http_errors
from helpers.models.hub_files import StoredFile, Wanted, locate
from helpers.units import GIB, size_text

RESERVE = GIB  # bytes of disk to keep free: the lesson writes its results, and a full disk stops other programs


@dataclass(frozen=True)
class ComponentDownload:
    """What one component of a pipeline takes on disk, over the network and in RAM.

    Attributes:
        name: The component's name in the pipeline, or "" for the files that belong to none.
        files: Names of its files in the repository.
        missing: Those of them that will be downloaded.
        stored: Bytes of all its files.
        download: Bytes of those that will be downloaded.
        ram: Bytes of its weights once loaded, `None` if `in_memory` does not name it.
        dtype: The data type it is loaded in.
    """

    name: str
    files: tuple[str, ...]
    missing: tuple[str, ...]
    stored: int
    download: int
    ram: int | None = None
    dtype: str = ""


@dataclass(frozen=True, repr=False)
class DownloadPreview(ShownAsTable):
    """What will be downloaded and loaded, beside what the machine has. Shows itself as a table.

    Attributes:
        title: Where the weights come from, in a sentence.
        components: A `ComponentDownload` for each component.
        ram: Bytes of the components that are in memory together, for the largest such group.
        disk_free: Free bytes on the disk that holds downloads.
        ram_available: Bytes of RAM available to new programs.
    """

    title: str
    components: tuple[ComponentDownload, ...]
    ram: int
    disk_free: int
    ram_available: int

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that will be downloaded."""
        return tuple(sorted(name for component in self.components for name in component.missing))

    @property
    def download(self) -> int:
        """Bytes that will be downloaded."""
        return sum(component.download for component in self.components)

    def table(self) -> Table:
        rows = [
            (
                component.name or "(pipeline)",
                str(len(component.files)),
                size_text(component.stored),
                size_text(component.download),
                "" if component.ram is None else f"{size_text(component.ram)} in {component.dtype}",
            )
            for component in self.components
        ]
        count = sum(len(component.files) for component in self.components)
        stored = sum(component.stored for component in self.components)
        most = f"{size_text(self.ram)} at a time" if self.ram else ""
        disk, ram = f"{size_text(self.disk_free)} free", f"{size_text(self.ram_available)} available"
        enough = "yes" if self.ram <= self.ram_available else "no: close other programs first"
        rows.append(("total", str(count), size_text(stored), size_text(self.download), most))
        rows.append(("this machine", "", "", disk, ram))
        rows.append(("enough", "", "", "yes", enough))  # if the disk is too small, there is an error instead
        return Table(self.title, ("component", "files", "stored", "to download", "in RAM when loaded"), rows)


def preview_download(
    checkpoint: Checkpoint,
    *,
    in_memory: Sequence[Mapping[str, Any]] = (),
    without: Collection[str] = (),
    variant: str | None = None,
    files: Collection[str] = (),
    ram_budget_gb: float | None = None,
) -> DownloadPreview:
    """List what loading a checkpoint downloads, and compare it with the disk and the RAM.

    If the Hub cannot be reached but all files are on this machine already, the preview says so and uses those.

    Args:
        checkpoint: The checkpoint to load.
        in_memory: Which components are in RAM at the same time: one mapping per such group, from a component's name
            to the data type it is loaded in (of torch or of numpy).
        without: Components that are not loaded from this checkpoint.
        variant: Variant of the weights, "fp16" for example, as in `from_pretrained`.
        files: Names of single files, for a repository that is not a pipeline (GGUF); all others are then ignored.
        ram_budget_gb: GiB of RAM to stay within, or `None` for what the machine has.

    Raises:
        DownloadError: If the Hub cannot be reached or refuses, if the repository, revision or files do not exist, or
            if disk or RAM are too small. The message says what to do.
        ValueError: If `in_memory` names a component that the checkpoint does not have.
    """
    from huggingface_hub import constants

    repo = checkpoint.repo
    located = locate(checkpoint, Wanted(without, variant, files))
    names = located.components
    if unknown := {name for load in in_memory for name in load} - set(names):
        raise ValueError(f"in_memory: {repo} has no component {', '.join(sorted(unknown))}; it has {', '.join(names)}.")
    try:
        rows = tuple(_component(name, found, in_memory, located.elements) for name, found in names.items())
    except http_errors() as error:
        raise DownloadError(": ".join(advice(error, repo, checkpoint.revision))) from None
    held = {row.name: row.ram or 0 for row in rows}
    ram = max((sum(held[name] for name in load) for load in in_memory), default=0)
    memory = psutil.virtual_memory()
    preview = DownloadPreview(located.title, rows, ram, _disk_free(Path(constants.HF_HUB_CACHE)), memory.available)
    _check(preview, repo, memory.total + psutil.swap_memory().total, ram_budget_gb)
    return preview


def _component(
    name: str,
    files: Sequence[StoredFile],
    in_memory: Sequence[Mapping[str, Any]],
    elements: Callable[[StoredFile], int],
) -> ComponentDownload:
    missing = [file for file in files if file.path is None]
    dtypes = {load[name] for load in in_memory if name in load}
    ram = None
    if dtypes:
        count = sum(elements(file) for file in files if file.name.endswith(".safetensors"))
        ram = count * max(dtype.itemsize for dtype in dtypes)
    return ComponentDownload(
        name=name,
        files=tuple(file.name for file in files),
        missing=tuple(file.name for file in missing),
        stored=sum(file.size for file in files),
        download=sum(file.size for file in missing),
        ram=ram,
        dtype=" and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)),
    )


def _disk_free(folder: Path) -> int:
    """Free bytes on the disk of a folder that need not exist yet."""
    return shutil.disk_usage(next(f for f in (folder, *folder.absolute().parents) if f.exists())).free


def _check(preview: DownloadPreview, repo: str, ram_total: int, ram_budget_gb: float | None) -> None:
    """Raise DownloadError if disk or RAM cannot be enough."""
    from huggingface_hub import constants

    short = preview.download + RESERVE - preview.disk_free if preview.download else 0
    if short > 0:
        raise DownloadError(
            f"{repo} needs {size_text(preview.download)} of disk and 1 GiB to spare, but {constants.HF_HUB_CACHE} has "
            f"only {size_text(preview.disk_free)} free: free {max(0.1, math.ceil(10 * short / GIB) / 10):.1f} GiB, or "
            "set HF_HOME to a folder on a larger disk and start again."
        )
    if ram_budget_gb is not None and preview.ram > ram_budget_gb * GIB:
        raise DownloadError(
            f"{repo} takes {size_text(preview.ram)} of RAM to load, more than ram_budget_gb={ram_budget_gb:g}: raise "
            "it, or load in a smaller data type."
        )
    if preview.ram > ram_total:
        raise DownloadError(
            f"{repo} takes {size_text(preview.ram)} of RAM to load, and this machine has {size_text(ram_total)}, swap "
            'included: load in a smaller data type, or run with weights="miniature".'
        )
