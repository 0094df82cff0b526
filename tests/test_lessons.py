"""Every notebook is executed headlessly, as a reader would run it, and what it makes is looked at."""

import ast
import inspect
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Optional

import nbformat
import numpy as np
import pytest
import torch
from nbconvert import HTMLExporter

from helpers import clips, hops
from helpers import lesson as helpers_lesson
from helpers.forecast import CONTEXT_GIB
from helpers.lesson import CachedEmbeddings, ParameterError
from helpers.lesson.offloading import DENOISERS
from helpers.models import checkpoint, model
from helpers.run_lesson import main as run_lesson
from tests.notebook_style import ROOT, notebooks, plain_python

HOPS = "the wood chipper throws chips to the left | the wood chipper throws chips to the right"
LONG_PROMPT = "the excavator lowers its arm and digs " * 40
# notebook: the runs, each the parameters that differ from the defaults
MATRIX = {
    "00_start_here": {"defaults": {}},
    "01_ltx_video": {
        "defaults": {},
        "portrait": {
            "clip": "wood_chipper", "prompt": "the wood chipper throws chips to the left", "offload": "group_leaf",
            "width": 160, "height": 288, "steps": 2, "keep_context": True, "slice_tokens": 30, "compare": False,
        },
        "own clip": {
            "clip": "OWN", "offload": "sequential", "num_frames": 9, "steps": 2, "prompt": LONG_PROMPT,
            "encode": "layer_by_layer", "weights": "PUBLISHED SCHEDULE", "width": 288, "height": 160, "compare": False,
        },
    },
    "02_wan22_ti2v_5b": {"defaults": {}},
    "03_wan22_i2v_a14b_gguf": {"defaults": {}},
    "04_stable_video_diffusion": {"defaults": {}},
    "05_cogvideox_5b_i2v": {
        "defaults": {},
        "own clip": {
            "clip": "OWN", "offload": "sequential", "steps": 2, "fit": "pad", "resample": "blend", "prompt": "it digs",
            "compare": False,
        },
    },
    "06_scoreboard": {"defaults": {}},
    "07_slice_the_activations": {"defaults": {}},
    "08_go_on": {
        "defaults": {},
        "other model": {
            "model": "wan22_ti2v_5b", "clip": "wood_chipper", "seconds": 0.8, "prompt": HOPS, "way": "latents",
            "latents_handed_over": 3, "steps": 1, "offload": "group_leaf", "compare": False, "resample": "nearest",
        },
    },
    "09_faster": {"defaults": {}},
}  # fmt: skip
NAMES = {
    "01_ltx_video": "ltx_video", "02_wan22_ti2v_5b": "wan22_ti2v_5b", "03_wan22_i2v_a14b_gguf": "wan22_i2v_a14b",
    "04_stable_video_diffusion": "svd_xt", "05_cogvideox_5b_i2v": "cogvideox_5b_i2v",
}  # fmt: skip
MODEL_RUNS = [(lesson, run) for lesson in NAMES for run in MATRIX[lesson]]
RUNS = [(lesson, run) for lesson, runs in MATRIX.items() for run in runs]
LTX_RUNS = list(MATRIX["01_ltx_video"])
# the lessons with three exercises to solve
EXERCISES = [*NAMES, "06_scoreboard", "07_slice_the_activations", "08_go_on", "09_faster"]
MODES = ["none", "model", "sequential", "group_block", "group_leaf"]
RECORD_KEYS = (
    "model width height num_frames offload device vram_cap_gib weights peak_allocated_gib peak_reserved_gib "
    "peak_ram_gib step_seconds resident_step_seconds stages forecast latents_equal versions date"
).split()


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Runs a lesson once for each set of parameters; returns its output folder."""
    done = {}

    def run(lesson, name):
        if (lesson, name) not in done:
            out = tmp_path_factory.mktemp("out")
            given = dict(MATRIX[lesson][name])
            if given.get("clip") == "OWN":
                given["clip"] = str(own_clip(out))
            if given.get("weights") == "PUBLISHED SCHEDULE":
                given["weights"] = str(with_published_schedule(NAMES[lesson], out))
            arguments = [word for key, value in given.items() for word in ("-p", key, str(value))]
            notebook = with_solutions(lesson) if name == "defaults" else lesson
            assert run_lesson([str(notebook), "--out", str(out), *arguments]) == 0
            done[lesson, name] = out
        return done[lesson, name]

    yield run
    shutil.rmtree(SOLVED, ignore_errors=True)


SOLVED = ROOT / "outputs" / f"solved-{os.getpid()}"  # lessons look for the project from where they are upwards


def with_solutions(lesson):
    """A copy of the lesson that solves its exercises at the end: the folded code in place of each cell's `None`."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{lesson}.ipynb", 4)
    for number, before in exercises(notebook).items():
        (cell,) = [cell for cell in notebook.cells if cell.id == f"exercise-{number}"]
        (solution,) = re.findall(r"(?s)<details>.*?```python\n(.*?)```", before)
        answer, _, check = cell.source.partition("\n")
        name = re.fullmatch(r"(\w+) = None  # your answer: .+", answer)[1]
        assert re.search(rf"(?m)^( {{4}})?{name}(, \w+)? = ", solution), f"{lesson} {number}: no {name} in the solution"
        notebook.cells.append(nbformat.v4.new_code_cell(f"{solution}\n{check}", id=f"solution-{number}"))
    SOLVED.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, SOLVED / f"{lesson}.ipynb")
    return SOLVED / f"{lesson}.ipynb"


def exercises(notebook):
    """The text before each cell `exercise-1`, `exercise-2`, ... by its number."""
    pairs = zip(notebook.cells, notebook.cells[1:], strict=False)
    return {cell.id.split("-")[1]: before.source for before, cell in pairs if re.fullmatch(r"exercise-\d", cell.id)}


def own_clip(folder):
    """Five frames of odd size at 30 frames a second, as a phone's app may leave them."""
    path = folder / "mine.mkv"
    source = ["-f", "lavfi", "-i", "testsrc2=size=175x99:rate=30", "-frames:v", "5", "-c:v", "ffv1"]
    subprocess.run([clips.ffmpeg_path(), "-v", "error", *source, str(path)], check=True)
    return path


def with_published_schedule(name, folder):
    """A copy of the miniature that has the real model's scheduler."""
    copy = shutil.copytree(ROOT / "data" / "miniatures" / name, folder / "weights")
    return Path(
        shutil.copytree(ROOT / "data" / "configs" / name / "scheduler", copy / "scheduler", dirs_exist_ok=True)
    ).parent


def even(size):
    """What a file of 4:2:0 video makes of a size."""
    return tuple(side + side % 2 for side in size)


def outputs(folder, lesson, cell_id):
    notebook = nbformat.read(folder / f"{lesson}.ipynb", 4)
    (cell,) = [cell for cell in notebook.cells if cell.id == cell_id]
    return cell.outputs


def printed(folder, lesson, cell_id):
    return "".join(output.get("text", "") for output in outputs(folder, lesson, cell_id))


def test_every_notebook_is_in_the_matrix():
    assert {path.stem for path in notebooks()} == set(MATRIX)


@pytest.mark.notebook
@pytest.mark.parametrize(("lesson", "run"), RUNS)
def test_the_notebook_runs_to_its_end_and_can_be_published(executed, lesson, run):
    path = executed(lesson, run) / f"{lesson}.ipynb"
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert path.stat().st_size < 5_000_000
    assert "widgets" not in notebook.metadata
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert "<svg" in page or "image/svg" in page
    for cell in code:
        for output in cell.outputs:
            assert "deprecat" not in str(output.get("text", "")).lower(), f"{cell.id}: {output['text']}"


@pytest.mark.notebook
@pytest.mark.parametrize(("lesson", "run"), MODEL_RUNS)
def test_every_mode_gives_the_plain_runs_latents(executed, lesson, run):
    record = json.loads((result_of(executed(lesson, run), lesson) / "run.json").read_text())
    given = MATRIX[lesson][run]
    expected = MODES if given.get("compare", True) else [record["offload"]]
    assert [mode["offload"] for mode in record["modes"]] == expected
    for mode in record["modes"]:
        if mode["offload"] == "sequential" and lesson.endswith("gguf"):
            assert mode["failed"] == "KeyError: None" and mode["latents_difference"] is None
            continue
        if expected == MODES:
            assert mode["latents_difference"] <= 1e-5 and mode["latents_equal"], mode["offload"]
        assert not mode["failed"], mode["offload"]
        assert mode["peak_ram_gib"] > 0.1 and mode["step_seconds"] > 0
    assert set(RECORD_KEYS) <= set(record) and record["latents_equal"] is (True if expected == MODES else None)
    default = "group_leaf" if lesson.startswith(("02", "03", "05")) else "model"
    assert record["offload"] == given.get("offload", default)


@pytest.mark.notebook
@pytest.mark.parametrize("lesson", NAMES)
def test_each_meters_last_frame_is_in_the_notebook(executed, lesson):
    notebook = nbformat.read(executed(lesson, "defaults") / f"{lesson}.ipynb", 4)
    measuring = [cell for cell in notebook.cells if cell.id == "measure" or cell.id.startswith("mode-")]
    shown = [output.get("data", {}) for cell in measuring for output in cell.get("outputs", [])]
    charts = [data for data in shown if "image/svg+xml" in data]
    assert [data["text/plain"].split(": ")[0] for data in charts] == MODES
    for mode, data in zip(MODES, charts, strict=True):
        assert "done" in data["image/svg+xml"] and "peak" in data["text/plain"], mode


@pytest.mark.notebook
@pytest.mark.parametrize("lesson", EXERCISES)
def test_the_exercises_know_a_right_answer_from_none(executed, lesson):
    folder = executed(lesson, "defaults")
    for number in "123":
        assert printed(folder, lesson, f"exercise-{number}") == f"exercise {number}: no answer yet\n"
        lines = printed(folder, lesson, f"solution-{number}").splitlines()
        assert any(line.startswith("right") for line in lines), number


@pytest.mark.parametrize("lesson", EXERCISES)
def test_each_exercise_has_a_level_minutes_and_one_solution(lesson):
    tasks = exercises(nbformat.read(ROOT / "notebooks" / f"{lesson}.ipynb", 4))
    assert list(tasks) == ["1", "2", "3"]
    for number, level in zip("123", ("easy", "medium", "harder"), strict=True):
        assert re.search(rf"\*\*{number}\. .+?\*\* \({level}, \d+ minutes\)\. ", tasks[number]), number
        assert tasks[number].count("<details><summary>Solution</summary>") == 1


@pytest.mark.parametrize("lesson", ["01_ltx_video"])
@pytest.mark.notebook
@pytest.mark.parametrize("run", LTX_RUNS)
def test_the_longer_clip_is_the_clip_and_then_something_new(executed, lesson, run):
    folder, given = executed(lesson, run), MATRIX[lesson][run]
    result = result_of(folder, lesson)
    written = {"continued.mp4", "poster.png", "latents.safetensors", "run.json"}
    context = 9 if given.get("keep_context") else 1
    assert {p.name for p in result.iterdir()} == written | ({"latents_context.safetensors"} if context > 1 else set())
    defaults = model("ltx_video").defaults["miniature"]
    width, height = given.get("width", defaults.width), given.get("height", defaults.height)
    source = clips.read(folder / "mine.mkv" if given.get("clip") == "OWN" else given.get("clip", "excavator"))
    past = source.fit(width, height)
    longer = clips.read(result / "continued.mp4")

    new = given.get("num_frames", defaults.num_frames) - context
    if source.fps == 24:
        assert len(longer) == len(past) + new and longer.fps == 24
    else:  # the continuation takes the clip's own rate, and keeps its seconds
        assert longer.fps == source.fps and longer.seconds == pytest.approx(past.seconds + new / 24, abs=1 / 24)
    assert longer.size == even(source.size) and longer.has_audio == source.has_audio

    own = longer.frames[: len(past), : source.height, : source.width]
    kept = json.loads((result / "run.json").read_text())["joined"]
    assert kept["original"] == ("encode" if given.get("clip") == "OWN" else "copy")
    assert np.array_equal(own, source.frames) if kept["original"] == "copy" else clips.psnr(own, source.frames) > 33
    small = clips.fit(longer.frames[len(past) :], width, height)
    steps = np.abs(np.diff(small.astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert steps.max() < 25, "neighbouring frames differ like noise"
    if run == "defaults":
        assert np.abs(small[-1].astype(float) - small[0]).mean() > 1.5, "the continuation stands still"


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("lesson", "gain"), [("01_ltx_video", 5), ("02_wan22_ti2v_5b", 5), ("03_wan22_i2v_a14b_gguf", 5)]
)
def test_the_continuation_is_nearer_to_the_truth_than_a_frozen_frame(executed, lesson, gain):
    defaults = model(NAMES[lesson]).defaults["miniature"]
    past = clips.read("excavator").fit(defaults.width, defaults.height)
    longer = clips.read(result_of(executed(lesson, "defaults"), lesson) / "continued.mp4")
    generated = clips.fit(longer.frames[len(past) :], defaults.width, defaults.height)
    truth = clips.continuation_truth(clips.read("excavator"), max_seconds=1.0).fit(*past.size).frames
    assert len(generated) == len(truth) == 24  # one second at the clip's rate, whatever the model's own
    frozen = past.frames[-1:].repeat(len(truth), axis=0)
    assert clips.psnr(generated, truth) > clips.psnr(frozen, truth) + gain


@pytest.mark.notebook
@pytest.mark.parametrize(
    ("lesson", "run"),
    [(lesson, run) for lesson in ("04_stable_video_diffusion", "05_cogvideox_5b_i2v") for run in MATRIX[lesson]],
)
def test_the_longer_clip_has_the_clips_own_size_and_rate(executed, lesson, run):
    folder, given = executed(lesson, run), MATRIX[lesson][run]
    entry = model(NAMES[lesson])
    source = clips.read(folder / "mine.mkv" if given.get("clip") == "OWN" else "excavator")
    longer = clips.read(result_of(folder, lesson) / "continued.mp4")
    assert longer.size == even(source.size) and longer.fps == source.fps and longer.has_audio == source.has_audio
    new_seconds = (entry.defaults["miniature"].num_frames - 1) / entry.fps
    assert longer.seconds == pytest.approx(source.seconds + new_seconds, abs=0.5 / source.fps)
    new = clips.fit(longer.frames[len(source) :], 240, 136).astype(float)
    assert np.abs(np.diff(new, axis=0)).mean(axis=(1, 2, 3)).max() < 25, "neighbouring frames differ like noise"
    assert np.abs(new[-1] - new[0]).mean() > 1, "the continuation stands still"


@pytest.mark.parametrize("lesson", ["04_stable_video_diffusion"])
@pytest.mark.notebook
def test_the_lesson_without_words_shows_what_only_it_can_show(executed, lesson):
    folder = executed(lesson, "defaults")
    moved = [float(line.split()[-1]) for line in printed(folder, lesson, "motion").splitlines()]
    assert len(moved) == 2 and moved[0] < moved[1], "a larger motion bucket moves more"
    without, _ = (float(line.split()[-2]) for line in printed(folder, lesson, "chunking").splitlines()[1::-1])
    assert "difference between the latents: 0e+00" in printed(folder, lesson, "chunking")
    peaks = [float(line.split()[-2]) for line in printed(folder, lesson, "decode-forecast").splitlines()]
    assert peaks == sorted(peaks) and peaks[-1] > 2 * peaks[1] and without > 10


@pytest.mark.parametrize("lesson", ["05_cogvideox_5b_i2v"])
@pytest.mark.notebook
def test_the_lesson_of_the_hour_counts_what_travels(executed, lesson):
    folder = executed(lesson, "defaults")
    assert "512 layers, 1,024 tensors, 10.4 GiB" in printed(folder, lesson, "count")
    counts = [line.rsplit(": ", 1)[1] for line in printed(folder, lesson, "seen").splitlines()]
    assert len(counts) == 2 and counts[0] == counts[1], "both modes visit the same layers"
    assert "twenty words refused: The size of tensor" in printed(folder, lesson, "words-refused")
    assert "slices of one clip change nothing: True" in printed(folder, lesson, "decode-check")
    tiled = printed(folder, lesson, "decode-forecast").splitlines()
    assert "15.15 GiB" in tiled[0] and "4.18 GiB" in tiled[1]


@pytest.mark.parametrize(
    ("lesson", "given", "expected"),
    [
        ("04_stable_video_diffusion", {"prompt": "dig"}, "takes no prompt"),
        ("04_stable_video_diffusion", {"decode_chunk_size": 0}, "decode_chunk_size=0: .*nearest: 1"),
        ("04_stable_video_diffusion", {"decode_chunk_size": 26}, "nearest: 25"),
        ("04_stable_video_diffusion", {"num_frames": 14}, "exactly 25 frames"),
        ("04_stable_video_diffusion", {"motion_bucket_id": 256}, "nearest: 255"),
        ("04_stable_video_diffusion", {"fit": "squeeze"}, "crop, pad"),
        ("05_cogvideox_5b_i2v", {"width": 720, "height": 480}, "only 240x160 pixels"),
        ("05_cogvideox_5b_i2v", {"weights": "pretrained", "width": 768}, "only 720x480 pixels"),
        ("05_cogvideox_5b_i2v", {"num_frames": 13}, "exactly 17 frames"),
        ("05_cogvideox_5b_i2v", {"resample": "cubic"}, "blend, nearest, motion"),
        ("05_cogvideox_5b_i2v", {"encode": "bf16"}, "fp32, layer_by_layer"),
    ],
)
def test_wrong_values_of_the_last_two_lessons_are_refused_at_once(tmp_path, lesson, given, expected):
    cells = {cell.id: cell.source for cell in nbformat.read(ROOT / "notebooks" / f"{lesson}.ipynb", 4).cells}
    values = {"Optional": Optional}
    exec(cells["parameters"], values)
    values |= given | {"out_dir": str(tmp_path)}
    with pytest.raises(ParameterError, match=expected):
        exec(cells["check"], values)


@pytest.mark.parametrize("lesson", ["02_wan22_ti2v_5b"])
@pytest.mark.notebook
def test_the_encoder_is_met_only_once(executed, lesson, tmp_path):
    """The second run of a lesson finds the prompt's embeddings; another prompt does not."""
    kept = executed(lesson, "defaults") / "embeddings"
    assert "0 of 1 prompts found" in printed(kept.parent, lesson, "embeddings-cache")
    assert "512: largest difference" in printed(kept.parent, lesson, "padding-check")
    cache = CachedEmbeddings(kept, checkpoint("wan22_ti2v_5b"), dtype=torch.float32)
    found = cache.load("the excavator lowers its arm and digs")
    assert found.shape == (8, 32) and cache.load("the excavator lowers its arm and dig") is None
    other = CachedEmbeddings(kept, checkpoint("wan22_ti2v_5b"), dtype=torch.bfloat16)
    assert other.load("the excavator lowers its arm and digs") is None
    path = cache.path("the excavator lowers its arm and digs")
    cut = CachedEmbeddings(tmp_path, checkpoint("wan22_ti2v_5b"), dtype=torch.float32)
    (tmp_path / path.name).write_bytes(path.read_bytes()[:-40])  # a damaged file counts as none
    assert cut.load("the excavator lowers its arm and digs") is None


@pytest.mark.parametrize("lesson", ["02_wan22_ti2v_5b"])
@pytest.mark.notebook
def test_the_gpu_runs_out_of_memory_and_the_hook_order_is_fixed(executed, lesson):
    folder = executed(lesson, "defaults")
    lines = printed(folder, lesson, "overflow").splitlines()
    assert "UMT5EncoderModel" in lines[0] and "10.6 GiB: fits" in lines[0] and "does not fit" in lines[1]
    assert "offloaded when the transformer is called: None" in printed(folder, lesson, "mode-model")
    assert "same latents: True" in printed(folder, lesson, "mend-chain")


@pytest.mark.parametrize("lesson", ["03_wan22_i2v_a14b_gguf"])
@pytest.mark.notebook
def test_the_gguf_lesson_shows_what_only_it_can_show(executed, lesson):
    folder = executed(lesson, "defaults")
    assert "largest difference to the library: 0.0" in printed(folder, lesson, "block")
    assert "failed, as forecast: KeyError: None" in printed(folder, lesson, "mode-sequential")
    plan = printed(folder, lesson, "experts").splitlines()
    assert [line.split(": ")[1] for line in plan[1:]] == ["first expert"] * 2 + ["second expert"] * 2
    assert "model: transformer at 999, transformer_2 at 750" in printed(folder, lesson, "measure")
    fits, overflows = printed(folder, lesson, "overflow").splitlines()[1:]
    gib = [float(line.split(": ")[1].split(" ")[0]) for line in (fits, overflows)]
    assert gib[0] + CONTEXT_GIB <= 12 < gib[1] + CONTEXT_GIB


@pytest.mark.parametrize("lesson", ["08_go_on"])
@pytest.mark.notebook
def test_a_clip_goes_on_hop_after_hop_and_does_not_fade(executed, lesson):
    folder = executed(lesson, "defaults") / "go_on" / "ltx_video" / "excavator"
    record, source = json.loads((folder / "run.json").read_text()), clips.read("excavator")
    assert record["parameters"]["hops"] == 8 and len(hops.Hops(folder / "hops")) == 8
    longer = clips.read(folder / "continued.mp4")
    assert len(longer) == len(source) + 5 * 24, "five seconds, to the frame"
    assert np.array_equal(longer.frames[: len(source)], source.frames)
    drift = record["joined"]["drift"]
    for name in ("contrast", "saturation"):
        assert 0.95 < drift["last"][name] / drift["first"][name] < 1.05, name
    new = clips.fit(longer.frames[len(source) :], 288, 160)
    truth = clips.continuation_truth(source, max_seconds=5.0).fit(288, 160).frames
    frozen = clips.fit(source.frames[-1:], 288, 160).repeat(24, axis=0)
    assert clips.psnr(new[-24:], truth[-24:]) > clips.psnr(frozen, truth[-24:]) + 2, "in its fifth second, too"
    assert "worst" in printed(executed(lesson, "defaults"), lesson, "drift")


@pytest.mark.parametrize("lesson", ["09_faster"])
@pytest.mark.notebook
def test_levers_save_time_and_the_record_says_what_they_did(executed, lesson):
    folder = executed(lesson, "defaults") / "faster" / "ltx_video" / "excavator"
    record = json.loads((folder / "run.json").read_text())
    done = record["levers"]
    assert done["plain"]["passes"] == 20 and done["2 steps"]["passes"] == 2 and record["steps"] == 2
    assert done["TaylorSeer, default"]["computed"] == 1, "a lever that does nothing"
    for name in ("first block 0.2", "MagCache", "TaylorSeer, lite"):
        assert done[name]["computed"] < 0.9 and done[name]["to_plain"] > 30, name
    for name in ("2 steps", "4 steps, fp8", "MagCache"):
        assert done[name]["to_truth"] > done["plain"]["to_truth"] - 0.5, name
    assert len(clips.read(folder / "continued.mp4")) == 72 + 24


@pytest.mark.parametrize("lesson", ["08_go_on"])
@pytest.mark.notebook
def test_a_stopped_run_goes_on_with_the_hop_that_is_missing(executed, lesson, tmp_path):
    out = executed(lesson, "other model")
    folder = out / "go_on" / "wan22_ti2v_5b" / "wood_chipper"
    record = json.loads((folder / "run.json").read_text())
    assert record["parameters"]["prompts"] == HOPS.split(" | ") and record["offload"] == "group_leaf"
    assert len(clips.read(folder / "continued.mp4")) == 72 + round(0.8 * 24)
    assert printed(out, lesson, "hops") == "2 hops to go\n"
    again = shutil.copytree(out, tmp_path / "out")
    kept = again / "go_on" / "wan22_ti2v_5b" / "wood_chipper" / "hops"
    (kept / "002_frames.npy").unlink()  # as if it had been stopped while it decoded the second hop
    before = {path.name: path.stat().st_mtime_ns for path in kept.iterdir() if path.name.startswith("001")}
    words = [word for name, value in MATRIX[lesson]["other model"].items() for word in ("-p", name, str(value))]
    assert run_lesson([lesson, "--out", str(again), *words]) == 0
    assert printed(again, lesson, "hops") == "1 of 2 hops are finished\n"
    assert before == {path.name: path.stat().st_mtime_ns for path in kept.iterdir() if path.name.startswith("001")}
    first, second = (np.load(one / "002_frames.npy") for one in (folder / "hops", kept))
    assert np.array_equal(first, second)
    assert run_lesson([lesson, "--out", str(again), *words, "-p", "steps", "2"]) == 1, "hops of other parameters"
    assert len(hops.Hops(kept)) == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"model": "svd_xt"}, "ltx_video, wan22_ti2v_5b"),
        ({"way": "glue"}, "last_frame, several, latents, anchor"),
        ({"seconds": 0}, "seconds=0"),
        ({"latents_handed_over": 0}, "nearest: 1"),
    ],
)
def test_wrong_values_of_the_lesson_of_hops_are_refused_at_once(tmp_path, given, expected):
    cells = {cell.id: cell.source for cell in nbformat.read(ROOT / "notebooks" / "08_go_on.ipynb", 4).cells}
    values = {"Optional": Optional}
    exec(cells["parameters"], values)
    values |= given | {"out_dir": str(tmp_path)}
    with pytest.raises(ParameterError, match=expected):
        exec(cells["check"], values)


WRITTEN_OUT = {
    "01_ltx_video": [
        helpers_lesson.encoder_from_files, helpers_lesson.encode_prompts, helpers_lesson.cap_vram,
        helpers_lesson.offload_sequentially, helpers_lesson.offload_in_groups, helpers_lesson.measure_mode,
        helpers_lesson.generate, clips.carry_grain,
    ],
    "02_wan22_ti2v_5b": [
        helpers_lesson.encode_wan, helpers_lesson.load_wan_vae, helpers_lesson.pad_embeddings,
        helpers_lesson.decode_wan,
    ],
    "08_go_on": [hops.ContinueLTX, hops.hop_latents, hops.hop_frames],
}  # fmt: skip


@pytest.mark.parametrize("lesson", WRITTEN_OUT)
def test_what_the_other_lessons_import_is_what_this_lesson_writes_out(lesson):
    notebook = nbformat.read(ROOT / "notebooks" / f"{lesson}.ipynb", 4)
    cells = [plain_python(cell.source) for cell in notebook.cells if cell.cell_type == "code"]
    written = [functions(source) for source in cells]
    for function in WRITTEN_OUT[lesson]:
        (lines,) = [found[function.__name__] for found in written if function.__name__ in found]
        assert lines == inspect.getsource(function).splitlines(), function.__name__
    constant = f"DENOISERS = {DENOISERS}".replace("'", '"')
    assert lesson != "01_ltx_video" or any(constant in source.splitlines() for source in cells)


def result_of(folder, lesson):
    """Where a lesson's run wrote: a folder named after its clip."""
    (record,) = (folder / NAMES[lesson]).glob("*/run.json")
    return record.parent


def functions(source):
    """The lines of each function and class at the top of a piece of Python, by its name."""
    tops = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {node.name: source.splitlines()[node.lineno - 1 : node.end_lineno] for node in tops}


@pytest.mark.parametrize("lesson", ["01_ltx_video"])
@pytest.mark.notebook
def test_what_the_encoder_does_not_see_is_said(executed, lesson):
    assert "not seen by the encoder: nothing" in printed(executed(lesson, "defaults"), lesson, "encode-prompt")
    cut = printed(executed(lesson, "own clip"), lesson, "encode-prompt")
    assert "not seen by the encoder: {" in cut and "lowers its arm and digs" in cut


@pytest.mark.notebook
def test_wrong_values_stop_the_lesson_before_anything_is_made(tmp_path, capsys):
    kept = tmp_path / "ltx_video" / "clip" / "continued.mp4"
    kept.parent.mkdir(parents=True)
    shutil.copy(ROOT / "data" / "clips" / "excavator.mp4", kept)
    before = kept.read_bytes()
    wrong = {"offload": "models", "width": 300, "num_frames": 24, "prompt": "", "clip": "excavatr", "weights": "tiny"}
    arguments = [word for key, value in wrong.items() for word in ("-p", key, str(value))]
    assert run_lesson(["01_ltx_video", "--out", str(tmp_path), *arguments]) == 1
    message = capsys.readouterr().err
    assert "cell `check`" in message
    for expected in ("'model'", "nearest: 288", "nearest: 25", "prompt is empty", "'excavator'", "miniature"):
        assert expected in message, expected
    assert kept.read_bytes() == before and [p.name for p in kept.parent.iterdir()] == ["continued.mp4"]


@pytest.mark.parametrize("lesson", ["00_start_here"])
@pytest.mark.notebook
def test_the_planner_leaves_its_chart_and_no_controls(executed, lesson):
    shown = [output["data"] for output in outputs(executed(lesson, "defaults"), lesson, "planner")]
    assert len(shown) == 1 and "image/svg+xml" in shown[0]
    drawn = shown[0]["image/svg+xml"]
    assert "use model" in drawn and "per clip)" in drawn, "the chart's note is not cut"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"boundary": 1.5}, "boundary=1.5: give a number between 0 and 1"),
        ({"boundary": "0.9"}, "without quotes"),
        ({"offload": "sequential"}, "nearest: 'group_leaf'"),
        ({"preset": "4k"}, "choose from 640x384 model offload, 1280x720 group_leaf"),
        ({"num_frames": 16, "width": 250}, "nearest: 17"),
    ],
)
def test_wrong_values_of_the_gguf_lesson_are_refused_at_once(tmp_path, given, expected):
    notebook = nbformat.read(ROOT / "notebooks" / "03_wan22_i2v_a14b_gguf.ipynb", 4)
    cells = {cell.id: cell.source for cell in notebook.cells}
    values = {"Optional": Optional}
    exec(cells["parameters"], values)
    values |= given | {"out_dir": str(tmp_path)}
    with pytest.raises(ParameterError) as error:
        exec(cells["check"], values)
    assert expected in str(error.value)


def test_an_unknown_parameter_is_refused_at_once(tmp_path, capsys):
    assert run_lesson(["01_ltx_video", "--out", str(tmp_path), "-p", "stepps", "3"]) == 2
    assert "steps" in capsys.readouterr().err


@pytest.mark.parametrize("lesson", ["01_ltx_video"])
@pytest.mark.notebook
def test_what_saves_memory_and_time_is_switched_on_and_stands_in_the_record(executed, lesson):
    record = json.loads((result_of(executed(lesson, "portrait"), lesson) / "run.json").read_text())
    assert record["parameters"]["slice_tokens"] == 30 and record["parameters"]["low_cpu_mem_usage"] is False
    assert len(record["modes"]) == 1 and record["stages"]["denoise"] > 0
