"""An owner's first evening, played: a fresh copy of the project, a clip of one's own, the README's own lines."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from helpers.clips.video.ffmpeg import ffmpeg_path
from tests.notebook_style import ROOT
from tests.what_is_in_git import in_git, readme_commands

pytestmark = [pytest.mark.run_lesson, pytest.mark.notebook]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A copy of what is in git, in which the environment of these tests takes the place of the one that make makes."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    folder = tmp_path_factory.mktemp("evening") / "clip-extension-lessons"
    for path in in_git():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    scripts = folder / ".venv" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for name, module in (("clip-forecast", "helpers.forecast"), ("clip-lesson", "helpers.run_lesson")):
        (scripts / name).write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" -m {module} "$@"\n')
    for script in scripts.iterdir():
        script.chmod(0o755)
    (folder / ".venv" / ".ready").touch()  # newer than what it depends on, so that make sets nothing up
    return folder


def own_clip(folder):
    subprocess.run(
        [ffmpeg_path(), "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=320x180:rate=24:duration=1",
         "-pix_fmt", "yuv420p", str(folder / "my_clip.mp4")],
        check=True,
    )  # fmt: skip


def run(words, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=environment, check=False)


def test_the_line_with_ones_own_clip_makes_it_longer_from_the_root(home):
    own_clip(home)
    (line,) = (line for line in readme_commands() if "ARGS" in line)
    quick = line.replace("-p weights pretrained", "-p steps 1 -p num_frames 9")  # the miniature, and little of it
    assert quick != line
    done = run(shlex.split(quick), home)
    assert done.returncode == 0, done.stderr
    (video,) = (home / "outputs").rglob("continued.mp4")
    assert video.parent == home / "outputs" / "ltx_video" / "my_clip"
    assert json.loads((video.parent / "run.json").read_text())["steps"] == 1
    assert "knows only the" in done.stdout + done.stderr, "a miniature and one's own clip: said plainly"


def test_wrong_values_are_all_named_from_elsewhere_too(home, tmp_path):
    own_clip(tmp_path)
    lesson = [str(home / ".venv" / "bin" / "clip-lesson"), "01_ltx_video"]
    given = {"clip": "my_clip.mp4", "prompt": "x", "num_frames": "50", "offload": "group-leaf"}
    done = run([*lesson, *(word for name, value in given.items() for word in ("-p", name, value))], tmp_path)
    assert done.returncode == 1
    assert "num_frames=50" in done.stderr and "nearest: 'group_leaf'" in done.stderr
    assert "my_clip.mp4 does not exist" not in done.stderr and not list(tmp_path.rglob("continued.mp4"))


def test_the_forecast_answers_as_printed(home):
    (line,) = (line for line in readme_commands() if "clip-forecast" in line)
    done = run(shlex.split(line), home)
    assert done.returncode == 0 and "It fits: group_leaf is the fastest mode that fits" in done.stdout, done.stderr
