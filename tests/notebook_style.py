"""The house style of our notebooks, checked without torch and put right where a program can do it.

    python -m tests.notebook_style            # print what is wrong, exit 1 if anything is
    python -m tests.notebook_style --clean    # strip outputs and stray metadata (`make clean-notebooks`)

`problems(path)` is a list of sentences, each naming the cell it is about. Needs nothing but nbformat.
"""

import ast
import functools
import io
import json
import math
import re
import sys
import tokenize
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 30
ID = re.compile(r"[a-z][a-z0-9-]+")
RANDOM_ID = re.compile(r"(?=.*\d)[0-9a-f]{6,}|[0-9a-f]{8}-[0-9a-f]{4}-.*")
LESSON = re.compile(r"0[1-5]_")
PARAMETERS = (
    "clip prompt negative_prompt weights offload width height num_frames steps guidance_scale seed "
    "vram_budget_gb ram_budget_gb out_dir"
).split()
PAPERMILL_TYPE = re.compile(r"\w[\w\[\], ]*")  # as papermill.translators.PythonTranslator reads it
# Names of things so large that `Out` must not keep them, and the methods that give them back.
LARGE = re.compile(r"(pipe|pipeline|transformer|unet|vae|text_encoder|image_encoder)(_?\d|_\w+)?")
RETURNS_SELF = {"to", "cpu", "cuda", "eval", "float", "half", "bfloat16", "requires_grad_", "train"}


# --- cleaning ---


def clean(notebook: NotebookNode) -> NotebookNode:
    """`notebook` as it goes into git: no outputs, counts or widget state; only tags and cell ids kept."""
    result = nbformat.v4.new_notebook(
        nbformat_minor=5,
        metadata={
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if {"injected-parameters", "papermill-error-cell-tag"} & set(tags):
            continue  # papermill put it there
        fresh = {"cell_type": cell.cell_type, "id": cell.get("id"), "source": cell.source}
        fresh["metadata"] = {"tags": sorted(tags)} if tags else {}
        if cell.cell_type == "code":
            fresh |= {"execution_count": None, "outputs": []}
        elif cell.get("attachments"):
            fresh["attachments"] = cell.attachments  # not ours to throw away; `problems` reports it
        result.cells.append(nbformat.from_dict(fresh))
    return result


def text_of(notebook: NotebookNode) -> str:
    """The file's text: sorted keys, one space of indentation, one newline at the end."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


# --- checking ---


def problems(path: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with the notebook at `path`, in a project whose top folder is `root`."""
    try:
        text = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", nbformat.warnings.DuplicateCellId)  # said by _ids
            notebook = nbformat.reads(text, as_version=4)
            nbformat.validate(notebook)
    except Exception as error:  # whatever nbformat, json or the file system raise: it is not a notebook
        return [f"not a valid notebook: {str(error).splitlines()[0]}"]
    found = [
        *_unclean(notebook, text),
        *_ids(text),
        *_headings(notebook),
        *_markdown(notebook, path, root),
        *_code(notebook),
        *_rhythm(notebook),
        *_parameters(notebook, path),
        *_names(notebook, root),
        *_listed(notebook, path, root),
    ]
    return list(dict.fromkeys(found))


def _cells(notebook: NotebookNode, kind: str) -> Iterator[tuple[str, str]]:
    """Each cell of one type as its name for messages and its source."""
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == kind:
            yield f"cell {number} `{cell.get('id', '?')}`", cell.source


def _unclean(notebook: NotebookNode, text: str) -> Iterator[str]:
    if "widgets" in notebook.metadata:
        yield "widget metadata"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernelspec is not python3"
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None):
            yield f"cell {number} `{cell.get('id', '?')}`: has an output or an execution count"
    if text != text_of(clean(notebook)):
        yield "not as it goes into git: run `make clean-notebooks`"


def _ids(text: str) -> Iterator[str]:
    ids = [cell.get("id", "") for cell in json.loads(text)["cells"]]  # nbformat would replace a repeated one
    for identity in dict.fromkeys(ids):
        if ids.count(identity) > 1:
            yield f"cell id `{identity}` is used twice"
        if not ID.fullmatch(identity) or RANDOM_ID.fullmatch(identity):
            yield f"cell id `{identity}` is not readable: name what the cell does"


def _prose(source: str) -> str:
    """Markdown without its fenced code blocks."""
    return re.sub(r"(?ms)^ {0,3}(```|~~~).*?^ {0,3}\1[ \t]*$", "", source)


def _headings(notebook: NotebookNode) -> Iterator[str]:
    level, titles = 0, 0
    for name, source in _cells(notebook, "markdown"):
        for marks, title in re.findall(r"(?m)^(#{1,6})[ \t]+(.+)$", _prose(source)):
            titles += len(marks) == 1
            if len(marks) > level + 1:
                yield f"{name}: heading {title.strip()!r} skips a level"
            level = len(marks)
    if titles != 1:
        yield f"has {titles} top headings (`# ...`) and needs exactly one"


def _markdown(notebook: NotebookNode, path: Path, root: Path) -> Iterator[str]:
    for number, cell in enumerate(notebook.cells, 1):
        if cell.get("attachments"):
            yield f"cell {number} `{cell.get('id', '?')}`: has an attachment: put the picture in a file"
    address = repository(root)
    for name, source in _cells(notebook, "markdown"):
        if "base64," in source:
            yield f"{name}: has base64 data: put the picture in a file"
        prose = _prose(source)
        images = re.findall(r"<img\b[^>]*>", prose)
        if re.search(r"!\[\s*\]\(", prose) or any(
            not re.search(r"\balt=[\"']\s*[^\"'\s]", tag) for tag in images
        ):
            yield f"{name}: has an image without alternative text"
        prose = re.sub(r"`[^`\n]*`", "", prose)
        targets = re.findall(r"\]\(\s*<?([^)\s>]+)", prose) + re.findall(
            r"\b(?:src|href)=[\"']([^\"']+)", prose
        )
        for target in targets:
            inside = re.match(re.escape(address) + r"/(?:blob|tree|raw)/[^/]+/(.+)", target)
            if inside:
                file = root / inside[1]
            elif re.match(r"[a-z][a-z0-9+.-]*:|#|//", target, re.I):
                continue
            else:
                file = path.parent / target
            if not Path(unquote(str(file).split("#")[0].split("?")[0])).exists():
                yield f"{name}: the link to {target} leads nowhere"


WORDS_A_MINUTE = 200


def minutes_to_read(notebook: NotebookNode) -> int:
    """Minutes for a first reader: the words of prose and code, folded solutions apart, rounded up to five minutes."""
    words = 0
    for kind in ("markdown", "code"):
        for _, source in _cells(notebook, kind):
            shown = re.sub(r"(?s)<details>.*?</details>|(?<=\])\([^)]*\)", "", source)
            words += len(re.findall(r"\w[\w.'’-]*", shown))
    return 5 * math.ceil(words / WORDS_A_MINUTE / 5)


def minutes_of_exercises(notebook: NotebookNode) -> int:
    """The sum of what the exercises say of themselves."""
    prose = "\n".join(source for _, source in _cells(notebook, "markdown"))
    return sum(map(int, re.findall(r"\((?:easy|medium|harder), (\d+) minutes\)", prose)))


def plain_python(source: str) -> str:
    """A code cell's source with its IPython lines (`%magic`, `!command`) replaced, for `ast` to read."""
    if re.match(r"\s*%%", source):
        first, _, rest = source.lstrip().partition("\n")
        return plain_python(rest) if re.match(r"%%(time|timeit|capture)\b", first) else ""
    try:
        ast.parse(source)
    except SyntaxError:
        return re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", source)
    return source


def _trees(notebook: NotebookNode) -> Iterator[tuple[str, str, ast.Module]]:
    """Each code cell that parses: its name, its source, its tree."""
    for name, source in _cells(notebook, "code"):
        try:
            yield name, source, ast.parse(plain_python(source))
        except SyntaxError:
            continue


def _code(notebook: NotebookNode) -> Iterator[str]:
    for name, source in _cells(notebook, "code"):
        try:
            ast.parse(plain_python(source))
        except SyntaxError as error:
            yield f"{name}: does not parse: {error.msg}, line {error.lineno}"
        lines = sum(bool(line.strip()) for line in source.splitlines())
        if lines > MAX_LINES:
            yield f"{name}: has {lines} lines, more than {MAX_LINES}"
    for name, source, tree in _trees(notebook):
        for node in ast.walk(tree):
            test = node.test if isinstance(node, ast.If | ast.While) else None
            if isinstance(test, ast.Constant) and not test.value:
                yield f"{name}: has code that never runs (`if {ast.unparse(test)}`)"
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr) and not source.rstrip().endswith(";"):
            value = last.value
            called = value.func if isinstance(value, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in RETURNS_SELF:
                value = called.value
            shown = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
            if LARGE.fullmatch(shown):
                yield f"{name}: ends with `{ast.unparse(last)}`, which `Out` keeps alive after `del`"


def _rhythm(notebook: NotebookNode) -> Iterator[str]:
    for number, (before, cell) in enumerate(zip(notebook.cells, notebook.cells[1:], strict=False), 2):
        if before.cell_type == cell.cell_type == "code":
            if "runs-previous" in cell.metadata.get("tags", []):
                continue
            yield (
                f"cell {number} `{cell.get('id', '?')}`: follows another code cell: put prose between them, "
                "or tag it `runs-previous` if it runs what that one defines"
            )


def _parameters(notebook: NotebookNode, path: Path) -> Iterator[str]:
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    lesson = bool(LESSON.match(path.stem))
    if len(tagged) > 1 or (not tagged and (lesson or path.stem.startswith("00_"))):
        yield f"has {len(tagged)} cells tagged `parameters` and needs exactly one"
    for cell in tagged[:1]:
        name = f"cell `{cell.get('id', '?')}`"
        try:
            tree = ast.parse(cell.source)
        except SyntaxError:
            return  # reported by _code
        tokens = tokenize.generate_tokens(io.StringIO(cell.source).readline)
        commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
        names = []
        for node in tree.body:
            if (
                not isinstance(node, ast.AnnAssign)
                or not isinstance(node.target, ast.Name)
                or node.value is None
            ):
                yield f"{name}: `{ast.unparse(node)}` is not of the form `name: type = literal  # comment`"
                continue
            names.append(node.target.id)
            if not PAPERMILL_TYPE.fullmatch(ast.unparse(node.annotation)):
                yield (
                    f"{name}: papermill cannot read the type of {node.target.id} and so does not know it: "
                    "write Optional[int], not int | None"
                )
            try:
                ast.literal_eval(node.value)
            except ValueError:
                yield f"{name}: the value of {node.target.id} is not a literal"
            if not commented & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)):
                yield f"{name}: {node.target.id} has no comment"
        if lesson and names[: len(PARAMETERS)] != PARAMETERS:
            yield f"{name}: the first parameters are not, in this order, {', '.join(PARAMETERS)}"


def _stored(node: ast.AST) -> set[str]:
    """The names, and the attributes' names, that something within `node` assigns to."""
    targets = [n for n in ast.walk(node) if isinstance(getattr(n, "ctx", None), ast.Store)]
    return {
        n.id if isinstance(n, ast.Name) else n.attr
        for n in targets
        if isinstance(n, ast.Name | ast.Attribute)
    }


@functools.cache
def _defined(module: Path) -> dict[str, set[str]]:
    """The names at the top of a module, each with the names in its body where it is a class."""
    found: dict[str, set[str]] = {}

    def visit(body: Sequence[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found[node.name] = set()
            elif isinstance(node, ast.ClassDef):
                inner = {n.name for n in node.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
                inner |= _stored(node)
                found[node.name] = inner
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found.update((alias.asname or alias.name.split(".")[0], set()) for alias in node.names)
            elif isinstance(node, ast.If | ast.Try | ast.With):
                visit([*node.body, *getattr(node, "orelse", [])])
            else:
                found.update((name, set()) for name in _stored(node))

    visit(ast.parse(module.read_text(encoding="utf-8")).body)
    return found


def _exports(face: Path) -> dict[str, str]:
    """What a face built with `helpers.faces.late` exports: the module of each name."""
    for node in ast.walk(ast.parse(face.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "late":
            return {name: module for module, names in ast.literal_eval(node.args[1]).items() for name in names}
    return {}


def _exists(dotted: str, root: Path) -> bool:
    """Whether `helpers.x.y` is there, as far as its module, a face and a class's own body tell."""
    parts = dotted.split(".")
    where, rest = root, parts
    while rest and (where / rest[0]).is_dir():
        where, rest = where / rest[0], rest[1:]
    if rest and (where / f"{rest[0]}.py").is_file():
        module, rest = where / f"{rest[0]}.py", rest[1:]
    else:
        module = where / "__init__.py"
    if not rest:
        return True
    if module.name == "__init__.py" and module.is_file() and rest[0] in (exports := _exports(module)):
        package = ".".join(module.parent.relative_to(root).parts)
        return _exists(".".join([package, exports[rest[0]], *rest]), root)
    names = _defined(module) if module.is_file() else {}
    return rest[0] in names and (len(rest) == 1 or not names[rest[0]] or rest[1] in names[rest[0]])


def _names(notebook: NotebookNode, root: Path) -> Iterator[str]:
    for name, source in _cells(notebook, "markdown"):
        for dotted in re.findall(r"`(helpers(?:\.\w+)+)[^`\n]*`", _prose(source)):
            if not dotted.endswith(".py") and not _exists(dotted, root):
                yield f"{name}: names `{dotted}`, which does not exist"
    wings: dict[str, str] = {}  # names in the notebook of modules of ours
    for name, _, tree in _trees(notebook):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "helpers":
                for alias in node.names:
                    if not _exists(f"{node.module}.{alias.name}", root):
                        yield f"{name}: imports {node.module}.{alias.name}, which does not exist"
                    if node.module == "helpers":
                        wings[alias.asname or alias.name] = f"helpers.{alias.name}"
    for name, _, tree in _trees(notebook):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in wings:
                if not _exists(f"{wings[node.value.id]}.{node.attr}", root):
                    yield f"{name}: uses {node.value.id}.{node.attr}, which does not exist"


@functools.cache
def repository(root: Path = ROOT) -> str:
    """The project's address, from the one place that has it."""
    with (root / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["urls"]["Repository"].rstrip("/")


def colab_link(name: str, root: Path = ROOT) -> str:
    """The address that opens notebooks/`name` in Colab."""
    project = repository(root).removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{project}/blob/main/notebooks/{name}"


def _listed(notebook: NotebookNode, path: Path, root: Path) -> Iterator[str]:
    link = colab_link(path.name, root)
    prose = "\n".join(source for _, source in _cells(notebook, "markdown"))
    if not re.search(re.escape(link) + r"(?![\w./-])", prose):
        yield f"has no Colab badge that links to {link}"
    for other in sorted(
        set(re.findall(r"https://colab\.research\.google\.com/github/[^\s)\"'>]+", prose)) - {link}
    ):
        if not other.startswith(colab_link("", root)):
            yield f"the Colab link {other} is not this project's"
    readme = root / "README.md"
    rows = readme.read_text(encoding="utf-8").splitlines() if readme.is_file() else []
    if not any(row.lstrip().startswith("|") and f"notebooks/{path.name}" in row for row in rows):
        yield "is not in the table of README.md"


# --- the command line ---


def notebooks(root: Path = ROOT) -> list[Path]:
    """The project's notebooks, in the order they are read."""
    return sorted((root / "notebooks").glob("*.ipynb"))


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Returns 0 when every notebook is as it should be or was made clean, else 1; 2 for a wrong option."""
    options = list(sys.argv[1:] if arguments is None else arguments)
    if options not in ([], ["--clean"]):
        print("usage: python -m tests.notebook_style [--clean]", file=sys.stderr)
        return 2
    paths = notebooks(root)
    if not paths:
        print("notebooks/ has no notebook", file=sys.stderr)
        return 1
    failed = False
    for path in paths:
        if options:
            before = path.read_text(encoding="utf-8")
            after = text_of(clean(nbformat.reads(before, as_version=4)))
            if after != before:
                path.write_text(after, encoding="utf-8", newline="\n")
                print(f"cleaned {path.relative_to(root)}")
            continue
        for problem in problems(path, root):
            print(f"{path.relative_to(root)}: {problem}")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
