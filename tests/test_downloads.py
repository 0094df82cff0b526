"""What a download takes is shown before it starts, as diffusers will do it, and refusals say what to do.

The real libraries talk to a Hub on loopback (`tests.hub_server`).
"""

import json
import shutil
from collections import namedtuple

import numpy as np
import psutil
import pytest
import torch
from huggingface_hub import constants, snapshot_download
from safetensors.torch import load_file, save

from helpers.models.checkpoints import Checkpoint, CheckpointError, checkpoint
from helpers.models.downloads import DownloadError, preview_download
from tests.hub_server import ROOT, HubServer, environment, lightricks_ltx_video, python, use_here

pytestmark = pytest.mark.models

HALF, SINGLE = np.dtype("float16"), np.dtype("float32")
REPO = "Lightricks/LTX-Video"
PAGE = f"https://huggingface.co/{REPO}"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with LTX-Video, used by this process from an empty home."""
    with HubServer({REPO: lightricks_ltx_video()}) as server:
        use_here(server, tmp_path / "home", monkeypatch)
        yield server


def shown(revision=None, **options):
    """What the preview shows of the repository, or its error."""
    try:
        return repr(preview_download(Checkpoint(REPO, revision), **options))
    except (CheckpointError, DownloadError) as error:
        return f"{type(error).__name__}: {error}"


def pipeline(class_name, *components):
    """A `model_index.json`; each component is its name, its library and its class."""
    index = {"_class_name": class_name, "_diffusers_version": "0.42.1", "unused": [None, None]}
    return json.dumps(index | {name: rest for name, *rest in components}).encode()


SCHEDULER = ("scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler")
OWN = None  # content that no other file has, because the Hub stores equal files only once
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
from helpers.models import Checkpoint, preview_download

calls = [
    (Checkpoint("own/sharded"), None, []),
    (Checkpoint("own/variants"), "fp16", []),
    (Checkpoint(REPO, "v0.9"), None, ["vae"]),
]
for checkpoint, variant, without in calls:
    before = preview_download(checkpoint, variant=variant, without=without)
    components = {name: None for name in without}
    DiffusionPipeline.download(
        checkpoint.repo, revision=checkpoint.revision, variant=variant, use_safetensors=True, **components
    )
    after = preview_download(checkpoint, variant=variant, without=without)
    print(json.dumps([before.files, before.download, after.files]))
"""


def test_the_preview_names_the_files_that_diffusers_fetches(tmp_path):
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
        index = fetched.pop("model_index.json")  # both need it, and the first to run fetches it
        assert index and set(files) == set(fetched), repo
        assert size == sum(fetched.values()) and again == []
    assert not any(request.status >= 400 for request in hub.requests if request.kind != "unknown")
    pinned = {r.revision for r in hub.requests if r.repo == REPO}
    assert pinned == {"v0.9", hub.revisions["v0.9"]}


def test_a_folder_is_not_downloaded_and_its_weights_are_counted():
    ltx = checkpoint("ltx_video")
    found = preview_download(ltx, in_memory=[{"text_encoder": SINGLE}, {"transformer": HALF, "vae": HALF}])
    assert found.download == 0 and not found.files
    assert repr(found).startswith("Nothing to download: the weights are in data/miniatures/ltx_video\n")
    text_encoder, transformer, vae = (component for component in found.components if component.ram)
    for component, size in ((text_encoder, 4), (transformer, 2), (vae, 2)):
        (weights,) = [name for name in component.files if name.endswith(".safetensors")]
        arrays = load_file(ltx.file(weights))
        assert component.ram == size * sum(array.numel() for array in arrays.values())
    assert found.ram == transformer.ram + vae.ram > text_encoder.ram  # the two halves are never there together
    assert "in float32" in found._repr_mimebundle_()["text/html"]
    with pytest.raises(ValueError, match="has no component unet; it has scheduler, "):
        preview_download(ltx, in_memory=[{"unet": HALF}])


def test_a_repository_of_single_files(hub):
    hub.repos[REPO] = {"High/model-Q4_K_M.gguf": b"one", "High/model-Q8_0.gguf": 10**10, "README.md": 10}
    assert "To download: 1 files, 3 B" in shown(files=["High/model-Q4_K_M.gguf"])
    said = shown(files=["model-Q5.gguf"])
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
    "no pipeline": (no_pipeline, "", ["is not a diffusers pipeline: it has no model_index.json"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_to_do_when_the_hub_says_no(hub, monkeypatch, case):
    prepare, token, expected = REFUSALS[case]
    prepare(hub)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    said = shown()
    assert said.startswith("DownloadError: ")
    for text in expected:
        assert text in said
    assert set(hub.fetched()) <= {"model_index.json"}


def test_offline_with_nothing_here(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = shown()
    assert "DownloadError: HF_HUB_OFFLINE is set" in said and "unset it" in said and MINIATURE in said
    assert not hub.requests


@pytest.mark.parametrize("revision", ["v9.9", "f" * 40])
def test_a_revision_that_is_not_there(hub, revision):
    expected = f"has no revision {revision!r}: give a branch, tag or commit from {PAGE}/commits/main"
    assert expected in shown(revision=revision)


@pytest.mark.parametrize("revision", [9, ""])
def test_a_revision_that_is_no_text(hub, revision):
    assert f"revision={revision!r}: give a branch, tag or commit in quotes" in shown(revision=revision)
    assert not hub.requests


def test_a_slow_hub_with_an_accepted_licence(hub, monkeypatch):
    gated(hub)
    hub.accepted.add("hf_reader")
    hub.delay = 0.2
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "To download: 10 files" in shown(in_memory=[{"vae": HALF}])
    assert {request.token for request in hub.requests if request.kind == "lfs"} == {""}  # not for the other host
    assert {request.token for request in hub.requests if request.kind == "resolve"} == {"hf_reader"}


def test_a_disk_that_is_too_full(hub, monkeypatch):
    free = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free(2**34, 2**34 - 2**29, 2**29))
    said = shown()
    needed = sum(path.stat().st_size for path in (ROOT / "data" / "miniatures" / "ltx_video").glob("*/*")) / 2**20
    assert f"DownloadError: {REPO} needs {needed:.1f} MiB of disk" in said and "0.50 GiB free: free 0.6 GiB" in said
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
    assert expected in shown(in_memory=[{"vae": SINGLE}], ram_budget_gb=budget)


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
    found = preview_download(Checkpoint(REPO), in_memory=[{"text_encoder": SINGLE}])
    assert found.files == (second,) and found.ram == 4 * (3 + 4)
    assert not hub.fetched()[second]
    hub.stop()
    said = shown()
    assert "cannot be reached" in said and f"not complete: {second} is missing" in said
