"""Report how far a lesson is while papermill runs it: which cell, which denoising step, and how much time is left."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

from nbformat import NotebookNode
from papermill.engines import NBClientEngine, papermill_engines

from helpers.charts.mime import METER_JSON
from helpers.units import duration

ENGINE = "lesson"
SECONDS_BETWEEN_LINES = 30.0  # where the output is a file; a terminal's line is rewritten every second


class LessonEngine(NBClientEngine):
    """papermill's own engine; it keeps the notebook in reach while it runs, so that a `Heartbeat` can look at it."""

    running: NotebookNode | None = None

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        LessonEngine.running = nb_man.nb
        try:
            return super().execute_managed_notebook(nb_man, kernel_name, **options)
        finally:
            LessonEngine.running = None


papermill_engines.register(ENGINE, LessonEngine)


class Heartbeat:
    """Prints a line about the running cell now and then, until the `with` block ends."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self.on_terminal = self.out.isatty()
        self._stop, self._shown, self._started = threading.Event(), "", time.monotonic()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.on_terminal and self._shown:
            self.out.write("\r\x1b[K")
            self.out.flush()

    def _run(self) -> None:
        while not self._stop.wait(1.0 if self.on_terminal else SECONDS_BETWEEN_LINES):
            if line := status(LessonEngine.running):
                line = f"  {line} ({duration(time.monotonic() - self._started)} so far)"
                self.out.write(f"\r{line}\x1b[K" if self.on_terminal else f"{line}\n")
                self.out.flush()
                self._shown = line


def status(notebook: NotebookNode | None) -> str:
    """Where a running notebook is, such as "cell 31 of 44, generate: step 3 of 20, about 51 s left", or ""."""
    if notebook is None:
        return ""
    code = [cell for cell in list(notebook.cells) if cell.cell_type == "code"]
    running = [n for n, cell in enumerate(code) if cell.metadata.get("papermill", {}).get("status") == "running"]
    if not running:
        return ""
    cell = code[running[-1]]
    line = f"cell {running[-1] + 1} of {len(code)}, {cell.id}"
    meters = [output.get("data", {}).get(METER_JSON) for output in list(cell.outputs)]
    progress = next((meter["progress"] for meter in reversed(meters) if meter and meter.get("progress")), None)
    if progress and "line" in progress:
        line += f": {progress['line']}"
    elif progress:
        line += f": step {progress['step']} of {progress['steps']}"
        if progress["seconds_left"] is not None:
            line += f", about {duration(progress['seconds_left'])} left"
    return line
