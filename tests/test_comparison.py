"""Runs of the offload modes are read off their meters, compared with the baseline, and shown side by side."""

import json
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers.measure.comparison import Comparison, ModeRun
from helpers.measure.meter import VRAMMeter
from helpers.measure.readout import Sample
from helpers.measure.steps import StepTimer
from tests.mode_runs import BASELINE, BROKEN, MODEL, ON_CPU, cells_of

pytestmark = pytest.mark.measure

# ModeRun


def test_a_mode_run_is_read_off_a_meter():
    with VRAMMeter("model", interval=0.01) as meter:
        for name in ("encode", "denoise", "encode"):
            meter.mark(name)
            time.sleep(0.03)
    run = ModeRun.from_meter("model", meter, step_seconds=0.5)
    assert run.peak_ram_gib == meter.peak_ram_gib
    assert run.peak_allocated_gib == meter.peak_allocated_gib
    assert set(run.stages) >= {"encode", "denoise"}
    encodings = [phase.seconds for phase in meter.phases if phase.name == "encode"]
    assert len(encodings) == 2 and run.stages["encode"] == sum(encodings) > 0.06  # what it slept, at least
    assert sum(run.stages.values()) == pytest.approx(run.seconds) and run.seconds == meter.seconds
    assert run.latents_difference is run.latents_equal is run.failed is None


def test_a_mode_run_of_one_phase_has_the_peaks_and_seconds_of_that_phase():
    with VRAMMeter("model", interval=60) as meter:
        meter.mark("load")
        meter.mark("denoise")
    load, denoise = meter.phases
    load.peak_ram_gib, load.peak_allocated_gib, load.peak_reserved_gib = 99.0, 9.0, 9.5
    denoise.peak_ram_gib, denoise.peak_allocated_gib, denoise.peak_reserved_gib = 55.0, 5.0, 5.5
    whole, run = (ModeRun.from_meter("model", meter, phase=phase) for phase in (None, "denoise"))
    assert (whole.peak_ram_gib, whole.peak_allocated_gib, whole.peak_reserved_gib) == (99.0, 9.0, 9.5)
    assert (run.peak_ram_gib, run.peak_allocated_gib, run.peak_reserved_gib) == (55.0, 5.0, 5.5)
    assert run.seconds == denoise.seconds and run.stages == whole.stages
    meter.samples = [Sample(load.seconds, 1.0, device=8.0), Sample(meter.seconds, 1.0, device=4.0)]
    assert ModeRun.from_meter("model", meter).peak_device_gib == 8.0
    assert ModeRun.from_meter("model", meter, phase="denoise").peak_device_gib == 4.0
    with pytest.raises(ValueError, match="'model' has no phase 'decode': it has load, denoise"):
        ModeRun.from_meter("model", meter, phase="decode")


def test_a_block_that_fails_before_the_phase_is_taken_whole():
    meter = VRAMMeter("model")
    with pytest.raises(RuntimeError):
        with meter:
            raise RuntimeError
    run = ModeRun.from_meter("model", meter, phase="denoise")
    assert (run.failed, run.peak_ram_gib, run.seconds) == ("RuntimeError", meter.peak_ram_gib, meter.seconds)


def test_a_failed_block_makes_a_failed_run():
    meter = VRAMMeter("sequential")
    with pytest.raises(NotImplementedError):
        with meter:
            raise NotImplementedError
    assert ModeRun.from_meter("sequential", meter).failed == "NotImplementedError"
    assert ModeRun.from_meter("sequential", meter, failed="GGUF").failed == "GGUF"


def test_a_running_meter_is_refused():
    with VRAMMeter("model") as meter:
        with pytest.raises(ValueError, match="is running"):
            ModeRun.from_meter("model", meter)


def test_latents_are_compared_in_fp32():
    with VRAMMeter("model") as meter:
        pass
    baseline = torch.arange(8.0).reshape(1, 2, 4)
    nan, inf = baseline.clone(), baseline.clone()
    nan[0, 0, 0], inf[0, 0, 0] = torch.nan, torch.inf

    def run(latents, baseline=baseline):
        return ModeRun.from_meter("model", meter, latents=latents, baseline=baseline)

    assert run(baseline.clone()).latents_difference == 0.0
    assert run(baseline + 0.5).latents_difference == 0.5
    assert run(baseline.bfloat16()).latents_difference == 0.0
    assert run(baseline + 1e-6).latents_equal is True
    assert run(baseline + 1e-3).latents_equal is False
    assert run(None).latents_difference is None
    assert run(nan, nan.clone()).latents_equal is True
    assert run(inf, inf.clone()).latents_equal is True
    assert run(nan).latents_equal is run(inf).latents_equal is False
    with pytest.raises(ValueError, match=r"\(1, 2, 3\).*\(1, 2, 4\)"):
        run(baseline[..., :3])


def test_a_run_keeps_its_latents_to_compare_with_and_leaves_them_out_of_the_record():
    with VRAMMeter("none") as meter:
        pass
    run = ModeRun.from_meter("none", meter, latents=torch.ones(2), baseline=torch.ones(2))
    assert torch.equal(run.latents, torch.ones(2))
    assert "latents" not in run.as_dict() and run.as_dict()["latents_equal"] is True
    assert json.loads(json.dumps(run.as_dict())) == run.as_dict()


# StepTimer


def test_step_seconds_is_the_median_without_the_first(monkeypatch):
    moments = iter([10.0, 13.0, 13.25, 14.0, 14.5, 20.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    timer = StepTimer()
    assert timer.step_seconds is None
    tensors = {"latents": torch.zeros(1)}
    for step in range(4):
        assert timer(None, step, 0, tensors) is tensors
        if step == 0:
            assert timer.step_seconds == 3.0
    assert timer.durations == [3.0, 0.25, 0.75, 0.5]
    assert timer.step_seconds == 0.5
    timer.start()
    assert timer.step_seconds is None


# Comparison


def forecast(denoising_peak_gib, fails=None):
    """What a comparison reads of a forecast."""
    return SimpleNamespace(denoising_peak_gib=denoising_peak_gib, fails=fails)


def test_the_comparison_shows_the_measured_figures():
    comparison = Comparison([BASELINE, MODEL, BROKEN], budget_gb=12, title="A & B")
    head, baseline, model, broken = cells_of(comparison)
    assert head[0] == "mode"
    assert "peak allocated (GiB)" in head
    assert baseline == ["none", "14.21", "15.50", "20.25", "1.50", "yes, 0.0"]
    assert model == ["model", "8.06", "15.50", "20.25", "2.25", "max diff 0.001"]
    assert broken[4:] == ["–", "failed: NotImplementedError"]
    root = ElementTree.fromstring(comparison._repr_mimebundle_()["text/html"])
    assert root.find("caption").text == "A & B, VRAM budget 12 GiB"
    assert all(cell.get("scope") == "col" for cell in root.iterfind("thead/tr/th"))
    assert "max diff 0.001" in comparison._repr_mimebundle_()["text/plain"]


def test_without_cuda_there_are_no_vram_figures():
    comparison = Comparison([ON_CPU], budget_gb=12)
    assert cells_of(comparison)[1][1:4] == ["–", "–", "20.25"]
    chart = comparison.chart({"none": forecast(14.0)})
    assert "peak RAM, GiB (no GPU here)" in chart.svg
    assert "GPU forecast" in chart.svg
    assert "budget" not in chart.svg
    assert list(ElementTree.fromstring(chart.svg).iterfind("{*}path")) == []  # the forecast's mark


def test_the_comparison_chart():
    chart = Comparison([BASELINE, MODEL, BROKEN], budget_gb=12).chart(
        {"none": forecast(14.0), "model": forecast(8.1), "sequential": forecast(3.3, fails="no such thing")}
    )
    root = ElementTree.fromstring(chart.svg)
    assert root.get("role") == "img"
    texts = [element.text for element in root.iterfind("{*}text")]
    assert {"none", "model", "sequential", "budget 12", "failed"} <= set(texts)
    assert {"14.21", "8.06", "2.25", "8.10"} <= set(texts) and "3.30" not in texts  # a mode that cannot work needs none
    assert len(list(root.iterfind("{*}path"))) == 2
    none, model = [bar for bar in root.iterfind("{*}rect") if bar.get("rx") == "2"][:2]
    assert float(model.get("width")) / float(none.get("width")) == pytest.approx(8.06 / 14.21, abs=0.01)
    assert set(chart._repr_mimebundle_()) == {"image/svg+xml", "text/plain"}
    assert "8.06" in chart.text
    Comparison([]).chart()
    assert cells_of(Comparison([]))


def test_small_figures_keep_their_digits():
    assert cells_of(Comparison([replace(BASELINE, step_seconds=0.0534)]))[1][4] == "0.053"
