"""Find the clip that a name or a path means."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from helpers.clips.clip import ClipError

CLIPS = Path(__file__).resolve().parents[2] / "data" / "clips"
CONTINUES = "_continues"
SENTENCES = {  # what happens next in the bundled clips
    "excavator": "the excavator lowers its arm and digs",
    "wheel_loader": "the wheel loader drives to the right slowly",
    "wood_chipper": "the wood chipper throws chips to the left",
}
WHAT_HAPPENS = {  # in the twenty seconds after a bundled clip: from which second on, and what
    "excavator": ((0, SENTENCES["excavator"]), (8, "the excavator raises its arm"), (10, SENTENCES["excavator"])),
    "wheel_loader": (
        (0, SENTENCES["wheel_loader"]), (10 / 3, "the wheel loader drives to the left slowly"),
        (12, "the wheel loader raises its bucket slowly"), (14, "the wheel loader lowers its bucket slowly"),
    ),
    "wood_chipper": (
        (0, SENTENCES["wood_chipper"]), (6, "the wood chipper throws chips to the right"),
        (12, SENTENCES["wood_chipper"]),
    ),
}  # fmt: skip
PICTURES = {".avif", ".bmp", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def what_happens(clip: str) -> tuple[tuple[float, str], ...]:
    """What happens in the twenty seconds after a bundled clip: from which second on, and a sentence; else nothing."""
    return WHAT_HAPPENS.get(clip, ())


def bundled() -> list[str]:
    """Names of the bundled clips, without their true continuations."""
    return sorted(path.stem for path in CLIPS.glob("*.mp4") if not path.stem.endswith(CONTINUES))


def find(source: str | Path) -> Path:
    """Return the file, or the folder of pictures, for the name of a bundled clip or for a path.

    Raises:
        ClipError: If nothing has that name, if it is empty, or if it cannot be read.
    """
    names = bundled()
    if str(source) in names:
        return CLIPS / f"{source}.mp4"
    path = Path(os.path.expanduser(source))
    is_folder = os.path.isdir(path)  # unlike Path's own, it takes names too long for the file system
    if not str(source).strip() or not is_folder and not os.path.isfile(path):
        near = difflib.get_close_matches(path.stem, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        have = f" or a bundled clip ({', '.join(names)})" if names else ""
        name = str(source).strip() or "a clip without a name"
        raise ClipError(f"{name} does not exist: give the path of a video{have}.{hint}")
    if not os.access(path, os.R_OK | os.X_OK if is_folder else os.R_OK):
        raise ClipError(f"{source} cannot be read: change its permissions, or copy it.")
    if is_folder and not pictures_in(path):
        raise ClipError(
            f"{source} is a folder without pictures: give the path of a video file, or of a folder of frames "
            f"({', '.join(sorted(PICTURES))})."
        )
    if not is_folder and path.stat().st_size == 0:
        raise ClipError(f"{source} is empty: copy or download it again.")
    return path


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder in the order of the numbers in their names, frame_2 before frame_10."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in PICTURES and file.is_file()]
    return sorted(
        (file for file in files if not file.name.startswith(".")),  # some systems hide a companion beside each
        key=lambda file: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name.lower())],
    )
