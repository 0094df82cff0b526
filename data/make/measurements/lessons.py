"""Measure the lessons on a GPU: the six set-ups at full size, with random weights, within 12 GiB.

python -m data.make.measurements.lessons                                      # all set-ups; resumes where it stopped
python -m data.make.measurements.lessons --only svd_xt ltx_video --minutes 9  # some of them, within a total time
python -m data.make.measurements.lessons --weights miniature --only svd_xt    # a trial run without a GPU, in outputs/

Each lesson runs in a separate process, as if started from a shell. When it ends, its record is written to
data/measurements/lessons_<gpu>/<set-up>.json: the lesson's own run.json, and the peaks and seconds of all meters that
it showed, including the decoding. If a lesson fails or runs out of time, the record has what was measured so far and
the last error, and the next lesson starts. Recorded set-ups are skipped; failed ones are tried again after the others.
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
from datetime import UTC, datetime
from pathlib import Path

import psutil

from data.make import ROOT
from helpers.forecast import find_gpu
from helpers.measure import save, versions
from helpers.models import CACHE, DummyError, dummy_folder

from .lesson_meters import line_of, meters_so_far
from .set_ups import BUDGET_GIB, SET_UPS, SetUp

LEAST_SECONDS = 60  # with less time left, no further lesson is started
DESCRIPTION = "Measure the lessons on a GPU, at full size, within a VRAM budget."
POLL_SECONDS = 3  # between two looks at the progress of a lesson
# The most informative first, because time may run out.
ORDER = ("wan22_i2v_a14b_720p", "cogvideox_5b_i2v", "ltx_video", "svd_xt", "wan22_i2v_a14b", "wan22_ti2v_5b")


class NotPossible(Exception):
    """A set-up cannot be measured on this machine. The message says why and what to do."""


PROBE = """
import json, torch
if torch.cuda.is_available():
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info())
    print(json.dumps({"name": torch.cuda.get_device_name(), "vram_gib": total, "free_gib": free}))
"""


def probe() -> dict | None:
    """The first GPU's name, memory and free memory in GiB, or `None`.

    Queried in a separate process, so that this one does not start CUDA.
    """
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines else None


def check_gpu(gpu: dict | None, weights: str, budget: float) -> None:
    """Check that there is a GPU with as much free memory as the budget; miniatures need none.

    Raises:
        NotPossible: If there is not.
    """
    if weights == "miniature":
        return
    if gpu is None:
        raise NotPossible(
            f"PyTorch finds no CUDA device here, and weights={weights!r} can only be measured on one. To try the "
            "command without a GPU, use --weights miniature."
        )
    if gpu["free_gib"] < budget:
        raise NotPossible(
            f"{gpu['name']} has {gpu['free_gib']:.1f} of {gpu['vram_gib']:.1f} GiB free, less than the budget of "
            f"{budget:g}. Stop other programs that use it, or set --vram-budget-gb."
        )


def short_name(gpu: dict | None) -> str:
    """The name of a GPU for a folder: its name in `helpers.forecast.GPUS` if it is listed there."""
    if gpu is None:
        return "cpu"
    known = find_gpu(gpu["name"], gpu.get("vram_gib"))
    name = known.name if known else gpu["name"].removeprefix("NVIDIA ").removeprefix("GeForce ")
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def make_dummy(model: str, cache: Path) -> float:
    """Create a model's dummy checkpoint in the cache; returns the seconds it took.

    Raises:
        NotPossible: If the disk has too little space. Nothing is written then.
    """
    began = time.monotonic()
    try:
        dummy_folder(model, cache=cache)
    except (DummyError, OSError) as error:
        for folder in (cache / model, cache):
            with contextlib.suppress(OSError):
                folder.rmdir()  # only succeeds if it is empty
        raise NotPossible(str(error)) from None
    return time.monotonic() - began


def parameters(set_up: SetUp, options: argparse.Namespace) -> dict[str, str]:
    """The lesson's parameters. A miniature keeps its own size."""
    width, height, frames = set_up.size
    size = {} if options.weights == "miniature" else {"width": width, "height": height, "num_frames": frames}
    return {
        "weights": options.weights, "offload": set_up.offload, "steps": options.steps,
        "vram_budget_gb": options.vram_budget_gb, **size, **dict(options.p),
    }  # fmt: skip


@contextlib.contextmanager
def killed_with_descendants(process: subprocess.Popen) -> Iterator[None]:
    """A context that kills a process and its descendants, kernels included, if it is left while the process runs."""
    try:
        yield
    finally:
        if process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                descendants = psutil.Process(process.pid).children(recursive=True)
                process.kill()  # first, so that it cannot continue without them
                for one in descendants:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
                psutil.wait_procs(descendants, timeout=10)
            process.wait()


def run(set_up: SetUp, options: argparse.Namespace, folder: Path, seconds: float) -> dict:
    """Run one lesson for at most `seconds`; returns its run.json if there is one, its meters, and why it failed."""
    shutil.rmtree(folder, ignore_errors=True)  # a lesson would reuse the latents that it finds
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
        with killed_with_descendants(process):
            while process.poll() is None and not timed_out:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(POLL_SECONDS, max(0.1, began + seconds - time.monotonic())))
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
        path = next((folder / set_up.model).rglob("run.json"), folder / "run.json")
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
        failed = failed or "the lesson left no run.json"
    return record | {"failed": failed, "lesson_seconds": taken, "meters": record.get("meters") or read}


def show_new(folder: Path, shown: int) -> int:
    """Print the meters after the first `shown`; returns how many there are now."""
    found = meters_so_far(folder)
    for stage, meter in list(found.items())[shown:]:
        print(line_of(stage, meter), flush=True)
    return max(shown, len(found))


def failure(log: str, status: int) -> str | None:
    """The line of a lesson's output with its error, or `None` if it succeeded."""
    if status == 0:
        return None
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    marked = [line.removeprefix("FAILED: ") for line in lines if line.startswith("FAILED: ")]
    return (marked or lines or [""])[-1] or f"ended with status {status}"


def record_of(name: str, set_up: SetUp, options: argparse.Namespace, gpu: dict | None, found: dict) -> dict:
    """The record of one run: the lesson's own, or as much of it as is known, and the machine."""
    width, height, frames = set_up.size
    asked = {
        "model": set_up.model, "weights": options.weights, "offload": set_up.offload, "width": width, "height": height,
        "num_frames": frames, "steps": options.steps, "device": gpu["name"] if gpu else "cpu",
        "vram_cap_gib": options.vram_budget_gb if gpu else None, "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    machine = {"setup": name, "lesson": set_up.lesson, "card_gib": gpu and gpu["vram_gib"], "asked": dict(options.p)}
    return asked | machine | found | {"torch": versions()["torch"]}


def recorded(path: Path) -> str:
    """Whether a record has measured modes ("done") or not ("failed"); "" if there is none."""
    try:
        return "done" if json.loads(path.read_text(encoding="utf-8")).get("modes") else "failed"
    except (OSError, ValueError, AttributeError):
        return ""


def measure(options: argparse.Namespace, gpu: dict | None) -> int:
    """Measure the requested set-ups one after another; returns how many are not complete."""
    records, work = options.out / f"lessons_{short_name(gpu)}", options.work
    names = [name for name in ORDER if name in SET_UPS and (not options.only or name in options.only)]
    states = {name: "" if options.again else recorded(records / f"{name}.json") for name in names}
    todo = sorted((name for name in names if states[name] != "done"), key=lambda name: states[name] == "failed")
    for name in names:
        if states[name] == "done":
            print(f"{name}: recorded already (--again measures it again)", flush=True)
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
            print(f"    dummy checkpoint created in {filled:.1f} s", flush=True)
        limit = max(1.0, min(60 * options.lesson_minutes, deadline - time.monotonic()))
        found = run(set_up, options, work / name, limit) | {"dummy_seconds": filled}
        path = save(record_of(name, set_up, options, gpu, found), records / f"{name}.json")
        bad += bool(found["failed"])
        end = f"FAILED: {found['failed']}" if found["failed"] else "done"
        print(f"    {end}, {found['lesson_seconds']:.0f} s: {path}", flush=True)
        if options.drop_dummies and set_up.model not in {SET_UPS[later].model for later in todo[number + 1 :]}:
            shutil.rmtree(options.cache / set_up.model, ignore_errors=True)
    return bad


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text}: must be more than 0")
    return value


def _steps(text: str) -> int:
    if (value := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"{text}: must be two or more, because the first step differs from the others")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0 if all set-ups are recorded, 1 if some failed or remain, 2 if it could not start."""
    parser = argparse.ArgumentParser(prog="python -m data.make.measurements.lessons", description=DESCRIPTION)
    add = parser.add_argument
    add("--only", nargs="+", choices=SET_UPS, metavar="SET_UP", help=f"any of {', '.join(SET_UPS)}")
    add("--again", action="store_true", help="measure recorded set-ups again")
    add("--minutes", type=_positive, default=60.0, help="for all set-ups together (default: 60)")
    add("--lesson-minutes", type=_positive, default=20.0, help="for each lesson (default: 20)")
    add("--weights", choices=("dummy", "miniature"), default="dummy")
    add("--steps", type=_steps, default=2, help="denoising steps of the final run (default: 2)")
    add("--vram-budget-gb", type=_positive, default=BUDGET_GIB, help="GiB (default: 12)")
    add("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter of the lessons")
    add("--out", type=Path, help="folder for lessons_<gpu>/ (default: data/measurements)")
    add("--work", type=Path, default=ROOT / "outputs" / "measure", help="folder for the lessons' outputs")
    add("--cache", type=Path, default=CACHE, help="folder of the dummy checkpoints; must be called 'dummy'")
    add("--drop-dummies", action="store_true", help="delete each dummy checkpoint after its last set-up")
    options = parser.parse_args(arguments)
    tried = options.weights == "miniature"  # measures no real model, so it does not belong in data/measurements
    options.out = (options.out or ROOT / ("outputs/measure" if tried else "data/measurements")).resolve()
    options.work, options.cache = options.work.resolve(), options.cache.expanduser().resolve()
    try:
        if options.cache.name != "dummy":
            raise NotPossible(f"--cache {options.cache}: the lessons expect a folder called 'dummy'.")
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
