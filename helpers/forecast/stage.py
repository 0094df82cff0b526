"""One stage of a pipeline, as forecast: its peak, its seconds and its timeline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

STAGES = {"encode_image": "encode the image", "denoise": "denoise, one step", "decode": "decode"}


@dataclass(frozen=True)
class Stage:
    """One stage's forecast. Sizes are GiB of memory that PyTorch allocates on the GPU.

    Attributes:
        peak_gib: The highest sum of weights and activations; `weights_gib` and `activations_gib` are its two parts.
        operation, module: The operation that runs at the peak, and the module that it runs in.
        seconds: An estimate with copies, or `None` if the GPU's rates are unknown.
        timeline: (time, weights, weights and activations), thinned for drawing. Time runs from 0 to `span`.
    """

    name: str
    peak_gib: float
    weights_gib: float
    activations_gib: float
    operation: str
    module: str
    seconds: float | None
    timeline: tuple[tuple[float, float, float], ...] = field(repr=False)

    @property
    def span(self) -> float:
        """The stage's width on a time axis: its seconds, or 1 if they are unknown."""
        return 1.0 if self.seconds is None else self.seconds


def joined(stages: Iterable[Stage]) -> list[tuple[float, float, float]]:
    """The timelines of successive stages as one: (time, weights, weights and activations)."""
    points, start = [], 0.0
    for stage in stages:
        points += [(start + time, weights, both) for time, weights, both in stage.timeline]
        start += stage.span
    return points


def bands(stages: Iterable[Stage]) -> list[tuple[str, float, float]]:
    """(label, start, width) of successive stages on one time axis."""
    found, start = [], 0.0
    for stage in stages:
        found.append((STAGES[stage.name], start, stage.span))
        start += stage.span
    return found
