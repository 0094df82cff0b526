"""The scoreboard: rows from records, the table and the charts, and the page that a command writes."""

import json
import re
import shutil
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Optional

import nbformat
import numpy as np
import pytest

from data.make.measurements import readme_section as command
from data.make.measurements.set_ups import SET_UPS
from helpers import clips, forecast, scoreboard
from helpers.lesson import ParameterError
from helpers.models import OFFLOAD_MODES, model
from helpers.scoreboard import (
    Row,
    against,
    by_set_up,
    continuations,
    grouped_bars,
    measured,
    of_the_table,
    published_forecasts,
    seed_rows,
    table,
    trade_off,
    yours,
)
from tests.notebook_style import ROOT

pytestmark = pytest.mark.scoreboard

H200 = "NVIDIA H200"
BASELINE = Row("measured", "svd_xt", 1024, 576, 25, "none", H200, 13.3, None, None, 0.7, 0.7, 13.2)
SWAP = Row("measured", "wan22_i2v_a14b", 640, 384, 81, "model", H200, 10.3, None, None, 7.5, 3.75, swap=True)


def a_mode(offload, **changes):
    mode = {
        "offload": offload, "peak_allocated_gib": 8.0, "peak_reserved_gib": 9.0, "peak_ram_gib": 20.0,
        "step_seconds": 0.8, "latents_equal": True, "failed": None, "forecast_gib": 8.1,
    }  # fmt: skip
    return mode | changes


def a_record(**changes):
    meters = {
        "encode_prompt": {"state": "done", "seconds": 30.0, "peak_allocated_gib": 0.0,
                          "peak_reserved_gib": 0.0, "peak_ram_gib": 24.0, "forecast_gib": None},
        "generate": {"state": "done", "seconds": 9.0, "peak_allocated_gib": 8.0,
                     "peak_reserved_gib": 9.5, "peak_ram_gib": 20.0, "forecast_gib": None},
        "decode": {"state": "done", "seconds": 2.0, "peak_allocated_gib": 9.2,
                   "peak_reserved_gib": 10.0, "peak_ram_gib": 12.0, "forecast_gib": None},
    }  # fmt: skip
    record = {
        "model": "svd_xt", "width": 1024, "height": 576, "num_frames": 25, "offload": "model", "device": H200,
        "weights": "dummy", "resident_step_seconds": 0.7, "step_seconds": 0.8, "peak_ram_gib": 20.0,
        "stages": {"denoise": 5.0, "decode": 2.0}, "date": "2026-11-27T00:00:00+00:00", "failed": None,
        "meters": meters, "clip": "excavator", "modes": [a_mode("none", peak_allocated_gib=8.7), a_mode("model")],
    }  # fmt: skip
    return record | changes


@pytest.fixture
def data(tmp_path):
    """A data folder with our records and no lessons' ones; `data(name=record)` adds such."""
    folder = tmp_path / "data"
    (folder / "measurements").mkdir(parents=True)
    (folder / "pictures").mkdir()
    for path in (ROOT / "data/measurements/stages_h200.json", ROOT / "data/measurements/seed_table.json"):
        shutil.copy(path, folder / "measurements")
    shutil.copy(ROOT / "data/forecasts.json", folder)

    def add(**records):
        for name, record in records.items():
            (folder / "measurements/lessons_h200").mkdir(exist_ok=True)
            (folder / "measurements/lessons_h200" / f"{name}.json").write_text(json.dumps(record))
        return folder

    return add


def test_the_bloggers_rows_are_those_of_the_set_ups():
    rows = seed_rows()
    table_rows = scoreboard.seed()["rows"]
    sizes = {row["setup"]: (row["model"], row["width"], row["height"]) for row in table_rows}
    assert sizes == {name: (one.model, *one.size[:2]) for name, one in SET_UPS.items()}
    assert all(row.offload in OFFLOAD_MODES and row.minutes == row.clip_minutes for row in rows)
    (leaf,) = [row for row in rows if row.peak_gib]
    assert leaf.offload == "group_leaf" and leaf.peak_gib == pytest.approx(1.9e9 / 2**30)


def test_a_row_knows_its_price_and_an_exchange_counts_once_a_clip():
    assert BASELINE.ratio == 1 and BASELINE.clip_minutes == pytest.approx(25 * 0.7 / 60) and not BASELINE.missed
    assert SWAP.ratio == pytest.approx(1 + 1 / 40)
    assert SWAP.clip_minutes == pytest.approx((40 * 3.75 + 3.75) / 60)
    assert Row("yours", "svd_xt", 64, 64, 25, "none", "cpu").ratio is None


@pytest.mark.parametrize(
    ("peak", "forecast", "missed"),
    [(10, 10.5, False), (10, 10.51, True), (10, 9.4, True), (1, 1.14, False), (1, 1.16, True), (1, None, None)],
)
def test_a_forecast_misses_beyond_both_bounds(peak, forecast, missed):
    assert Row("measured", "svd_xt", 1, 1, 1, "none", "x", peak, forecast_gib=forecast).missed is missed


def test_the_records_of_stages_become_rows_with_todays_forecast(data):
    rows = {(row.set_up, row.offload): row for row in measured(data())}
    sequential = rows["LTX-Video 768x512x121", "sequential"]
    assert sequential.ratio > 2 and sequential.peak_gib == pytest.approx(3.04, abs=0.01)
    today = json.loads((ROOT / "data/forecasts.json").read_text())["ltx_video"]["modes"]["sequential"]["peak_vram_gib"]
    assert sequential.forecast_gib == today
    broken = rows["A14B Q4 640x384x81", "sequential"]
    assert broken.failed.startswith("KeyError") and broken.peak_gib is None
    assert rows["A14B Q4 640x384x81", "model"].swap


def test_a_lessons_record_takes_the_place_of_the_stages(data):
    overflow = a_mode("group_leaf", failed="OutOfMemoryError", step_seconds=None, latents_equal=None)
    record = a_record(modes=[*a_record()["modes"], overflow])
    rows = {row.offload: row for row in measured(data(svd_xt=record)) if row.set_up == "SVD XT 1024x576x25"}
    assert (rows["none"].peak_gib, rows["none"].reserved_gib) == (9.2, 10.0), "the decoding has the peak of every mode"
    assert rows["none"].ram_gib == 20.0 and rows["none"].same_latents
    decoding = json.loads((ROOT / "data/forecasts.json").read_text())["svd_xt"]["modes"]["model"]["stages"]["decode"]
    assert rows["none"].forecast_gib == decoding > 8.1 and not rows["none"].missed
    assert rows["model"].ratio == pytest.approx(0.8 / 0.7)
    assert rows["sequential"].step_seconds > 1, "what the lesson has not measured is left as it was"
    stages = json.loads((ROOT / "data/measurements/stages_h200.json").read_text())["rows"]
    (stage,) = (row for row in stages if (row["model"], row["offload"]) == ("svd_xt", "group_leaf"))
    leaf = rows["group_leaf"]
    assert leaf.peak_gib == max(stage["peaks"].values()) and not leaf.failed, "the full peak, beyond the budget"

    (whole,) = scoreboard.whole_runs(data())
    assert (whole["peak_allocated_gib"], whole["peak_reserved_gib"], whole["peak_ram_gib"]) == (9.2, 10.0, 24.0)
    assert whole["same_latents"] == "2 of 2 modes" and whole["prompt_seconds"] is None


def test_ram_that_counted_mapped_files_is_not_shown(data):
    record = a_record(date="2026-11-24T00:00:00+00:00")
    rows = [row for row in measured(data(svd_xt=record)) if row.set_up == "SVD XT 1024x576x25"]
    assert {row.ram_gib for row in rows} == {None}
    (whole,) = scoreboard.whole_runs(data())
    assert whole["peak_ram_gib"] is None and whole["peak_allocated_gib"] == 9.2


def test_a_lesson_shows_what_was_recorded_of_its_set_up():
    rows = measured()
    shown = repr(scoreboard.recorded(rows, "A14B Q4 640x384x81"))
    assert "measured on one H200 with random weights" in shown and "swapped once per clip" in shown
    (model,) = (line for line in shown.splitlines() if line.startswith("model"))
    assert model.split()[1:5] == ["10.28", "3.75", "1.02", "2.5"], "the swap is spread over the clip's steps"
    with pytest.raises(ParameterError, match="choose from"):
        scoreboard.recorded(rows, "A14B")


@pytest.mark.parametrize(
    "record", [a_record(modes=[]), a_record(meters={}), {"setup": "svd_xt", "failed": "stopped", "meters": {}}]
)
def test_a_lesson_that_did_not_come_to_its_end_is_no_whole_run(data, record):
    assert scoreboard.whole_runs(data(svd_xt=record)) == [] and len(measured(data())) >= 35


def test_a_set_up_without_its_frames_is_stood_for_by_fewer(data):
    rows = of_the_table(measured(data()))
    names = list(dict.fromkeys(row.set_up for row in rows))
    assert len(names) == 6 and "A14B Q4 1280x720x13" in names and names[0].startswith("LTX-Video")
    long = a_record(model="wan22_i2v_a14b", width=1280, height=720, num_frames=81)
    names = {row.set_up for row in of_the_table(measured(data(long=long)))}
    assert "A14B Q4 1280x720x81" in names and "A14B Q4 1280x720x13" not in names
    elsewhere = Row("yours", "svd_xt", 1024, 576, 25, "none", "cpu")
    assert {row.device for row in of_the_table([BASELINE, elsewhere, SWAP])} == {H200}
    assert of_the_table([]) == []


def test_the_table_is_sorted_and_what_is_missing_comes_last():
    shown = table([SWAP, BASELINE, *seed_rows()], "s/step")
    column = shown.columns.index("s/step")
    assert [row[column] for row in shown.rows] == ["0.7", "3.84", *["–"] * 6]
    names = [row[1] for row in table([SWAP, BASELINE]).rows]
    assert names == sorted(names)
    page = shown._repr_mimebundle_()["text/html"]
    assert page.count("onclick=") == len(shown.columns)
    ElementTree.fromstring(page)
    with pytest.raises(ParameterError, match="peak VRAM"):
        table([BASELINE], "peak")
    assert table([]).rows == []


def test_the_charts_say_what_they_show():
    failed = Row(**{**vars(BASELINE), "offload": "sequential", "failed": "KeyError: None", "peak_gib": None})
    over = Row(**{**vars(BASELINE), "offload": "model", "failed": "OutOfMemoryError", "peak_gib": None})
    groups = by_set_up([BASELINE, failed, over, SWAP], "peak_gib")
    assert groups == {
        "SVD XT 1024x576x25": {"none": 13.3, "sequential": "fails", "model": "out of memory"},
        "A14B Q4 640x384x81": {"model": 10.3},
    }
    chart = grouped_bars("Peaks", groups, what="GiB", limit=12.0)
    bars = [one for one in ElementTree.fromstring(chart.svg).iter() if one.tag.endswith("rect")][1:]
    assert [bar.get("fill") == "#fff" for bar in bars] == [True, False], "what is beyond the limit is hollow"
    assert "13.30" in chart.text and "out of memory" in chart.text and "fails" in chart.svg
    doubled = grouped_bars("Time", {"a": {"none": 1.0, "model": 4.0}}, what="ratio", doubling=True)
    widths = [float(one.get("width")) for one in ElementTree.fromstring(doubled.svg).iter() if one.tag.endswith("rect")]
    assert widths[1] < 2 < 200 < widths[2]


@pytest.mark.parametrize("rows", [[], [BASELINE], [BASELINE, SWAP, *seed_rows()]])
def test_charts_are_drawn_of_few_rows_and_of_many(rows):
    for chart in (trade_off(rows, limit=12.0), against(rows), grouped_bars("x", by_set_up(rows, "ratio"), what="y")):
        ElementTree.fromstring(chart.svg)
        assert chart.text


def test_a_miss_is_named_in_the_chart():
    missed = Row(**{**vars(BASELINE), "forecast_gib": 11.0})
    chart = against([BASELINE, missed])
    assert "1 of 2 within" in chart.text and "SVD XT 1024x576x25, none" in chart.svg


# --- the reader's own runs ---


def test_the_readers_newest_run_of_a_set_up_counts(tmp_path):
    for number, offload in enumerate(("none", "model")):
        folder = tmp_path / f"run{number}/svd_xt"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(a_record(date=f"2026-01-0{number + 1}", modes=[a_mode(offload)])))
    (row,) = yours(tmp_path)
    assert row.source == "yours" and row.offload == "model"
    assert yours(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "{}", "null", json.dumps(a_record(modes=[{"offload": "none"}])), json.dumps(a_record(modes=[1])),
        json.dumps({name: value for name, value in a_record().items() if name != "width"}),
        json.dumps(a_record(meters={"decode": {}})),
    ],
)  # fmt: skip
def test_a_record_that_no_lesson_wrote_is_left_out_with_a_warning(tmp_path, content):
    (tmp_path / "svd_xt").mkdir()
    (tmp_path / "svd_xt/run.json").write_text(content)
    with pytest.warns(UserWarning, match="is skipped|left out"):
        assert yours(tmp_path) == []


def test_a_record_without_a_gpu_has_no_vram(tmp_path):
    none = dict(peak_allocated_gib=None, peak_reserved_gib=None)
    (tmp_path / "run.json").write_text(json.dumps(a_record(device="cpu", modes=[a_mode("none", **none)], meters={})))
    (row,) = yours(tmp_path)
    assert row.peak_gib is None and row.missed is None and row.ram_gib == 20.0
    assert "–" in repr(table([row, BASELINE]))


def test_the_same_moments_of_each_models_clip(tmp_path):
    frames = np.arange(48, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(16, 2).repeat(3, 3) * 5
    for name, changes in {
        "mine": {"weights": "miniature", "num_frames": 8}, "noise": {"model": "ltx_video"},
        "other": {"model": "cogvideox_5b_i2v", "weights": "miniature", "clip": "wheel_loader"},
        "broken": {"model": "wan22_ti2v_5b", "weights": "miniature"},
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(a_record(**changes)))
        if name == "broken":
            (tmp_path / name / "continued.mp4").write_bytes(b"")
        else:
            clips.write(tmp_path / name / "continued.mp4", clips.Clip(frames, 24.0))
    with pytest.warns(UserWarning, match="left out"):
        (item,) = continuations([tmp_path]).items()
    name, shown = item  # 7 new frames at 7 a second are the last second, frames 24 to 47
    assert name == "SVD XT" and np.abs(shown.mean(axis=(1, 2, 3)) / 5 - [29, 35, 41, 47]).max() < 1


# --- the page of the measurements ---


def test_a_set_up_has_one_peak_wherever_it_is_shown():
    """The lessons' measured peaks, today's forecasts, and the RAM that each lesson asks for."""
    rows = of_the_table(measured())
    assert len({row.set_up for row in rows}) == 6 and not [row for row in rows if row.missed]
    for (name, *size), modes in published_forecasts().items():
        today = forecast.forecasts(name, width=size[0], height=size[1], num_frames=size[2], gpu="RTX 4070 Ti")
        for mode, one in today.items():
            if not one.fails:
                assert modes[mode]["peak_vram_gib"] == pytest.approx(one.peak_vram_gib, abs=0.005), (name, size, mode)
                assert modes[mode]["peak_ram_gib"] == pytest.approx(one.peak_ram_gib, abs=0.05), (name, size, mode)


def test_each_lesson_asks_for_the_ram_that_is_forecast():
    for path in sorted((ROOT / "notebooks").glob("0[1-5]*.ipynb")):
        asked = float(re.search(r"\| RAM \| 2 GiB \| (\d+) GiB", path.read_text(encoding="utf-8"))[1])
        sizes = [(one.model, *one.size) for one in SET_UPS.values() if one.lesson == path.stem]
        own = [published_forecasts()[size] for size in sizes]
        needed = max(min(one["peak_ram_gib"] for one in modes.values() if "fails" not in one) for modes in own)
        assert needed <= asked + 0.5 and asked <= 1.5 * needed, (path.stem, asked, needed)


def test_the_page_is_what_the_command_would_write(capsys):
    status = command.main(["--check"])
    assert status == 0, f"run `python -m data.make.measurements.readme_section`: {capsys.readouterr().out}"


def test_the_command_writes_the_section_and_the_charts_and_nothing_else(data, capsys, monkeypatch, tmp_path):
    data(svd_xt=a_record())
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command.wanted, "__defaults__", (tmp_path,))
    page = tmp_path / command.PAGE
    page.write_text(f"before\n{command.BEGIN}\nold\n{command.END}\nafter\n")
    assert command.main(["--check"]) == 1 and "README.md is outdated" in capsys.readouterr().out
    assert "old" in page.read_text()
    assert command.main([]) == 0 and command.main(["--check"]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{command.BEGIN}\n\nThe five") and text.endswith(f"{command.END}\nafter\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 7 + 2 and "| LTX-Video 768x512x121 | **7.4** · 1.00×" in text
    assert "| SVD XT 1024x576x25 | model | 9.2 GiB | 10 GiB | – | 0.8 s | 2 s | 2 of 2 modes |" in text
    for name in command.PICTURES:
        ElementTree.parse(tmp_path / "data/pictures" / name)


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("no markers", "one pair of markers"),
        (f"{command.BEGIN}\n", "one pair of markers"),
        (f"{command.BEGIN}\n{command.END}\n" * 2, "one pair of markers"),
    ],
)
def test_a_page_without_its_markers_is_left_alone(data, monkeypatch, tmp_path, capsys, readme, expected):
    data()
    monkeypatch.setattr(command.wanted, "__defaults__", (tmp_path,))
    (tmp_path / command.PAGE).write_text(readme)
    assert command.main([]) == 1 and expected in capsys.readouterr().err
    assert (tmp_path / command.PAGE).read_text() == readme and not list((tmp_path / "data/pictures").iterdir())


def test_without_records_or_runs_the_command_says_so(data, monkeypatch, tmp_path, capsys):
    (data() / "measurements/stages_h200.json").unlink()
    monkeypatch.setattr(command.wanted, "__defaults__", (tmp_path,))
    assert command.main([]) == 1 and "no record" in capsys.readouterr().err
    assert command.main(["--clips", str(tmp_path)]) == 1 and "run the lessons" in capsys.readouterr().err


# --- the lesson ---


def test_the_lesson_types_no_figure_of_ours():
    """What we measured or forecast comes from a record in a cell, so that it cannot grow old in the prose."""
    notebook = nbformat.read(ROOT / "notebooks/06_scoreboard.ipynb", 4)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "markdown"):
        shown = re.sub(r"(?s)<details>.*?</details>", "", cell.source).replace("0.15 GiB", "")  # what counts as a miss
        assert not re.findall(r"\b\d+\.\d+ (?:GiB|s|seconds?|minutes?)\b", shown), cell.id


def code(cell_id):
    """The source of a cell of the lesson."""
    (cell,) = [c for c in nbformat.read(ROOT / "notebooks/06_scoreboard.ipynb", 4).cells if c.id == cell_id]
    return cell.source


def checked(**given):
    """The lesson's names after its parameters, with these values, have been checked."""
    values = {"Optional": Optional, "Path": Path, "root": ROOT}
    exec(code("parameters"), values)
    values |= given
    exec(code("check"), values)
    return values


def test_the_lesson_plans_for_another_gpu():
    values = checked(gpu="L4", vram_budget_gb=None)
    assert values["my_gpu"].name == "L4" and values["vram_gib"] == values["my_gpu"].vram_gib
    assert checked(vram_budget_gb=8)["vram_gib"] == 8


def test_the_lesson_plans_for_a_gpu_of_unknown_rates_without_minutes(monkeypatch, capsys):
    monkeypatch.setattr(forecast, "here", lambda: forecast.GPU("NVIDIA Unheard Of", 10.0))
    values = checked(gpu=None, vram_budget_gb=None)
    assert values["vram_gib"] == 10 and "rates are unknown" in capsys.readouterr().out
    entry = model("ltx_video")
    full = entry.defaults["pretrained"]
    size = dict(width=full.width, height=full.height, num_frames=full.num_frames)
    plan = forecast.plan(entry.name, gpu=values["my_gpu"], vram_budget_gb=16, grow=False, **size)
    values["choices"] = [(entry, full, "quick tries", plan)]
    exec(code("plan-table"), values)
    (row,) = values["cells"]
    assert row[3] == "none" and row[-2:] == ["unknown", "unknown"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"gpu": "RTX 407O Ti"}, "RTX 4070 Ti"),
        ({"gpu": "A11"}, "A10"),
        ({"sort_by": "peak"}, "peak VRAM"),
        ({"sort_by": None}, "sort_by"),
        ({"vram_budget_gb": -1}, "vram_budget_gb"),
        ({"vram_budget_gb": "12"}, "vram_budget_gb"),
    ],
)
def test_wrong_values_of_the_lesson_are_refused_at_once(given, expected):
    with pytest.raises(ParameterError, match=expected):
        checked(**given)


def test_nothing_warns_on_our_own_records():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(of_the_table(measured())) == 30
