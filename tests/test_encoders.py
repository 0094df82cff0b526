"""An encoder whose weights stay in their files says what the loaded one says, and bad files are named."""

import json
import shutil

import pytest
import torch
import transformers
from accelerate.hooks import attach_align_device_hook
from safetensors.torch import load_file, save_file

from helpers.checkpoints import CheckpointError, checkpoint
from helpers.encoders import WeightFiles
from tests.hub_server import HubServer, folder_files

ENCODERS = {"ltx_video": transformers.T5EncoderModel, "wan22_ti2v_5b": transformers.UMT5EncoderModel}
IDS = torch.tensor([[5, 17, 9, 3, 1], [5, 2, 1, 0, 0]])
MASK = (IDS > 0).long()


def from_files(encoder_class, folder):
    """As the lessons write it."""
    weights = WeightFiles(str(folder), "text_encoder")
    with torch.device("meta"):
        encoder = encoder_class(encoder_class.config_class.from_json_file(weights.config)).eval()
    encoder.set_input_embeddings(weights.rows("shared.weight"))
    attach_align_device_hook(encoder, execution_device=torch.device("cpu"), offload=True, weights_map=weights)
    return encoder


@pytest.fixture(params=ENCODERS)
def model(request):
    return request.param


@pytest.fixture
def sharded(model, tmp_path):
    """The miniature's encoder in bf16 and in several files, as large ones are published."""
    encoder = ENCODERS[model].from_pretrained(checkpoint(model), subfolder="text_encoder", dtype=torch.bfloat16)
    encoder.save_pretrained(tmp_path / "text_encoder", max_shard_size="20KB")
    assert len(list((tmp_path / "text_encoder").glob("*.safetensors"))) > 2
    return tmp_path


@torch.no_grad()
def difference(encoder_class, folder):
    loaded = encoder_class.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
    encoder = from_files(encoder_class, folder)
    ours, theirs = (one(IDS, MASK).last_hidden_state for one in (encoder, loaded))
    assert {p.device.type for p in encoder.parameters()} == {"meta"}, "a layer has kept its weights"
    assert theirs.std() > 0.01 and torch.equal(encoder(IDS, MASK).last_hidden_state, ours)
    return (ours - theirs)[MASK.bool()].abs().max().item()


def test_one_file(model):
    assert difference(ENCODERS[model], checkpoint(model)) <= 1e-5


def test_several_files_in_half_precision(model, sharded):
    assert difference(ENCODERS[model], sharded) <= 1e-5


def test_only_the_rows_of_the_prompt_are_read(tmp_path):
    matrix = torch.randn(50_000, 16)
    (tmp_path / "text_encoder").mkdir()
    save_file({"shared.weight": matrix}, tmp_path / "text_encoder" / "model.safetensors")
    (tmp_path / "text_encoder" / "config.json").write_text("{}")
    rows = WeightFiles(str(tmp_path)).rows("shared.weight", torch.float64)
    assert torch.equal(rows(IDS), matrix[IDS].double())
    assert not list(rows.parameters()) and not list(rows.buffers())


def test_bad_files_are_named(sharded):
    folder = sharded / "text_encoder"
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-8])
    with pytest.raises(CheckpointError, match=rf"{first.name} is damaged .*: fetch it again"):
        WeightFiles(str(sharded))
    tensors = load_file(second)
    name = sorted(tensors)[0]
    first.write_bytes(whole)
    save_file({key: value for key, value in tensors.items() if key != name}, second)
    with pytest.raises(CheckpointError, match=rf"text_encoder/{second.name} lacks {name}: fetch it again"):
        WeightFiles(str(sharded))
    second.unlink()
    with pytest.raises(CheckpointError, match=rf"is not complete: text_encoder/{second.name} is missing"):
        WeightFiles(str(sharded))
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=r"text_encoder/config.json is missing"):
        WeightFiles(str(sharded))


@pytest.mark.parametrize("several", [False, True])
def test_from_the_hub_only_its_own_files_are_fetched(several, model, sharded, tmp_path_factory, monkeypatch):
    from huggingface_hub import constants

    files = folder_files(sharded if several else type(sharded)(checkpoint(model)))
    files |= {"text_encoder/pytorch_model.bin": 10**9, "model_index.json": b"{}"}
    with HubServer({"own/model": files}) as hub:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        weights = WeightFiles("own/model")
        wanted = {name for name in files if name.startswith("text_encoder/") and not name.endswith(".bin")}
        assert set(hub.fetched()) == wanted and len(weights) > 10
        with pytest.raises(CheckpointError, match="own/model has no file unet/config.json"):
            WeightFiles("own/model", "unet")


def test_the_measurement_is_what_the_lessons_say():
    from data.make.measurements.encoding import PATH

    rows = json.loads(PATH.read_text())["rows"]
    for row in rows:
        if row["way"] == "layer_by_layer":
            assert row["peak_ram_gib"] < 1.0 and row.get("largest_difference", 0.0) <= 1e-5
            assert row.get("times_fp32_seconds", 0) <= 1.5
    assert {(row["model"], row["layers"]) for row in rows} >= {("wan22_i2v_a14b", 24), ("ltx_video", 24)}
