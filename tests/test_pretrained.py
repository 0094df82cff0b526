"""`weights=pretrained` from end to end: the real libraries download from a Hub on loopback (`tests.hub_server`)."""

import ast
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from nbconvert import HTMLExporter
from safetensors.torch import load, save

from tests.hub_server import HubServer, environment, lightricks_ltx_video, python
from tests.notebook_style import ROOT, plain_python

NOTEBOOKS = ROOT / "notebooks"
REPO = "Lightricks/LTX-Video"
PAGE = f"https://huggingface.co/{REPO}"
VAE = "vae/diffusion_pytorch_model.safetensors"
NEEDED = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    VAE,
}
SMALL = {
    "weights": "pretrained", "width": 160, "height": 96, "num_frames": 17, "steps": 2, "guidance_scale": 1,
    "compare": False,
}  # fmt: skip
# The lesson's cells that load something, and what these need. The rest makes pictures and takes most of the time.
LOADING = (
    "setup parameters check cap download clip fit load-text-encoder encode-prompt load call context"
).split()
CHUNK = 10 * 2**20  # bytes: huggingface_hub writes, and so resumes, in pieces of this size


def run_lesson(out, env, lesson="01_ltx_video", **parameters):
    """Run a lesson in a separate process, so that it reads the Hub's address again."""
    words = [word for name, value in (SMALL | parameters).items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "helpers.run_lesson", str(lesson), "--out", str(out), *words]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)


class Story:
    """A lesson run from an empty home, then its loading cells again, online and with the Hub down."""

    def __init__(self, folder):
        files = lightricks_ltx_video()
        # In 64 bits it is long enough to break off after the first piece that is written; its values are the same.
        files[VAE] = save({name: tensor.double() for name, tensor in load(files[VAE]).items()})
        self.size, self.folder, self.files = len(files[VAE]), folder, files
        self.loading = folder / "loading.ipynb"
        lesson = nbformat.read(NOTEBOOKS / "01_ltx_video.ipynb", 4)
        lesson.cells = [cell for cell in lesson.cells if cell.id in LOADING]
        assert [cell.id for cell in lesson.cells] == LOADING
        nbformat.write(lesson, self.loading)
        with HubServer({REPO: files}) as self.hub:
            self.hub.drop_after[VAE] = CHUNK + 2**20
            self.first = run_lesson(folder / "first", environment(self.hub, folder / "home"))
            self.first_requests = len(self.hub.requests)
            self.again = self.load("again")
        self.offline = self.load("offline", HF_HUB_OFFLINE="1")
        code = f"from helpers.models import Checkpoint, preview_download; print(preview_download(Checkpoint({REPO!r})))"
        self.down = python(code, environment(self.hub, folder / "home"))

    def load(self, name, **more):
        return run_lesson(self.folder / name, environment(self.hub, self.folder / "home", **more), self.loading)

    def shown(self, name, cell_id, lesson="loading"):
        """The text that a cell of an executed notebook shows."""
        notebook = nbformat.read(self.folder / name / f"{lesson}.ipynb", 4)
        (cell,) = [cell for cell in notebook.cells if cell.id == cell_id]
        return "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    return Story(tmp_path_factory.mktemp("story"))


@pytest.mark.notebook
def test_the_lesson_runs_with_downloaded_weights(story):
    assert story.first.returncode == 0, story.first.stderr
    results = story.folder / "first" / "ltx_video" / "excavator"
    assert {"continued.mp4", "poster.png", "latents.safetensors", "run.json"} == {p.name for p in results.iterdir()}
    record = json.loads((results / "run.json").read_text())
    assert record["weights"] == "pretrained" and record["latents_equal"] is None  # a single mode
    notebook = nbformat.read(story.folder / "first" / "01_ltx_video.ipynb", 4)
    nbformat.validate(notebook)
    HTMLExporter().from_notebook_node(notebook)
    assert "widgets" not in notebook.metadata  # the bars of a download are for who waits, not for the page


@pytest.mark.notebook
def test_only_what_is_needed_is_fetched_and_each_file_once(story):
    fetched = story.hub.fetched()
    assert set(fetched) == NEEDED
    for name in NEEDED - {VAE}:
        assert fetched[name] == len(story.files[name]), name
    # A part that is loaded by itself may be in shards: diffusers asks for their index, and takes no for an answer.
    asked = [r for r in story.hub.requests if r.kind != "unknown" and not r.file.endswith(".safetensors.index.json")]
    assert {r.status for r in asked} <= {200, 206, 302, 307}


@pytest.mark.notebook
def test_a_dropped_connection_is_resumed(story):
    whole, rest = [r for r in story.hub.requests if r.method == "GET" and r.file == VAE and r.sent > 100_001]
    assert (whole.range, whole.status, whole.sent) == ("", 200, CHUNK + 2**20)
    assert (rest.range, rest.status, rest.sent) == (f"bytes={CHUNK}-", 206, story.size - CHUNK)


@pytest.mark.notebook
def test_the_preview_is_shown_before_any_weights_are_fetched(story):
    text = story.shown("first", "download", "01_ltx_video")
    # The index, without which there is no preview, is here already.
    assert f"To download: {len(NEEDED) - 1} files, " in text and f"from {REPO}, revision main" in text
    assert "\ntotal " in text and "free" in text and "available" in text
    peeks = [i for i, r in enumerate(story.hub.requests) if r.kind == "lfs" and r.range.startswith("bytes=0-")]
    whole = [i for i, r in enumerate(story.hub.requests) if r.kind == "lfs" and not r.range]
    assert set(story.hub.peeked()) == {name for name in NEEDED if name.endswith(".safetensors")}
    assert max(peeks) < min(whole) and max(story.hub.peeked().values()) < 110_000


@pytest.mark.notebook
def test_a_second_run_fetches_no_content_again(story):
    assert story.again.returncode == 0, story.again.stderr
    assert len(story.hub.requests) > story.first_requests
    assert not story.hub.fetched(story.first_requests) and not story.hub.peeked(story.first_requests)
    assert "Nothing to download: " in story.shown("again", "download")


@pytest.mark.notebook
def test_a_second_run_works_with_the_hub_down(story):
    assert story.offline.returncode == 0, story.offline.stderr
    said = story.shown("offline", "download")
    assert said.startswith(f"Nothing to download: {REPO} is on this machine") and "HF_HUB_OFFLINE is set\n" in said
    parts = story.shown("again", "load")
    assert parts.startswith("Components\n") and story.shown("offline", "load").endswith(parts)
    # Nor must the reader say so: a Hub that does not answer is enough.
    assert f"Nothing to download: {REPO} is on this machine" in story.down and "cannot be reached" in story.down


@pytest.mark.notebook
def test_a_refusal_stops_the_lesson_before_it_loads_anything(tmp_path):
    with HubServer({REPO: lightricks_ltx_video()}) as hub, ThreadPoolExecutor() as pool:
        hub.gated.add(REPO)
        gated = pool.submit(run_lesson, tmp_path / "gated", environment(hub, tmp_path / "home"))
        revision = pool.submit(
            run_lesson, tmp_path / "revision", environment(hub, tmp_path / "home"), revision="v9.9"
        )
        for run, expected in ((gated, (PAGE, "hf auth login")), (revision, ("no revision 'v9.9'",))):
            assert run.result().returncode == 1
            for text in ("cell `download`", *expected):
                assert text in run.result().stderr, text
        assert not hub.fetched()


@pytest.mark.parametrize("lesson", sorted(NOTEBOOKS.glob("0[1-5]_*.ipynb")), ids=lambda path: path.stem)
def test_every_call_in_a_lesson_that_may_download_is_pinned_and_unpickles_nothing(lesson):
    calls = [
        node
        for cell in nbformat.read(lesson, 4).cells
        if cell.cell_type == "code"
        for node in ast.walk(ast.parse(plain_python(cell.source)))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained"
    ]
    assert calls
    for call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("revision") in ("revision", "checkpoint.revision"), ast.unparse(call)
        assert given.get("use_safetensors") == "True", ast.unparse(call)
        assert "trust_remote_code" not in given
