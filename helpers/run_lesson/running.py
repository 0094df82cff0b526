"""Execute a lesson with papermill, as `make run` does.

Papermill runs the notebook from top to bottom, with this Python as its kernel and the notebook's folder as its working
directory. On its own it is too lenient: it only warns of an unknown parameter, and a cell that calls `sys.exit(0)`
counts as success. Here both are errors.
"""

import difflib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
TRACEBACK_LINES = 12  # enough to show the failing line and the error
RESULTS = {"continued.mp4": "clip", "poster.png": "poster", "run.json": "record"}  # what a lesson writes


# Errors of the lessons that say what to do: no traceback could add to them. A list of them becomes one line.
CLEAR_ERRORS = {
    "ArchitectureError", "CheckpointError", "ClipError", "DownloadError", "DummyError", "EnvironmentProblem",
    "GGUFError", "HopError", "ParameterError", "RequestError",
}  # fmt: skip
LIST = "\n- "


class LessonError(Exception):
    """The request is invalid: there is no such lesson or parameter."""


class LessonFailed(Exception):
    """A cell of the lesson failed, or some cells did not run."""


@dataclass
class Run:
    """A finished run: the executed notebook, the results that it wrote, and the seconds that it took."""

    notebook: Path
    written: list[Path] = field(default_factory=list)
    seconds: float = 0.0


WIDGET = "application/vnd.jupyter.widget-view+json"


def find_lesson(name: str) -> Path:
    """The notebook called `name`: a path to an .ipynb file, or a name in notebooks/ without the suffix."""
    for path in (Path(name), NOTEBOOKS / name, NOTEBOOKS / f"{name}.ipynb"):
        if path.suffix == ".ipynb" and path.is_file():
            return path.resolve()
    known = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    raise LessonError(f"There is no lesson {name!r}." + _nearest(Path(name).stem, known, "The lessons are"))


def check_parameters(notebook: Path, given: Mapping[str, Any]) -> dict[str, str]:
    """Annotations of the notebook's parameters by name, as written in its cell tagged `parameters`.

    Raises:
        LessonError: If `given` has an unknown name, or the notebook does not have exactly one such cell.
    """
    import papermill  # slow to import, so only when a lesson is run

    cells = nbformat.read(notebook, as_version=4).cells
    tagged = sum("parameters" in cell.metadata.get("tags", []) for cell in cells)
    if tagged > 1 or (given and not tagged):
        raise LessonError(f"{notebook.name} has {tagged} cells tagged `parameters` and needs exactly one.")
    found = papermill.inspect_notebook(notebook)
    types = {name: parameter["inferred_type_name"] for name, parameter in found.items()}
    for name in given:
        if name not in types:
            hint = _nearest(name, types, "Its parameters are")
            raise LessonError(f"{notebook.stem} has no parameter {name!r}." + hint)
    return types


def run_lesson(
    notebook: Path,
    parameters: Mapping[str, Any],
    out_dir: Path,
    timeout: float | None = None,
    verbose: bool = False,
    heartbeat: bool = False,
) -> Run:
    """Execute `notebook`, and keep the executed copy in `out_dir`.

    Args:
        timeout: The most seconds that one cell may take; `None` for no limit, because a real model takes minutes or
            hours to generate, and downloads run in cells, too.
        verbose: Whether to show papermill's progress and the output of the cells.
        heartbeat: Whether to print now and then which cell is running, at which step, and how much time is left.

    The copy is written under a temporary name and then renamed, so a copy you find is complete.

    Raises:
        LessonFailed: With the failing cell's id, the end of its traceback and the path of the partly executed notebook.
    """
    import papermill

    from helpers.run_lesson.progress import ENGINE, Heartbeat  # imports papermill, too

    logging.getLogger("papermill").setLevel(logging.INFO if verbose else logging.ERROR)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LessonError(f"out_dir={str(out_dir)!r} cannot be made: {error.strerror}. Choose another.") from error
    temporary = out_dir / f"{notebook.stem}.{os.getpid()}.partial.ipynb"
    final, failed = out_dir / f"{notebook.stem}.ipynb", out_dir / f"{notebook.stem}.failed.ipynb"
    before, started = _stamps(out_dir), time.monotonic()
    stopped_by = ""
    try:
        with _this_python_as_kernel(), Heartbeat() if heartbeat else nullcontext():
            papermill.execute_notebook(
                notebook,
                temporary,
                parameters=dict(parameters),
                engine_name=ENGINE,
                kernel_name="python3",
                cwd=notebook.parent,
                execution_timeout=timeout,
                progress_bar=verbose,
                log_output=verbose,
            )
    except papermill.PapermillExecutionError:
        pass  # the notebook has kept the error
    except Exception as error:  # the kernel died, a cell took too long, ...
        stopped_by = _first_lines(str(error), 2) or type(error).__name__
        if isinstance(error, TimeoutError):
            stopped_by = f"timed out after {timeout:g} s: give more with --timeout, or leave it out for no limit"
    except KeyboardInterrupt:
        temporary.unlink(missing_ok=True)
        raise
    problem = _problem(temporary, stopped_by)
    if problem:
        if temporary.exists():
            os.replace(temporary, failed)
            problem += f"\nPartly executed notebook: {shown_path(failed)}"
        raise LessonFailed(problem)
    nbformat.write(without_widgets(nbformat.read(temporary, as_version=4)), temporary)
    os.replace(temporary, final)
    failed.unlink(missing_ok=True)
    written = [path for path, stamp in _stamps(out_dir).items() if before.get(path) != stamp]
    return Run(final, written, time.monotonic() - started)


def without_widgets(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """`notebook` without its widgets: they need a kernel, and not every page can show them."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if WIDGET not in one.get("data", {})]
    return notebook


@contextmanager
def _this_python_as_kernel():
    """Make the kernel name `python3` mean this interpreter, whichever kernels are installed elsewhere."""
    from ipykernel.kernelspec import write_kernel_spec

    # Without these two settings the kernel warns about frozen modules and unencrypted sockets.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    quiet = ["--log-level=CRITICAL"]
    kept = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernels").mkdir()
        write_kernel_spec(str(Path(folder) / "kernels" / "python3"), extra_arguments=quiet)
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, kept]))
        try:
            yield
        finally:
            if kept is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = kept


def _problem(executed: Path, stopped_by: str) -> str:
    """What went wrong, according to the executed notebook; empty if every code cell ran without an error."""
    cells = nbformat.read(executed, as_version=4).cells if executed.exists() else []
    code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
    if stopped_by:
        reached = [cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")]
        return f"cell `{reached[-1].id}`: {stopped_by}" if reached else stopped_by
    for cell in code:
        for output in cell.outputs:
            if output.output_type == "error":
                trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback)).rstrip().splitlines()
                trace = [line for line in trace if line.strip(" -")]
                if output.ename in CLEAR_ERRORS:
                    said = output.evalue.replace(":" + LIST, ": ").replace("." + LIST, "; ").replace(LIST, "; ")
                    return f"cell `{cell.id}`: {said}"
                error = f"{output.ename}: {output.evalue}".rstrip(": ")
                if not trace or _first_lines(error, 1) not in trace[-TRACEBACK_LINES:]:
                    trace.append(error)
                shown = "\n".join(f"    {line}" for line in trace[-TRACEBACK_LINES:])
                return f"cell `{cell.id}`: {error.splitlines()[-1]}\n{shown}"
        if cell.execution_count is None:
            return f"cell `{cell.id}`: was never run"
    return "" if cells else "no notebook was written"


def _stamps(out_dir: Path) -> dict[Path, int]:
    """The results in `out_dir`, and when each was last written."""
    paths: Iterable[Path] = (path for name in RESULTS for path in sorted(out_dir.glob(f"*/**/{name}")))
    return {path: path.stat().st_mtime_ns for path in paths}


def _nearest(name: str, known: Iterable[str], introduction: str) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return f"{guess} {introduction}: {', '.join(known) or '(none)'}."


def _first_lines(text: str, count: int) -> str:
    return "\n".join(text.strip().splitlines()[:count])


def shown_path(path: Path) -> str:
    """`path` as you would type it: relative to the current folder if it is inside, else absolute."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
