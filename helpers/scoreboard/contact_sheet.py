"""What each model made of a clip, for the contact sheet of lesson 06."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from helpers.clips.clip import ClipError
from helpers.clips.reading import read
from helpers.measure.records import load
from helpers.models.catalogue import MODELS

MOMENTS = (0.25, 0.5, 0.75, 1.0)  # shown in the contact sheet, in seconds after the join


def continuations(folders: Sequence[str | Path], clip: str = "excavator") -> dict[str, np.ndarray]:
    """Frames [T, H, W, 3] of each model's continuation of a clip, at `MOMENTS`, by the model's title; newest runs only.

    Clips are found beside the lessons' run.json. Runs with random weights are left out, because they show noise.
    """
    newest = {}
    for path in (path for folder in folders for path in Path(folder).rglob("continued.mp4")):
        for record in load(path.parent):
            usable = record.get("clip") == clip and record.get("weights") != "dummy" and record["model"] in MODELS
            if usable and record["date"] >= newest.get(record["model"], ("",))[0]:
                newest[record["model"]] = (record["date"], path, record["num_frames"])
    rows = {}
    for model in (name for name in MODELS if name in newest):
        _, path, frames = newest[model]
        try:
            longer = read(path, max_seconds=(frames - 1) / MODELS[model].fps + 0.5)
        except ClipError as error:
            warnings.warn(f"{path} is left out: {error}", stacklevel=2)
            continue
        new = longer.frames[-round((frames - 1) / MODELS[model].fps * longer.fps) :]
        rows[MODELS[model].short_title] = new[[min(round(moment * longer.fps), len(new)) - 1 for moment in MOMENTS]]
    return rows
