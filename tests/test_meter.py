"""The meter measures what is there, says what it measured, and leaves nothing behind."""

import ctypes
import functools
import gc
import json
import mmap
import re
import threading
import time
import weakref
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import papermill
import pytest
import torch

from helpers.measure.memory import STATUS, ram, trim
from helpers.measure.meter import VRAMMeter
from helpers.measure.readout import Phase, Readout, Sample
from helpers.measure.steps import StepTimer
from helpers.units import GIB, duration

pytestmark = pytest.mark.measure

ROOT = Path(__file__).resolve().parent.parent
ON_GPU = torch.cuda.is_available()
needs_cuda = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
needs_no_cuda = pytest.mark.skipif(ON_GPU, reason="is about machines without a CUDA device")


def svg_of(meter: VRAMMeter) -> str:
    return meter._repr_mimebundle_()["image/svg+xml"]


def text_of(meter: VRAMMeter) -> str:
    return meter._repr_mimebundle_()["text/plain"]


def sampler_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("VRAMMeter")]


def test_the_sampler_thread_is_gone_afterwards():
    with VRAMMeter("quiet", interval=0.01) as meter:
        assert len(sampler_threads()) == 1
        time.sleep(0.2)
    assert sampler_threads() == []
    assert len(meter.samples) >= 5
    assert meter.error is None
    assert meter.state == "done"


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, KeyboardInterrupt])
def test_an_error_passes_through_and_stops_the_sampler(error):
    meter = VRAMMeter("fails", interval=0.01)
    with pytest.raises(error):
        with meter:
            time.sleep(0.05)
            raise error("on purpose")
    assert sampler_threads() == []
    assert meter.error == error.__name__
    assert f"stopped by {error.__name__}" in text_of(meter)
    assert meter.peak_ram_gib > 0


def test_the_exception_and_what_its_frames_hold_are_not_kept_alive():
    meter = VRAMMeter("fails")

    def fail():
        activations = torch.ones(10)
        kept.append(weakref.ref(activations))
        raise ValueError(activations.sum())

    kept = []
    try:
        with meter:
            fail()
    except ValueError:
        pass
    gc.collect()
    assert kept[0]() is None
    assert meter.error == "ValueError"


def touched(size: int) -> mmap.mmap:
    """So many bytes of RAM that were not the process's before: malloc might hand out what earlier tests have freed."""
    block = mmap.mmap(-1, size)
    np.frombuffer(block, dtype=np.uint8)[:] = 1
    return block


def test_ram_peak_sees_an_allocation_that_is_freed_again():
    with VRAMMeter("ram", interval=0.01) as meter:
        block = touched(300 * 10**6)
        time.sleep(0.1)
        block.close()
    assert 0.25 < meter.peak_ram_gib - meter.baseline_ram_gib < 0.6
    assert meter.samples[-1].ram < meter.peak_ram_gib - 0.25


def test_a_mark_samples_at_once():
    with VRAMMeter("ram", interval=60) as meter:
        meter.mark("full")
        block = touched(300 * 10**6)
        meter.mark("empty")
        block.close()
    full, empty = meter.phases
    assert full.peak_ram_gib - meter.baseline_ram_gib > 0.25
    # What is still there when a phase begins belongs to it too.
    assert empty.peak_ram_gib == pytest.approx(full.peak_ram_gib, abs=0.05)


def test_phases_have_names_times_and_peaks():
    with VRAMMeter("phases", interval=0.01) as meter:
        time.sleep(0.05)
        meter.mark("denoise")
        time.sleep(0.1)
        meter.mark("decode")
        time.sleep(0.02)
    assert [phase.name for phase in meter.phases] == ["start", "denoise", "decode"]
    assert meter.phases[1].seconds >= 0.1  # what it slept, at least
    assert sum(phase.seconds for phase in meter.phases) == pytest.approx(meter.seconds)
    assert meter.seconds == pytest.approx(meter.samples[-1].seconds)
    end = meter.phases[1].start_s + meter.phases[1].seconds
    assert meter.phases[2].start_s == pytest.approx(end)
    assert meter.peak_ram_gib == max(phase.peak_ram_gib for phase in meter.phases)
    assert "denoise" in text_of(meter)
    assert ">denoise<" in svg_of(meter)


def test_an_early_first_mark_leaves_no_empty_phase():
    with VRAMMeter("phases", interval=5) as meter:
        meter.mark("encode")
        meter.mark("denoise")
    assert [phase.name for phase in meter.phases] == ["encode", "denoise"]


def test_a_meter_is_used_once_and_marked_inside_its_block():
    meter = VRAMMeter("once")
    with pytest.raises(RuntimeError, match="not started"):
        meter.mark("too early")
    with meter:
        pass
    with pytest.raises(RuntimeError, match="done"):
        meter.mark("too late")
    with pytest.raises(RuntimeError, match="Make a new one"):
        with meter:
            pass


def test_a_meter_is_a_dictionary_of_its_figures():
    idle = VRAMMeter("idle").as_dict()
    assert (idle["state"], idle["seconds"], idle["peak_ram_gib"], idle["phases"]) == ("not started", 0, 0.0, [])
    with VRAMMeter("two phases", forecast=8.06) as meter:
        meter.mark("denoise")
        meter.mark("decode")
        assert meter.as_dict()["state"] == "running"
    figures = meter.as_dict()
    assert list(figures) == [
        "title", "state", "seconds", "peak_allocated_gib", "peak_reserved_gib", "peak_device_gib", "peak_ram_gib",
        "forecast_gib", "phases",
    ]  # fmt: skip
    assert (figures["title"], figures["state"], figures["forecast_gib"]) == ("two phases", "done", 8.06)
    for name in ("seconds", "peak_allocated_gib", "peak_reserved_gib", "peak_device_gib", "peak_ram_gib"):
        assert figures[name] == getattr(meter, name)
    for phase, found in zip(meter.phases, figures["phases"], strict=True):
        assert found == {name: getattr(phase, name) for name in found} and len(found) == 5
    assert sum(phase["seconds"] for phase in figures["phases"]) == pytest.approx(figures["seconds"])
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


@needs_no_cuda
def test_without_a_gpu_no_vram_is_shown():
    with VRAMMeter("baseline", budget_gb=12, forecast=SimpleNamespace(peak_vram_gib=8.06)) as meter:
        pass
    assert meter.peak_allocated_gib is meter.peak_reserved_gib is meter.peak_device_gib is None
    assert meter.phases[0].peak_allocated_gib is None
    assert "VRAM" not in text_of(meter)
    assert "RAM (no GPU here)" in text_of(meter)
    assert "forecast on a GPU: 8.06 GiB" in text_of(meter)
    assert "budget" not in svg_of(meter)
    assert "allocated" not in svg_of(meter)


def test_the_readout_of_a_gpu_shows_every_figure():
    # Made up here, so that it is looked at on machines without a GPU too.
    phases = [Phase("encode", 0.0, 2.0, 1.5, 1.75, 3.0), Phase("denoise", 2.0, 8.0, 5.79, 8.6, 6.0)]
    samples = [Sample(2.0, 3.0, 1.5, 1.75, 2.25), Sample(10.0, 6.0, 5.79, 8.6, 9.1)]
    readout = Readout("all", "done", phases, samples, on_gpu=True, budget_gib=12.0, forecast_gib=5.76)
    assert repr(readout).splitlines() == [
        "all: done, 10.0 s",
        "  VRAM: peak 5.79 GiB allocated, 8.60 reserved, 9.10 device-wide",
        "  RAM: peak 6.00 GiB, 0.00 before",
        "  budget: 12.00 GiB",
        "  forecast: 5.76 GiB",
        "  encode            2.0 s   1.50 GiB allocated, RAM 3.00 GiB",
        "  denoise           8.0 s   5.79 GiB allocated, RAM 6.00 GiB",
    ]
    drawing = readout._repr_mimebundle_()["image/svg+xml"]
    for label in ("budget 12.00", "forecast 5.76", "device-wide 9.10", "reserved 8.60", "allocated 5.79", "denoise"):
        assert f">{label}<" in drawing, label
    figures = readout.as_dict()
    assert [figures[f"peak_{name}_gib"] for name in ("allocated", "reserved", "device", "ram")] == [5.79, 8.6, 9.1, 6.0]
    encode = readout.of_phase("encode")
    assert (encode.seconds, encode.peak_allocated_gib, encode.peak_device_gib, encode.peak_ram_gib) == (2, 1.5, 2.25, 3)


def test_the_chart_is_small_valid_and_described():
    meter = VRAMMeter("<script>alert('&\x00\"')</script>")
    with meter:
        pass
    meter.samples.extend(Sample(1 + second, second % 17 + 0.123456) for second in range(2000))
    drawing = svg_of(meter)
    root = ElementTree.fromstring(drawing)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"].startswith("<script>alert('& \"')</script>: done")
    assert "<script" not in drawing
    assert len(drawing.encode()) < 12_000


def test_a_meter_that_never_ran_says_so_and_no_more():
    assert VRAMMeter("idle")._repr_mimebundle_() == {"text/plain": "idle: not started"}


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="is about glibc's malloc")
def test_what_malloc_keeps_of_freed_weights_goes_back_to_the_system():
    torch.ones(2**22)  # once an array of 16 MiB has been freed, malloc takes smaller ones from its heap
    pieces = [torch.ones(2**20) for _ in range(120)]  # 4 MiB each
    copies = [piece.clone() for piece in pieces[::2]]  # as pinning does
    del pieces[::2]
    kept = ram()
    assert trim()
    assert kept - ram() > 150 * 2**20
    assert len(copies) == len(pieces) == 60


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells what is mapped")
def test_ram_is_what_a_process_holds_not_what_it_has_mapped(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(64 * 2**20))
    gc.collect()
    trim()  # what earlier tests left behind would be freed, or used again, in the middle
    before = ram()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 0  # every page is read
        assert ram() - before < 8 * 2**20
        held = bytearray(mapped)
        assert ram() - before > 60 * 2**20
    assert len(held) == 64 * 2**20


def test_a_chart_updated_from_the_thread_is_saved_in_the_notebook(tmp_path):
    code = (
        "import time\n"
        "import numpy as np\n"
        "from helpers.measure import VRAMMeter\n"
        "with VRAMMeter('in a notebook', interval=0.05) as meter:\n"
        "    time.sleep(0.4)\n"
        "    meter.mark('work')\n"
        "    block = np.ones(300 * 10**6, dtype=np.uint8)\n"
        "    time.sleep(0.8)\n"
    )
    cells = [nbformat.v4.new_code_cell(source) for source in (code, "print(f'{meter.peak_ram_gib:.2f}')")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    source, executed = tmp_path / "meter.ipynb", tmp_path / "executed.ipynb"
    nbformat.write(notebook, source)
    papermill.execute_notebook(
        str(source), str(executed), cwd=ROOT, kernel_name="python3", execution_timeout=120, progress_bar=False
    )
    saved = nbformat.read(executed, as_version=4)
    nbformat.validate(saved)
    (output,) = saved.cells[0].outputs
    peak = saved.cells[1].outputs[0].text.strip()
    drawing = output.data["image/svg+xml"]
    assert "done, " in drawing
    assert f"peak {peak} GiB" in drawing
    assert "work" in output.data["text/plain"]
    assert len(drawing.encode()) < 12_000


def test_the_thread_alone_updates_the_chart_while_the_block_runs():
    """The kernel dies inside the block, so the last frame can only be the sampler thread's."""
    code = (
        "import os, time\n"
        "from helpers.measure import VRAMMeter\n"
        "with VRAMMeter('killed', interval=0.05):\n"
        "    time.sleep(1.5)\n"
        "    os._exit(1)\n"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    client = pytest.importorskip("nbclient").NotebookClient(
        notebook, kernel_name="python3", timeout=60, resources={"metadata": {"path": str(ROOT)}}
    )
    with pytest.raises(Exception, match="Kernel died"):
        client.execute()
    (output,) = notebook.cells[0].outputs
    seconds = float(output.data["text/plain"].split("running, ")[1].split(" s")[0])
    assert seconds > 0.5


@needs_cuda
@pytest.mark.gpu
def test_vram_peaks_are_exact_by_phase_even_when_too_short_to_sample():
    megabytes = functools.partial(torch.empty, dtype=torch.uint8, device="cuda")
    with VRAMMeter("vram", budget_gb=12, forecast=0.5, interval=60) as meter:
        before = torch.cuda.memory_allocated() / GIB
        meter.mark("large")
        block = megabytes(512 * 2**20)
        del block
        meter.mark("small")
        block = megabytes(64 * 2**20)
        meter.mark("none")
        del block
    large, small, _ = meter.phases
    assert large.peak_allocated_gib - before == pytest.approx(0.5, abs=2 / 1024)
    assert small.peak_allocated_gib - before == pytest.approx(1 / 16, abs=2 / 1024)
    assert meter.peak_allocated_gib == large.peak_allocated_gib
    assert meter.peak_reserved_gib >= meter.peak_allocated_gib
    assert meter.peak_device_gib > 0
    assert max(sample.allocated for sample in meter.samples) == meter.peak_allocated_gib
    assert "GiB allocated" in text_of(meter)
    assert "budget 12.00" in svg_of(meter)


@needs_cuda
@pytest.mark.gpu
def test_running_out_of_memory_is_metered_and_what_it_held_is_freed():
    meter = VRAMMeter("too much", interval=0.02)
    before = torch.cuda.memory_allocated()
    try:
        with meter:
            held = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        pass
    del held
    assert meter.error == "OutOfMemoryError"
    assert torch.cuda.memory_allocated() == before
    assert meter.peak_allocated_gib >= 0.25


def test_a_running_meter_shows_how_far_the_denoising_is():
    class Pipe:
        num_timesteps = 3

    with VRAMMeter("generate", show=False) as meter:
        timer = StepTimer()
        timer(Pipe(), 0, None, {})
        assert "running" in repr(meter) and "step 1 of 3" in repr(meter) and "left" not in repr(meter)
        timer(Pipe(), 1, None, {})
        assert re.search(r"step 2 of 3, about \d+ s left", repr(meter))
        timer(object(), 2, None, {})  # a pipeline that does not tell its number of steps
        assert "step 2 of 3" in repr(meter)
    assert "step" not in repr(meter).splitlines()[0], "a finished meter is at no step"
    with VRAMMeter("the next", show=False) as other:
        assert "step" not in repr(other)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (125, "2 min 5 s"), (3780, "1 h 3 min")])
def test_a_duration_as_a_person_says_it(seconds, text):
    assert duration(seconds) == text
