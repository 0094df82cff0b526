"""`weights=pretrained` from end to end: the real libraries download from a Hub on loopback (`tests.hub_server`)."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import nbformat
import numpy as np
import psutil
import pytest
import torch
from huggingface_hub import constants, snapshot_download
from nbconvert import HTMLExporter
from safetensors.torch import load, load_file, save

from helpers import downloads
from helpers.run_lesson import NOTEBOOKS, ROOT
from tests.hub_server import HubServer, lightricks_ltx_video
from tests.notebook_style import plain_python

HALF, SINGLE = np.dtype("float16"), np.dtype("float32")
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
SMALL = {"weights": "pretrained", "width": 160, "height": 96, "num_frames": 17, "steps": 2, "guidance_scale": 1}
# The lesson's cells that load something, and what these need. The rest makes pictures and takes most of the time.
LOADING = (
    "setup parameters check cap download clip fit load-text-encoder encode-prompt load call context"
).split()
CHUNK = 10 * 2**20  # bytes: huggingface_hub writes, and so resumes, in pieces of this size


def environment(hub, home, **more):
    """This process's environment, with the Hub at `hub`, an own home for downloads, and nothing else of the Hub's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    kept |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "PYTHONPATH": str(ROOT)}
    return kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)} | more


def run_lesson(out, env, lesson="01_ltx_video", **parameters):
    """Runs a lesson in a process of its own, so that the Hub's address is read anew."""
    words = [word for name, value in (SMALL | parameters).items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "helpers.run_lesson", str(lesson), "--out", str(out), *words]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)


def python(code, env):
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with LTX-Video, and this process's huggingface_hub talking to it from an empty home."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with HubServer({REPO: lightricks_ltx_video()}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def plan(**options):
    """What `downloads.plan` shows of the repository, or its error."""
    try:
        return repr(downloads.plan(REPO, **options))
    except downloads.DownloadError as error:
        return f"DownloadError: {error}"


# --- the lesson ---


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
        code = f"from helpers import downloads; print(downloads.plan({REPO!r}))"
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


@pytest.mark.lesson
def test_the_lesson_runs_with_downloaded_weights(story):
    assert story.first.returncode == 0, story.first.stderr
    results = story.folder / "first" / "ltx_video"
    assert {"continued.mp4", "poster.png", "latents.safetensors", "run.json"} == {p.name for p in results.iterdir()}
    record = json.loads((results / "run.json").read_text())
    assert record["weights"] == "pretrained" and record["latents_equal"] is True
    notebook = nbformat.read(story.folder / "first" / "01_ltx_video.ipynb", 4)
    nbformat.validate(notebook)
    HTMLExporter().from_notebook_node(notebook)
    assert "widgets" not in notebook.metadata  # the bars of a download are for who waits, not for the page


@pytest.mark.lesson
def test_only_what_is_needed_is_fetched_and_each_file_once(story):
    fetched = story.hub.fetched()
    assert set(fetched) == NEEDED
    for name in NEEDED - {VAE}:
        assert fetched[name] == len(story.files[name]), name
    # A part that is loaded by itself may be in shards: diffusers asks for their index, and takes no for an answer.
    asked = [r for r in story.hub.requests if r.kind != "unknown" and not r.file.endswith(".safetensors.index.json")]
    assert {r.status for r in asked} <= {200, 206, 302, 307}


@pytest.mark.lesson
def test_a_dropped_connection_is_resumed(story):
    whole, rest = [r for r in story.hub.requests if r.method == "GET" and r.file == VAE and r.sent > 100_001]
    assert (whole.range, whole.status, whole.sent) == ("", 200, CHUNK + 2**20)
    assert (rest.range, rest.status, rest.sent) == (f"bytes={CHUNK}-", 206, story.size - CHUNK)


@pytest.mark.lesson
def test_the_plan_is_shown_before_any_weights_are_fetched(story):
    text = story.shown("first", "download", "01_ltx_video")
    # The index, without which there is no plan, is here already.
    assert f"To download: {len(NEEDED) - 1} files, " in text and f"from {REPO}, revision main" in text
    assert "together" in text and "free" in text and "available" in text
    peeks = [i for i, r in enumerate(story.hub.requests) if r.kind == "lfs" and r.range.startswith("bytes=0-")]
    whole = [i for i, r in enumerate(story.hub.requests) if r.kind == "lfs" and not r.range]
    assert set(story.hub.peeked()) == {name for name in NEEDED if name.endswith(".safetensors")}
    assert max(peeks) < min(whole) and max(story.hub.peeked().values()) < 110_000


@pytest.mark.lesson
def test_a_second_run_fetches_no_content_again(story):
    assert story.again.returncode == 0, story.again.stderr
    assert len(story.hub.requests) > story.first_requests
    assert not story.hub.fetched(story.first_requests) and not story.hub.peeked(story.first_requests)
    assert "Nothing to download: " in story.shown("again", "download")


@pytest.mark.lesson
def test_a_second_run_works_with_the_hub_down(story):
    assert story.offline.returncode == 0, story.offline.stderr
    said = story.shown("offline", "download")
    assert said.startswith(f"Nothing to download: {REPO} is on this machine") and "HF_HUB_OFFLINE is set\n" in said
    parts = story.shown("again", "load")
    assert parts.startswith("Parts\n") and story.shown("offline", "load").endswith(parts)
    # Nor must the reader say so: a Hub that does not answer is enough.
    assert f"Nothing to download: {REPO} is on this machine" in story.down and "cannot be reached" in story.down


@pytest.mark.lesson
def test_a_refusal_stops_the_lesson_before_it_loads_anything(hub, tmp_path):
    hub.gated.add(REPO)
    with ThreadPoolExecutor() as pool:
        gated = pool.submit(run_lesson, tmp_path / "gated", environment(hub, tmp_path / "home"))
        revision = pool.submit(
            run_lesson, tmp_path / "revision", environment(hub, tmp_path / "home"), revision="v9.9"
        )
    for run, expected in ((gated, (PAGE, "hf auth login")), (revision, ("no revision 'v9.9'",))):
        assert run.result().returncode == 1
        for text in ("cell `download`", "DownloadError", *expected):
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
        assert given.get("revision") == "revision", ast.unparse(call)
        assert given.get("use_safetensors") == "True", ast.unparse(call)
        assert "trust_remote_code" not in given


# --- the plan ---


def pipeline(class_name, *parts):
    """A `model_index.json`; each part is its name, its library and its class."""
    index = {"_class_name": class_name, "_diffusers_version": "0.42.1", "unused": [None, None]}
    return json.dumps(index | {name: rest for name, *rest in parts}).encode()


SCHEDULER = ("scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler")
OWN = None  # stands for content that no other file has: the Hub keeps equal files only once
LAYOUTS = {
    "own/sharded": {
        "model_index.json": pipeline(
            "WanImageToVideoPipeline",
            ("transformer", "diffusers", "WanTransformer3DModel"),
            ("text_encoder", "transformers", "UMT5EncoderModel"),
            ("tokenizer", "transformers", "T5TokenizerFast"),
            SCHEDULER,
        ),
        "scheduler/scheduler_config.json": OWN,
        "text_encoder/config.json": OWN,
        "text_encoder/generation_config.json": 10,
        "text_encoder/model-00001-of-00002.safetensors": OWN,
        "text_encoder/model-00002-of-00002.safetensors": OWN,
        "text_encoder/model.safetensors.index.json": OWN,
        "text_encoder/pytorch_model-00001-of-00001.bin": 10**9,
        "text_encoder/pytorch_model.bin.index.json": 10,
        "tokenizer/special_tokens_map.json": OWN,
        "tokenizer/tokenizer.json": OWN,
        "transformer/config.json": OWN,
        "transformer/diffusion_pytorch_model-00001-of-00001.safetensors": OWN,
        "transformer/diffusion_pytorch_model.safetensors.index.json": OWN,
        "transformer/other.safetensors": 10**9,
        "config.json": OWN,
        "tokenizer.json": OWN,
        "model.gguf": 10**9,
        "Wan.safetensors": 10**9,
    },
    "own/variants": {
        "model_index.json": pipeline(
            "StableVideoDiffusionPipeline",
            ("unet", "diffusers", "UNetSpatioTemporalConditionModel"),
            ("vae", "diffusers", "AutoencoderKLTemporalDecoder"),
            ("feature_extractor", "transformers", "CLIPImageProcessor"),
            ("image_encoder", "transformers", "CLIPVisionModelWithProjection"),
        ),
        "feature_extractor/preprocessor_config.json": OWN,
        "image_encoder/config.json": OWN,
        "image_encoder/model.fp16.safetensors": OWN,
        "image_encoder/model.safetensors": 10**9,
        "unet/config.json": OWN,
        "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors": OWN,
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json": OWN,
        "unet/diffusion_pytorch_model.safetensors": 10**9,
        "vae/config.json": OWN,
        "vae/diffusion_pytorch_model.safetensors": OWN,
        "svd_xt.safetensors": 10**9,
    },
}
WHAT_DIFFUSERS_FETCHES = """
import json
from diffusers import DiffusionPipeline
from helpers import downloads

calls = [("own/sharded", {}, []), ("own/variants", {"variant": "fp16"}, []), (REPO, {"revision": "v0.9"}, ["vae"])]
for repo, options, without in calls:
    planned = downloads.plan(repo, **options, without=without)
    parts = {name: None for name in without}
    DiffusionPipeline.download(repo, **options, **parts, use_safetensors=True)
    again = downloads.plan(repo, **options, without=without)
    print(json.dumps([planned.files, planned.download, again.files]))
"""


def test_the_plan_names_the_files_that_diffusers_fetches(tmp_path):
    layouts = {
        repo: {name: name.encode() if content is OWN else content for name, content in files.items()}
        for repo, files in LAYOUTS.items()
    }
    with HubServer(layouts | {REPO: lightricks_ltx_video()}) as hub:
        code = WHAT_DIFFUSERS_FETCHES.replace("REPO", repr(REPO))
        lines = python(code, environment(hub, tmp_path)).splitlines()
    assert len(lines) == 3
    for repo, line in zip([*LAYOUTS, REPO], lines, strict=True):
        files, size, again = json.loads(line)
        fetched = hub.fetched(repo=repo)
        index = fetched.pop("model_index.json")  # both need it, and who comes first fetches it
        assert index and set(files) == set(fetched), repo
        assert size == sum(fetched.values()) and again == []
    assert not any(request.status >= 400 for request in hub.requests if request.kind != "unknown")
    pinned = {r.revision for r in hub.requests if r.repo == REPO}
    assert pinned == {"v0.9", hub.revisions["v0.9"]}


def test_a_folder_is_not_downloaded_and_its_weights_are_counted():
    folder = str(ROOT / "data" / "miniatures" / "ltx_video")
    found = downloads.plan(folder, in_memory=[{"text_encoder": SINGLE}, {"transformer": HALF, "vae": HALF}])
    assert found.download == 0 and not found.files
    assert repr(found).startswith("Nothing to download: the weights are in data/miniatures/ltx_video\n")
    text_encoder, transformer, vae = (p for p in found.parts if p.ram)
    for part, size in ((text_encoder, 4), (transformer, 2), (vae, 2)):
        (weights,) = [name for name in part.files if name.endswith(".safetensors")]
        arrays = load_file(ROOT / folder / weights)
        assert part.ram == size * sum(array.numel() for array in arrays.values())
    assert found.ram == transformer.ram + vae.ram > text_encoder.ram  # the two halves are never there together
    assert "in float32" in found._repr_mimebundle_()["text/html"]
    with pytest.raises(ValueError, match="has no part unet; it has scheduler, "):
        downloads.plan(folder, in_memory=[{"unet": HALF}])


def test_a_repository_of_single_files(hub):
    hub.repos[REPO] = {"High/model-Q4_K_M.gguf": b"one", "High/model-Q8_0.gguf": 10**10, "README.md": 10}
    assert "To download: 1 files, 3 B" in plan(files=["High/model-Q4_K_M.gguf"])
    said = plan(files=["model-Q5.gguf"])
    assert "DownloadError: " in said and "has no file model-Q5.gguf" in said and f"{PAGE}/tree/main" in said
    assert not hub.fetched()


def gated(hub):
    hub.gated.add(REPO)


def without_safetensors(hub):
    hub.repos[REPO] = {name: size for name, size in hub.repos[REPO].items() if name != VAE} | {"vae/model.bin": 9}


def no_pipeline(hub):
    hub.repos[REPO] = {"README.md": 9}


MINIATURE = 'or run with weights="miniature"'
REFUSALS = {
    "gated, not logged in": (gated, "", ["gated", f"accept the licence at {PAGE}", "`hf auth login`", MINIATURE]),
    "gated, logged in": (gated, "hf_reader", ["no access yet", f"accept the licence at {PAGE}"]),
    "token refused": (lambda hub: setattr(hub, "always", (401, "")), "hf_old", ["`hf auth login`"]),
    "no repository": (lambda hub: hub.repos.clear(), "", ["not on the Hub, or it is private", PAGE]),
    "server error": (lambda hub: setattr(hub, "always", (500, "")), "", ["answered 500: try again", MINIATURE]),
    "overloaded": (lambda hub: setattr(hub, "always", (503, "")), "", ["answered 503: try again", MINIATURE]),
    "down": (HubServer.stop, "", ["cannot be reached (ConnectError): check the connection", MINIATURE]),
    "no safetensors": (without_safetensors, "", ["has no vae in safetensors", "can run code"]),
    "no pipeline": (no_pipeline, "", ["is no diffusers pipeline: it has no model_index.json"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_to_do_when_the_hub_says_no(hub, monkeypatch, case):
    prepare, token, expected = REFUSALS[case]
    prepare(hub)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    said = plan()
    assert said.startswith("DownloadError: ")
    for text in expected:
        assert text in said
    assert set(hub.fetched()) <= {"model_index.json"}


def test_offline_with_nothing_here(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = plan()
    assert "DownloadError: HF_HUB_OFFLINE is set" in said and "unset it" in said and MINIATURE in said
    assert not hub.requests


@pytest.mark.parametrize("revision", ["v9.9", "f" * 40])
def test_a_revision_that_is_not_there(hub, revision):
    expected = f"has no revision {revision!r}: give a branch, tag or commit from {PAGE}/commits/main"
    assert expected in plan(revision=revision)


@pytest.mark.parametrize("revision", [9, ""])
def test_a_revision_that_is_no_text(hub, revision):
    assert f"revision={revision!r}: give a branch, tag or commit in quotes" in plan(revision=revision)
    assert not hub.requests


def test_a_slow_hub_with_an_accepted_licence(hub, monkeypatch):
    gated(hub)
    hub.accepted.add("hf_reader")
    hub.delay = 0.2
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "To download: 10 files" in plan(in_memory=[{"vae": HALF}])
    assert {request.token for request in hub.requests if request.kind == "lfs"} == {""}  # not for the other host
    assert {request.token for request in hub.requests if request.kind == "resolve"} == {"hf_reader"}


def test_a_disk_that_is_too_full(hub, monkeypatch):
    free = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free(2**34, 2**34 - 2**29, 2**29))
    said = plan()
    parts = sum(path.stat().st_size for path in (ROOT / "data" / "miniatures" / "ltx_video").glob("*/*")) / 2**20
    assert f"DownloadError: {REPO} needs {parts:.1f} MiB of disk" in said and "0.50 GiB free: free 0.6 GiB" in said
    assert constants.HF_HUB_CACHE in said and "set HF_HOME" in said
    assert set(hub.fetched()) == {"model_index.json"}


@pytest.mark.parametrize(
    ("total", "available", "budget", "expected"),
    [
        (2**34, 2**33, 0.001, "8.9 MiB of RAM to load, more than ram_budget_gb=0.001: raise it"),
        (2**22, 2**21, None, "8.9 MiB of RAM to load, and this machine has 4.0 MiB, swap included"),
        (2**34, 2**20, None, "no: close other programs first"),
    ],
)
def test_ram_that_is_too_small(hub, monkeypatch, total, available, budget, expected):
    memory = namedtuple("memory", "total available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(total, available))
    monkeypatch.setattr(psutil, "swap_memory", lambda: memory(0, 0))
    assert expected in plan(in_memory=[{"vae": SINGLE}], ram_budget_gb=budget)


def test_an_earlier_download_that_is_not_complete(hub):
    first, second = (f"text_encoder/model-0000{number}-of-00002.safetensors" for number in (1, 2))
    shards = {"weight_map": {"a": first.rpartition("/")[2], "b": second.rpartition("/")[2]}}
    hub.repos[REPO] = {
        "model_index.json": pipeline("LTXPipeline", ("text_encoder", "transformers", "T5EncoderModel")),
        "text_encoder/config.json": b"{}",
        "text_encoder/model.safetensors.index.json": json.dumps(shards).encode(),
        first: save({"a": torch.zeros(3).double()}),
        second: save({"b": torch.zeros(4).double()}),
    }
    snapshot_download(REPO, ignore_patterns=second)
    found = downloads.plan(REPO, in_memory=[{"text_encoder": SINGLE}])
    assert found.files == (second,) and found.ram == 4 * (3 + 4)
    assert not hub.fetched()[second]
    hub.stop()
    said = plan()
    assert "cannot be reached" in said and f"not complete: {second} is missing" in said
