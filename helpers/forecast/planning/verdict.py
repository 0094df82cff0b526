"""Whether a clip fits budgets of memory and time, in one answer.

    Verdict.of(forecasts("ltx_video", ...), steps=50, vram_budget_gb=8, minutes=5)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from helpers.forecast.pipelines.base import RequestError
from helpers.forecast.result import CONTEXT_GIB, Forecast, Forecasts
from helpers.forecast.stage import STAGES


@dataclass(frozen=True)
class Verdict:
    """Whether a clip fits budgets of memory and time, and in which mode.

    Attributes:
        fits: Whether any mode fits.
        offload: The fastest mode that fits; if none does, the one that comes closest in memory.
        minutes_per_clip: Estimated minutes in that mode, `None` if it does not fit the memory, or if the GPU's rates or
            the steps are unknown.
        why: The reason, in a sentence.
        slice_tokens: Tokens at a time, `None` without slices.
        options: All that was switched on to make it fit, as `forecasts` takes it (`Way.options`).
    """

    fits: bool
    offload: str
    minutes_per_clip: float | None
    why: str
    slice_tokens: int | None = None
    options: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        every: Forecasts,
        *,
        steps: int | None = None,
        vram_budget_gb: float | None = None,
        ram_budget_gb: float | None = None,
        minutes: float | None = None,
        options: dict[str, object] | None = None,
    ) -> Verdict:
        """Judge all modes of one model and size.

        Args:
            every: The forecasts of all modes.
            steps: Denoising steps per clip; `None` if unknown, and then there is no estimate of minutes.
            vram_budget_gb, ram_budget_gb, minutes: The budgets; `None` for no limit.
            options: What was switched on to make it fit; it goes into the verdict.

        Raises:
            RequestError: If minutes are limited, but cannot be estimated.
        """

        made = functools.partial(cls, slice_tokens=every.first.request.slice_tokens, options=options or {})

        def minutes_of(one: Forecast) -> float | None:
            return None if steps is None else one.minutes(steps)

        best = every.fastest(vram_budget_gb, ram_budget_gb)
        if best is None:
            working = [one for one in every.values() if not one.fails]
            if not working:
                first = every.first
                return made(False, first.offload, None, f"{first.offload} does not work: {first.fails}")
            enough = [one for one in working if one.fits(vram_budget_gb)]  # of VRAM: what is short is RAM
            best = min(enough or working, key=lambda one: one.peak_ram_gib if enough else one.peak_vram_gib)
            vram, ram = f"{best.peak_vram_gib:.1f} GiB of VRAM", f"{best.peak_ram_gib:.1f} GiB of RAM"
            which = "no mode fits: " if len(every) > 1 else ""
            why = f"{which}{best.offload} needs {vram}, {CONTEXT_GIB:g} more for CUDA itself, and {ram}"
            return made(False, best.offload, None, why)
        taken = minutes_of(best)
        which = "is the fastest mode that fits:" if len(every) > 1 else "takes"
        if minutes is not None:
            if taken is None:
                raise RequestError("minutes cannot be estimated: give a GPU of the table, and the number of steps.")
            if taken > minutes:
                return made(
                    False, best.offload, taken,
                    f"the fastest mode that fits the memory, {best.offload}, takes {taken:.1f} minutes per clip",
                )  # fmt: skip
        peaks = f"{best.peak_vram_gib:.1f} GiB of VRAM at its peak ({STAGES[best.peak_stage.name]})"
        why = f"{best.offload} {which} {peaks}, {best.peak_ram_gib:.1f} of RAM"
        return made(True, best.offload, taken, why)
