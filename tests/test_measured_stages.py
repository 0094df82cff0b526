"""What measures the stages of a pipeline: it loads dummies as published, all modes agree, and misses are named."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from data.make.measurements import stage_accuracy, stage_runs
from data.make.slices import one_run, whole_runs
from helpers.lesson.kernels import use_onednn
from helpers.models.architecture import Architecture
from helpers.models.catalogue import MODELS
from helpers.models.dummies import dummy_folder
from tests import small_configs

pytestmark = pytest.mark.make


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
    for name in arch.on_gpu:
        ours = {key: (tuple(t.shape), t.dtype) for key, t in arch.component(name).state_dict().items()}
        theirs = {key: (tuple(t.shape), t.dtype) for key, t in getattr(pipe, name).state_dict().items()}
        assert ours == theirs, name
        matrices = [t for t in getattr(pipe, name).state_dict().values() if t.dim() > 1 and t.dtype != torch.uint8]
        weights = torch.cat([t.float().flatten() for t in matrices])
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


@pytest.mark.parametrize("name", ["ltx_video", "a14b_720p"])
def test_a_sliced_run_is_whole_and_equals_its_baseline(name, configs, cache, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(functional, "conv3d", functional.conv3d)  # put back afterwards
    use_onednn()
    one = whole_runs.RUNS[name]
    width, height, frames = SIZES[one.model]
    small = replace(one, width=width, height=height, num_frames=frames, slice_tokens=4, steps=3)
    rows = []
    for baseline in (True, False):
        one_run.run(whole_runs.job_of(small, baseline, tmp_path / "latents.pt", configs, cache))
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("ROW "))
        rows.append(json.loads(line[4:]))
    plain, sliced = rows
    assert "failed" not in plain | sliced and len(sliced["step_times"]) == 3
    assert sliced["latents_finite"] and sliced["frames_finite"] and "frames" not in plain
    assert sliced["latents_equal"], sliced["latents_difference"]
    phases = [phase["name"] for phase in sliced["meter"]["phases"]]
    expert = ["load_expert"] if name == "a14b_720p" else []
    assert phases == ["load", "encode_image", *expert, "denoise", "drop", "decode"]
