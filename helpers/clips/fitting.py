"""Fit frames of any shape to a model's size, and bring the model's frames back to the clip's size.

    small = fit(frames, 240, 160, how="pad")           # the model's input
    large = unfit(new_frames, frames[-1], how="pad")  # its output, at the clip's own size

The aspect ratio never changes. Frames are `np.uint8` arrays of shape [T, height, width, 3], RGB.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

FITS = ("crop", "pad")
BAND = 128  # rows that are worked on at a time


def fit(frames: np.ndarray, width: int, height: int, how: str = "crop") -> np.ndarray:
    """Scale frames to a size whose aspect ratio may differ.

    "crop" scales frames until they cover the size and cuts the excess, half on each side: a wider clip loses its left
    and right edges, a taller one its top and bottom. "pad" scales them until they fit inside it and repeats their
    outermost pixels around them: the model sees the whole picture, with fewer pixels. Bicubic filtering over the whole
    source area avoids aliasing. Frames that already have the size are returned unchanged.

    Args:
        frames: `np.uint8` [T, H, W, 3].
        width, height: The size to return, in pixels.
        how: One of `FITS`.

    Returns:
        `np.uint8` [T, height, width, 3].

    Raises:
        ValueError: If `how` is not one of `FITS`.
    """
    check_fit(how)
    source_height, source_width = frames.shape[1:3]
    if (source_width, source_height) == (width, height):
        return frames
    if how == "crop":
        left, top, right, bottom = _covering_box(source_width, source_height, width, height)
        return _resized(frames[:, top:bottom, left:right], width, height)
    left, top, right, bottom = _inner_box(source_width, source_height, width, height)
    inner = _resized(frames, right - left, bottom - top)
    return np.pad(inner, ((0, 0), (top, height - bottom), (left, width - right), (0, 0)), mode="edge")


def unfit(frames: np.ndarray, last: np.ndarray, how: str = "crop") -> np.ndarray:
    """Undo `fit`: bring frames of a model's size to the size of the clip that they continue.

    The padding of "pad" is cut off. The edges that "crop" cut off come from the clip's last frame and stand still,
    because no model generated their continuation; a narrow blend hides the border.

    Args:
        frames: `np.uint8` [T, h, w, 3], at the size that `fit` returned.
        last: `np.uint8` [H, W, 3], the clip's own last frame.
        how: The value that was passed to `fit`.

    Returns:
        `np.uint8` [T, H, W, 3].

    Raises:
        ValueError: If `how` is not one of `FITS`.
    """
    check_fit(how)
    small_height, small_width = frames.shape[1:3]
    height, width = last.shape[:2]
    if (small_width, small_height) == (width, height):
        return frames
    if how == "pad":
        left, top, right, bottom = _inner_box(width, height, small_width, small_height)
        return _resized(frames[:, top:bottom, left:right], width, height)
    left, top, right, bottom = _covering_box(width, height, small_width, small_height)
    inner = _resized(frames, right - left, bottom - top)
    if inner.shape[1:3] == (height, width):
        return inner
    whole = np.repeat(last[None], len(frames), axis=0)
    share = _blend(right - left, bottom - top, left > 0, top > 0)
    still = whole[:, top:bottom, left:right]
    for target, new in zip(still, inner, strict=True):
        for row in range(0, len(new), BAND):  # some rows at a time: floats take four times the memory
            rows = slice(row, row + BAND)
            mixed = target[rows] + share[rows] * (new[rows].astype(np.float32) - target[rows])
            target[rows] = mixed.round()
    return whole


def soft_size(size: tuple[int, int], width: int, height: int, how: str = "crop") -> tuple[int, int] | None:
    """The (width, height) to which `fit` scales a whole frame of a `size`, or `None` if it loses no detail by that."""
    pick = max if how == "crop" else min
    scale = pick(width / size[0], height / size[1])
    return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))) if scale < 1 else None


def softened(frames: np.ndarray, soft: tuple[int, int]) -> np.ndarray:
    """Frames without the detail that a (width, height) cannot hold."""
    return _resized(_resized(frames, *soft), frames.shape[2], frames.shape[1])


def _blend(width: int, height: int, at_sides: bool, at_top: bool) -> np.ndarray:
    """The share of the new frame in each pixel, [height, width, 1]: it rises from the edges that "crop" cut."""
    share = np.ones((height, width, 1), np.float32)
    border = max(2, min(width, height) // 40)
    rise = (np.arange(border, dtype=np.float32) + 1) / (border + 1)
    if at_sides:
        share[:, :border] *= rise[:, None]
        share[:, -border:] *= rise[::-1, None]
    if at_top:
        share[:border] *= rise[:, None, None]
        share[-border:] *= rise[::-1, None, None]
    return share


def check_fit(how: str) -> None:
    """Raise a ValueError if `how` is not one of `FITS`."""
    if how not in FITS:
        raise ValueError(f"fit={how!r}: there are {' and '.join(FITS)}.")


def _covering_box(source_width: int, source_height: int, width: int, height: int) -> tuple[int, int, int, int]:
    """The centred part of the source with the target's aspect ratio, to the nearest pixel."""
    scale = max(width / source_width, height / source_height)
    inner_width, inner_height = max(1, round(width / scale)), max(1, round(height / scale))
    left, top = (source_width - inner_width) // 2, (source_height - inner_height) // 2
    return left, top, left + inner_width, top + inner_height


def _inner_box(source_width: int, source_height: int, width: int, height: int) -> tuple[int, int, int, int]:
    """The centred part of the target that the whole source covers."""
    scale = min(width / source_width, height / source_height)
    inner_width, inner_height = max(1, round(source_width * scale)), max(1, round(source_height * scale))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    return left, top, left + inner_width, top + inner_height


def _resized(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    import torch  # imported here: reading clips does not need it
    from torch.nn.functional import interpolate

    resized = np.empty((len(frames), height, width, 3), np.uint8)

    def some(begin: int) -> None:
        # PyTorch filters bytes with interleaved colours five times faster than Pillow does.
        part = torch.from_numpy(frames[begin : begin + 8]).permute(0, 3, 1, 2)
        filtered = interpolate(part, size=(height, width), mode="bicubic", antialias=True)
        resized[begin : begin + 8] = filtered.permute(0, 2, 3, 1).numpy()

    with ThreadPoolExecutor() as threads:
        list(threads.map(some, range(0, len(frames), 8)))
    return resized
