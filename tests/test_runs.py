"""Records hold what the scoreboard needs, survive a bad write, and comparisons show the measured figures."""

import json
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import torch

from helpers.meter import VRAMMeter
from helpers.runs import Comparison, ModeRun, StepTimer, load, record, save, table

PLAIN = ModeRun("none", 14.21, 15.5, 16.1, 20.25, 1.5, 30.0, {"denoise": 3.0}, latents_difference=0.0)
MODEL = replace(PLAIN, offload="model", peak_allocated_gib=8.06, step_seconds=2.25, latents_difference=1e-3)
BROKEN = replace(
    PLAIN, offload="sequential", step_seconds=None, latents_difference=None, failed="NotImplementedError"
)
ON_CPU = replace(PLAIN, peak_allocated_gib=None, peak_reserved_gib=None, peak_device_gib=None)


def a_record(**changes) -> dict:
    values = dict(
        model="ltx_video",
        weights="miniature",
        offload="model",
        clip="excavator",
        prompt="an excavator digs",
        width=288,
        height=160,
        num_frames=25,
        steps=8,
        guidance_scale=1.0,
        seed=0,
        vram_cap_gib=None,
        mode_runs=[PLAIN, replace(MODEL, latents_difference=1e-6)],
        chosen=MODEL,
        step_seconds=2.2,
        stages={"encode": 1.0, "denoise": 5.0, "decode": 2.0},
    )
    return record(**{**values, **changes})


def cells_of(shown) -> list[list[str]]:
    root = ElementTree.fromstring(shown._repr_mimebundle_()["text/html"])
    return [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]


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
    assert run.stages["encode"] >= 0.06
    assert sum(run.stages.values()) == pytest.approx(run.seconds, abs=0.01)
    assert run.latents_difference is run.latents_equal is run.failed is None


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
    reference = torch.arange(8.0).reshape(1, 2, 4)
    nan, inf = reference.clone(), reference.clone()
    nan[0, 0, 0], inf[0, 0, 0] = torch.nan, torch.inf

    def run(latents, reference=reference):
        return ModeRun.from_meter("model", meter, latents=latents, reference=reference)

    assert run(reference.clone()).latents_difference == 0.0
    assert run(reference + 0.5).latents_difference == 0.5
    assert run(reference.bfloat16()).latents_difference == 0.0
    assert run(reference + 1e-6).latents_equal is True
    assert run(reference + 1e-3).latents_equal is False
    assert run(None).latents_difference is None
    assert run(nan, nan.clone()).latents_equal is True
    assert run(inf, inf.clone()).latents_equal is True
    assert run(nan).latents_equal is run(inf).latents_equal is False
    with pytest.raises(ValueError, match=r"\(1, 2, 3\).*\(1, 2, 4\)"):
        run(reference[..., :3])


# StepTimer


def test_step_seconds_is_the_median_without_the_first():
    timer = StepTimer()
    assert timer.step_seconds is None
    tensors = {"latents": torch.zeros(1)}
    for step, seconds in enumerate([0.3, 0.02, 0.03, 0.02]):
        time.sleep(seconds)
        assert timer(None, step, 0, tensors) is tensors
        if step == 0:
            assert timer.step_seconds >= 0.3
    assert 0.02 <= timer.step_seconds < 0.2
    assert len(timer.durations) == 4
    timer.start()
    assert timer.step_seconds is None


# Comparison


def test_the_comparison_shows_the_measured_figures():
    comparison = Comparison([PLAIN, MODEL, BROKEN], budget_gb=12, title="A & B")
    head, plain, model, broken = cells_of(comparison)
    assert head[0] == "mode"
    assert "peak allocated (GiB)" in head
    assert plain == ["none", "14.21", "15.50", "20.25", "1.50", "yes, 0.0"]
    assert model == ["model", "8.06", "15.50", "20.25", "2.25", "max diff 0.001"]
    assert broken[4:] == ["–", "failed: NotImplementedError"]
    root = ElementTree.fromstring(comparison._repr_mimebundle_()["text/html"])
    assert root.find("caption").text == "A & B, VRAM budget 12 GiB"
    assert all(cell.get("scope") == "col" for cell in root.iterfind("thead/tr/th"))
    assert "max diff 0.001" in comparison._repr_mimebundle_()["text/plain"]


def test_without_cuda_there_are_no_vram_figures():
    comparison = Comparison([ON_CPU], budget_gb=12)
    assert cells_of(comparison)[1][1:4] == ["–", "–", "20.25"]
    chart = comparison.chart({"none": 14.0})
    assert "peak RAM, GiB (no GPU here)" in chart.svg
    assert "GPU forecast" in chart.svg
    assert "budget" not in chart.svg
    assert list(ElementTree.fromstring(chart.svg).iterfind("{*}path")) == []  # the forecast's mark


def test_the_comparison_chart():
    chart = Comparison([PLAIN, MODEL, BROKEN], budget_gb=12).chart({"none": 14.0, "model": 8.1})
    root = ElementTree.fromstring(chart.svg)
    assert root.get("role") == "img"
    texts = [element.text for element in root.iterfind("{*}text")]
    assert {"none", "model", "sequential", "budget 12", "failed"} <= set(texts)
    assert {"14.21", "8.06", "2.25", "8.10"} <= set(texts)
    assert len(list(root.iterfind("{*}path"))) == 2
    none, model = [bar for bar in root.iterfind("{*}rect") if bar.get("rx") == "2"][:2]
    assert float(model.get("width")) / float(none.get("width")) == pytest.approx(8.06 / 14.21, abs=0.01)
    assert set(chart._repr_mimebundle_()) == {"image/svg+xml", "text/plain"}
    assert "8.06" in chart.text
    Comparison([]).chart()
    assert cells_of(Comparison([]))


def test_small_figures_keep_their_digits():
    assert cells_of(Comparison([replace(PLAIN, step_seconds=0.0534)]))[1][4] == "0.053"


# Records


def test_a_record_has_the_agreed_keys_and_survives_the_disk(tmp_path):
    made = a_record(forecast={"peak_vram_gib": 8.0}, extra={"quantization": "Q4_K_M"})
    keys = """model weights offload clip prompt width height num_frames steps guidance_scale seed device
        vram_cap_gib peak_allocated_gib peak_reserved_gib peak_ram_gib step_seconds resident_step_seconds
        stages forecast latents_equal modes versions date quantization"""
    assert made.keys() >= set(keys.split())
    assert made["peak_allocated_gib"] == 8.06
    assert made["step_seconds"] == 2.2
    assert made["resident_step_seconds"] == 1.5
    assert [mode["offload"] for mode in made["modes"]] == ["none", "model"]
    assert made["versions"].keys() == {"python", "torch", "diffusers", "transformers", "accelerate"}
    assert datetime.fromisoformat(made["date"]).utcoffset() == timedelta(0)
    path = save(made, tmp_path / "ltx_video" / "run.json")
    assert load(tmp_path) == [json.loads(path.read_text())] == [made]


def test_latents_equal_of_a_record():
    assert a_record()["latents_equal"] is True
    assert a_record(mode_runs=[PLAIN, MODEL])["latents_equal"] is False
    assert a_record(mode_runs=[BROKEN])["latents_equal"] is None
    assert a_record(mode_runs=[BROKEN])["resident_step_seconds"] is None


def test_a_record_keeps_no_absolute_path_and_no_key_twice():
    assert a_record(clip="/home/me/videos/bike.mp4")["clip"] == "bike.mp4"
    assert a_record(clip="data/clips/excavator.mp4")["clip"] == "data/clips/excavator.mp4"
    with pytest.raises(ValueError, match="seed"):
        a_record(extra={"seed": 1})


@pytest.mark.parametrize("value", [object(), float("nan")])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, value):
    path = save(a_record(), tmp_path / "run.json")
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        save(a_record(extra={"bad": value}), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_a_write_that_breaks_off_leaves_nothing(tmp_path):
    (tmp_path / "run.json").mkdir()  # so that the last move fails
    with pytest.raises(OSError):
        save(a_record(), tmp_path / "run.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_load_names_what_it_cannot_read_and_goes_on(tmp_path):
    save(a_record(), tmp_path / "h100.json")
    save(a_record(), tmp_path / "outputs" / "svd_xt" / "run.json")
    (tmp_path / "package.json").write_text('{"name": "no record"}')
    (tmp_path / "half.json").write_text('{"model": "ltx')
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "svd").mkdir()
    (tmp_path / "svd" / "run.json").write_text("[]")
    with pytest.warns(UserWarning) as caught:
        assert len(load(tmp_path)) == 2
    named = " ".join(str(warning.message) for warning in caught)
    assert len(caught) == 3
    assert all(name in named for name in ("half.json", "bytes.json", "run.json"))
    assert "package.json" not in named
    assert load(tmp_path / "absent") == []


def test_records_are_listed_newest_first():
    old, new = a_record(), a_record(model="svd_xt", chosen=ON_CPU)
    old["date"] = "2026-01-01T00:00:00+00:00"
    del old["width"]
    head, first, second = cells_of(table([old, new]))
    assert [first[0], second[0]] == ["svd_xt", "ltx_video"]
    row = dict(zip(head, second, strict=True))
    assert (row["width"], row["height"], row["peak VRAM (GiB)"]) == ("–", "160", "8.06")
    assert "–" in first
    assert "svd_xt" in repr(table([old, new]))
    assert cells_of(table([]))
