"""The hops of one run on disk, so that a run that was stopped goes on with the hop that is missing.

RAM and VRAM do not grow with the number of hops, because frames are read back from disk, some at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from helpers.files import replacing

PIECE = 8  # frames


class HopError(ValueError):
    """Hops that do not belong together, or a number of frames or prompts that cannot be; the message says more."""


class Hops:
    """The hops in a folder: latents, frames and notes of each.

    A hop is finished once its frames are complete. One whose frames or notes are damaged counts as missing, and is made
    again; from its latents, if these are whole.

    Args:
        folder: Where they lie. It is created with the first hop.
        made_from: What all hops depend on, as JSON can hold it: the weights, the clip, size, steps.

    Raises:
        HopError: If the folder holds hops that were made from something else, or from nobody knows what. Nothing is
            overwritten.
    """

    def __init__(self, folder: str | Path, **made_from: Any) -> None:
        self.folder, self.made_from = Path(folder), made_from
        self._finished = 0  # hops whose files were found to be whole
        every = self.folder / "hops.json"
        if not self._check(every, self.made_from, "it holds hops") and any(self.folder.glob("*_frames.npy")):
            raise HopError(
                f"{self.folder}: {every.name} is missing or damaged, so what its hops were made from is not known. "
                "Choose another out_dir, or delete this folder."
            )

    def __len__(self) -> int:
        """How many hops are finished, without a gap."""
        while self._is_finished(self._finished):
            self._finished += 1
        return self._finished

    def _is_finished(self, number: int) -> bool:
        return _is_whole(self._path(number, "frames.npy")) and _read(self._path(number, "notes.json")) is not None

    def _path(self, number: int, name: str) -> Path:
        return self.folder / f"{number + 1:03d}_{name}"

    def _check(self, path: Path, expected: dict, what: str) -> bool:
        """Whether there is anything to compare with."""
        found = _read(path)
        if found is None:
            return False
        expected = json.loads(json.dumps(expected))  # a tuple comes back as a list
        for name in expected:
            if found.get(name) != expected[name]:
                raise HopError(
                    f"{self.folder}: {what} made with {name}={found.get(name)!r}, and this run has {expected[name]!r}. "
                    "Choose another out_dir, or delete this folder."
                )
        return True

    def check(self, number: int, **depends_on: Any) -> None:
        """Raise a HopError if a finished hop was made from something else than this run would make it from."""
        self._check(self._path(number, "notes.json"), depends_on, f"its hop {number + 1} was")

    def save_latents(self, number: int, latents: torch.Tensor, **made_from: Any) -> None:
        """Save a hop's latents, before they are decoded, with what else they were made from, as JSON can hold it."""
        metadata = {"made_from": json.dumps(self.made_from | made_from, sort_keys=True)}
        with replacing(self._path(number, "latents.safetensors")) as temporary:
            save_file({"latents": latents.detach().cpu().contiguous()}, temporary, metadata)

    def latents(self, number: int, **made_from: Any) -> torch.Tensor | None:
        """A hop's latents on the CPU, or `None` if none were made from this, or if their file is damaged."""
        try:
            with safe_open(self._path(number, "latents.safetensors"), "pt") as file:
                found = (file.metadata() or {}).get("made_from")
                same = found == json.dumps(self.made_from | made_from, sort_keys=True)
                return file.get_tensor("latents").clone() if same else None
        except (OSError, SafetensorError):
            return None

    def add(self, number: int, frames: np.ndarray, **notes: Any) -> None:
        """Save what ends a hop: its new frames, `np.uint8` [T, H, W, 3], and notes that JSON can hold.

        Raises:
            HopError: If the hop before it is missing, or if there are no frames.
            OSError: If the disk is full.
        """
        if number != len(self):
            raise HopError(f"hop {number + 1} cannot follow: {len(self)} hops are finished.")
        if not len(frames):
            raise HopError(f"hop {number + 1} has no frames.")
        every = self.folder / "hops.json"
        if _read(every) is None:
            with replacing(every) as temporary:
                temporary.write_text(json.dumps(self.made_from), encoding="utf-8")
        with replacing(self._path(number, "notes.json")) as temporary:
            temporary.write_text(json.dumps(notes), encoding="utf-8")
        with replacing(self._path(number, "frames.npy")) as temporary:  # the last file: with it the hop is finished
            np.save(temporary, frames)

    def notes(self, number: int) -> dict[str, Any]:
        """What was noted of a finished hop."""
        return json.loads(self._path(number, "notes.json").read_text(encoding="utf-8"))

    def frames(self, number: int) -> np.ndarray:
        """The frames of a finished hop, mapped from disk."""
        return np.load(self._path(number, "frames.npy"), mmap_mode="r")

    def last(self, count: int, before: np.ndarray) -> np.ndarray:
        """The last `count` frames, of the finished hops and, where these are fewer, of the frames before them.

        Raises:
            HopError: If there are fewer than `count` in all.
        """
        parts, missing = [], count
        for number in reversed(range(len(self))):
            if missing <= 0:
                break
            parts.insert(0, np.array(self.frames(number)[-missing:]))
            missing -= len(parts[0])
        if missing > len(before):
            raise HopError(f"{count} frames of context: there are {count - missing + len(before)}; take fewer.")
        return np.concatenate([before[len(before) - missing :], *parts]) if missing > 0 else np.concatenate(parts)

    def pieces(self, count: int = PIECE) -> Iterator[np.ndarray]:
        """All frames in order, at most `count` at a time."""
        for number in range(len(self)):
            frames = self.frames(number)
            for begin in range(0, len(frames), count):
                yield np.array(frames[begin : begin + count])


def _is_whole(path: Path) -> bool:
    """Whether a .npy file has all the bytes that its header promises."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            return file.tell() + math.prod(shape) * dtype.itemsize == path.stat().st_size
    except (OSError, ValueError):  # missing, or no header
        return False


def _read(path: Path) -> dict[str, Any] | None:
    """What a JSON file says, or `None` if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
