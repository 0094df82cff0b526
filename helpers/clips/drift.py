"""What a video loses while it goes on, hop after hop: light measures that need no model to judge.

    looks = Looks()
    for frames in hops:            # a hop at a time, so that RAM does not grow with their number
        looks.add(frames)
    print(looks.drift())           # the last 15 % against the first 15 %

Each measure is a number per frame. Fading shows as falling contrast and sharpness, a colour cast as a mean that moves,
and a video that freezes as motion that ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers.clips.joining import laplacian
from helpers.clips.oklab import oklab

MEASURES = ("lightness", "green_red", "blue_yellow", "lightness_spread", "green_red_spread", "blue_yellow_spread",
            "saturation", "contrast", "sharpness", "motion")  # fmt: skip
ENDS = 0.15  # share of the frames at each end that are compared, as in HeliosBench


class Looks:
    """The measures of each frame of a video, added some frames at a time.

    - lightness, green_red, blue_yellow: means of the axes of Oklab (lightness 0 to 1); `..._spread`, their standard
      deviations;
    - saturation: mean distance from grey in Oklab;
    - contrast: standard deviation of the grey values, 0 to 255;
    - sharpness: mean absolute Laplacian of the grey values, 0 to 255;
    - motion: mean absolute difference from the frame before, 0 to 255; of a video's first frame nan.

    Attributes:
        rows: A row of `MEASURES` for each frame.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []
        self._last: np.ndarray | None = None

    def add(self, frames: np.ndarray) -> Looks:
        """Measure more frames, `np.uint8` [T, H, W, 3], which follow those before."""
        for frame in frames:
            lab, grey = oklab(frame).reshape(-1, 3), frame.astype(np.float32).mean(axis=-1)
            motion = np.nan if self._last is None else np.abs(frame.astype(np.int16) - self._last).mean()
            numbers = (
                *lab.mean(0), *lab.std(0), np.hypot(lab[:, 1], lab[:, 2]).mean(), grey.std(),
                np.abs(laplacian(grey)).mean(), motion,
            )  # fmt: skip
            self.rows.append(tuple(map(float, numbers)))
            self._last = frame
        return self

    def mean(self, begin: int = 0, end: int | None = None) -> dict[str, float]:
        """The mean of each measure over the frames from `begin` to `end`."""
        part = np.array(self.rows[begin:end])
        return dict(zip(MEASURES, np.nanmean(part, axis=0).tolist(), strict=True))

    def drift(self) -> Drift:
        """How the end of the video differs from its beginning.

        Raises:
            ValueError: If there are fewer than four frames.
        """
        if len(self.rows) < 4:
            raise ValueError(f"{len(self.rows)} frames: drift needs at least 4.")
        count = max(2, round(ENDS * len(self.rows)))
        return Drift(self.mean(end=count), self.mean(begin=-count))


@dataclass(frozen=True)
class Drift:
    """The measures at both ends of a video: means over the first and the last 15 % of its frames."""

    first: dict[str, float]
    last: dict[str, float]

    @property
    def change(self) -> dict[str, float]:
        """Last minus first, of each measure."""
        return {name: self.last[name] - self.first[name] for name in MEASURES}

    def ratio(self, name: str) -> float:
        """Last over first."""
        return self.last[name] / max(self.first[name], 1e-9)

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {100 * (self.ratio(name) - 1):+.0f} %"
                            for name in ("contrast", "saturation", "sharpness", "motion"))  # fmt: skip
        return f"from the first to the last 15 %: {figures}"
