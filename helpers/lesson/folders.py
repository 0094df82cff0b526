"""The folder of a run's results: one for each clip, so that no clip's results replace another's."""

from __future__ import annotations

import itertools
import json
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.clips.clip import ClipError
from helpers.clips.extending import check_disk, why_not_copied
from helpers.clips.sources import find, pictures_in

ROOT = Path(__file__).resolve().parents[2]


def writable(problems: list[str], out_dir: Any, below: Path, clip: str | None) -> Path | None:
    """Create the folder of a clip's results below `out_dir`, and try to write there; `None` after noting the problem.

    Another clip of the same name keeps its results: a number is added then.
    """
    if not isinstance(out_dir, str | Path) or not str(out_dir):
        problems.append(f"out_dir={out_dir!r}: give the path of a folder in quotes.")
        return None
    wanted = from_root(Path(out_dir).expanduser()) / below / _clip_folder(clip)
    names = itertools.chain([wanted], (wanted.with_name(f"{wanted.name}_{n}") for n in itertools.count(2)))
    folder = next(one for one in names if clip is None or not _belongs_to_another(one, clip))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problems.append(f"out_dir={str(out_dir)!r}: cannot write to {folder} ({error.strerror}); give another folder.")
        return None
    return folder


def from_root(path: Path) -> Path:
    """In the folder of the notebooks, where JupyterLab runs them, relative paths count from the project's root.

    So `outputs` is one folder, whether a lesson runs in JupyterLab, with `make run` or with papermill.
    """
    return ROOT / path if Path.cwd() == ROOT / "notebooks" and not path.is_absolute() else path


def _clip_folder(clip: str | None) -> str:
    """A folder's name for the results of a clip: the clip's name, and for a result that goes on, its folder's name."""
    path = Path(clip or "clip").expanduser()
    return f"{path.absolute().parent.name}_{path.stem}" if path.stem == "continued" else path.stem


def fingerprint(clip: str) -> str:
    """What tells a clip from another one of the same name: its size in bytes, and the checksum of its beginning."""
    path = find(clip)
    path = pictures_in(path)[0] if path.is_dir() else path
    with path.open("rb") as file:
        return f"{path.stat().st_size}-{zlib.crc32(file.read(2**16)):08x}"


def _belongs_to_another(folder: Path, clip: str) -> bool:
    """Whether a folder holds the results of another clip."""
    try:
        made_from = json.loads((folder / "run.json").read_text(encoding="utf-8"))["parameters"]["source"]
        return made_from != fingerprint(clip)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def joining_problems(path: Path, folder: Path, original: str | None) -> Iterator[str]:
    """What would go wrong only after all the waiting, when the new frames are joined to the clip."""
    try:
        check_disk(path, folder / "continued.mp4")
    except ClipError as error:
        yield f"out_dir: {error}"
    if original == "copy" and (obstacle := why_not_copied(path)):
        yield f"original='copy': the clip cannot be copied, {obstacle}; nearest: None, which encodes it."
