"""The files that install, run and test the project agree, and nothing in git is too large."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from helpers.run_lesson.running import check_parameters, find_lesson
from tests.notebook_style import ROOT, notebooks, repository
from tests.what_is_in_git import in_git, readme_commands

MB = 10**6
LARGEST_FILE = 4 * MB
LARGER: dict[str, int] = {  # a file that must be larger: its path, and how large at most
    f"data/miniatures/{name}/vae/diffusion_pytorch_model.safetensors": 6 * MB
    for name in ("ltx_video", "wan22_ti2v_5b", "wan22_i2v_a14b")
} | {
    "data/miniatures/svd_xt/unet/diffusion_pytorch_model.safetensors": 5 * MB,
    "data/miniatures/ltx_video/transformer/diffusion_pytorch_model.safetensors": 5.3 * MB,
    "data/miniatures/wan22_ti2v_5b/transformer/diffusion_pytorch_model.safetensors": 4.1 * MB,
}
FOLDERS = {"data/miniatures": 36 * MB, "data/clips": 8 * MB}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


PROJECT = tomllib.loads(read("pyproject.toml"))["project"]
GROUPS = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
REQUIREMENTS = {
    canonicalize_name(requirement.name): requirement
    for requirement in (Requirement(line) for group in GROUPS for line in group)
    if requirement.name != PROJECT["name"]
}
PINS = [
    Requirement(line) for line in read("constraints.txt").splitlines() if line and not line.startswith("#")
]


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_constraints_pin_every_dependency_within_its_range(name):
    pins = [pin for pin in PINS if canonicalize_name(pin.name) == name]
    assert len(pins) == 1, f"constraints.txt has {len(pins)} lines for {name}"
    (specifier,) = pins[0].specifier
    assert REQUIREMENTS[name].specifier.contains(specifier.version)


def test_constraints_hold_on_every_platform():
    for pin in PINS:
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and not pin.marker and not pin.url, str(pin)
        assert Version(specifier.version).local is None, f"{pin} is one platform's build"


def test_ranges_are_open():
    for requirement in REQUIREMENTS.values():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert ">=" in operators and operators <= {">=", "!="}, str(requirement)


def test_hosted_notebooks_keep_their_own_jupyter():
    needed = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert not needed & {"ipykernel", "ipython", "jupyterlab", "notebook", "papermill"}


def test_conda_installs_the_same():
    lines = [line.strip() for line in read("environment.yml").splitlines()]
    pip = lines[lines.index("- pip:") + 1 :]
    assert pip == ["- -c constraints.txt", "- -e .[test]"]
    python = next(line for line in lines if line.startswith("- python="))
    assert python.removeprefix("- python=") in Requirement(f"python{PROJECT['requires-python']}").specifier


def test_makefile():
    makefile = read("Makefile")
    for target in ("help", "run", "lab", "pages", "test", "test-browser", "lint", "clean-notebooks"):
        assert re.search(rf"^{target}:.*## \S", makefile, re.M), f"make {target}"
    assert "-c constraints.txt -e '.[test]'" in makefile
    assert "pyproject.toml constraints.txt" in makefile


def test_ci_runs_what_readme_says():
    script = ROOT / ".ci/run"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert {"set -euo pipefail", "make test", "exec make test-browser"} <= set(lines)
    assert os.name == "nt" or os.access(script, os.X_OK)
    readme = read("README.md")
    assert re.search(r"\bmake run\b", readme) and re.search(r"\bmake test\b", readme)


def setup_cell(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return next((cell.source for cell in cells if cell.get("id") == "setup"), "")


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_setup_cell_installs_this_project_and_nothing_else(path):
    source = setup_cell(path)
    assert source, "no cell `setup`"
    clones = re.findall(r"git clone (.*)", source)
    assert [line.split()[-1].removesuffix(".git") for line in clones] == [repository()]
    assert f"%cd {repository().rsplit('/', 1)[-1]}" in source
    installs = re.findall(r"\bpip3? install (.*)", source)
    assert [[word for word in line.split() if word not in ("-q", "--quiet")] for line in installs] == [
        ["-e", "."]
    ]


def test_setup_cells_are_the_same():
    assert notebooks(), "notebooks/ has no notebook"
    assert len({setup_cell(path) for path in notebooks()}) == 1


def test_no_file_is_too_large():
    sizes = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in in_git()}
    assert {name: size for name, size in sizes.items() if size > LARGER.get(name, LARGEST_FILE)} == {}


@pytest.mark.parametrize("folder, most", FOLDERS.items())
def test_no_folder_is_too_large(folder, most):
    assert sum(path.stat().st_size for path in in_git() if (ROOT / folder) in path.parents) <= most


def test_the_ten_questions_are_answered_where_the_guide_says():
    guide = read("CONTRIBUTING.md")
    questions = re.findall(r"^(\d+)\. .+?\((\d\d), \"(.+?)\"\)", guide.split("## Ten questions")[1], re.M | re.S)
    assert [int(number) for number, *_ in questions] == list(range(1, 11))
    for _, lesson, heading in questions:
        (path,) = (ROOT / "notebooks").glob(f"{lesson}_*.ipynb")
        headings = [
            line.lstrip("# ") for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"
            for line in cell.source.splitlines() if line.startswith("#")
        ]  # fmt: skip
        assert heading in headings, (lesson, heading)


def test_the_readmes_commands_are_ones_that_exist(tmp_path, monkeypatch):
    """Every line of the README's blocks, from another folder: make's targets, the lesson's parameters, the forecast."""
    lines = readme_commands()
    assert len(lines) == 4 and len(read("README.md").splitlines()) <= 120
    (tmp_path / "my_clip.mp4").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for line in lines:
        words = shlex.split(line)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", read("Makefile"), re.M), line
            given = shlex.split(words[2].removeprefix("ARGS=")) if len(words) > 2 else []
            names = dict(zip(given[1::3], given[2::3], strict=True))
            assert set(given[::3]) <= {"-p"}
            check_parameters(find_lesson("01_ltx_video"), names)
        else:
            script = PROJECT["scripts"][words[0].removeprefix(".venv/bin/")].split(":")[0]
            done = subprocess.run(
                [sys.executable, "-m", script, *words[1:]], cwd=tmp_path,
                env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0 and "It fits: group_leaf" in done.stdout, done.stderr
            assert f"{mode_and_time(done.stdout)} in" in read("README.md").replace("`", "")


def mode_and_time(printed: str) -> str:
    """The mode and the minutes of a verdict, as the README's text has them."""
    mode, minutes = re.search(r"It fits: (\w+) .*about (.+?) per clip", printed).groups()
    return f"here {mode} and {minutes},"
