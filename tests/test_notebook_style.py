"""Every notebook keeps the house style, and the check of it finds each way to break it."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tests import notebook_style
from tests.notebook_style import PARAMETERS, clean, minutes_of_exercises, minutes_to_read, notebooks, problems, text_of

ADDRESS = "https://github.com/someone/lessons"
BADGE = "[![Open in Colab](https://example.org/b.svg)](https://colab.research.google.com/github/someone/lessons/blob/main/notebooks/01_x.ipynb)"  # noqa: E501


def test_there_are_notebooks():
    assert notebooks(), "notebooks/ has no notebook"


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_house_style(path):
    assert problems(path) == []


@pytest.mark.parametrize("path", [path for path in notebooks() if "01" <= path.stem[:2] <= "05"], ids=str)
def test_the_minutes_that_a_lesson_names_are_counted(path):
    notebook = nbformat.read(path, 4)
    read, solve = minutes_to_read(notebook), minutes_of_exercises(notebook)
    assert f"to run, {read} to read, {solve} for the exercises |" in notebook.cells[0].source


def lesson():
    """A small lesson with nothing wrong."""
    parameters = "\n".join(
        f"{name}: Optional[str] = None  # its {name.replace('_', ' ')}" for name in PARAMETERS
    )
    return new_notebook(
        cells=[
            new_markdown_cell(f"# Lengthen a clip\n\n{BADGE}\n\n```sh\n# not a heading\n```", id="title"),
            new_code_cell("import os\n\nif os.name:\n    %cd .\n    !ls\n", id="setup"),
            new_markdown_cell(
                "## Parameters\n\nSee [the clips](../data/clips.md) and `helpers.clips.Clip.fit()`.",
                id="intro",
            ),
            new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}),
            new_markdown_cell("### Load", id="load-text"),
            new_code_cell("def load():\n    return 1", id="define"),
            new_code_cell(
                "from helpers.clips import Clip\n\nload()", id="run", metadata={"tags": ["runs-previous"]}
            ),
        ]
    )


@pytest.fixture
def check(tmp_path):
    """Writes a notebook, as it goes into git, into a small project and gives what is wrong with it."""
    for folder in ("notebooks", "helpers", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data/clips.md").touch()
    (tmp_path / "helpers/clips").mkdir()
    (tmp_path / "helpers/clips/clip.py").write_text("class Clip:\n    def fit(self): ...\n")
    face = 'from helpers.faces import late\n__all__, __getattr__, __dir__ = late(__name__, {"clip": ("Clip",)})\n'
    (tmp_path / "helpers/clips/__init__.py").write_text(face)
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{ADDRESS}"\n')
    (tmp_path / "README.md").write_text("| [one](notebooks/01_x.ipynb) | first |\n")
    path = tmp_path / "notebooks/01_x.ipynb"

    def check(notebook, text=None):
        path.write_text(text_of(clean(notebook)) if text is None else text, encoding="utf-8")
        return problems(path, tmp_path)

    check.root, check.path = tmp_path, path
    return check


def test_nothing_wrong(check):
    assert check(lesson()) == []


def source(index, text):
    return lambda nb: nb.cells[index].update(source=text)


def prose(text):
    return lambda nb: nb.cells[2].update(source=f"## Parameters\n\n{text}")


def parameter(old, new):
    return lambda nb: nb.cells[3].update(source=nb.cells[3].source.replace(old, new))


BAD = {
    "two H1": (source(4, "# Another"), "2 top headings"),
    "no H1": (source(0, BADGE), "0 top headings"),
    "skipped level": (source(2, "### Deep"), "skips a level"),
    "image without alt": (prose("![](../data/clips.md)"), "alternative text"),
    "img without alt": (prose('<img src="../data/clips.md">'), "alternative text"),
    "base64": (prose("![a dot](data:image/png;base64,AAAA)"), "base64"),
    "attachment": (lambda nb: nb.cells[2].update(attachments={"a.png": {"image/png": "AAAA"}}), "attachment"),
    "dead link": (prose("[there](../data/nowhere.md)"), "leads nowhere"),
    "dead link to GitHub": (prose(f"[there]({ADDRESS}/blob/main/nowhere.py)"), "leads nowhere"),
    "syntax error": (source(5, "def load(:\n    pass"), "does not parse"),
    "long cell": (source(5, "\n".join(f"a{n} = {n}" for n in range(31))), "has 31 lines"),
    "if False": (source(5, "if False:\n    a = 1"), "never runs"),
    "if 0 within": (source(5, "def f():\n    if 0:\n        return 1"), "never runs"),
    "bare pipe": (source(6, "pipe = object()\npipe"), "keeps alive"),
    "pipe.to": (source(6, "pipe = load()\npipe.to('cuda')"), "keeps alive"),
    "part of the pipe": (source(6, "pipe = load()\npipe.vae.eval()"), "keeps alive"),
    "two code cells": (lambda nb: nb.cells[6].metadata.clear(), "follows another code cell"),
    "random id": (lambda nb: nb.cells[6].update(id="b5ca3ab0"), "not readable"),
    "id of a UUID": (lambda nb: nb.cells[6].update(id="d17d4f02-8b33-4d5c-9d84-1f00"), "not readable"),
    "capital id": (lambda nb: nb.cells[6].update(id="LoadIt"), "not readable"),
    "no parameters": (lambda nb: nb.cells[3].metadata.clear(), "0 cells tagged"),
    "two parameters": (
        lambda nb: nb.cells[6].metadata.update(tags=["parameters", "runs-previous"]),
        "2 cells tagged",
    ),
    "parameter not a literal": (parameter("seed: Optional[str] = None", "seed: int = 6 * 7"), "a literal"),
    "parameter without type": (parameter("seed: Optional[str] = None", "seed = 1"), "not of the form"),
    "parameter without comment": (parameter("  # its seed", ""), "no comment"),
    "parameter papermill misses": (parameter("seed: Optional[str]", "seed: str | None"), "Optional[int]"),
    "parameter renamed": (parameter("seed:", "random_seed:"), "in this order"),
    "name in prose": (prose("`helpers.clips.Clip.stretch(clip)`"), "does not exist"),
    "module in prose": (prose("`helpers.films`"), "does not exist"),
    "import": (source(6, "from helpers.clips import Film"), "does not exist"),
    "name of a face": (source(6, "from helpers import clips\n\nclips.Film()"), "uses clips.Film, which does not exist"),
    "no badge": (source(0, "# Lengthen a clip"), "no Colab badge"),
    "badge of another": (
        source(0, f"# A\n\n{BADGE}\n{BADGE.replace('someone', 'other')}"),
        "not this project's",
    ),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_finds(check, change, message):
    notebook = lesson()
    change(notebook)
    found = check(notebook)
    assert any(message in problem for problem in found), found


def test_finds_what_is_not_clean(check):
    notebook = clean(lesson())
    notebook.cells[1].execution_count = 3
    notebook.metadata.kernelspec.name = "my-env"
    notebook.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    found = check(notebook, nbformat.writes(notebook))
    for message in ("execution count", "kernelspec", "widget metadata", "make clean-notebooks"):
        assert any(message in problem for problem in found), message


def test_finds_a_repeated_id(check):
    found = check(lesson(), text_of(clean(lesson())).replace('"id": "run"', '"id": "define"'))
    assert "cell id `define` is used twice" in found


def test_finds_what_is_no_notebook(check):
    assert "not a valid notebook" in check(lesson(), "{}")[0]
    assert "not a valid notebook" in check(lesson(), "# a markdown file")[0]


def test_finds_what_readme_leaves_out(check):
    (check.root / "README.md").write_text("See notebooks/01_x.ipynb.\n")
    assert any("README" in problem for problem in check(lesson()))


def test_clean_strips_and_keeps():
    notebook = lesson()
    notebook.metadata.widgets = {"x": 1}
    notebook.metadata.papermill = {"duration": 1}
    notebook.cells[1].execution_count = 1
    notebook.cells[1].outputs = [new_output("stream", text="hello")]
    notebook.cells[1].metadata.update(collapsed=True, tags=["z", "a"])
    notebook.cells.insert(4, new_code_cell("steps = 2", metadata={"tags": ["injected-parameters"]}))
    cleaned = clean(notebook)
    assert [cell.id for cell in cleaned.cells] == [cell.id for cell in lesson().cells]
    assert cleaned.cells[1].outputs == [] and cleaned.cells[1].execution_count is None
    assert cleaned.cells[1].metadata == {"tags": ["a", "z"]}
    assert set(cleaned.metadata) == {"kernelspec", "language_info"}
    assert clean(cleaned) == cleaned
    nbformat.validate(cleaned)


def test_command_line(check, capsys):
    dirty = lesson()
    dirty.cells[1].execution_count = 1
    check.path.write_text(nbformat.writes(dirty), encoding="utf-8")
    assert notebook_style.main([], check.root) == 1
    assert "notebooks/01_x.ipynb" in capsys.readouterr().out.replace("\\", "/")
    assert notebook_style.main(["--clean"], check.root) == 0
    assert notebook_style.main([], check.root) == 0
    check.path.unlink()
    assert notebook_style.main([], check.root) == 1
