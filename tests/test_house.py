"""The rule of the house: imports run one way, and every room stays small enough to read (see CONTRIBUTING.md)."""

import ast
from collections import Counter
from graphlib import TopologicalSorter

import pytest

from tests.lesson_twins import counted
from tests.notebook_style import ROOT

# Each row may import itself only within a wing, and everything in the rows above it.
ROWS = [
    {"units", "files", "faces"},
    {"charts"},
    {"clips", "models", "measure", "run_lesson", "slices"},
    {"forecast", "lesson", "hops"},
    {"scoreboard"},
]
ROW_OF = {wing: number for number, row in enumerate(ROWS) for wing in row}
MOST_LINES, MOST_MODULES = 320, 13


def modules(top):
    """Modules below a folder of the project by their dotted names."""
    paths = sorted((ROOT / top).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


HELPERS, MAKE = modules("helpers"), modules("data/make")


def imports(path, known):
    """The modules among `known` that a file imports anywhere, in functions and under TYPE_CHECKING, too."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                yield from (name for name in ([whole] if whole in known else [module]) if name in known)


GRAPH = {name: set(imports(path, HELPERS | MAKE)) for name, path in (HELPERS | MAKE).items()}


def wing(module):
    return module.split(".")[1] if "." in module else ""


def test_every_wing_has_its_row():
    found = {path.stem for path in (ROOT / "helpers").glob("[!_]*") if path.suffix in ("", ".py")}
    assert found == set(ROW_OF)


@pytest.mark.parametrize("name", [name for name in HELPERS if wing(name)])
def test_imports_run_one_way(name):
    for imported in GRAPH[name]:
        here, there = wing(name), wing(imported)
        assert imported in HELPERS, f"{name} imports {imported}, which is not part of helpers"
        assert here == there or ROW_OF[there] < ROW_OF[here], f"{name} imports {imported}"


@pytest.mark.parametrize("name", HELPERS)
def test_modules_import_modules_and_not_faces(name):
    faces = {module for module, path in HELPERS.items() if path.name == "__init__.py" and "late(" in path.read_text()}
    assert not GRAPH[name] & (faces - {name}), f"{name} imports a face: import the module that defines the name"


def test_there_is_no_circle():
    assert list(TopologicalSorter(GRAPH).static_order())  # raises CycleError and names the circle


@pytest.mark.parametrize("name", [*HELPERS, *MAKE])
def test_a_room_is_small(name):
    path = (HELPERS | MAKE)[name]
    assert path.read_text(encoding="utf-8").count("\n") <= MOST_LINES, f"{name} is long: split it by its jobs"
    assert path.stem not in ("common", "utils", "util", "misc", "helpers"), f"{name}: name what it does"


def test_a_folder_is_small():
    folders = Counter(path.parent for path in (HELPERS | MAKE).values())
    assert {folder: count for folder, count in folders.items() if count > MOST_MODULES} == {}


@pytest.mark.parametrize("name", MAKE)
def test_what_makes_the_data_uses_the_public_faces(name):
    faces = {module for module, path in HELPERS.items() if path.name == "__init__.py"}
    for imported in GRAPH[name] & set(HELPERS):
        assert imported in faces or wing(imported) in ROWS[0] or imported == "helpers.charts.svg", imported


def test_the_notebooks_import_only_faces():
    import nbformat

    from tests.notebook_style import notebooks, plain_python

    faces = {module for module, path in HELPERS.items() if path.name == "__init__.py"}
    for path in notebooks():
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type != "code":
                continue
            for node in ast.walk(ast.parse(plain_python(cell.source))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("helpers"):
                    assert node.module in faces, f"{path.name} imports {node.module}"


def test_a_face_gives_what_it_promises():
    import importlib

    for name, path in HELPERS.items():
        if path.name == "__init__.py" and wing(name) and "late(" in path.read_text():
            face = importlib.import_module(name)
            for export in face.__all__:
                assert getattr(face, export) is not None, f"{name}.{export}"
            with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
                getattr(face, "nothing")  # noqa: B009 - the attribute is what is tested


def test_old_paths_are_gone():
    assert {path.name for path in (ROOT / "helpers").glob("*.py")} == {
        "__init__.py", "faces.py", "files.py", "units.py",
    }  # fmt: skip
    assert not list((ROOT / "data" / "make").glob("[!_]*.py"))


def test_lessons_differ():
    lessons, shared = counted()
    assert sum(map(len, shared.values())) <= sum(map(len, lessons.values())) / 4, "share what the lessons repeat"
