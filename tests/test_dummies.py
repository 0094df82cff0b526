"""Dummy checkpoints: files in the published layout, which the published calls load, and what goes wrong."""

import json
import shutil

import numpy as np
import pytest
import torch

from data.make.measurements import stage_accuracy, stage_runs
from helpers import dummies
from helpers.architecture import Architecture
from helpers.checkpoints import checkpoint
from helpers.dummies import DummyError, dummy_folder
from helpers.gguf_files import TensorFile, original_name, quantized, write_gguf
from helpers.models import MODELS
from tests import small_configs

SIZES = {
    "ltx_video": (64, 64, 9), "wan22_ti2v_5b": (64, 64, 5), "wan22_i2v_a14b": (64, 64, 5),
    "cogvideox_5b_i2v": (64, 64, 5), "svd_xt": (64, 64, 3),
}  # fmt: skip


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return small_configs.write(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("model", MODELS)
def test_the_published_calls_load_it_as_the_forecast_builds_it(model, configs, cache):
    arch = Architecture(configs / model)
    folder = dummy_folder(model, cache=cache, configs=configs)
    pipe = stage_runs.load(arch, folder)
    for name in arch.on_card:
        ours = {key: (tuple(t.shape), t.dtype) for key, t in arch.part(name).state_dict().items()}
        theirs = {key: (tuple(t.shape), t.dtype) for key, t in getattr(pipe, name).state_dict().items()}
        assert ours == theirs, name
        plain = [t for t in getattr(pipe, name).state_dict().values() if t.dim() > 1 and t.dtype != torch.uint8]
        weights = torch.cat([t.float().flatten() for t in plain])
        assert torch.isfinite(weights).all() and weights.std() > 0


@pytest.mark.parametrize("model", ["wan22_i2v_a14b", "wan22_ti2v_5b"])  # a CPU is slow in the others' half precision
def test_a_pipeline_runs_on_it_in_every_mode_and_all_modes_agree(model, configs, cache, monkeypatch):
    arch, folder = Architecture(configs / model), dummy_folder(model, cache=cache, configs=configs)
    seen = []
    step = stage_runs.Stopwatch.step

    def keep(watch, pipe, number, timestep, tensors):
        seen.append(tensors["latents"].float())
        return step(watch, pipe, number, timestep, tensors)

    monkeypatch.setattr(stage_runs.Stopwatch, "step", keep)
    results = {}
    for offload in ("none", "model", "group_leaf", "group_block"):
        torch.manual_seed(0)
        row = stage_runs.measure(model, *SIZES[model], offload, "cpu", folder, arch)
        results[offload] = seen[-1]
        assert set(row["seconds"]) == {"encode_image", "denoise", "decode"} and row["step_seconds"] > 0
    assert torch.isfinite(results["none"]).all() and results["none"].std() > 0
    for offload, latents in results.items():
        assert torch.equal(latents, results["none"]), offload


def test_sequential_offload_of_gguf_fails_as_the_forecast_says(configs, cache):
    arch = Architecture(configs / "wan22_i2v_a14b")
    folder = dummy_folder("wan22_i2v_a14b", cache=cache, configs=configs)
    with pytest.raises((KeyError, TypeError)):
        stage_runs.measure("wan22_i2v_a14b", *SIZES["wan22_i2v_a14b"], "sequential", "cpu", folder, arch)


def test_the_text_encoder_is_published_in_half_precision(configs, cache):
    from transformers import UMT5EncoderModel

    folder = dummy_folder("wan22_ti2v_5b", ["text_encoder"], cache, configs)
    encoder = UMT5EncoderModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
    assert torch.isfinite(encoder(torch.tensor([[5, 6, 1]])).last_hidden_state).all()
    stored = (folder / "text_encoder" / "model.safetensors").stat().st_size
    count = sum(p.numel() for p in Architecture(configs / "wan22_ti2v_5b").part("text_encoder").parameters())
    assert 2 * count <= stored < 2 * count + 20_000


def test_large_parts_are_sharded_and_a_half_written_cache_is_completed(configs, tmp_path, monkeypatch):
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
    assert changed == {shards[1], shards[2]} and not list(folder.rglob("*.part"))
    LTXVideoTransformer3DModel.from_pretrained(folder, subfolder="transformer")


def test_what_cannot_be_written_is_said_and_leaves_nothing(configs, tmp_path, monkeypatch):
    with pytest.raises(DummyError, match="has no part unet: there are text_encoder, transformer"):
        dummy_folder("ltx_video", ["unet"], tmp_path, configs)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**5))
    with pytest.raises(DummyError, match="needs .* GB more and .* free: make room"):
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
    assert not [p for p in tmp_path.rglob("*") if p.suffix in {".part", ".gguf", ".safetensors"}]


# --- GGUF files


def test_names_go_back_to_the_originals():
    """diffusers' own conversion is the judge."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    names = [name for name, _ in Architecture("wan22_i2v_a14b").part("transformer").named_parameters()]
    originals = {original_name(name): torch.empty(0) for name in names}
    assert len(originals) == len(names)
    assert {"blocks.39.self_attn.q.weight", "blocks.0.modulation", "head.modulation"} <= set(originals)
    assert set(convert_wan_transformer_to_diffusers(originals)) == set(names)


def test_quantized_weights_come_back_within_a_step(tmp_path):
    import gguf

    values = np.random.default_rng(0).normal(0, 0.1, (64, 96)).astype(np.float32)
    write_gguf(tmp_path / "one.gguf", [quantized("a.weight", values, "Q4_0"), quantized("b.bias", values[0], "F32")])
    tensors = {one.name: one for one in gguf.GGUFReader(tmp_path / "one.gguf").tensors}
    packed = tensors["a.weight"]
    assert packed.tensor_type == gguf.GGMLQuantizationType.Q4_0 and packed.n_bytes == values.size // 32 * 18
    back = gguf.quants.dequantize(packed.data, packed.tensor_type)
    steps = np.abs(values).reshape(64, 3, 32).max(-1, keepdims=True) / 8
    assert (np.abs(back.reshape(64, 3, 32) - values.reshape(64, 3, 32)) <= 1.01 * steps).all()
    assert np.array_equal(tensors["b.bias"].data, values[0])


def test_a_tensor_of_the_wrong_length_is_refused(tmp_path):
    path = tmp_path / "one.gguf"
    with pytest.raises(ValueError, match="8 bytes came, and 16 were announced"):
        write_gguf(path, [TensorFile("a", (4,), "F32", [np.zeros(2, np.float32)])])
    assert not list(tmp_path.iterdir())


# --- the comparison with a GPU


def row(offload="none", **changes):
    peaks = {"encode_image": 1.0, "denoise": 8.0, "decode": 4.0}
    return {
        "model": "ltx_video", "width": 768, "height": 512, "num_frames": 121, "offload": offload, "peaks": peaks,
        "forecast_peaks": peaks, "missed_gib": dict.fromkeys(peaks, 0.0), "step_seconds": 1.0,
        "forecast_step_seconds": 1.2,
    } | changes  # fmt: skip


def test_the_summary_names_every_miss():
    assert stage_accuracy.summary([row()]).startswith("3 of 3 stages within 5 % or 0.15 GiB; 1 of 1 steps")
    missed = row("model", missed_gib={"denoise": 0.5, "decode": 0.14}, forecast_peaks={"denoise": 8.5, "decode": 4.14},
                 forecast_step_seconds=0.7)  # fmt: skip
    text = stage_accuracy.summary([row(), missed, {"offload": "sequential", "failed": "KeyError"}])
    assert text.startswith("4 of 5 stages") and "1 of 2 steps" in text
    assert "ltx_video 768x512x121 model denoise: forecast 8.50, measured 8.00 GiB" in text
    drawing = stage_accuracy.chart([row(), missed], "a GPU")
    assert drawing.count('transform="translate') == 5 + 2 + 3  # stages, steps and the legend
    assert json.dumps(text)[1:20] in json.dumps(drawing)


def test_the_lessons_word_for_it_is_refused_where_the_disk_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(dummies.dummy_folder, "__defaults__", (None, tmp_path, dummies.CONFIGS))
    monkeypatch.setattr(dummies.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10**9))
    with pytest.raises(DummyError, match=r"wan22_i2v_a14b needs 2\d\.\d GB more .* has 1\.0 GB free"):
        checkpoint("wan22_i2v_a14b", "dummy")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
