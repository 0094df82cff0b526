"""A live readout of the memory that a block of code needs.

    from helpers.measure.meter import VRAMMeter

    with VRAMMeter("model offload", budget_gb=12) as meter:
        meter.mark("denoise")
        latents = pipe(..., output_type="latent").frames

    meter.peak_allocated_gib, meter.peak_ram_gib, meter.phases
    meter.as_dict()  # the same figures, for the record of a run

In a notebook the meter draws itself below the cell, follows the run, and remains there as a chart afterwards.
Without a CUDA device it measures only the process's RAM, and says so: it shows no VRAM figures it did not measure.

The figures, all in GiB (2**30 bytes):

- *allocated*: the tensors that torch holds on the GPU.
- *reserved*: what torch's caching allocator has taken from the driver to hold them. This must fit a budget.
- *device-wide*: what is taken on the whole GPU, including CUDA contexts and other programs.
- *RAM*: what this process holds, pinned memory included. Pages of mapped files do not count (`helpers.measure.ram`).

The first two are exact peaks, kept by the allocator. The last two are sampled: a short peak can be missed.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from helpers.measure.memory import ram, release
from helpers.measure.readout import Phase, Progress, Readout, Sample
from helpers.units import GIB

SECONDS_BETWEEN_UPDATES = 0.25  # a faster picture would only keep the browser busy
UPDATES_PER_RUN = 600  # at most this many pictures in a long run, because drawing many samples slows the run


class VRAMMeter:
    """Measures the peak memory and the seconds of a `with` block, phase by phase.

    An out-of-memory error or an interrupt passes through, and leaves no memory behind: the meter ends its traceback at
    the block, so the interrupted calls release their tensors even if the exception is kept. (IPython keeps the last.)

    The peak statistics of the current CUDA device are reset on entry and at each `mark`: inside the block, do not rely
    on `torch.cuda.max_memory_allocated()`.

    Args:
        title: What is measured; the chart's heading.
        budget_gb: The VRAM budget in GiB, a dashed line in the chart; not drawn without CUDA.
        forecast: The forecast VRAM peak in GiB, or an object that has it as `peak_vram_gib`.
        advice: What to do if the block runs out of memory; printed in that case.
        interval: Seconds between two samples.
        show: Whether to draw the chart below the cell. Outside a notebook nothing is drawn.

    Attributes (to read after the block; figures in GiB):
        phases: List of `Phase`. Everything before the first `mark` is the phase "start".
        samples: List of `Sample`.
        peak_allocated_gib, peak_reserved_gib, peak_device_gib: `None` without CUDA.
        peak_ram_gib, baseline_ram_gib: The highest RAM sampled, and the RAM on entry.
        seconds: Duration of the block.
        error: Name of the exception type that left the block, or `None`. The exception itself is not kept, because its
            traceback would keep every tensor of the failed call alive.

    Raises:
        RuntimeError: If entered twice, or marked outside its block.
    """

    def __init__(
        self,
        title: str,
        *,
        budget_gb: float | None = None,
        forecast: object | float | None = None,
        advice: str = "",
        interval: float = 0.1,
        show: bool = True,
    ) -> None:
        self.title = title
        self.budget_gib = budget_gb
        self.forecast_gib: float | None = getattr(forecast, "peak_vram_gib", forecast)
        self.advice = advice
        self.interval = interval
        self.show = show
        self.state = "not started"
        self.phases: list[Phase] = []
        self.samples: list[Sample] = []
        self.baseline_ram_gib = 0.0
        self.error: str | None = None
        self._device: int | None = None
        self._lock = threading.Lock()  # guards phases, samples and the allocator's peaks
        self._stop = threading.Event()
        self._handle = None
        self._progress: Progress | None = None

    def __enter__(self) -> VRAMMeter:
        if self.state != "not started":
            raise RuntimeError("This meter has been used: a VRAMMeter measures one block. Make a new one.")
        release()
        if torch.cuda.is_available():
            # The sampler thread has its own current device, so every call below names this one.
            self._device = torch.cuda.current_device()
            self._read_device_used = _device_used_reader(self._device)
            self._synchronize()
        live = self.show and _in_notebook()
        self.state = "running"
        _running.append(self)
        self._started = time.perf_counter()
        self._begin_phase("start", 0.0)
        self.baseline_ram_gib = self._sample().ram
        if live:
            from IPython.display import display

            self._handle = display(self, display_id=True)
        self._thread = threading.Thread(target=self._run, name=f"VRAMMeter: {self.title}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        _running.remove(self)
        try:
            self._thread.join()
            if error_type is None:
                self._synchronize()  # after an error the GPU may never become idle
            with self._lock:
                self._sample()
        finally:
            self.error = None if error_type is None else error_type.__name__
            self.state = "done" if error_type is None else f"stopped by {self.error}"
            if self._handle is not None:
                self._handle.update(self)
            if isinstance(error, torch.OutOfMemoryError):
                reason = ". ".join(str(error).split(". ")[:2])
                print(f"Out of memory in {self.title!r}: {reason}. {self.advice}".rstrip())
            if isinstance(error, torch.OutOfMemoryError | KeyboardInterrupt):
                self._free_frames(error)

    def _free_frames(self, error: BaseException) -> None:
        """Free the tensors of the interrupted calls: end the traceback here, because it keeps their frames alive."""
        error.__traceback__.tb_next = error.__context__ = error.__cause__ = None
        release()

    def mark(self, name: str) -> None:
        """End the current phase and begin the phase `name`.

        Waits for the GPU first, so that work is timed in the phase it belongs to. A first mark within one sampling
        interval of the start renames the phase "start", instead of leaving it empty.
        """
        if self.state != "running":
            raise RuntimeError(f"This meter is {self.state}: call mark() only inside its with block.")
        self._synchronize()
        with self._lock:
            now = self._sample().seconds
            if len(self.phases) == 1 and self.phases[0].name == "start" and now < self.interval:
                self.phases[0].name = name
            else:
                self._begin_phase(name, now)
                self._sample()

    def readout(self) -> Readout:
        """Return a snapshot of everything read so far."""
        with self._lock:
            phases, samples = [replace(phase) for phase in self.phases], list(self.samples)
        return Readout(
            self.title,
            self.state,
            phases,
            samples,
            on_gpu=self._device is not None,
            budget_gib=self.budget_gib,
            forecast_gib=self.forecast_gib,
            baseline_ram_gib=self.baseline_ram_gib,
            progress=self._progress,
        )

    @property
    def seconds(self) -> float:
        return self.readout().seconds

    @property
    def peak_allocated_gib(self) -> float | None:
        return self.readout().peak_allocated_gib

    @property
    def peak_reserved_gib(self) -> float | None:
        return self.readout().peak_reserved_gib

    @property
    def peak_device_gib(self) -> float | None:
        return self.readout().peak_device_gib

    @property
    def peak_ram_gib(self) -> float:
        return self.readout().peak_ram_gib

    def as_dict(self) -> dict:
        """Return title, state, seconds, peaks, forecast and phases, ready for JSON."""
        return self.readout().as_dict()

    def _synchronize(self) -> None:
        if self._device is not None:
            torch.cuda.synchronize(self._device)

    def _begin_phase(self, name: str, start_s: float) -> None:
        vram = None
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
            vram = 0.0
        self.phases.append(Phase(name, start_s, peak_allocated_gib=vram, peak_reserved_gib=vram))

    def _sample(self) -> Sample:
        """Add a sample and update the current phase. While the sampler runs, the caller holds the lock."""
        phase = self.phases[-1]
        sample = Sample(time.perf_counter() - self._started, ram=ram() / GIB)
        if self._device is not None:
            stats = torch.cuda.memory_stats(self._device)
            now = {name: stats[f"{name}_bytes.all.current"] / GIB for name in ("allocated", "reserved")}
            for name in now:
                peak = stats[f"{name}_bytes.all.peak"] / GIB
                # The allocator's peak has risen since the last sample: show it, however short it was.
                if peak > getattr(phase, f"peak_{name}_gib"):
                    now[name] = peak
                    setattr(phase, f"peak_{name}_gib", peak)
            sample = sample._replace(**now, device=self._read_device_used() / GIB)
        phase.peak_ram_gib = max(phase.peak_ram_gib, sample.ram)
        phase.seconds = sample.seconds - phase.start_s
        self.samples.append(sample)
        return sample

    def _run(self) -> None:
        """The sampler thread. It neither prints nor raises, because either would show up in an unrelated cell."""
        shown = 0.0
        while not self._stop.wait(self.interval):
            try:
                with self._lock:
                    seconds = self._sample().seconds
                pause = max(SECONDS_BETWEEN_UPDATES, seconds / UPDATES_PER_RUN)
                if self._handle is not None and seconds - shown >= pause:
                    shown = seconds
                    self._handle.update(self)
            except Exception:  # one sample or picture is lost, and the next follows in a moment
                continue

    def __repr__(self) -> str:
        return repr(self.readout())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return self.readout()._repr_mimebundle_()


_running: list[VRAMMeter] = []


def report(progress: Progress) -> None:
    """Let the running meters show how far the denoising is. `StepTimer` calls this after each step."""
    for meter in _running:
        meter._progress = progress


def _in_notebook() -> bool:
    # IPython in a terminal has no kernel; there, every update would print another chart.
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


def _device_used_reader(device: int) -> Callable[[], int]:
    """Return a function that reads the bytes in use on the whole GPU: from NVML if it answers, else from CUDA."""

    def from_runtime() -> int:
        free, total = torch.cuda.mem_get_info(device)
        return total - free

    try:
        torch.cuda.device_memory_used(device)  # asks NVML through nvidia-ml-py
    except Exception:  # not installed, or refused, as NVML does on MIG slices and in some containers
        return from_runtime
    return functools.partial(torch.cuda.device_memory_used, device)
