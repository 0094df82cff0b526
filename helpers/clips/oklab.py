"""The colour space Oklab, in which equal steps look equal (Björn Ottosson, 2020, https://bottosson.github.io/posts/oklab)."""

from __future__ import annotations

import numpy as np

TO_LMS = np.array([
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
], np.float32)  # fmt: skip
TO_LAB = np.array([
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
], np.float32)  # fmt: skip
FROM_LAB, FROM_LMS = np.linalg.inv(TO_LAB), np.linalg.inv(TO_LMS)
# sRGB to linear light, for each of its 256 values.
VALUES = np.arange(256, dtype=np.float32) / 255
LINEAR = np.where(VALUES <= 0.04045, VALUES / 12.92, ((VALUES + 0.055) / 1.055) ** 2.4).astype(np.float32)


def oklab(frame: np.ndarray) -> np.ndarray:
    """A frame, `np.uint8` [H, W, 3] in sRGB, as `np.float32` [H, W, 3]: lightness from 0 to 1, and two colour axes."""
    return np.cbrt(LINEAR[frame] @ TO_LMS.T) @ TO_LAB.T


def from_oklab(lab: np.ndarray) -> np.ndarray:
    """The frame, `np.uint8` [H, W, 3], whose Oklab values these are, clipped to the colours of sRGB."""
    linear = ((lab @ FROM_LAB.T) ** 3 @ FROM_LMS.T).clip(0, 1)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (255 * coded).round().clip(0, 255).astype(np.uint8)
