"""Every notebook, executed from top to bottom without a browser, and what it leaves.

A lesson runs with its defaults; a lesson with a model runs twice more, with other clips, sizes and offload modes. Only
the runs that the selected tests need are started, two at a time. New notebooks join by themselves.
"""

import ast
import json
import math
import os
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbconvert import HTMLExporter
from PIL import Image
from safetensors.torch import load_file

from data.make.sample_clips import SCENES
from data.make.scenes import prompt_of, render
from helpers import checks, clips, models, run_lesson, runs
from tests.notebook_style import LESSON, ROOT, notebooks

pytestmark = [pytest.mark.lesson, pytest.mark.slow]

AT_ONCE = 2
TIMEOUT = 600  # seconds for one notebook, on a slow and busy machine
OWN = (175, 99, 5, 30)  # the reader's own clip: width, height, frames, frames per second
RECORD_KEYS = (
    "model width height num_frames offload device vram_cap_gib weights peak_allocated_gib peak_reserved_gib peak_ram_gib "
    "step_seconds resident_step_seconds stages forecast latents_equal versions date"
).split()
MEASURED = {"VRAM": ("peak_allocated_gib", "peak_reserved_gib", "peak_device_gib"), "RAM": ("peak_ram_gib",)}


def model_of(lesson: Path) -> models.Model | None:
    """The model that a lesson is about, as its own call of `resolve` names it; None in the others."""
    if not LESSON.match(lesson.name):
        return None
    source = "\n".join(cell.source for cell in nbformat.read(lesson, as_version=4).cells if cell.cell_type == "code")
    return models.model(re.search(r"\bresolve\(\s*[\"'](\w+)[\"']", source)[1])


def prompt_for(clip: str) -> str:
    return prompt_of(*SCENES[clip][:3])


LONG_PROMPT = " ".join((prompt_for("excavator") + " and then").split()[i % 9] for i in range(200))


@dataclass(frozen=True)
class Case:
    """One run of a lesson."""

    lesson: Path
    name: str
    parameters: dict[str, object] = field(default_factory=dict, hash=False)

    @property
    def id(self) -> str:
        return f"{self.lesson.stem}-{self.name}"


def cases_of(lesson: Path) -> list[Case]:
    """The runs of a lesson: as few as cover another clip, a portrait, a clip of the reader's, and other modes."""
    cases = [Case(lesson, "defaults")]
    if (model := model_of(lesson)) is None:
        return cases
    miniature = model.defaults["miniature"]
    portrait = {"clip": "wood_chipper", "offload": "group_leaf", "steps": 2}
    own = {"clip": "OWN", "offload": "sequential", "steps": 1, "guidance_scale": 2.0}
    if model.fixed_size is None:
        portrait |= {"width": miniature.height, "height": miniature.width}
    if model.fixed_frames is None:
        own["num_frames"] = model.nearest_frames(9)
    if model.max_prompt_tokens is not None:
        portrait["prompt"] = prompt_for("wood_chipper")
        own |= {"prompt": LONG_PROMPT, "negative_prompt": "a still picture"}
    return [*cases, Case(lesson, "portrait", portrait), Case(lesson, "own-clip", own)]


CASES = [case for path in notebooks() for case in cases_of(path)]
CASES.sort(key=lambda case: case.name != "defaults")
DEFAULTS = [case for case in CASES if case.name == "defaults"]
OF_MODELS = [case for case in CASES if model_of(case.lesson)]
MODELS_DEFAULTS = [case for case in OF_MODELS if case.name == "defaults"]


def named(name: str) -> list[Case]:
    return [case for case in OF_MODELS if case.name == name]


def executed(cases: list[Case]):
    return pytest.mark.parametrize("run", cases, ids=lambda case: case.id, indirect=True, scope="module")


@dataclass
class Executed:
    """A finished run: how the program ended, and readers of what it left in `out`."""

    case: Case
    out: Path
    source: str
    status: int
    stdout: str
    stderr: str

    @property
    def model(self) -> models.Model:
        return model_of(self.case.lesson)

    @property
    def folder(self) -> Path:
        return self.out / self.model.name

    @cached_property
    def notebook(self) -> nbformat.NotebookNode:
        return nbformat.read(self.out / self.case.lesson.name, as_version=4)

    @cached_property
    def code(self) -> list[nbformat.NotebookNode]:
        return [cell for cell in self.notebook.cells if cell.cell_type == "code" and cell.source.strip()]

    @cached_property
    def record(self) -> dict:
        return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))

    @cached_property
    def past(self) -> clips.Clip:
        """The clip at the model's size, as the lesson fits it."""
        return clips.read(self.source).fit(self.record["width"], self.record["height"])

    @cached_property
    def given(self) -> np.ndarray:
        """Its frames at the result's size."""
        return clips.fit(self.past.frames, *self.result.size)

    @cached_property
    def result(self) -> clips.Clip:
        return clips.read(self.folder / "continued.mp4")

    @property
    def new(self) -> np.ndarray:
        """The continuation: the result's frames after the clip's own."""
        return self.result.frames[len(self.past) :]

    def printed(self, cell_id: str, stream: str = "stdout") -> str:
        (cell,) = (cell for cell in self.code if cell.id == cell_id)
        return "".join(one.text for one in cell.outputs if one.output_type == "stream" and one.name == stream)


def pictures_of(cell) -> list[str]:
    return [one.data["image/svg+xml"] for one in cell.outputs if "image/svg+xml" in one.get("data", {})]


def command(lesson: Path, out: Path, parameters: dict[str, object]) -> list[str]:
    """What a reader types to run a lesson; `None` and numbers are written as Python writes them."""
    given = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    return [sys.executable, "-m", "helpers.run_lesson", lesson.stem, "--out", str(out), *given]


@pytest.fixture(scope="module")
def own_clip(tmp_path_factory) -> Path:
    """A short clip of odd sides at another rate, in another container, coded without loss."""
    width, height, count, rate = OWN
    frames, _ = render("excavator", [4], "raises its arm", "", frames=count, size=(width, height), fps=rate)
    frames = (frames[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()
    path = tmp_path_factory.mktemp("own") / "my clip.mov"
    ffmpeg = [clips.ffmpeg_path(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    ffmpeg += ["-r", str(rate), "-i", "-", "-c:v", "png", str(path)]
    subprocess.run(ffmpeg, input=frames.tobytes(), check=True)
    return path


@pytest.fixture(scope="module")
def all_runs(request, own_clip, tmp_path_factory):
    """Starts the runs that the selected tests need; gives the future of each."""
    asked = [item.callspec.params.get("run") for item in request.session.items if hasattr(item, "callspec")]
    wanted = [case for case in CASES if case in asked]
    # Each kernel with its share of the cores: more threads than cores would wait for each other.
    env = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // AT_ONCE))}
    folder, running = tmp_path_factory.mktemp("lessons"), []

    def execute(case: Case) -> Executed:
        source = case.parameters.get("clip", "excavator")
        source = str(own_clip) if source == "OWN" else source
        out = folder / case.id
        parameters = case.parameters | ({"clip": source} if "clip" in case.parameters else {})
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process = subprocess.Popen(command(case.lesson, out, parameters), cwd=ROOT, env=env, **pipes)
        running.append(process)
        stdout, stderr = process.communicate(timeout=TIMEOUT)
        return Executed(case, out, source, process.returncode, stdout, stderr)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures: dict[Case, Future] = {case: pool.submit(execute, case) for case in wanted}
        yield futures
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.poll() is None and process.terminate()


@pytest.fixture(scope="module")
def run(request, all_runs) -> Executed:
    done = all_runs[request.param].result()
    assert done.status == 0, done.stderr
    return done


# The matrix


def test_every_notebook_is_executed():
    files = {path.stem for path in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts}
    assert files and {case.lesson.stem for case in DEFAULTS} == files


def test_every_model_lesson_is_run_in_three_ways():
    lessons = [path for path in notebooks() if LESSON.match(path.name)]
    assert lessons
    for lesson in lessons:
        cases = [case for case in OF_MODELS if case.lesson == lesson]
        assert [case.name for case in cases] == ["defaults", "portrait", "own-clip"]
        parameters = run_lesson.check_parameters(lesson, {})
        assert all(set(case.parameters) <= set(parameters) for case in cases)


# Every run of every notebook


@executed(CASES)
def test_program_says_where_things_are(run):
    assert run.stdout.splitlines()[0].startswith("Running ") and "Done in " in run.stdout
    assert f"{run.case.lesson.name}" in run.stdout.splitlines()[-1]
    assert run.stderr == ""


@executed(CASES)
def test_every_cell_ran_in_order(run):
    counts = [cell.execution_count for cell in run.code]
    assert counts == sorted(counts) and None not in counts and len(set(counts)) == len(counts)
    assert [path.name for path in run.out.glob("*.ipynb")] == [run.case.lesson.name]


@executed(CASES)
def test_executed_notebook_can_be_shown_anywhere(run):
    nbformat.validate(run.notebook)
    assert "widgets" not in run.notebook.metadata  # without their state GitHub refuses the notebook
    assert (run.out / run.case.lesson.name).stat().st_size < 5_000_000


@executed(DEFAULTS)
def test_executed_notebook_becomes_html(run):
    page, _ = HTMLExporter().from_notebook_node(run.notebook)
    title = run.notebook.cells[0].source.splitlines()[0].removeprefix("# ")
    assert title in page and page.count("<svg") >= sum(len(pictures_of(cell)) for cell in run.code)


@executed(CASES)
def test_nothing_is_deprecated(run):
    for cell in run.code:
        assert "deprecat" not in run.printed(cell.id, "stderr").lower(), cell.id


@executed(DEFAULTS)
def test_defaults_run_without_a_warning(run):
    assert {cell.id: text for cell in run.code if (text := run.printed(cell.id, "stderr"))} == {}


@executed(CASES)
def test_each_meter_shows_its_last_frame_once(run):
    metered = 0
    for cell in run.code:
        meters = len(re.findall(r"\bwith VRAMMeter\(", cell.source))
        charts = [svg for svg in pictures_of(cell) if "RAM" in svg and "seconds" in svg]
        if not meters:
            continue
        metered += meters
        assert len(charts) == meters, cell.id
        for svg in charts:
            assert re.search(r'aria-label="[^"]+: (done|stopped by \w+), [\d.]+ s\.', svg), cell.id
    assert metered


@executed([case for case in DEFAULTS if not model_of(case.lesson)])
def test_first_lesson_joins_a_clip(run):
    if run.case.lesson.stem != "00_start_here":
        pytest.skip("writes no clip")
    joined = clips.read(run.out / "00_start_here" / "joined.mp4")
    assert (len(joined), joined.size, joined.fps) == (72 + 24, (288, 160), 24)


# A lesson with a model


@executed(OF_MODELS)
def test_files(run):
    left = sorted(path.name for path in run.folder.iterdir())
    assert left == ["continued.mp4", "latents.safetensors", "poster.png", "run.json"]
    with Image.open(run.folder / "poster.png") as poster:
        poster.load()
        assert poster.width > poster.height > 100
    (latents,) = load_file(run.folder / "latents.safetensors").values()
    assert latents.isfinite().all() and latents.float().std() > 0.1


@executed(OF_MODELS)
def test_offload_modes_give_the_same_latents(run):
    modes = run.record["modes"]
    assert [mode["offload"] for mode in modes] == list(checks.OFFLOAD_MODES)
    for mode in modes:
        assert mode["failed"] is None, mode
        assert mode["latents_difference"] <= 1e-5 and mode["latents_equal"] is True, mode
        assert mode["step_seconds"] > 0 and mode["seconds"] >= mode["step_seconds"]
    assert run.record["latents_equal"] is True


@executed(OF_MODELS)
def test_each_mode_has_a_finished_chart(run):
    cells = [cell for cell in run.code if cell.id.startswith("mode-")]
    assert [cell.id.removeprefix("mode-").replace("-", "_") for cell in cells] == list(checks.OFFLOAD_MODES)
    for cell in cells:
        (svg,) = pictures_of(cell)
        assert re.search(r'role="img" aria-label="[^"]*: done, ', svg), cell.id


@executed(OF_MODELS)
def test_record(run):
    record = run.record
    assert [key for key in RECORD_KEYS if key not in record] == []
    asked = {name: value for name, value in run.case.parameters.items() if name in record and name != "clip"}
    assert asked == {name: record[name] for name in asked}
    assert record["model"] == run.model.name and record["weights"] == "miniature"
    assert record["clip"] == Path(run.source).name  # a record is shared: no folders of one's own
    assert {"torch", "diffusers", "transformers", "accelerate"} <= record["versions"].keys()
    assert datetime.fromisoformat(record["date"]).tzinfo is not None
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in record["stages"].values())
    assert {"denoise", "decode"} <= record["stages"].keys()
    assert runs.load(run.out) == [record]


@executed(OF_MODELS)
def test_only_what_was_measured_is_a_figure(run):
    on_gpu = torch.cuda.is_available()
    assert (run.record["device"] == "cpu") is not on_gpu
    for one in (run.record, *run.record["modes"]):
        assert all((one[key] is not None) is on_gpu for key in MEASURED["VRAM"])
        assert all(one[key] > 0 for key in MEASURED["RAM"])
    assert on_gpu or run.record["vram_cap_gib"] is None


@executed(OF_MODELS)
def test_stitched_clip(run):
    clip, record, model = run.past, run.record, run.model
    # Both halves keep their own speed: at another rate than the model's, frames are repeated or left out.
    new = round((record["num_frames"] - 1) / model.fps * clip.fps)
    enlarged = max(1, 480 // min(record["width"], record["height"]))
    assert len(run.result) == len(clip) + new
    assert run.result.fps == clip.fps
    assert run.result.size == (record["width"] * enlarged, record["height"] * enlarged)
    assert run.result.has_audio is clips.read(run.source).has_audio


@executed(OF_MODELS)
def test_original_part_is_the_clip(run):
    """Fitted and enlarged with the same filter, all that differs is one pass of H.264 at crf 18, more than 40 dB in
    practice. A picture shifted by a pixel, a frame too early, or in other colours falls below 30 dB."""
    kept = run.result.frames[: len(run.past)]
    assert clips.psnr(kept, run.given) > 30
    assert min(clips.psnr(*pair) for pair in zip(kept, run.given, strict=True)) > 30


@executed(MODELS_DEFAULTS + named("portrait"))
def test_continuation_moves_and_is_no_noise(run):
    """Not asked of a clip of the reader's, with one step and a prompt that says nothing."""
    last, kept, new = run.result.frames[len(run.past) - 1], run.result.frames[: len(run.past)], run.new
    coding = np.abs(kept.astype(np.int16) - run.given).mean()  # what H.264 alone changes
    assert np.abs(new[-1].astype(np.int16) - new[0]).mean() > 1.5 * coding
    assert min(clips.psnr(frame, last) for frame in new) > 12  # the same scene; noise has 5 to 10 dB
    assert min(clips.psnr(*pair) for pair in zip([last, *new[:-1]], new, strict=True)) > 25  # no jump


@executed(MODELS_DEFAULTS)
def test_continuation_is_nearer_to_the_truth_than_a_frozen_frame(run):
    assert len(run.result) == 72 + run.record["num_frames"] - 1 and run.result.fps == 24
    truth = clips.read(clips.CLIPS / f"{run.source}_continues.mp4").fit(*run.past.size)[: len(run.new)]
    truth = clips.fit(truth.frames, *run.result.size)
    frozen = run.result.frames[len(run.past) - 1 : len(run.past)].repeat(len(truth), axis=0)
    assert clips.psnr(run.new, truth) > clips.psnr(frozen, truth) + 2


@executed([case for case in OF_MODELS if model_of(case.lesson).max_prompt_tokens])
def test_what_is_cut_from_the_prompt_is_said(run):
    said = run.printed("encode-prompt")
    if run.case.name != "own-clip":
        assert "the whole prompt is seen" in said
        return
    cut = ast.literal_eval(re.search(r"not seen by the encoder: (.+)", said)[1])
    assert cut and LONG_PROMPT.endswith(cut) and len(cut) < len(LONG_PROMPT)
    assert f"real tokens {run.model.max_prompt_tokens}" in said


# Bad input


@pytest.mark.parametrize("lesson", sorted({case.lesson for case in OF_MODELS}), ids=lambda path: path.stem)
def test_bad_input_fails_at_once_and_touches_nothing(lesson, tmp_path, capfd):
    """All that is wrong is said in one message, each parameter with the nearest value that can be used."""
    model = model_of(lesson)
    width, frames = model.defaults["miniature"].width + 12, model.defaults["miniature"].num_frames - 1
    kept = tmp_path / "out" / model.name / "continued.mp4"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"of an earlier run")
    before = kept.stat()
    bad = {"offload": "modle", "width": width, "num_frames": frames}
    bad |= {"prompt": " "} if model.max_prompt_tokens else {}
    assert run_lesson.main(command(lesson, tmp_path / "out", bad)[3:]) == 1

    said = capfd.readouterr().err
    assert f"{lesson.stem}, cell `check`" in said and f"{len(bad)} parameters cannot be used" in said
    assert "offload='modle': nearest: 'model'" in said
    assert re.search(rf"width={width}: .*nearest: {model.nearest_size(width, 160)[0]}\.", said)
    assert re.search(rf"num_frames={frames}: .*nearest: {model.nearest_frames(frames)}\.", said)
    assert "prompt is empty" in said or not model.max_prompt_tokens
    assert kept.read_bytes() == b"of an earlier run" and kept.stat().st_mtime_ns == before.st_mtime_ns
    assert [path.name for path in kept.parent.iterdir()] == ["continued.mp4"]
    failed = nbformat.read(tmp_path / "out" / f"{lesson.stem}.failed.ipynb", as_version=4)
    reached = [cell.id for cell in failed.cells if cell.cell_type == "code" and cell.execution_count]
    assert reached[-1] == "check"


@pytest.mark.parametrize("lesson", notebooks(), ids=lambda path: path.stem)
def test_unknown_parameter_is_refused_before_anything_starts(lesson, tmp_path, capsys):
    assert run_lesson.main([lesson.stem, "--out", str(tmp_path / "out"), "-p", "out_dri", "3"]) == 2
    assert "no parameter 'out_dri'. Did you mean 'out_dir'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
