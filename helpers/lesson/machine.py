"""What a lesson runs on: the machine, its programs and packages, and what of it the budgets ask for.

`helpers.checks` has all of it, too, beside the checks of a lesson's parameters.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.charts import Table
from helpers.checkpoints import GIB
from helpers.reading import ClipError, ffmpeg_path

if TYPE_CHECKING:  # helpers.checks imports this module, so that its users find all in one place
    from helpers.checks import Settings

# The oldest releases with all that the lessons import and the miniatures' tokenizers need.
MINIMUM_VERSIONS = {"diffusers": "0.42", "transformers": "5.0"}


class EnvironmentProblem(RuntimeError):
    """The machine lacks something that the lessons need; the message says how to get it."""


@dataclass(frozen=True, repr=False)
class Environment:
    """What the lesson runs on. Sizes are in GiB.

    Attributes:
        device: "cuda" or "cpu".
        gpu: Name of the graphics card, or `None`.
        vram_gib: Its memory, or `None`.
        ram_gib, ram_available_gib: The machine's memory, and what of it is free for use.
        cpu_count: Logical CPU cores.
        disk_free_gib: Free space where the lesson writes, or in the current folder without settings.
        ffmpeg: Path of the ffmpeg program.
        versions: Version by package.
        notes: What the reader should know about these figures and the budgets, a sentence each.
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

    def _table(self) -> Table:
        rows = [
            ("device", self.device),
            ("graphics card", f"{self.gpu}, {self.vram_gib:.1f} GiB" if self.gpu else "none with CUDA"),
            ("RAM", f"{self.ram_gib:.1f} GiB, {self.ram_available_gib:.1f} GiB available"),
            ("CPU cores", str(self.cpu_count)),
            ("free disk", f"{self.disk_free_gib:.1f} GiB"),
            ("ffmpeg", Path(self.ffmpeg).name),  # its folder is long and says nothing to a reader
            ("versions", ", ".join(f"{name} {version}" for name, version in self.versions.items())),
        ]
        rows += [("note", note) for note in self.notes]
        return Table("This machine", ("what", "found"), rows)

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return self._table()._repr_mimebundle_()


def environment(settings: Settings | None = None) -> Environment:
    """Looks at the machine, and compares it with the settings' budgets. Nothing is capped here.

    Raises:
        EnvironmentProblem: If ffmpeg or a package is missing or too old; the message says how
            to mend it.
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
        card = torch.cuda.get_device_properties(0)
        gpu, vram = card.name, card.total_memory / GIB
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
    if vram is None:
        notes.append("without CUDA everything runs on the CPU, and figures of VRAM are forecasts")
    elif settings and settings.vram_budget_gb and vram < settings.vram_budget_gb:
        notes.append(
            f"the card has {vram:.1f} GiB, less than vram_budget_gb={settings.vram_budget_gb:g}: "
            "the card's size is what counts"
        )
    if settings and settings.ram_budget_gb and ram_available < settings.ram_budget_gb:
        notes.append(
            f"{ram_available:.1f} GiB of RAM are available, less than "
            f"ram_budget_gb={settings.ram_budget_gb:g}: close other programs first"
        )
    return tuple(notes)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (0, 42) for "0.42.1.dev0"; () for a package that is missing."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
