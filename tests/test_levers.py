"""Levers that save time: what a lesson refuses before it loads anything, and what the record of the matrix says."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from data.make.levers import matrix
from data.make.levers.levers import dummy_lora, levers
from helpers import models
from tests.notebook_style import ROOT

pytestmark = pytest.mark.models
LTX, WAN, SVD = (
    diffusers.LTXImageToVideoPipeline, diffusers.WanImageToVideoPipeline, diffusers.StableVideoDiffusionPipeline,
)  # fmt: skip


def denoiser(model):
    """A miniature's denoiser without weights."""
    arch = models.Architecture(models.checkpoint(model, "miniature").repo)
    return arch.component(arch.denoisers[0])


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """Files: a LoRA for LTX-Video's miniature, one for A14B's, and one for a wider LTX-Video."""
    folder, paths = tmp_path_factory.mktemp("loras"), {}
    for name, model in (("ltx", "ltx_video"), ("a14b_low_noise", "wan22_i2v_a14b")):
        paths[name] = folder / f"{name}.safetensors"
        save_file(dummy_lora(denoiser(model)), paths[name])
    narrow = dummy_lora(denoiser("ltx_video"))
    wider = {key: weight.repeat(1, 2) if "lora_A" in key else weight for key, weight in narrow.items()}
    paths["wider"] = folder / "wider.safetensors"
    save_file(wider, paths["wider"])
    paths["none"] = folder / "none.safetensors"
    save_file({"weight": torch.zeros(2)}, paths["none"])
    return paths


def test_a_lora_that_fits_changes_each_block(loras):
    layers = models.check_lora(loras["ltx"], LTX, denoiser("ltx_video"))
    assert layers == 8 * (2 * 4 + 2), "two attentions of four matrices and a feed-forward of two, in eight blocks"
    assert models.check_lora(loras["a14b_low_noise"], WAN, denoiser("wan22_i2v_a14b"), "transformer_2") == 4 * 10


@pytest.mark.parametrize(
    ("name", "pipeline", "model", "expected"),
    [
        ("a14b_low_noise", LTX, "ltx_video", "LTXVideoTransformer3DModel lacks: it is for another model"),
        ("a14b_low_noise", WAN, "wan22_i2v_a14b", "it is for transformer_2, not for transformer"),
        ("wider", LTX, "ltx_video", "384 inputs, and the model's 192: it is for another size"),
        ("none", LTX, "ltx_video", "no weights of a LoRA"),
        ("ltx", SVD, "svd_xt", "StableVideoDiffusionPipeline loads no LoRA"),
    ],
)
def test_a_lora_for_something_else_is_refused(loras, name, pipeline, model, expected):
    with pytest.raises(models.LeverError, match=expected):
        models.check_lora(loras[name], pipeline, denoiser(model))


def test_a_file_that_is_missing_or_no_lora_is_refused(tmp_path):
    with pytest.raises(models.LeverError, match="no such file"):
        models.check_lora(tmp_path / "nothing.safetensors", LTX, denoiser("ltx_video"))
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors")
    with pytest.raises(models.LeverError, match="no LoRA that LTXImageToVideoPipeline can read"):
        models.check_lora(text, LTX, denoiser("ltx_video"))


def test_a_cache_or_a_kernel_that_cannot_work_is_refused_and_the_message_says_what_can():
    for cache in ("none", "first_block", "magcache", "taylorseer"):
        models.check_cache(cache, denoiser("wan22_i2v_a14b"))
    with pytest.raises(models.LeverError, match="choose one of none, first_block"):
        models.check_cache("teacache", denoiser("ltx_video"))
    with pytest.raises(models.LeverError, match="UNetSpatioTemporalConditionModel takes no cache"):
        models.check_cache("first_block", denoiser("svd_xt"))
    models.check_backend("native", "cpu", torch.float32)
    with pytest.raises(models.LeverError, match="Here work: .*native"):
        models.check_backend("_native_cudnn", "cpu", torch.float32)
    with pytest.raises(models.LeverError, match="no such backend"):
        models.check_backend("warp", "cpu", torch.float32)
    models.check_fp8("cpu", torch.bfloat16)


def test_trying_a_kernel_leaves_the_default_alone():
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    before = _AttentionBackendRegistry.get_active_backend()[0]
    assert "native" in models.usable_backends("cpu", torch.float32)
    assert _AttentionBackendRegistry.get_active_backend()[0] == before


@pytest.mark.slow
def test_the_matrix_tries_a_lever_in_each_mode():
    row = matrix.try_lever("ltx_video", "magcache")
    assert set(row["modes"].values()) == {"equal"}, "a mode does not change what a lever does"
    assert row["changes"] > 0 and row["computed"] == 0.667, "two of the six steps are skipped"


def test_the_record_has_every_lever_of_every_model_and_says_what_the_lesson_says():
    record = json.loads((ROOT / "data" / "measurements" / "levers" / "matrix.json").read_text(encoding="utf-8"))
    rows = {(row["model"], row["lever"]): row for row in record["rows"]}
    assert set(rows) == {(model, lever) for model in models.MODELS for lever in levers("cpu")}
    for (model, lever), row in rows.items():
        for mode, outcome in row["modes"].items():
            worked = outcome == "equal"
            if model == "wan22_i2v_a14b":
                assert worked or mode == "sequential" or lever == "int8", (model, lever, mode, outcome)
            elif model == "svd_xt" and lever in ("lora", "first_block", "taylorseer", "magcache", "compile"):
                assert not worked
            elif (model, lever) == ("cogvideox_5b_i2v", "compile"):
                assert "_repeated_blocks" in outcome
            else:
                assert worked, (model, lever, mode, outcome)
