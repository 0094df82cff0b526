"""Records hold what the scoreboard needs, what the meters measured included, and survive a bad write."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

from helpers.measure.meter import VRAMMeter
from helpers.measure.readout import Readout
from helpers.measure.records import load, record, records_table, save
from helpers.models.catalogue import MODELS
from tests.mode_runs import BASELINE, BROKEN, MODEL, ON_CPU, cells_of

pytestmark = pytest.mark.measure


def settings(**changes) -> SimpleNamespace:
    """What `record` reads of a lesson's settings."""
    values = dict(
        model=MODELS["ltx_video"],
        weights="miniature",
        clip="excavator",
        prompt="an excavator digs",
        width=288,
        height=160,
        num_frames=25,
        steps=8,
        guidance_scale=1.0,
        seed=0,
    )
    return SimpleNamespace(**values | changes)


def a_record(of=None, **changes) -> dict:
    values = dict(
        offload="model",
        modes=[BASELINE, replace(MODEL, latents_difference=1e-6)],
        chosen=MODEL,
        meters={},
        step_seconds=2.2,
        stages={"encode": 1.0, "denoise": 5.0, "decode": 2.0},
    )
    return record(of or settings(), **values | changes)


def test_a_record_has_the_agreed_keys_and_survives_the_disk(tmp_path):
    made = a_record(forecast={"peak_vram_gib": 8.0}, quantization="Q4_K_M")
    keys = """model weights offload clip prompt width height num_frames steps guidance_scale seed device
        vram_cap_gib peak_allocated_gib peak_reserved_gib peak_ram_gib step_seconds resident_step_seconds
        stages forecast latents_equal modes meters versions date quantization"""
    assert made.keys() >= set(keys.split())
    assert made["peak_allocated_gib"] == 8.06
    assert made["step_seconds"] == 2.2
    assert made["resident_step_seconds"] == 1.5
    assert [mode["offload"] for mode in made["modes"]] == ["none", "model"]
    assert made["versions"].keys() == {"python", "torch", "diffusers", "transformers", "accelerate"}
    assert datetime.fromisoformat(made["date"]).utcoffset() == timedelta(0)
    assert (made["model"], made["weights"], made["clip"], made["seed"]) == ("ltx_video", "miniature", "excavator", 0)
    path = save(made, tmp_path / "ltx_video" / "run.json")
    assert load(tmp_path) == [json.loads(path.read_text())] == [made]


def test_a_record_keeps_what_its_meters_measured_however_they_show_it(monkeypatch, tmp_path):
    with VRAMMeter("generate", forecast=8.06) as generate:
        generate.mark("denoise")
    with VRAMMeter("decode") as decode:
        pass
    generate.phases[0].peak_allocated_gib, generate.phases[0].peak_reserved_gib = 5.79, 8.6
    monkeypatch.setattr(Readout, "__repr__", lambda readout: "reworded")  # text is for readers, never for records
    meters = {"generate": generate, "decode": decode.as_dict()}  # a dictionary, as saved with the latents
    kept = load(save(a_record(meters=meters), tmp_path / "run.json").parent)[0]["meters"]
    assert kept == {"generate": generate.as_dict(), "decode": decode.as_dict()}
    assert (kept["generate"]["peak_allocated_gib"], kept["generate"]["peak_reserved_gib"]) == (5.79, 8.6)
    assert kept["generate"]["phases"][0] == {
        "name": "denoise", "seconds": generate.seconds, "peak_allocated_gib": 5.79, "peak_reserved_gib": 8.6,
        "peak_ram_gib": generate.peak_ram_gib,
    }  # fmt: skip
    assert (kept["generate"]["forecast_gib"], kept["decode"]["forecast_gib"]) == (8.06, None)


def test_latents_equal_of_a_record():
    assert a_record()["latents_equal"] is True
    assert a_record(modes=[BASELINE, MODEL])["latents_equal"] is False
    assert a_record(modes=[BROKEN])["latents_equal"] is None
    assert a_record(modes=[BROKEN])["resident_step_seconds"] is None


def test_a_record_keeps_no_absolute_path_and_no_key_twice():
    assert a_record(settings(clip="/home/me/videos/bike.mp4"))["clip"] == "bike.mp4"
    assert a_record(settings(clip="data/clips/excavator.mp4"))["clip"] == "data/clips/excavator.mp4"
    with pytest.raises(ValueError, match="already has the keys seed"):
        a_record(seed=1)


@pytest.mark.parametrize("value", [object(), float("nan")])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, value):
    path = save(a_record(), tmp_path / "run.json")
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError)):
        save(a_record(bad=value), path)
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
    old, new = a_record(), a_record(settings(model=MODELS["svd_xt"]), chosen=ON_CPU)
    old["date"] = "2026-01-01T00:00:00+00:00"
    del old["width"]
    head, first, second = cells_of(records_table([old, new]))
    assert [first[0], second[0]] == ["svd_xt", "ltx_video"]
    row = dict(zip(head, second, strict=True))
    assert (row["width"], row["height"], row["peak VRAM (GiB)"]) == ("–", "160", "8.06")
    assert "–" in first
    assert "svd_xt" in repr(records_table([old, new]))
    assert cells_of(records_table([]))
