"""The catalogue of models, what turns a model and a kind of weights into a checkpoint, and loaded sizes."""

import json
import subprocess
import sys

import pytest

import helpers.measure
import helpers.models
from helpers.models import checkpoints
from helpers.models.catalogue import MODELS, OFFLOAD_MODES, model
from helpers.models.checkpoints import Checkpoint, CheckpointError, checkpoint
from helpers.models.components import component_sizes
from tests.hub_server import HubServer, use_here

pytestmark = pytest.mark.models

NAMES = ("ltx_video", "wan22_ti2v_5b", "wan22_i2v_a14b", "svd_xt", "cogvideox_5b_i2v")


def test_catalogue_has_the_five_models_under_their_names():
    assert tuple(MODELS) == NAMES
    assert len({entry.short_title for entry in MODELS.values()}) == len(NAMES)
    assert all(0 < len(entry.short_title) <= 13 for entry in MODELS.values())  # as wide as charts have room for
    assert OFFLOAD_MODES == ("none", "model", "sequential", "group_block", "group_leaf")
    assert all(entry.name == name for name, entry in MODELS.items())


@pytest.mark.parametrize("name", NAMES)
def test_defaults_obey_the_models_own_rules(name):
    entry = model(name)
    assert "pretrained" in entry.defaults
    for weights, defaults in entry.defaults.items():
        if weights == "pretrained" or entry.fixed_frames is None:  # a miniature's positions are its own
            assert entry.nearest_frames(defaults.num_frames) == defaults.num_frames
        if weights == "pretrained" or entry.fixed_size is None:
            assert entry.nearest_size(defaults.width, defaults.height) == (defaults.width, defaults.height)
        assert defaults.steps >= 1 and defaults.guidance_scale >= 1
    assert (entry.frames_multiple is None) != (entry.fixed_frames is None)
    assert entry.licence_url.startswith("https://")
    assert all(count > 0 for count in entry.parameters.values())


@pytest.mark.parametrize("name", NAMES)
def test_pipeline_is_a_class_of_diffusers(name):
    import diffusers

    assert model(name).pipeline in dir(diffusers)  # looked up without importing its dependencies


@pytest.mark.parametrize(
    ("name", "asked", "nearest"),
    [
        ("ltx_video", 50, 49),
        ("ltx_video", 53, 49),  # as near to 57: the lower one
        ("ltx_video", 54, 57),
        ("ltx_video", 1, 9),
        ("ltx_video", -5, 9),
        ("wan22_ti2v_5b", 80, 81),
        ("svd_xt", 14, 25),
        ("cogvideox_5b_i2v", 48, 49),
    ],
)
def test_nearest_frames(name, asked, nearest):
    assert model(name).nearest_frames(asked) == nearest


@pytest.mark.parametrize(
    ("name", "asked", "nearest"),
    [
        ("ltx_video", (300, 150), (288, 160)),
        ("ltx_video", (1, 1), (32, 32)),
        ("ltx_video", (512, 768), (512, 768)),
        ("wan22_i2v_a14b", (1280, 720), (1280, 720)),
        ("svd_xt", (1000, 600), (1024, 576)),
        ("cogvideox_5b_i2v", (480, 720), (720, 480)),
    ],
)
def test_nearest_size(name, asked, nearest):
    assert model(name).nearest_size(*asked) == nearest


@pytest.mark.parametrize(
    ("name", "hint"), [("ltx-video", "did you mean 'ltx_video'?"), ("svd", "did you mean 'svd_xt'?")]
)
def test_unknown_model_names_the_nearest_and_all(name, hint):
    with pytest.raises(ValueError, match="no model is called") as error:
        model(name)
    assert hint in str(error.value)
    assert all(known in str(error.value) for known in NAMES)


def write_checkpoint(folder, components=("transformer", "vae")):
    """A diffusers folder with an index and empty folders for its components."""
    index = {"_class_name": "LTXImageToVideoPipeline", "scheduler": [None, None]}
    for component in components:
        (folder / component).mkdir(parents=True)
        index[component] = ["diffusers", "Anything"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_checkpoint_of_each_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MINIATURES", tmp_path)
    folder = write_checkpoint(tmp_path / "ltx_video")
    assert checkpoint("ltx_video") == Checkpoint(str(folder))
    assert checkpoint("ltx_video", "pretrained") == Checkpoint("Lightricks/LTX-Video")
    assert checkpoint("ltx_video", "pretrained", "v0.9") == Checkpoint("Lightricks/LTX-Video", "v0.9")
    assert checkpoint("ltx_video", str(folder)) == Checkpoint(str(folder))
    assert checkpoint("ltx_video").is_local and not checkpoint("ltx_video", "pretrained").is_local
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoint("ltx_video", "~/ltx_video").is_local


@pytest.mark.parametrize("revision", [9, ""])
def test_a_revision_that_is_no_text(revision):
    with pytest.raises(CheckpointError, match=f"revision={revision!r}: give a branch, tag or commit in quotes"):
        checkpoint("ltx_video", "pretrained", revision)


def test_checkpoint_that_is_not_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MINIATURES", tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks model_index\.json") as error:
        checkpoint("ltx_video")
    assert "git checkout -- data/miniatures/ltx_video" in str(error.value)
    assert "python -m data.make.miniatures.train ltx_video" in str(error.value)

    folder = write_checkpoint(tmp_path / "ltx_video")
    (folder / "vae").rmdir()
    with pytest.raises(CheckpointError, match="lacks vae/"):
        checkpoint("ltx_video")
    with pytest.raises(CheckpointError, match="is not a complete diffusers checkpoint: vae/ is missing"):
        checkpoint("ltx_video", str(folder))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("ltx_video", "small", 'no weights are called \'small\': give "miniature", "pretrained"'),
        ("ltx_video", "dumy", "no weights are called 'dumy'"),
    ],
)
def test_checkpoint_of_unknown_weights(name, weights, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as error:
        checkpoint(name, weights)
    assert message in str(error.value)


def test_component_sizes():
    import torch

    layer = torch.nn.Linear(1024, 1024, bias=False)
    table = component_sizes(
        {
            "vae": layer.to(torch.bfloat16),
            "unet": torch.nn.Conv2d(1, 1, 1),
            "tokenizer": object(),
            "none": None,
        }
    )
    vae, unet = table.rows
    assert (vae.name, vae.class_name, vae.parameters, vae.dtype, vae.device) == (
        "vae",
        "Linear",
        1024**2,
        "bfloat16",
        "cpu",
    )
    assert vae.gib == 2 * 1024**2 / 2**30
    assert (unet.parameters, unet.dtype) == (2, "float32")
    bundle = table._repr_mimebundle_()
    assert "bfloat16" in bundle["text/plain"]
    assert bundle["text/html"].count("<tr>") == 4


def test_component_sizes_counts_the_weights_in_a_gguf_parameter():
    import gguf
    import torch
    from diffusers.quantizers.gguf.utils import GGUFParameter

    layer = torch.nn.Linear(1, 1, bias=False)
    packed = torch.zeros(4, 144, dtype=torch.uint8)  # Q4_K: 144 bytes hold 256 weights
    layer.weight = GGUFParameter(packed, quant_type=gguf.GGMLQuantizationType.Q4_K)
    (row,) = component_sizes({"transformer": layer}).rows
    assert row.parameters == 4 * 256
    assert row.gib == 4 * 144 / 2**30


def test_the_faces_import_nothing_heavy():
    code = (
        "import helpers.models, helpers.measure, helpers.models.checkpoints, helpers.models.downloads, sys\n"
        "dir(helpers.models), dir(helpers.measure), helpers.models.checkpoint, helpers.models.preview_download\n"
        "print({'torch', 'diffusers', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("face", [helpers.models, helpers.measure], ids=lambda face: face.__name__)
def test_a_face_has_all_the_names_that_it_lists(face):
    for name in face.__all__:
        assert not isinstance(getattr(face, name), type(sys)), f"{name} is hidden by a module of the same name"


def test_local_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = write_checkpoint(tmp_path / "own")
    assert Checkpoint(str(folder), "a revision means nothing to a folder").local_folder() == str(folder)
    with pytest.raises(CheckpointError, match=r"Lightricks/LTX-Video at revision v1 is not on this machine"):
        Checkpoint("Lightricks/LTX-Video", "v1").local_folder()

    # The Hub's cache, as huggingface_hub lays it out.
    stored = tmp_path / "hub" / "models--Lightricks--LTX-Video"
    snapshot = write_checkpoint(stored / "snapshots" / ("a" * 40))
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("a" * 40)
    assert Checkpoint("Lightricks/LTX-Video").local_folder() == str(snapshot)
    assert Checkpoint("Lightricks/LTX-Video", "a" * 40).local_folder() == str(snapshot)


def test_a_file_of_a_folder(tmp_path):
    folder = write_checkpoint(tmp_path / "own")
    own = Checkpoint(str(folder))
    assert own.file("model_index.json") == folder / "model_index.json"
    with pytest.raises(CheckpointError, match="own is not complete: vae/config.json is missing"):
        own.file("vae/config.json")


def test_the_identity_of_a_folder_follows_its_files(tmp_path):
    own = Checkpoint(str(write_checkpoint(tmp_path / "own")))
    (tmp_path / "own" / "vae" / "config.json").write_text("{}")
    (tmp_path / "own" / "transformer" / "config.json").write_text("{}")
    everything, vae = own.identity(), own.identity(["vae"])
    assert everything.startswith(f"{tmp_path / 'own'}@") and everything != vae
    assert Checkpoint(own.repo, "v1").identity() == everything  # a folder has no revisions
    (tmp_path / "own" / "transformer" / "config.json").write_text("{ }")
    assert own.identity() != everything and own.identity(["vae"]) == vae


def test_files_and_identity_of_a_repository(tmp_path, monkeypatch):
    with HubServer({"own/model": {"model_index.json": b"{}", "vae/config.json": b"{ }"}}) as hub:
        use_here(hub, tmp_path, monkeypatch)
        own = Checkpoint("own/model", "main")
        commit = hub.revisions["main"]
        assert own.identity() == f"own/model@{commit}" == Checkpoint("own/model", commit).identity()
        assert set(hub.fetched()) == {"model_index.json"}
        assert own.file("vae/config.json").read_text() == "{ }"
        with pytest.raises(CheckpointError, match="own/model has no file unet/config.json"):
            own.file("unet/config.json")
    assert own.identity() == f"own/model@{commit}" and own.file("vae/config.json").is_file()  # from the cache
