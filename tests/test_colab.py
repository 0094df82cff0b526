"""The lessons away from home: opened from the badge in Colab, and started in any folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import distributions
from pathlib import Path

import nbformat
import pytest
from packaging.utils import canonicalize_name

from tests.notebook_style import ROOT, repository
from tests.test_frame import PROJECT, in_git

BEGINNING = ["setup", "parameters", "environment", "show-clip"]
# Of what the lessons import, what a new Colab machine has not; it has torch, diffusers, transformers, ...
LACKING = {"ftfy", "gguf", "mediapy"}
# As a kernel there runs cells: `google.colab` is imported, and a failing cell ends the run.
KERNEL = """
import json, sys
if "--colab" in sys.argv:
    import google.colab
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for source in json.load(sys.stdin):
    shell.run_cell(source).raise_error()
import helpers, torch
print(json.dumps({"helpers": helpers.__file__, "torch": torch.__file__, "clip": repr(shell.user_ns["past"])}))
"""


def begin_lesson(python, folder, *options, **env):
    """Run the first cells of `00_start_here` in `folder`; gives what they found, from the last line printed."""
    cells = {cell.id: cell.source for cell in nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", 4).cells}
    sources = json.dumps([cells[identity] for identity in BEGINNING])
    command = [str(python), "-c", KERNEL, *options]
    done = subprocess.run(
        command, input=sources, cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=300
    )
    said = done.stdout + done.stderr
    if done.returncode and "connection broken by" in said and "CI" not in os.environ:
        pytest.skip("pip reaches no package index")
    assert done.returncode == 0, said[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def publish(folder):
    """A git repository of the working tree as it is now; gives its address."""
    tree = folder / "published"
    for path in in_git():
        copy = tree / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"]
    for arguments in (["init", "-q"], ["add", "--all"], ["commit", "-q", "-m", "as it is"]):
        subprocess.run([*git, *arguments], cwd=tree, check=True)
    return tree.as_uri()


def colab_machine(folder):
    """An environment with what Colab has, taken from this one; gives its Python and the folder of the packages it adds.

    What is there already lies in another folder, so all that pip then adds or replaces is in the environment's own.
    """
    shared = folder / "preinstalled"
    (folder / "colab" / "google" / "colab").mkdir(parents=True)
    (folder / "colab" / "google" / "colab" / "__init__.py").touch()
    shared.mkdir()
    installed = Path(sysconfig.get_path("purelib"))
    for distribution in distributions(path=[str(installed)]):
        if canonicalize_name(distribution.name) in {*LACKING, PROJECT["name"]}:
            continue
        for name in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (shared / name).exists():
                (shared / name).symlink_to(installed / name)
    home = folder / "environment"
    venv.create(home, symlinks=True)  # pip is among the shared packages
    place = {"base": str(home), "platbase": str(home)}
    own = Path(sysconfig.get_path("purelib", "venv", vars=place))
    (own / "preinstalled.pth").write_text(f"{shared}\n{folder / 'colab'}\n")
    return Path(sysconfig.get_path("scripts", "venv", vars=place)) / "python", own


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Colab is Linux, and links need a privilege on Windows")
def test_the_badge_leads_to_a_lesson_that_installs_itself_and_replaces_nothing(tmp_path):
    python, own = colab_machine(tmp_path)
    content = tmp_path / "content"
    content.mkdir()
    instead = {  # git fetches the project's address from here; the setup cell stays as it is
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{publish(tmp_path)}.insteadOf",
        "GIT_CONFIG_VALUE_0": repository(),
    }
    found = begin_lesson(python, content, "--colab", **instead)
    checkout = content / repository().rsplit("/", 1)[-1]
    assert Path(found["helpers"]) == checkout / "helpers" / "__init__.py"
    assert Path(found["torch"]).is_relative_to(tmp_path / "preinstalled")
    assert found["clip"].startswith("excavator: 72 frames")
    added = {canonicalize_name(distribution.name) for distribution in distributions(path=[str(own)])}
    assert added == {*LACKING, PROJECT["name"]}


@pytest.mark.slow
def test_a_lesson_begins_in_any_folder(tmp_path):
    found = begin_lesson(sys.executable, tmp_path)
    assert Path(found["helpers"]) == ROOT / "helpers" / "__init__.py"
