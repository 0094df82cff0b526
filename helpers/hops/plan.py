"""What a run of many hops takes, before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from helpers.charts.table import Table
from helpers.hops.store import HopError
from helpers.units import GIB, duration


def latent_layout(vae: Any) -> tuple[int, int, int]:
    """What a latent of an LTX or Wan VAE stands for: frames, pixels on each side, and the latent's channels."""
    if hasattr(vae, "temporal_compression_ratio") and "latent_channels" in vae.config:
        return vae.temporal_compression_ratio, vae.spatial_compression_ratio, vae.config.latent_channels
    return vae.config.scale_factor_temporal, vae.config.scale_factor_spatial, vae.config.z_dim


@dataclass(frozen=True, repr=False)
class Plan:
    """A run of many hops.

    Args:
        seconds: How long the new frames play.
        fps: Their rate.
        num_frames: How many one call of the pipeline returns, the context included.
        context: How many of these are given.
        size: (width, height) in pixels.
        latent_bytes: Of the latents of one call.
        hop_seconds: How long one hop takes, or `None` if that is not known.
        peak_vram_gib: Forecast for one hop, which is the peak of all; `None` if there is none.

    Raises:
        HopError: If nothing would be new in a call, or if no time is asked for.
    """

    seconds: float
    fps: float
    num_frames: int
    context: int
    size: tuple[int, int]
    latent_bytes: int
    hop_seconds: float | None = None
    peak_vram_gib: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise HopError(f"seconds={self.seconds:g}: give more than 0.")
        if self.per_hop < 1:
            raise HopError(
                f"{self.context} frames of context leave nothing to make in {self.num_frames} frames: give less "
                "context, or a larger num_frames."
            )

    @property
    def per_hop(self) -> int:
        """New frames of a hop."""
        return self.num_frames - self.context

    @property
    def frames(self) -> int:
        """New frames of the run."""
        return max(1, round(self.seconds * self.fps))

    @property
    def hops(self) -> int:
        """How many hops these take; what the last one makes beyond them is dropped."""
        return math.ceil(self.frames / self.per_hop)

    @property
    def disk_gib(self) -> float:
        """What the hops take on disk: latents and frames."""
        width, height = self.size
        return self.hops * (self.latent_bytes + 3 * width * height * self.per_hop) / GIB

    def rows(self) -> list[tuple[str, str]]:
        """What to show: names and figures."""
        each, peak = self.hop_seconds, self.peak_vram_gib
        return [
            ("new frames", f"{self.frames}, {self.frames / self.fps:.2f} s"),
            ("hops", f"{self.hops} of {self.per_hop} frames, after {self.context} that are given"),
            ("peak VRAM", "no forecast" if peak is None else f"{peak:.2f} GiB, in every hop"),
            ("disk", f"{self.disk_gib:.2f} GiB for the hops' latents and frames"),
            ("time", "not known yet" if each is None else f"{duration(self.hops * each)}, {each:.1f} s a hop"),
        ]

    def _table(self) -> Table:
        return Table("the whole run", ("", "forecast"), self.rows())

    def __repr__(self) -> str:
        return repr(self._table())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return self._table()._repr_mimebundle_()
