"""The command that measures the lessons: what it records of a run, a failure and a timeout, and what it refuses."""

import json
import shutil
import signal
import subprocess
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from data.make.measurements import lessons, set_ups
from helpers import measure
from helpers.charts import METER_JSON
from helpers.models import OFFLOAD_MODES
from tests.notebook_style import ROOT

GPU = {"name": "NVIDIA H200", "vram_gib": 139.8, "free_gib": 139.0}
PARAMETERS = """\
weights: str = "miniature"  # which
offload: str = "model"  # how
steps: int = 4  # how many
vram_budget_gb: float = 12.0  # GiB
out_dir: str = "outputs"  # where
how: str = "well"  # this test's own
"""
METER = f"""\
from IPython.display import display
meter = {{"title": "none", "state": "done", "seconds": 12.5, "peak_allocated_gib": 5.79, "peak_reserved_gib": 8.6,
         "peak_device_gib": 9.1, "peak_ram_gib": 6.0, "forecast_gib": 5.76, "phases": []}}
display({{"text/plain": "worded as you like", "{METER_JSON}": meter}}, raw=True)
"""
WORK = """\
import os, sys, time
from pathlib import Path
folder = Path(out_dir) / "svd_xt"
folder.mkdir(parents=True)
if how == "slowly":
    (folder / "kernel").write_text(str(os.getpid()))
    time.sleep(60)
if how == "killed":
    os._exit(9)
if how == "badly":
    raise ValueError("the frame is too large")
"""
RECORD = """\
import json
modes = [{"offload": "none", "steps": steps}]
(folder / "run.json").write_text(json.dumps({"model": "svd_xt", "weights": weights, "modes": modes}))
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """`tiny("badly")` measures a small lesson instead of `svd_xt`; returns the status and the record."""
    cells = [
        new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]}),
        *(new_code_cell(source, id=name) for name, source in (("meter", METER), ("work", WORK), ("record", RECORD))),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), tmp_path / "tiny.ipynb")
    set_up = set_ups.SetUp("svd_xt", (1024, 576, 25), str(tmp_path / "tiny.ipynb"), "model")
    monkeypatch.setattr(lessons, "SET_UPS", {"svd_xt": set_up})
    monkeypatch.setattr(lessons, "POLL_SECONDS", 0.2)
    monkeypatch.setattr(lessons, "probe", lambda: None)

    def tiny(how="well", *more):
        where = ["--out", str(tmp_path / "records"), "--work", str(tmp_path / "work")]
        status = lessons.main(["--weights", "miniature", "-p", "how", how, *where, *more])
        path = tmp_path / "records/lessons_cpu/svd_xt.json"
        return status, json.loads(path.read_text()) if path.exists() else None

    return tiny


def test_a_run_is_kept_with_its_meters_and_not_measured_twice(tiny, tmp_path, capsys):
    status, record = tiny()
    assert status == 0 and record["failed"] is None and record["modes"][0]["offload"] == "none"
    assert record["setup"] == "svd_xt" and record["device"] == "cpu" and record["torch"] == record["versions"]["torch"]
    ((stage, meter),) = record["meters"].items()
    assert (stage, meter["title"], meter["state"], meter["seconds"]) == ("meter", "none", "done", 12.5)
    figures = [meter[key] for key in ("peak_allocated_gib", "peak_reserved_gib", "peak_device_gib", "peak_ram_gib")]
    assert figures == [5.79, 8.6, 9.1, 6.0] and meter["forecast_gib"] == 5.76
    assert "meter: done, 12.5 s, 5.79 GiB allocated, 8.60 reserved" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "records").rglob("*.json")] == ["svd_xt.json"]  # nothing half-written

    status, again = tiny("badly")
    assert status == 0 and again == record and "recorded already" in capsys.readouterr().out
    status, again = tiny("badly", "--again")
    assert status == 1 and "modes" not in again


def test_a_failure_is_kept_with_its_error_and_tried_again(tiny, capsys):
    status, record = tiny("badly")
    assert status == 1 and record["failed"].endswith("cell `work`: ValueError: the frame is too large")
    assert record["num_frames"] == 25 and record["steps"] == 2 and "modes" not in record
    assert len(record["meters"]) == 1, "what was measured before it failed"
    assert "FAILED" in capsys.readouterr().out
    assert tiny()[1]["failed"] is None


def test_a_kernel_that_dies_is_a_failure(tiny):
    status, record = tiny("killed")
    assert status == 1 and "work" in record["failed"] and "died" in record["failed"]


def test_a_lesson_that_runs_out_of_time_is_stopped_with_its_kernel(tiny, tmp_path):
    status, record = tiny("slowly", "--lesson-minutes", "0.15")
    assert status == 1 and record["failed"] == "stopped after 0.1 minutes" and record["lesson_seconds"] > 8
    assert "modes" not in record, "it was stopped before it ended by itself"
    kernel = tmp_path / "work/svd_xt/svd_xt/kernel"
    assert not kernel.exists() or not psutil.pid_exists(int(kernel.read_text()))
    assert not list((tmp_path / "work").rglob("*.partial.ipynb"))


def test_what_time_does_not_allow_is_named(tiny, capsys, monkeypatch):
    monkeypatch.setattr(lessons.time, "monotonic", iter(range(0, 10**6, 1000)).__next__)
    assert tiny("well", "--minutes", "2") == (1, None)
    assert "time is up; not measured: svd_xt" in capsys.readouterr().out


def test_failed_set_ups_come_after_those_that_were_never_tried(tmp_path, monkeypatch, capsys):
    records = tmp_path / "lessons_h200"
    measure.save({"failed": "ValueError"}, records / "wan22_i2v_a14b_720p.json")
    measure.save({"modes": [{"offload": "none"}]}, records / "cogvideox_5b_i2v.json")
    order, dropped = [], []
    done = {"failed": None, "lesson_seconds": 1.0, "meters": {}, "modes": [{}]}
    monkeypatch.setattr(lessons, "probe", lambda: GPU)
    monkeypatch.setattr(lessons, "make_dummy", lambda model, cache: 1.0)
    monkeypatch.setattr(lessons, "run", lambda set_up, options, folder, seconds: order.append(folder.name) or done)
    monkeypatch.setattr(lessons.shutil, "rmtree", lambda folder, ignore_errors: dropped.append(folder.name))
    assert lessons.main(["--out", str(tmp_path), "--drop-dummies"]) == 0
    assert order == ["ltx_video", "svd_xt", "wan22_i2v_a14b", "wan22_ti2v_5b", "wan22_i2v_a14b_720p"]
    assert dropped == ["ltx_video", "svd_xt", "wan22_ti2v_5b", "wan22_i2v_a14b"]  # the last one was needed twice
    assert "cogvideox_5b_i2v: recorded already" in capsys.readouterr().out
    kept = json.loads((records / "svd_xt.json").read_text())
    assert kept["device"] == "NVIDIA H200" and kept["vram_cap_gib"] == 12.0 and kept["card_gib"] == 139.8


@pytest.mark.parametrize(
    ("arguments", "gpu", "expected"),
    [
        ([], None, "no CUDA device here"),
        ([], GPU | {"vram_gib": 8.0, "free_gib": 7.6}, "7.6 of 8.0 GiB free, less than the budget of 12"),
        (["--vram-budget-gb", "200"], GPU, "less than the budget of 200"),
        (["--vram-budget-gb", "0"], GPU, "more than 0"),
        (["--minutes", "-1"], GPU, "more than 0"),
        (["--minutes", "nan"], GPU, "more than 0"),
        (["--lesson-minutes", "soon"], GPU, "lesson-minutes"),
        (["--steps", "1"], GPU, "two or more"),
        (["--only", "svd"], GPU, "svd_xt"),
        (["--weights", "pretrained"], GPU, "invalid choice"),
        (["--cache", "FOLDER/models"], GPU, "called 'dummy'"),
        (["--out", "FOLDER/file"], GPU, "file"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(tmp_path, monkeypatch, capsys, arguments, gpu, expected):
    monkeypatch.setattr(lessons, "probe", lambda: gpu)
    monkeypatch.setattr(lessons, "make_dummy", lambda model, cache: 1.0)
    monkeypatch.setattr(lessons, "run", lambda *_: {"failed": None, "lesson_seconds": 1.0, "meters": {}})
    (tmp_path / "file").write_text("")
    given = [word.replace("FOLDER", str(tmp_path)) for word in arguments]
    where = [] if "--out" in given else ["--out", str(tmp_path / "records")]
    try:
        status = lessons.main([*given, *where])
    except SystemExit as stop:
        status = stop.code
    assert status == 2 and expected in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_without_room_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lessons, "probe", lambda: GPU)
    full = SimpleNamespace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    where = ["--out", str(tmp_path / "records"), "--work", str(tmp_path / "work")]
    assert lessons.main(["--only", "svd_xt", "--cache", str(tmp_path / "dummy"), *where]) == 1
    said = capsys.readouterr().out
    assert "svd_xt needs" in said and "has only 1.0 GB free" in said and "CLIP_LESSONS_CACHE" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "gib", "folder"),
    [
        ("NVIDIA H200", 139.8, "h200"),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100"),
        ("NVIDIA GeForce RTX 4070 Ti", 11.6, "rtx_4070_ti"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 15.6, "rtx_4070_ti_super"),
        ("NVIDIA GeForce RTX 3060", 11.6, "rtx_3060_12gb"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100_80gb"),
        ("NVIDIA GeForce RTX 9999 Ti", 30.0, "rtx_9999_ti"),
    ],
)
def test_a_gpus_folder_has_its_usual_name(name, gib, folder):
    assert lessons.short_name({"name": name, "vram_gib": gib}) == folder


def test_each_set_up_is_measured_once_by_a_lesson_in_an_existing_mode():
    assert sorted(lessons.ORDER) == sorted(set_ups.SET_UPS)
    for one in set_ups.SET_UPS.values():
        assert (ROOT / "notebooks" / f"{one.lesson}.ipynb").is_file() and one.offload in OFFLOAD_MODES


def test_ending_a_process_ends_what_it_started():
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    code += "; print(p.pid, flush=True); p.wait()"
    process = subprocess.Popen([lessons.sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with lessons.killed_with_descendants(process):
        grandchild = int(process.stdout.readline())
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL and not psutil.pid_exists(grandchild)


@pytest.mark.notebook
@pytest.mark.slow
def test_a_lesson_is_measured(tmp_path, capsys):
    where = ["--out", str(tmp_path / "records"), "--work", str(tmp_path / "work")]
    assert lessons.main(["--weights", "miniature", "--only", "ltx_video", "--again", *where]) == 0
    (path,) = (tmp_path / "records").rglob("ltx_video.json")
    record = json.loads(path.read_text())
    assert [mode["offload"] for mode in record["modes"]] == list(OFFLOAD_MODES)
    assert set(record["meters"]) == {"encode_prompt", "generate", "decode"}
    assert all(mode["forecast_gib"] > 0 for mode in record["modes"])
    assert len(measure.load(path.parent)) == 1, "it is a record like a reader's own"
