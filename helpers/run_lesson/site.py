"""The executed lessons as a static site that opens from disk, without a server: `make pages`.

    python -m helpers.run_lesson.site                                  # executes all lessons, writes outputs/pages
    python -m helpers.run_lesson.site 01_ltx_video --executed outputs  # uses the executed copy that is there

The pages are made with nbconvert, Jupyter's own exporter, which writes one plain HTML file per lesson. (A MyST site is
an application that needs Node to build and a server to read.) nbconvert's default templates fetch scripts from other
hosts; the template below fetches none, so a page looks the same offline.
"""

from __future__ import annotations

import argparse
import base64
import html
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter

from helpers.files import replacing
from helpers.run_lesson.running import ROOT, LessonError, LessonFailed, find_lesson, run_lesson, without_widgets

README = ROOT / "README.md"
STYLE = Path(__file__).with_suffix(".css")
ROW = re.compile(r"^\| \[([^\]]+)\]\(notebooks/(\w+)\.ipynb\) \| (.+?) \| .*\]\((\S+)\) \|$", re.M)
CELLS = """\
{% extends "classic/base.html.j2" %}
{% block in_prompt %}{% endblock %}
{% block empty_in_prompt %}{% endblock %}
{% block output_area_prompt %}{% endblock %}
{% block data_svg %}{{ output.data["image/svg+xml"] }}{% endblock %}
"""
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="stylesheet" href="style.css">
</head>
<body>
<nav>{nav}</nav>
<main>
{main}
</main>
</body>
</html>
"""


@dataclass(frozen=True)
class Lesson:
    """A row of the README's table: title, name of the notebook, what it teaches, and its URL in Colab."""

    title: str
    name: str
    teaches: str
    colab: str


def lessons(readme: str) -> list[Lesson]:
    """The lessons in the README's table, in order."""
    return [Lesson(*row) for row in ROW.findall(readme)]


def executed(lesson: Lesson, folder: Path | None) -> NotebookNode:
    """The lesson's executed notebook: the copy in `folder` if there is one; otherwise it is executed now.

    Raises:
        LessonFailed: If a cell failed or has not run.
    """
    copy = folder / f"{lesson.name}.ipynb" if folder else None
    if copy is None or not copy.is_file():
        with tempfile.TemporaryDirectory() as out:
            print(f"Running {lesson.name} ...", flush=True)
            run = run_lesson(find_lesson(lesson.name), {"out_dir": out}, Path(out))
            return nbformat.read(run.notebook, as_version=4)
    notebook = nbformat.read(copy, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.strip():
            if cell.execution_count is None or any(one.output_type == "error" for one in cell.outputs):
                raise LessonFailed(f"{copy}: cell `{cell.id}` failed or has not run. Run the lesson again.")
    return without_widgets(notebook)


def page(lesson: Lesson, notebook: NotebookNode, before: Lesson | None, after: Lesson | None) -> str:
    """The lesson's HTML."""
    notebook.cells = [one for one in notebook.cells if "injected-parameters" not in one.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]", "[Open in Colab]", cell.source)  # no remote badge
            cell.source = re.sub(r"\]\((\w+)\.ipynb", r"](\1.html", cell.source)
        cell.metadata.setdefault("alt", cell.id.replace("-", " "))  # for pictures without a text
    exporter = HTMLExporter(raw_template=CELLS, exclude_anchor_links=True)
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)  # printed output arrives in pieces
    body, _ = exporter.from_notebook_node(notebook)
    links = [(before, "prev", "← {}"), (after, "next", "{} →")]
    nav = ['<a href="index.html">All lessons</a>'] + [
        f'<a rel="{rel}" href="{other.name}.html">{text.format(html.escape(other.title))}</a>'
        for other, rel, text in links
        if other is not None
    ]
    return PAGE.format(title=html.escape(lesson.title), nav="\n".join(nav), main=body)


def poster(notebook: NotebookNode) -> bytes | None:
    """The strip of the longer clip, from the cell `stitch`, or else the notebook's first picture."""
    cells = sorted(notebook.cells, key=lambda cell: cell.id != "stitch")
    pictures = (one.get("data", {}).get("image/png") for cell in cells for one in cell.get("outputs", []))
    first = next(filter(None, pictures), None)
    return base64.b64decode(first) if first else None


def index(rows: Iterable[tuple[Lesson, bool]], readme: str) -> str:
    """The first page: the README's introduction, and its table of lessons with their posters."""
    title, _, rest = readme.removeprefix("# ").partition("\n")
    body = [f"<h1>{html.escape(title)}</h1>", markdown2html(rest.split("\n![")[0])]
    for lesson, has_poster in rows:
        alt = f"{lesson.title}: frames of the lesson's clip, from left to right"
        picture = f'<img src="{lesson.name}.png" alt="{html.escape(alt)}">' if has_poster else ""
        body.append(
            f'<section><h2><a href="{lesson.name}.html">{html.escape(lesson.title)}</a></h2>'
            f'{markdown2html(lesson.teaches)}{picture}<p><a href="{lesson.colab}">Open in Colab</a></p></section>'
        )
    return PAGE.format(title=html.escape(title), nav="", main="\n".join(body))


def write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m helpers.run_lesson.site", description="Build the lessons' site.")
    parser.add_argument("lessons", nargs="*", help="names in notebooks/; all by default")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "pages", help="folder of the site")
    parser.add_argument("--executed", type=Path, help="folder with executed notebooks to use as they are")
    options = parser.parse_args(arguments)
    readme = README.read_text(encoding="utf-8")
    try:
        names = [find_lesson(name).stem for name in options.lessons]
        chosen = [lesson for lesson in lessons(readme) if lesson.name in names or not names]
        if len(chosen) < len(set(names)):
            raise LessonError("Every lesson needs a row in the table of README.md, which its title comes from.")
        options.out.mkdir(parents=True, exist_ok=True)
        rows = []
        for before, lesson, after in zip([None, *chosen], chosen, [*chosen[1:], None], strict=False):
            notebook = executed(lesson, options.executed)
            picture = poster(notebook)
            if picture:
                write(options.out / f"{lesson.name}.png", picture)
            write(options.out / f"{lesson.name}.html", page(lesson, notebook, before, after).encode())
            rows.append((lesson, bool(picture)))
    except (LessonError, LessonFailed) as error:
        print(error, file=sys.stderr)
        return 1
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    colours = HtmlFormatter().get_style_defs(".highlight")
    style = f"{colours}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{STYLE.read_text(encoding='utf-8')}"
    write(options.out / "style.css", style.encode())
    write(options.out / "index.html", index(rows, readme).encode())
    print(f"Open {options.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
