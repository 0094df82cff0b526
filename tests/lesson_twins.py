"""Count the code lines of lessons 01 to 05, and how many have a twin in another of these lessons.

    python -m tests.lesson_twins

A line is a non-blank line of a code cell without its indentation. Its twin is the same line in another lesson. Lines
without a letter, such as a closing bracket, count as lines but never as twins. The cells "setup" and "parameters" do
not count: they are the same in every lesson by rule.
"""

import json
from collections.abc import Mapping
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
LESSONS = ("01_ltx_video", "02_wan22_ti2v_5b", "03_wan22_i2v_a14b_gguf", "04_stable_video_diffusion",
           "05_cogvideox_5b_i2v")  # fmt: skip
SAME = ("setup", "parameters")


def code_lines(path: Path) -> list[str]:
    """The non-blank lines of a notebook's code cells, without indentation and without the cells that are SAME."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code" and cell["id"] not in SAME]
    lines = (line.strip() for cell in cells for line in "".join(cell["source"]).splitlines())
    return [line for line in lines if line]


def twins(lessons: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The lines of each lesson that another lesson has, too."""
    found = {}
    for name, lines in lessons.items():
        others = {line for other, their in lessons.items() if other != name for line in their}
        found[name] = [line for line in lines if line in others and any(map(str.isalpha, line))]
    return found


def counted() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """All code lines of each lesson, and those with a twin."""
    lessons = {name: code_lines(NOTEBOOKS / f"{name}.ipynb") for name in LESSONS}
    return lessons, twins(lessons)


def main() -> None:
    lessons, shared = counted()
    for name, lines in lessons.items():
        print(f"{name:28}{len(lines):5} code lines, {len(shared[name]):4} with a twin")
    total, same = (sum(map(len, one.values())) for one in (lessons, shared))
    print(f"{'together':28}{total:5} code lines, {same:4} with a twin: {100 * same / total:.0f} %")


if __name__ == "__main__":
    main()
