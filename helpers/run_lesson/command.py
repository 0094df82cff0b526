"""The command line of `python -m helpers.run_lesson`."""

import argparse
import ast
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.run_lesson.running import (
    RESULTS,
    ROOT,
    LessonError,
    LessonFailed,
    check_parameters,
    find_lesson,
    run_lesson,
    shown_path,
)

PATHS = ("clip", "weights")  # parameters that may be paths; they count from the current folder, as --out does


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Return 0, or 1 if the lesson failed, or 2 if the request is invalid."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.run_lesson", description="Run a lesson without a browser."
    )
    parser.add_argument("lesson", help="a name in notebooks/, such as 01_ltx_video, or the path of a notebook")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for the lesson's results (default: outputs in the project)"
    )
    parser.add_argument(
        "--timeout", type=float, help="the most seconds that one cell may take (default: no limit)"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="show papermill's progress and the cells' output"
    )
    options = parser.parse_args(arguments)
    try:
        notebook = find_lesson(options.lesson)
        types = check_parameters(notebook, dict(options.p))
        parameters = {name: parse_value(value, types[name]) for name, value in options.p}
        parameters |= {name: from_here(parameters[name]) for name in PATHS if name in parameters}
        out_dir = Path(options.out or parameters.get("out_dir") or ROOT / "outputs").resolve()
        if "out_dir" in types:
            parameters["out_dir"] = str(out_dir)
        print(f"Running {shown_path(notebook)} ...", flush=True)
        run = run_lesson(notebook, parameters, out_dir, options.timeout, options.verbose, heartbeat=not options.verbose)
    except LessonError as error:
        print(error, file=sys.stderr)
        return 2
    except LessonFailed as error:
        print(f"FAILED: {notebook.stem}, {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Run the same command again: latents that are finished are kept.", file=sys.stderr)
        return 130
    print(f"Done in {run.seconds:.0f} s.")
    for path in run.written:
        print(f"  {RESULTS[path.name]:<9}{shown_path(path)}")
    for path in run.written:
        if path.name == "run.json":
            for sentence in remarks_in(path):
                print(f"  {sentence}")
    print(f"  {'notebook':<9}{shown_path(run.notebook)}")
    return 0


def remarks_in(record: Path) -> list[str]:
    """What a reader should know of a result, a sentence each: how the clip was kept, for example."""
    try:
        return json.loads(record.read_text(encoding="utf-8"))["joined"]["remarks"]
    except (ValueError, KeyError, TypeError):  # of a reader's own lesson
        return []


def from_here(value: Any) -> Any:
    """A path as an absolute one, because the lesson runs in another folder; names such as "excavator" are unchanged.

    A value is taken for a path if something is there, or if it looks like one, so that an error names the full path.
    """
    if not isinstance(value, str) or not value.strip():
        return value
    path = Path(value).expanduser()
    return str(path.absolute()) if path.exists() or path.suffix or len(path.parts) > 1 else value


def parse_value(text: str, type_name: str) -> Any:
    """The value of `text` on the command line: None, a number, True or False, else a string."""
    if text == "None":
        return None
    if re.match(r"(Optional\[)?str\b", type_name):
        return text
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
