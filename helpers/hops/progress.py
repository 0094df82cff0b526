"""One line that says how far a run of many hops is, and keeps itself up to date in a notebook."""

from __future__ import annotations

import time
from typing import Any

from IPython.display import display

from helpers.charts.mime import METER_JSON
from helpers.units import duration


class Progress:
    """Hop, step and time left.

    Args:
        hops: How many there will be.
        steps: Denoising steps of each.
        finished: How many an earlier run has finished.
    """

    def __init__(self, hops: int, steps: int, finished: int = 0) -> None:
        self.hops, self.steps, self.number, self.at_step = hops, steps, finished, 0
        self._finished, self._began = finished, time.perf_counter()
        self._handle = display(self, display_id=True)

    def step(self, pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's `callback_on_step_end`."""
        self.at_step = index + 1
        self._show()
        return tensors

    def hop(self, finished: int | None = None) -> None:
        """Another hop is finished, or so many are in all."""
        self.number, self.at_step = self.number + 1 if finished is None else finished, 0
        self._show()

    def _show(self) -> None:
        if self._handle is not None:  # outside of IPython there is none
            self._handle.update(self)

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the hops of this run; `None` before the first one is finished."""
        made = self.number - self._finished
        return (time.perf_counter() - self._began) / made * (self.hops - self.number) if made else None

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        return {"text/plain": repr(self), METER_JSON: {"progress": {"line": repr(self)}}}

    def __repr__(self) -> str:
        if self.number == self.hops:
            return f"all {self.hops} hops are finished, {self.hops - self._finished} of them now"
        left = "" if self.seconds_left is None else f", about {duration(self.seconds_left)} left"
        return f"hop {self.number + 1} of {self.hops}, step {self.at_step} of {self.steps}{left}"
