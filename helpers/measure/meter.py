"""A live readout of the memory that a block of code needs.

    from helpers.meter import VRAMMeter

    with VRAMMeter("model offload", budget_gb=12) as meter:
        meter.mark("denoise")
        latents = pipe(..., output_type="latent").frames

    meter.peak_allocated_gib, meter.peak_ram_gib, meter.phases

In a notebook the meter draws itself below the cell, follows the run, and stays there as a chart afterwards.
Without a CUDA device it meters the process's RAM alone, and says so: it shows no VRAM that was not measured.

Four figures, all in GiB (2**30 bytes):

- *allocated*: the tensors that torch holds on the GPU.
- *reserved*: what torch's caching allocator has taken from the driver to hold them. This must fit a budget.
- *device-wide*: what is taken on the whole card, CUDA context and other programs included.
- *RAM*: the resident memory of this process. Memory-mapped weights count once they have been touched.

The first two are exact peaks, kept by the allocator. The last two are sampled: a short peak can be missed.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import psutil
import torch

from helpers import svg
from helpers.charts import Series, timeline

GIB = 2**30
SECONDS_BETWEEN_UPDATES = 0.25  # a faster picture would only keep the browser busy
UPDATES_PER_RUN = 600  # in a long run no oftener than this, for drawing many samples takes the run's own time


@dataclass
class Phase:
    """A named part of a metered block. VRAM peaks are exact, and None without CUDA; RAM peaks are sampled."""

    name: str
    start_s: float
    seconds: float = 0.0
    peak_allocated_gib: float | None = None
    peak_reserved_gib: float | None = None
    peak_ram_gib: float = 0.0


class Sample(NamedTuple):
    """Memory in GiB, `seconds` after the meter's start. The VRAM figures are None without CUDA."""

    seconds: float
    ram: float
    allocated: float | None = None
    reserved: float | None = None
    device: float | None = None


def release() -> None:
    """Give back what dropped pipelines held, and weights that have gone to the card or were pinned.

    PyTorch keeps freed memory, of the card and pinned in RAM, for later use, and so does malloc. Offload hooks tie a
    pipeline into circles of references, which only the garbage collector finds.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        getattr(torch._C, "_host_emptyCache", lambda: None)()  # pinned pages; there is no public name for it
        trim()


def trim() -> bool:
    """Give freed RAM back to the system; False where malloc is not glibc's, which keeps pieces of up to 32 MiB."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False


class VRAMMeter:
    """Measures the peak memory and the seconds of a `with` block, phase by phase.

    Args:
        title: what is measured; heads the chart.
        budget_gb: the VRAM budget in GiB, a dashed line in the chart. Not drawn over RAM, without CUDA.
        forecast: the forecast VRAM peak in GiB, or an object that has it as `peak_vram_gib`.
        advice: what to do if the block runs out of memory; printed then.
        interval: seconds between two samples.
        show: whether to draw the chart below the cell; outside a notebook nothing is.

    Attributes, to be read after the block (figures in GiB):
        phases: list of `Phase`. What comes before the first `mark` is the phase "start".
        samples: list of `Sample`.
        peak_allocated_gib, peak_reserved_gib, peak_device_gib: None without CUDA.
        peak_ram_gib, baseline_ram_gib: the highest RAM sampled, and the RAM on entry.
        seconds: how long the block took.
        error: name of the exception type that left the block, or None. The exception is not kept: its
            traceback would keep every tensor of the failed call alive.

    An out-of-memory error or an interrupt passes through, and leaves no memory behind: its traceback ends at the block,
    so the calls that it broke off let go of their tensors, whoever keeps the exception. (IPython keeps the last one.)

    The peak statistics of the current CUDA device are reset on entry and at each `mark`: inside the block, do
    not rely on `torch.cuda.max_memory_allocated()`.

    Raises:
        RuntimeError: if entered twice, or marked outside its block.
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
        self._process = psutil.Process()
        self._lock = threading.Lock()  # guards phases, samples and the allocator's peaks
        self._stop = threading.Event()
        self._handle = None

    def __enter__(self) -> VRAMMeter:
        if self.state != "not started":
            raise RuntimeError("A VRAMMeter measures one block. Make a new one for the next.")
        release()
        if torch.cuda.is_available():
            # The sampler thread has a current device of its own, so every call below names this one.
            self._device = torch.cuda.current_device()
            self._read_device_used = _device_used_reader(self._device)
            self._synchronize()
        live = self.show and _in_notebook()
        self.state = "running"
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
        try:
            self._thread.join()
            if error_type is None:
                self._synchronize()  # after an error the GPU may be in no state to be waited for
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
                self._give_back(error)

    def _give_back(self, error: BaseException) -> None:
        """Free what the broken-off calls hold: end the traceback at this block, for it keeps the frames below it."""
        error.__traceback__.tb_next = error.__context__ = error.__cause__ = None
        release()

    def mark(self, name: str) -> None:
        """End the current phase and begin the phase `name`.

        Waits for the GPU first, so that work is timed in the phase it belongs to. A first mark that comes
        within one sampling interval names the first phase, instead of leaving an empty "start" before it.
        """
        if self.state != "running":
            raise RuntimeError(f"mark() belongs in the meter's with block; this meter is {self.state}.")
        self._synchronize()
        with self._lock:
            now = self._sample().seconds
            if len(self.phases) == 1 and self.phases[0].name == "start" and now < self.interval:
                self.phases[0].name = name
            else:
                self._begin_phase(name, now)
                self._sample()

    @property
    def seconds(self) -> float:
        return self.samples[-1].seconds if self.samples else 0.0

    @property
    def peak_allocated_gib(self) -> float | None:
        return _highest(phase.peak_allocated_gib for phase in self.phases)

    @property
    def peak_reserved_gib(self) -> float | None:
        return _highest(phase.peak_reserved_gib for phase in self.phases)

    @property
    def peak_device_gib(self) -> float | None:
        return _highest(sample.device for sample in self.samples)

    @property
    def peak_ram_gib(self) -> float:
        return _highest(phase.peak_ram_gib for phase in self.phases) or 0.0

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
        sample = Sample(time.perf_counter() - self._started, ram=self._process.memory_info().rss / GIB)
        if self._device is not None:
            stats = torch.cuda.memory_stats(self._device)
            now = {name: stats[f"{name}_bytes.all.current"] / GIB for name in ("allocated", "reserved")}
            for name in now:
                peak = stats[f"{name}_bytes.all.peak"] / GIB
                # A peak that has risen since the last sample fell in between, however short it was: show it.
                if peak > getattr(phase, f"peak_{name}_gib"):
                    now[name] = peak
                    setattr(phase, f"peak_{name}_gib", peak)
            sample = sample._replace(**now, device=self._read_device_used() / GIB)
        phase.peak_ram_gib = max(phase.peak_ram_gib, sample.ram)
        phase.seconds = sample.seconds - phase.start_s
        self.samples.append(sample)
        return sample

    def _run(self) -> None:
        """The sampler thread. It neither prints nor raises: that would end up in whichever cell runs then."""
        shown = 0.0
        while not self._stop.wait(self.interval):
            try:
                with self._lock:
                    seconds = self._sample().seconds
                pause = max(SECONDS_BETWEEN_UPDATES, seconds / UPDATES_PER_RUN)
                if self._handle is not None and seconds - shown >= pause:
                    shown = seconds
                    self._handle.update(self)
            except Exception:  # one reading or picture is lost, and the next comes in a moment
                continue

    def __repr__(self) -> str:
        return self._repr_mimebundle_()["text/plain"]

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        with self._lock:
            samples, phases = list(self.samples), list(self.phases)
        if not samples:
            return {"text/plain": f"{self.title}: {self.state}"}
        state = f"{self.state}, {self.seconds:.1f} s"
        ram = f"peak {self.peak_ram_gib:.2f} GiB, {self.baseline_ram_gib:.2f} before"
        if self._device is None:
            facts, limits = [f"RAM (no GPU here): {ram}"], []
            if self.forecast_gib is not None:
                facts.append(f"forecast on a GPU: {self.forecast_gib:.2f} GiB")
            styles = {"ram": ("RAM", svg.BLUE, 2.2, "")}
        else:
            vram = f"{self.peak_allocated_gib:.2f} GiB allocated, {self.peak_reserved_gib:.2f} reserved"
            facts = [f"VRAM: peak {vram}, {self.peak_device_gib:.2f} device-wide", f"RAM: {ram}"]
            asked = {"budget": self.budget_gib, "forecast": self.forecast_gib}
            limits = [(name, gib) for name, gib in asked.items() if gib is not None]
            styles = {
                "device": ("device-wide", svg.GREY, 1.5, "2 3"),
                "reserved": ("reserved", svg.ORANGE, 1.5, "7 3"),
                "allocated": ("allocated", svg.BLUE, 2.2, ""),
            }
        text = [f"{self.title}: {state}", *(f"  {fact}" for fact in facts)]
        text += [f"  {name}: {gib:.2f} GiB" for name, gib in limits]
        for phase in phases:
            peaks = f"RAM {phase.peak_ram_gib:.2f} GiB"
            if phase.peak_allocated_gib is not None:
                peaks = f"{phase.peak_allocated_gib:.2f} GiB allocated, {peaks}"
            text.append(f"  {phase.name:<12} {phase.seconds:8.1f} s   {peaks}")
        series = []
        for name, (label, *style) in styles.items():
            series.append(Series(label, [(one.seconds, getattr(one, name)) for one in samples], *style))
        bands = [(phase.name, phase.start_s, phase.seconds) for phase in phases]
        drawing = timeline(
            self.title, series, state=state, facts=" · ".join(facts), bands=bands, limits=limits
        )
        return {"image/svg+xml": drawing, "text/plain": "\n".join(text)}


def _highest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _in_notebook() -> bool:
    # IPython in a terminal has no kernel; there each update would be printed below the one before.
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


def _device_used_reader(device: int) -> Callable[[], int]:
    """What reads the bytes taken on the whole card: NVML if it answers, else the CUDA runtime."""

    def from_runtime() -> int:
        free, total = torch.cuda.mem_get_info(device)
        return total - free

    try:
        torch.cuda.device_memory_used(device)  # asks NVML through nvidia-ml-py
    except Exception:  # not installed, or refused, as NVML does on MIG slices and in some containers
        return from_runtime
    return functools.partial(torch.cuda.device_memory_used, device)
