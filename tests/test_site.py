"""The static site of the executed lessons; how it looks in a browser is in test_browser.py."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers.run_lesson import site
from tests.notebook_style import ROOT, colab_link, notebooks

pytestmark = pytest.mark.run_lesson

LESSONS = site.lessons(site.README.read_text(encoding="utf-8"))
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.example/x)"


def test_every_lesson_is_on_the_first_page():
    assert [lesson.name for lesson in LESSONS] == [path.stem for path in notebooks()]
    for lesson in LESSONS:
        assert lesson.title and lesson.teaches and lesson.colab == colab_link(f"{lesson.name}.ipynb")


@pytest.fixture
def executed(tmp_path):
    """A folder with a small executed copy of the first lesson."""
    chart = '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="a chart"></svg>'
    shown = [
        new_output("display_data", {"image/svg+xml": chart, "text/plain": "a chart"}),
        new_output("display_data", {"image/png": PIXEL}),
        new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}),
        new_output("stream", text="1 < 2\n"),  # what is printed in pieces is one block
        new_output("stream", text="2 < 3\n"),
    ]
    cells = [
        new_markdown_cell(f"# A lesson\n\n{BADGE} and [the next](01_ltx_video.ipynb)", id="title"),
        new_code_cell("x = '/home/me'", id="given", metadata={"tags": ["injected-parameters"]}, execution_count=1),
        new_code_cell("1 < 2", id="draw-it", execution_count=2, outputs=shown),
    ]
    folder = tmp_path / "executed"
    folder.mkdir()
    nbformat.write(new_notebook(cells=cells), folder / f"{LESSONS[0].name}.ipynb")
    return folder


def test_a_page_is_whole_and_takes_nothing_from_elsewhere(executed, tmp_path, capsys):
    built = tmp_path / "site"
    assert site.main([LESSONS[0].name, "--executed", str(executed), "--out", str(built)]) == 0
    assert str(built / "index.html") in capsys.readouterr().out
    assert sorted(path.name for path in built.iterdir()) == [
        f"{LESSONS[0].name}.html", f"{LESSONS[0].name}.png", "index.html", "style.css",
    ]  # fmt: skip
    page = (built / f"{LESSONS[0].name}.html").read_text(encoding="utf-8")
    assert 'aria-label="a chart"' in page and 'alt="draw it"' in page and "1 &lt; 2\n2 &lt; 3" in page
    assert 'href="01_ltx_video.html"' in page and ">Open in Colab</a>" in page
    assert "/home/me" not in page and "<script" not in page and "widget" not in page
    for text in (page, (built / "index.html").read_text(encoding="utf-8")):
        taken = re.findall(r'<(?:script|link|img|video|source|iframe)[^>]*(?:src|href)="([^"]+)', text)
        assert taken and not [address for address in taken if re.match(r"(?!data:)[a-z]+:|//", address)]


def test_what_has_not_been_run_is_refused(tmp_path, capsys):
    given = [LESSONS[0].name, "--executed", str(ROOT / "notebooks"), "--out", str(tmp_path)]
    assert site.main(given) == 1
    assert "failed or has not run" in capsys.readouterr().err
    assert site.main(["09_nothing", "--out", str(tmp_path)]) == 1
    assert "There is no lesson '09_nothing'" in capsys.readouterr().err
    assert not (tmp_path / "index.html").exists()
