"""Time the denoising steps of a pipeline.

    timer = StepTimer()
    pipe(..., callback_on_step_end=timer)
    timer.step_seconds
"""

from __future__ import annotations

import statistics
import time

import torch

from helpers.measure.meter import report
from helpers.measure.readout import Progress


class StepTimer:
    """A `callback_on_step_end` for diffusers pipelines that records how long each step takes.

    A running `VRAMMeter` shows the progress: the step, the number of steps, and the estimated time left.

    The clock starts at construction, and `start()` restarts it. The first duration therefore includes everything
    before the first step ends, such as encoding, and `step_seconds` leaves it out.

    Attributes:
        durations: Seconds of each step so far.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forget all durations and restart the clock."""
        self.durations: list[float] = []
        self._last = self._now()

    def __call__(self, pipe: object, step: int, timestep: object, callback_kwargs: dict) -> dict:
        now = self._now()
        self.durations.append(now - self._last)
        self._last = now
        if steps := getattr(pipe, "num_timesteps", None):
            left = self.step_seconds * (steps - step - 1) if len(self.durations) > 1 else None
            report(Progress(step + 1, steps, left))
        return callback_kwargs

    @property
    def step_seconds(self) -> float | None:
        """Median seconds of the steps after the first, or the duration of a single step; `None` before any.

        With streamed group offload the first forward is slower, because it traces the order of the layers.
        """
        return statistics.median(self.durations[1:] or self.durations) if self.durations else None

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # kernels run on after their launch returns
        return time.perf_counter()
