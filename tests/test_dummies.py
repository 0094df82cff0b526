"""Dummy checkpoints: files in the published layout, and what goes wrong."""

import shutil

import gguf
import pytest
import torch
from safetensors.torch import load_file

from helpers.models import dummies
from helpers.models.architecture import Architecture
from helpers.models.catalogue import MODELS
from helpers.models.checkpoints import Checkpoint, checkpoint
from helpers.models.dummies import DummyError, dummy_folder, gguf_path
from helpers.models.gguf_files import original_name
from tests import small_configs

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return small_configs.write(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("model", MODELS)
def test_the_safetensors_are_those_of_the_architecture(model, configs, cache):
    arch, folder = Architecture(configs / model), dummy_folder(model, cache=cache, configs=configs)
    for name in set(arch.components) - set(arch.denoisers if arch.quantization else ()):
        (path,) = (folder / name).glob("*.safetensors")
        stored, built = load_file(path), arch.component(name).state_dict()
        built.pop("encoder.embed_tokens.weight", None)  # the same as shared.weight
        assert {key: tensor.shape for key, tensor in stored.items()} == {key: t.shape for key, t in built.items()}
        matrices = torch.cat([tensor.float().flatten() for tensor in stored.values() if tensor.dim() > 1])
        assert torch.isfinite(matrices).all() and 0 < matrices.std() < 0.1


def test_the_gguf_files_are_those_of_the_architecture(configs, cache):
    arch = Architecture(configs / "wan22_i2v_a14b")
    folder = dummy_folder("wan22_i2v_a14b", cache=cache, configs=configs)
    for name in ("transformer", "transformer_2"):
        stored = gguf.GGUFReader(gguf_path(folder, name, "Q4_K")).tensors
        built = {original_name(key): parameter for key, parameter in arch.component(name).named_parameters()}
        shapes = {key: tuple(getattr(parameter, "quant_shape", parameter.shape)) for key, parameter in built.items()}
        assert {one.name: tuple(map(int, reversed(one.shape))) for one in stored} == shapes
        packed = {key for key, parameter in built.items() if hasattr(parameter, "quant_shape")}
        assert packed and {one.name for one in stored if one.tensor_type.name == "Q4_K"} == packed


def test_the_same_bytes_every_time(configs, tmp_path):
    for model in ("wan22_i2v_a14b", "svd_xt"):
        first, again = (dummy_folder(model, cache=tmp_path / name, configs=configs) for name in ("one", "two"))
        files = [path.relative_to(first) for path in first.rglob("*") if path.is_file()]
        assert files and all((first / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_it_says_how_much_it_writes_and_where(configs, tmp_path, capsys):
    folder = dummies.dummy_folder("ltx_video", ["vae"], tmp_path, configs)
    written = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    said = capsys.readouterr().out
    assert str(folder) in said and f"{written / 1e9:.1f} GB" in said
    dummies.dummy_folder("ltx_video", ["vae"], tmp_path, configs)
    assert capsys.readouterr().out == ""


def test_it_is_a_checkpoint_of_its_own_kind(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(dummies.dummy_folder, "__defaults__", (None, tmp_path, configs))
    assert checkpoint("ltx_video", "dummy") == Checkpoint(str(tmp_path / "ltx_video"))


def test_the_text_encoder_is_published_in_half_precision(configs, cache):
    from transformers import UMT5EncoderModel

    folder = dummy_folder("wan22_ti2v_5b", ["text_encoder"], cache, configs)
    encoder = UMT5EncoderModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
    assert torch.isfinite(encoder(torch.tensor([[5, 6, 1]])).last_hidden_state).all()
    stored = (folder / "text_encoder" / "model.safetensors").stat().st_size
    count = sum(p.numel() for p in Architecture(configs / "wan22_ti2v_5b").component("text_encoder").parameters())
    assert 2 * count <= stored < 2 * count + 20_000


def test_large_components_are_sharded_and_a_half_written_cache_is_completed(configs, tmp_path, monkeypatch):
    from diffusers import LTXVideoTransformer3DModel

    monkeypatch.setattr(dummies, "SHARD", 2**20)
    folder = dummy_folder("ltx_video", ["transformer"], tmp_path, configs)
    shards = sorted((folder / "transformer").glob("*.safetensors"))
    assert len(shards) > 2 and shards[0].name == f"diffusion_pytorch_model-00001-of-{len(shards):05}.safetensors"
    whole = {path: path.stat().st_mtime_ns for path in shards}
    shards[1].unlink()
    shards[2].write_bytes(b"half")
    dummy_folder("ltx_video", ["transformer"], tmp_path, configs)
    changed = {path for path, time in whole.items() if path.stat().st_mtime_ns != time}
    assert changed == {shards[1], shards[2]} and not list(folder.rglob("*.part*"))
    LTXVideoTransformer3DModel.from_pretrained(folder, subfolder="transformer")


def test_what_cannot_be_written_is_said_and_leaves_nothing(configs, tmp_path, monkeypatch):
    with pytest.raises(DummyError, match="has no component unet: there are text_encoder, transformer"):
        dummy_folder("ltx_video", ["unet"], tmp_path, configs)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**5))
    with pytest.raises(DummyError, match="needs .* GB more, but .* has only .* free: make room"):
        dummy_folder("svd_xt", None, tmp_path, configs)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_interrupted_write_leaves_no_half_file(configs, tmp_path, monkeypatch):
    def stop(block, nbytes):
        yield block[:8]
        raise KeyboardInterrupt

    monkeypatch.setattr(dummies, "repeated", stop)
    for model in ("ltx_video", "wan22_i2v_a14b"):
        with pytest.raises(KeyboardInterrupt):
            dummy_folder(model, ["transformer"], tmp_path, configs)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in {".gguf", ".safetensors"} or ".part" in p.name]


def test_the_lessons_word_for_it_is_refused_where_the_disk_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(dummies.dummy_folder, "__defaults__", (None, tmp_path, dummies.CONFIGS))
    monkeypatch.setattr(dummies.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10**9))
    with pytest.raises(DummyError, match=r"wan22_i2v_a14b needs 2\d\.\d GB more.* has only 1\.0 GB free"):
        checkpoint("wan22_i2v_a14b", "dummy")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
