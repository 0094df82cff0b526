"""Measure the lessons themselves on a real GPU: the six set-ups at full size, with random weights, within 12 GiB.

python -m data.make.measure                                       # all set-ups; goes on where it stopped
python -m data.make.measure --only svd_xt ltx_video --minutes 9   # some of them, no longer than that in all
python -m data.make.measure --weights miniature --only svd_xt     # tried without a GPU; the record goes to outputs/

Each lesson runs as a reader would run it from a shell, in a process of its own, and its record goes to
data/measurements/lessons_<gpu>/<set-up>.json when it ends: the lesson's own run.json, and the peaks and seconds of each
meter that it showed, the decoding among them. A lesson that fails or runs out of time leaves what it has measured and
its last error, and the next begins. What is recorded is skipped; what has failed is tried again, after all others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from helpers import runs
from helpers.cards import CARDS
from helpers.dummies import CACHE, DummyError, dummy_folder
from helpers.models import MODELS

from .forecasts import SET_UPS as SIZES
from .train import ROOT

BUDGET_GIB = 12.0
LEAST_SECONDS = 60  # with less time left, no further lesson is begun
LOOK_SECONDS = 3  # between two looks at how far a lesson is


@dataclass(frozen=True)
class SetUp:
    """A lesson at a size of the table, and the mode that made the clip there. `size` is width, height, frames."""

    lesson: str
    model: str
    size: tuple[int, int, int]
    offload: str


def _set_up(name: str, lesson: str, offload: str) -> SetUp:
    model, *size = SIZES[name]
    return SetUp(lesson, model, tuple(size), offload)


# The most telling first: time may run out.
SET_UPS = {
    "wan22_i2v_a14b_720p": _set_up("wan22_i2v_a14b_720p", "03_wan22_i2v_a14b_gguf", "group_leaf"),
    "cogvideox_5b_i2v": _set_up("cogvideox_5b_i2v", "05_cogvideox_5b_i2v", "sequential"),
    "ltx_video": _set_up("ltx_video", "01_ltx_video", "sequential"),
    "svd_xt": _set_up("svd_xt", "04_stable_video_diffusion", "model"),
    "wan22_i2v_a14b": _set_up("wan22_i2v_a14b", "03_wan22_i2v_a14b_gguf", "model"),
    "wan22_ti2v_5b": _set_up("wan22_ti2v_5b", "02_wan22_ti2v_5b", "model"),
}


class NotPossible(Exception):
    """This cannot be measured here; the message says why and what to do."""


PROBE = """
import json, torch
if torch.cuda.is_available():
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
    print(json.dumps({"name": torch.cuda.get_device_name(), "vram_gib": total, "free_gib": free}))
"""


def probe() -> dict | None:
    """Name, GiB and free GiB of the first GPU, or `None`. Asked in a process of its own: it leaves no CUDA here."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else None


def check_gpu(gpu: dict | None, weights: str, budget: float) -> None:
    """Raises NotPossible where there is no GPU, or one with less free memory than the budget."""
    if weights == "miniature":
        return
    if gpu is None:
        raise NotPossible(
            f"weights={weights!r} are measured on a GPU, and PyTorch finds no CUDA device here. To try the command "
            "without one: --weights miniature."
        )
    if gpu["free_gib"] < budget:
        raise NotPossible(
            f"{gpu['name']} has {gpu['free_gib']:.1f} of {gpu['vram_gib']:.1f} GiB free, less than the budget of "
            f"{budget:g}: end what else uses it, or set --vram-budget-gb."
        )


def short_name(gpu: dict | None) -> str:
    """A GPU's name for a folder: that of `helpers.cards.CARDS` where it is known."""
    if gpu is None:
        return "cpu"
    name = gpu["name"].removeprefix("NVIDIA ").removeprefix("GeForce ")
    known = next((card for card in CARDS if card.removesuffix(" 12GB") == name or name.startswith(f"{card} ")), name)
    known = name if " Ti" in name or " SUPER" in name else known  # another card than the one without
    return re.sub(r"[^a-z0-9]+", "_", known.lower()).strip("_")


def make_dummy(model: str, cache: Path) -> float:
    """Fill the cache with a model's dummy checkpoint; returns the seconds it took.

    Raises:
        NotPossible: If the disk has no room; then nothing was written.
    """
    began = time.monotonic()
    try:
        dummy_folder(model, cache=cache)
    except (DummyError, OSError) as error:
        for folder in (cache / model, cache):
            with contextlib.suppress(OSError):
                folder.rmdir()  # only where it is empty
        raise NotPossible(str(error)) from None
    return time.monotonic() - began


METER = re.compile(r"^(?P<title>.+): (?P<state>done|stopped by \w+), (?P<seconds>[\d.]+) s$", re.M)
VRAM = re.compile(r"^  VRAM: peak ([\d.]+) GiB allocated, ([\d.]+) reserved, ([\d.]+) device-wide", re.M)
RAM = re.compile(r"^  RAM.*: peak ([\d.]+) GiB", re.M)
FORECAST = re.compile(r"^  forecast: ([\d.]+) GiB", re.M)


def meters(notebook: Path) -> list[dict]:
    """What the meters in an executed notebook say, in their order; empty where it cannot be read (yet)."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return []
    found = []
    for cell in cells:
        for output in cell.get("outputs", ()):
            text = "".join(output.get("data", {}).get("text/plain", ""))
            if not ((meter := METER.match(text)) and (ram := RAM.search(text))):
                continue
            vram, forecast = VRAM.search(text), FORECAST.search(text)
            allocated, reserved, device = map(float, vram.groups()) if vram else (None, None, None)
            found.append({
                "cell": cell.get("id"), "title": meter["title"], "state": meter["state"],
                "seconds": float(meter["seconds"]), "peak_allocated_gib": allocated, "peak_reserved_gib": reserved,
                "peak_device_gib": device, "peak_ram_gib": float(ram[1]),
                "forecast_gib": float(forecast[1]) if forecast else None,
            })  # fmt: skip
    return found


def said(meter: dict) -> str:
    """A meter as a line of progress."""
    peak = f"RAM {meter['peak_ram_gib']:.2f} GiB"
    if meter["peak_allocated_gib"] is not None:
        peak = f"{meter['peak_allocated_gib']:.2f} GiB allocated, {meter['peak_reserved_gib']:.2f} reserved, {peak}"
    return f"    {meter['cell']}: {meter['state']}, {meter['seconds']:.1f} s, {peak}"


def parameters(set_up: SetUp, options: argparse.Namespace) -> dict[str, str]:
    """What the lesson is run with. A miniature has a size of its own."""
    width, height, frames = set_up.size
    size = {} if options.weights == "miniature" else {"width": width, "height": height, "num_frames": frames}
    return {
        "weights": options.weights, "offload": set_up.offload, "steps": options.steps,
        "vram_budget_gb": options.vram_budget_gb, **size, **dict(options.p),
    }  # fmt: skip


@contextlib.contextmanager
def ended_with_all_it_started(process: subprocess.Popen) -> Iterator[None]:
    """Kill a process and what it started, kernels too, when the block is left before it has ended by itself."""
    try:
        yield
    finally:
        if process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                others = psutil.Process(process.pid).children(recursive=True)
                process.kill()  # first, so that it does not go on when they are gone
                for one in others:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
                psutil.wait_procs(others, timeout=10)
            process.wait()


def run(set_up: SetUp, options: argparse.Namespace, folder: Path, seconds: float) -> dict:
    """One lesson, at most so many seconds; returns its run.json, if it came so far, its meters, and why it failed."""
    shutil.rmtree(folder, ignore_errors=True)  # a lesson goes on with the latents that it finds
    folder.mkdir(parents=True)
    given = [word for name, value in parameters(set_up, options).items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "helpers.run_lesson", set_up.lesson, "--out", str(folder)]
    command += ["--timeout", str(int(seconds) + 60), *given]
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "PYTHONUNBUFFERED": "1"}
    if options.weights == "dummy":
        environment["CLIP_LESSONS_CACHE"] = str(options.cache.parent)
    began, shown, timed_out = time.monotonic(), 0, False
    with (folder / "log.txt").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment)
        with ended_with_all_it_started(process):
            while process.poll() is None and not timed_out:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(LOOK_SECONDS, max(0.1, began + seconds - time.monotonic())))
                shown = show_new(folder, shown)
                timed_out = process.poll() is None and time.monotonic() - began > seconds
        log.seek(0)
        failed = f"stopped after {seconds / 60:.1f} minutes" if timed_out else failure(log.read(), process.returncode)
    taken = time.monotonic() - began
    show_new(folder, shown)
    read = meters_so_far(folder)
    for path in folder.glob("*.partial.ipynb"):
        path.unlink()
    try:
        record = json.loads((folder / set_up.model / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
        failed = failed or "the lesson left no run.json"
    return record | {"failed": failed, "lesson_seconds": taken, "meters": read}


def meters_so_far(folder: Path) -> list[dict]:
    """Those of the executed notebook as it is now: while it runs, after it has failed, or whole."""
    patterns = ("*.partial.ipynb", "*.failed.ipynb", "*.ipynb")
    notebooks = (path for pattern in patterns for path in folder.glob(pattern))
    return next(filter(None, map(meters, notebooks)), [])


def show_new(folder: Path, shown: int) -> int:
    """Print the meters that have come since `shown` of them were; returns how many there are."""
    found = meters_so_far(folder)
    for meter in found[shown:]:
        print(said(meter), flush=True)
    return max(shown, len(found))


def failure(log: str, status: int) -> str | None:
    """What a lesson's output says of its failure: the line with the error, or `None` where all went well."""
    if status == 0:
        return None
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    marked = [line.removeprefix("FAILED: ") for line in lines if line.startswith("FAILED: ")]
    return (marked or lines or [""])[-1] or f"ended with status {status}"


def record_of(name: str, set_up: SetUp, options: argparse.Namespace, gpu: dict | None, found: dict) -> dict:
    """What is kept of one run: the lesson's record, or as much of it as is known, and the machine."""
    width, height, frames = set_up.size
    asked = {
        "model": set_up.model, "weights": options.weights, "offload": set_up.offload, "width": width, "height": height,
        "num_frames": frames, "steps": options.steps, "device": gpu["name"] if gpu else "cpu",
        "vram_cap_gib": options.vram_budget_gb if gpu else None, "versions": runs.versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    machine = {"setup": name, "lesson": set_up.lesson, "card_gib": gpu and gpu["vram_gib"], "asked": dict(options.p)}
    return asked | machine | found | {"torch": runs.versions()["torch"]}


def recorded(path: Path) -> str:
    """"done" where the record holds measured modes, "failed" where it does not, "" where there is none."""
    try:
        return "done" if json.loads(path.read_text(encoding="utf-8")).get("modes") else "failed"
    except (OSError, ValueError, AttributeError):
        return ""


def measure(options: argparse.Namespace, gpu: dict | None) -> int:
    """All set-ups that were asked for, one after another; returns how many have not come to their end."""
    records, work = options.out / f"lessons_{short_name(gpu)}", options.work
    names = [name for name in SET_UPS if not options.only or name in options.only]
    states = {name: "" if options.again else recorded(records / f"{name}.json") for name in names}
    todo = sorted((name for name in names if states[name] != "done"), key=lambda name: states[name] == "failed")
    for name in names:
        if states[name] == "done":
            print(f"{name}: recorded already (--again measures it once more)", flush=True)
    deadline, bad = time.monotonic() + 60 * options.minutes, 0
    for number, name in enumerate(todo):
        set_up, left = SET_UPS[name], deadline - time.monotonic()
        if left < min(LEAST_SECONDS, 60 * options.minutes / 2):
            print(f"time is up; not measured: {', '.join(todo[number:])}. Run the same command again.", flush=True)
            return bad + len(todo) - number
        filled = None
        size = "x".join(map(str, set_up.size)) if options.weights != "miniature" else "miniature"
        print(f"{name}: {set_up.lesson}, {size}, {set_up.offload}", flush=True)
        if options.weights == "dummy":
            try:
                filled = make_dummy(set_up.model, options.cache)
            except NotPossible as error:
                print(f"    not measured: {error}", flush=True)
                bad += 1
                continue
            print(f"    dummy checkpoint filled in {filled:.1f} s", flush=True)
        limit = max(1.0, min(60 * options.lesson_minutes, deadline - time.monotonic()))
        found = run(set_up, options, work / name, limit) | {"dummy_seconds": filled}
        path = runs.save(record_of(name, set_up, options, gpu, found), records / f"{name}.json")
        bad += bool(found["failed"])
        end = f"FAILED: {found['failed']}" if found["failed"] else "done"
        print(f"    {end}, {found['lesson_seconds']:.0f} s: {path}", flush=True)
        if options.drop_dummies and set_up.model not in {SET_UPS[later].model for later in todo[number + 1 :]}:
            shutil.rmtree(options.cache / set_up.model, ignore_errors=True)
    return bad


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text}: more than 0")
    return value


def _steps(text: str) -> int:
    if (value := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"{text}: two or more, for the first step is not like the others")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0 if all is recorded, 1 if something failed or is left, 2 if it could not begin."""
    parser = argparse.ArgumentParser(
        prog="python -m data.make.measure", description="Measure the lessons on a GPU, at full size, within a budget."
    )
    parser.add_argument("--only", nargs="+", choices=SET_UPS, metavar="SET_UP", help=f"some of {', '.join(SET_UPS)}")
    parser.add_argument("--again", action="store_true", help="also what is recorded already")
    parser.add_argument("--minutes", type=_positive, default=60.0, help="for all together (default: 60)")
    parser.add_argument("--lesson-minutes", type=_positive, default=20.0, help="for each lesson (default: 20)")
    parser.add_argument("--weights", choices=("dummy", "miniature"), default="dummy")
    parser.add_argument("--steps", type=_steps, default=2, help="of the final run (default: 2)")
    parser.add_argument("--vram-budget-gb", type=_positive, default=BUDGET_GIB, help="GiB (default: 12)")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="of the lessons")
    parser.add_argument("--out", type=Path, help="folder for lessons_<gpu>/ (default: data/measurements)")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "measure", help="what the lessons write")
    parser.add_argument("--cache", type=Path, default=CACHE, help="dummy checkpoints; its name is 'dummy'")
    parser.add_argument("--drop-dummies", action="store_true", help="delete each when no further set-up needs it")
    options = parser.parse_args(arguments)
    tried = options.weights == "miniature"  # no measurement of a model: not among the measurements
    options.out = (options.out or ROOT / ("outputs/measure" if tried else "data/measurements")).resolve()
    options.work, options.cache = options.work.resolve(), options.cache.expanduser().resolve()
    try:
        if options.cache.name != "dummy":
            raise NotPossible(f"--cache {options.cache}: the lessons look for a folder called 'dummy'.")
        assert {one.model for one in SET_UPS.values()} <= MODELS.keys()
        gpu = probe()
        check_gpu(gpu, options.weights, options.vram_budget_gb)
        print(f"on {gpu['name']}, {gpu['vram_gib']:.1f} GiB" if gpu else "on the CPU", flush=True)
        return int(measure(options, gpu) > 0)
    except (NotPossible, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
