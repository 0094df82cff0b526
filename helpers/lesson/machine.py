"""The machine that a lesson runs on: its hardware, programs and packages, compared with the lesson's budgets."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.charts.table import ShownAsTable, Table
from helpers.clips.clip import ClipError
from helpers.clips.video.ffmpeg import ffmpeg_path
from helpers.lesson.parameters import Settings
from helpers.models import downloads
from helpers.units import GIB

# The oldest releases that have everything the lessons import and the miniatures' tokenizers need.
MINIMUM_VERSIONS = {"diffusers": "0.42", "transformers": "5.0"}


class EnvironmentProblem(RuntimeError):
    """The machine lacks something that the lessons need; the message says how to install it."""


@dataclass(frozen=True, repr=False)
class Environment(ShownAsTable):
    """What the lesson runs on. Sizes are in GiB.

    Attributes:
        device: "cuda" or "cpu".
        gpu: Name of the GPU, or `None`.
        vram_gib: Its memory, or `None`.
        ram_gib, ram_available_gib: The machine's RAM, and how much of it is free.
        cpu_count: Logical CPU cores.
        disk_free_gib: Free disk space where the lesson writes, or in the current folder without settings.
        ffmpeg: Path of the ffmpeg program.
        versions: Version by package.
        notes: Remarks on these figures and the budgets, a sentence each.
    """

    device: str
    gpu: str | None
    vram_gib: float | None
    ram_gib: float
    ram_available_gib: float
    cpu_count: int
    disk_free_gib: float
    ffmpeg: str
    versions: dict[str, str]
    notes: tuple[str, ...]

    def table(self) -> Table:
        rows = [
            ("device", self.device),
            ("GPU", f"{self.gpu}, {self.vram_gib:.1f} GiB" if self.gpu else "none with CUDA"),
            ("RAM", f"{self.ram_gib:.1f} GiB, {self.ram_available_gib:.1f} GiB available"),
            ("CPU cores", str(self.cpu_count)),
            ("free disk", f"{self.disk_free_gib:.1f} GiB"),
            ("ffmpeg", Path(self.ffmpeg).name),  # not its long folder
            ("versions", ", ".join(f"{name} {version}" for name, version in self.versions.items())),
        ]
        rows += [("note", note) for note in self.notes]
        return Table("This machine", ("what", "found"), rows)


def environment(settings: Settings | None = None) -> Environment:
    """Inspect the machine, and compare it with the budgets in `settings`. Nothing is capped here.

    Raises:
        EnvironmentProblem: If ffmpeg or a package is missing or too old; the message says how to fix it.
    """
    problems = []
    ffmpeg = ""
    try:
        ffmpeg = ffmpeg_path()
    except ClipError as error:
        problems.append(str(error))
    versions = {name: _version(name) for name in ("torch", "diffusers", "transformers", "accelerate")}
    for name, minimum in MINIMUM_VERSIONS.items():
        if _release(versions[name]) < _release(minimum):
            found = f"is {versions[name]}" if versions[name] else "is not installed"
            problems.append(
                f'{name} {found}, and {minimum} or later is needed: run `pip install "{name}>={minimum}"`.'
            )
    if problems:
        raise EnvironmentProblem("\n".join(problems))

    import psutil
    import torch

    gpu, vram = None, None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu, vram = properties.name, properties.total_memory / GIB
    memory = psutil.virtual_memory()
    return Environment(
        device="cuda" if gpu else "cpu",
        gpu=gpu,
        vram_gib=vram,
        ram_gib=memory.total / GIB,
        ram_available_gib=memory.available / GIB,
        cpu_count=os.cpu_count() or 1,
        disk_free_gib=shutil.disk_usage(settings.folder if settings else ".").free / GIB,
        ffmpeg=ffmpeg,
        versions=versions,
        notes=_notes(settings, vram, memory.available / GIB),
    )


def _notes(settings: Settings | None, vram: float | None, ram_available: float) -> tuple[str, ...]:
    notes = []
    if settings and settings.is_unknown_world:
        notes.append(
            "this miniature knows only the world of the sample clips, and your clip will not go on sensibly: for real "
            "pictures, set weights='pretrained'"
        )
    if vram is None:
        notes.append("without CUDA everything runs on the CPU, and VRAM figures are forecasts")
    elif settings and settings.vram_budget_gb and vram < settings.vram_budget_gb:
        notes.append(
            f"the GPU has {vram:.1f} GiB, less than vram_budget_gb={settings.vram_budget_gb:g}: "
            "its size is the limit"
        )
    if settings and settings.fit == "crop" and (kept := _kept(settings)) < 0.9:
        notes.append(
            f"at {settings.width}x{settings.height}, {kept:.0%} of this clip's picture goes on, and the edges stand "
            "still: fit='pad' gives the model the whole picture, with fewer pixels"
        )
    if settings and settings.ram_budget_gb and ram_available < settings.ram_budget_gb:
        notes.append(
            f"{ram_available:.1f} GiB of RAM are available, less than "
            f"ram_budget_gb={settings.ram_budget_gb:g}: close other programs first"
        )
    return tuple(notes)


def _kept(settings: Settings) -> float:
    """The share of the clip's picture that is left when it is cropped to the model's shape."""
    wider = settings.width / settings.height / (settings.clip_size[0] / settings.clip_size[1])
    return min(wider, 1 / wider)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (0, 42) for "0.42.1.dev0"; () for a missing package."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def preview_download(settings: Settings, video_half: Mapping[str, Any], **options: Any) -> downloads.DownloadPreview:
    """Preview the download of a lesson's checkpoint: its text half and its video half are never in RAM together.

    Args:
        video_half: The data types of the components that are loaded together to make the video, by name.
        options: `without` and `variant` of `helpers.models.preview_download`.

    Raises:
        DownloadError: As `helpers.models.preview_download` does.
    """
    import torch

    in_ram = "text_encoder" in settings.model.parameters and settings.encode == "fp32"
    text_half = {"text_encoder": torch.float32} if in_ram else {}
    return downloads.preview_download(
        settings.checkpoint, in_memory=[text_half, video_half], ram_budget_gb=settings.ram_budget_gb, **options
    )


def quiet_libraries() -> None:
    """Switch off the loading bars of diffusers and transformers, but not those of downloads."""
    import diffusers
    import transformers
    from huggingface_hub.utils import enable_progress_bars

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    enable_progress_bars()  # transformers switches these off together with its own
