"""The runner behind `make run`: what it refuses, what it tells about a failure, and what it leaves."""

import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from helpers import run_lesson
from helpers.run_lesson import progress
from helpers.run_lesson.command import from_here

pytestmark = pytest.mark.run_lesson

PARAMETERS = "\n".join(
    [
        "from typing import Optional",
        "clip: str = 'excavator'  # which clip",
        "steps: Optional[int] = None  # how many",
        "out_dir: str = 'outputs'  # where",
    ]
)
WRITE = """\
from pathlib import Path
folder = Path(out_dir) / "tiny"
folder.mkdir(parents=True, exist_ok=True)
for name in ("continued.mp4", "poster.png", "run.json"):
    (folder / name).write_text(f"{clip} {steps!r}")"""


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    """Makes a notebook of the given code cells; calling the runner on it gives the exit status."""
    monkeypatch.chdir(tmp_path)

    def lesson(*sources, arguments=(), tags=("parameters",)):
        cells = [new_code_cell(PARAMETERS, id="parameters", metadata={"tags": list(tags)})]
        cells += [new_code_cell(source, id=f"step-{number}") for number, source in enumerate(sources, 1)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        (tmp_path / "lessons").mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "lessons/01_tiny.ipynb")
        return run_lesson.main(["lessons/01_tiny.ipynb", "--out", "out", *arguments])

    return lesson


def test_success_prints_where_things_are(lesson, tmp_path, capsys):
    (tmp_path / "out/other").mkdir(parents=True)
    (tmp_path / "out/other/run.json").write_text("of an earlier lesson")
    assert lesson(WRITE, arguments=["-p", "clip", "007", "-p", "steps", "3"]) == 0
    out = capsys.readouterr().out
    for name in ("continued.mp4", "poster.png", "run.json"):
        assert (tmp_path / "out/tiny" / name).read_text() == "007 3"
        assert str((tmp_path / "out/tiny" / name).relative_to(tmp_path)) in out
    assert "Done in" in out and "other" not in out
    executed = nbformat.read(tmp_path / "out/01_tiny.ipynb", as_version=4)
    assert executed.cells[-1].execution_count
    assert [path.name for path in (tmp_path / "out").glob("*.ipynb")] == ["01_tiny.ipynb"]


def test_works_in_the_notebooks_folder_with_this_python(lesson, tmp_path, capsys):
    (tmp_path / "lessons").mkdir()
    code = "import os, sys\nfrom pathlib import Path\nPath('here').write_text(sys.executable)"
    assert lesson(code) == 0
    assert (tmp_path / "lessons/here").read_text() == sys.executable


def test_paths_count_from_the_current_folder(lesson, tmp_path):
    (tmp_path / "mine.mp4").touch()
    assert lesson(WRITE, arguments=["-p", "clip", "mine.mp4"]) == 0
    assert (tmp_path / "out/tiny/run.json").read_text() == f"{tmp_path / 'mine.mp4'} None"


@pytest.mark.parametrize(
    ("given", "expected"),
    [("gone.mp4", "HERE/gone.mp4"), ("clips/a", "HERE/clips/a"), ("excavator", "excavator"), ("", ""), (None, None)],
)
def test_only_paths_are_made_absolute(tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(tmp_path)
    assert from_here(given) == (expected and expected.replace("HERE", str(tmp_path)))


def test_errors_that_say_what_to_do_are_one_line(lesson, capsys):
    message = "2 cannot be used:\\n- a=1: odd\\n- b=2: even"
    assert lesson(f"class ParameterError(ValueError): ...\nraise ParameterError('{message}')") == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "FAILED: 01_tiny, cell `step-1`: 2 cannot be used: a=1: odd; b=2: even"
    assert second.startswith("Partly executed notebook")


def test_unknown_parameter(lesson, tmp_path, capsys):
    assert lesson(WRITE, arguments=["-p", "step", "3"]) == 2
    assert "no parameter 'step'. Did you mean 'steps'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tags", [(), ("parameter",)])
def test_no_parameters_cell(lesson, capsys, tags):
    assert lesson(WRITE, arguments=["-p", "steps", "3"], tags=tags) == 2
    assert "0 cells tagged `parameters`" in capsys.readouterr().err


def test_unknown_lesson(capsys):
    assert run_lesson.main(["01_ltx_vidoe"]) == 2
    assert "no lesson '01_ltx_vidoe'" in capsys.readouterr().err


def test_failing_cell(lesson, tmp_path, capsys):
    assert lesson("a = 1", "def f():\n    raise ValueError('too wide')\nf()", "b = 2") == 1
    captured = capsys.readouterr()
    assert "cell `step-2`: ValueError: too wide" in captured.err
    assert len(captured.err.splitlines()) < 20
    assert str((tmp_path / "out/01_tiny.failed.ipynb").relative_to(tmp_path)) in captured.err
    assert "step-2" in (tmp_path / "out/01_tiny.failed.ipynb").read_text()
    assert not (tmp_path / "out/01_tiny.ipynb").exists()
    assert lesson("a = 1") == 0
    assert not (tmp_path / "out/01_tiny.failed.ipynb").exists()


@pytest.mark.parametrize("code", ["import sys; sys.exit(0)", "raise SystemExit"])
def test_leaving_early_is_a_failure(lesson, capsys, code):
    assert lesson(code, "b = 2") == 1
    assert "cell `step-1`: SystemExit" in capsys.readouterr().err


def test_leaving_in_the_last_cell_is_a_failure(lesson, capsys):
    assert lesson("a = 1", "import sys; sys.exit(0)") == 1
    assert "cell `step-2`: SystemExit" in capsys.readouterr().err


def test_timeout(lesson, capsys):
    assert lesson("import time; time.sleep(60)", "b = 2", arguments=["--timeout", "2"]) == 1
    err = capsys.readouterr().err
    assert "cell `step-1`: timed out after 2 s: give more with --timeout" in err


SLOW_STEPS = """\
import time
from helpers.measure import StepTimer, VRAMMeter
class Pipe:
    num_timesteps = 4
with VRAMMeter("generate", interval=0.05):
    timer = StepTimer()
    for step in range(4):
        time.sleep(0.6)
        timer(Pipe(), step, None, {})"""


def test_a_long_cell_tells_how_far_it_is(lesson, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.1)
    assert lesson("a = 1", SLOW_STEPS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("cell 4 of 4, step-2: step 2 of 4, about 1 s left" in line for line in lines), lines
    assert any("cell 4 of 4, step-2: step 1 of 4 (" in line for line in lines), "no estimate after one step"


SLOW_HOPS = """\
import time
from helpers.hops import Progress
hops = Progress(3, steps=4)
for _ in range(3):
    time.sleep(0.6)
    hops.hop()"""


def test_a_long_run_of_hops_tells_at_which_it_is(lesson, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.1)
    assert lesson("a = 1", SLOW_HOPS) == 0
    out = capsys.readouterr().out
    assert "step-2: hop 2 of 3, step 0 of 4, about 1 s left (" in out, out


def test_before_the_first_cell_there_is_nothing_to_tell():
    assert progress.status(None) == "" == progress.status(new_notebook(cells=[new_code_cell("a = 1")]))


def test_dead_kernel(lesson, capsys):
    assert lesson("import os; os._exit(3)", "b = 2") == 1
    err = capsys.readouterr().err
    assert "cell `step-1`" in err and "died" in err


@pytest.mark.parametrize(
    "text, type_name, value",
    [("None", "Optional[str]", None), ("12", "str", "12"), ("12", "int", 12), ("1.5", "Optional[float]", 1.5),
     ("True", "bool", True), ("abc", "int", "abc"), ("-3", "int", -3)],
)  # fmt: skip
def test_values(text, type_name, value):
    assert run_lesson.parse_value(text, type_name) == value
