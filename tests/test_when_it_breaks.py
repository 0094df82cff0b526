"""What goes wrong in a lesson costs neither memory nor finished work: no room, a crash, an interrupt.

The cells are the lessons' own, at the smallest size. Here "out of memory" is raised where a card would raise it, in the
miniature's last block; on a GPU the cap on the process raises it.
"""

import gc
import json
import os
import queue
import subprocess
import sys
import time
import weakref
from typing import Optional

import nbformat
import psutil
import pytest
import torch
from jupyter_client import KernelManager
from safetensors.torch import load_file

from helpers import lesson
from helpers.measure import VRAMMeter
from helpers.run_lesson.running import NOTEBOOKS, ROOT, _this_python_as_kernel
from tests.notebook_style import plain_python

SET_UP = "setup parameters check download"
CELLS = {  # what comes before `generate`
    "01_ltx_video": "setup parameters check cap download clip fit encoder-from-files load-text-encoder encode-prompt "
                    "load forecast-loaded call measure prepare mode-none mode-model mode-sequential mode-group-block "
                    "mode-group-leaf generate-function",
    "02_wan22_ti2v_5b": f"{SET_UP} clip fit overflow embeddings-cache encode-prompt load forecast-loaded call modes "
                        "mend-chain",
    "03_wan22_i2v_a14b_gguf": f"{SET_UP} clip fit encode-prompt gguf-files load forecast-loaded experts call modes",
}  # fmt: skip
SMALL = {"width": 64, "height": 64, "num_frames": 9, "steps": 2, "offload": "none"}
MESSAGE = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 12.00 GiB."


def sources(lesson):
    cells = nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", 4).cells
    return {cell.id: cell.source for cell in cells if cell.cell_type == "code"}


class Reader:
    """Runs cells of a lesson in this process, one after another, as a kernel would."""

    def __init__(self, lesson, out_dir, cells, **given):
        self.sources = {name: plain_python(source) for name, source in sources(lesson).items()}
        self.names = {"Optional": Optional}
        for name in cells.split():
            self.run(name)
            if name == "forecast-loaded":  # in place of the real model's, which take their time
                self.names["real_forecasts"] = self["loaded_forecasts"]
            if name == "parameters":
                self.names |= SMALL | given | {"out_dir": str(out_dir)}
            if name in ("modes", "mode-none"):
                self.names.setdefault("runs", [])
                self.measure("none")

    def run(self, name):
        exec(compile(self.sources[name], name, "exec"), self.names)

    def measure(self, mode):
        """What the cells do for each mode: lesson 01 has written the function out, the others import it."""
        measure_mode = self.names.get("measure_mode", lesson.measure_mode)
        measure_mode(mode, self["prepare"], self["denoise"], self["loaded_forecasts"], self["settings"], self["runs"])

    def __getitem__(self, name):
        return self.names[name]


class Overflow:
    """Makes each pipeline that is loaded run out of memory, `times` times, deep in its transformer."""

    def __init__(self, reader, times):
        self.times, self.held, self.prepare = times, [], reader["prepare"]
        reader.names["prepare"] = self.preparing

    def preparing(self, mode):
        pipe = self.prepare(mode)
        blocks = getattr(pipe.transformer, "transformer_blocks", None) or pipe.transformer.blocks
        blocks[-1].register_forward_pre_hook(self.before_the_last_block, with_kwargs=True)
        self.held.append(weakref.ref(pipe.transformer))
        return pipe

    def before_the_last_block(self, module, args, kwargs):
        if self.times:
            self.times -= 1
            activations = next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))
            self.held.append(weakref.ref(activations))  # a traceback would keep them alive
            raise torch.OutOfMemoryError(MESSAGE)

    @property
    def alive(self):
        gc.collect()
        return sum(one() is not None for one in self.held)


@pytest.fixture(scope="module", params=CELLS)
def reader(request, tmp_path_factory):
    return Reader(request.param, tmp_path_factory.mktemp("out"), CELLS[request.param])


def test_a_mode_that_overflows_is_a_result_and_can_be_measured_again(reader, capsys):
    overflow = Overflow(reader, times=1)
    before = len(reader["runs"])
    reader.measure("group_block")
    said = capsys.readouterr().out
    assert "Out of memory in 'group_block': CUDA out of memory. Tried to allocate 20.00 GiB. " in said
    assert "The forecast for offload='group_block' is 0." in said
    assert reader["loaded_forecasts"].advice("group_block", 12.0) in said
    assert reader["runs"][-1].failed == "OutOfMemoryError" and overflow.alive == 0
    reader.measure("group_block")
    assert reader["runs"][-1].latents_equal and len(reader["runs"]) == before + 2
    reader.names["prepare"] = overflow.prepare


def test_generating_goes_on_in_a_lighter_mode(reader, capsys):
    overflow = Overflow(reader, times=1)
    reader.run("generate")
    said = capsys.readouterr().out
    lighter = reader["loaded_forecasts"].lighter("none", 12.0)
    assert "Out of memory in 'generate, none'" in said and f"Next mode to try: '{lighter[0]}'" in said
    assert reader["saved"].notes["offload"] == lighter[0] and reader["latents"].isfinite().all()
    assert overflow.alive == 0
    reader.names["prepare"] = overflow.prepare
    reader.run("generate")
    assert repr(reader["saved"]).startswith("latents.safetensors: loaded, not recomputed; ")
    assert reader["saved"].notes["offload"] == lighter[0] and reader["saved"].notes["meter"]["phases"]
    reader["saved"].path.unlink()


def test_if_no_mode_is_left_memory_is_given_back_and_the_cell_can_be_run_again(reader, capsys):
    overflow = Overflow(reader, times=99)
    try:
        reader.run("generate")
    except torch.OutOfMemoryError as error:
        kept = error  # as IPython keeps the last one, with its traceback
    assert kept.__traceback__ and overflow.alive == 0
    assert "No other mode needs less: use fewer frames or a smaller size." in capsys.readouterr().out
    assert not (reader["settings"].folder / "latents.safetensors").exists()
    overflow.times = 0
    reader.run("generate")
    assert reader["saved"].notes["offload"] == "none"
    reader.names["prepare"] = overflow.prepare


def test_decoding_that_overflows_is_done_again_in_a_fresh_kernel(reader, capsys, monkeypatch):
    name = next(name for name in CELLS if reader["settings"].model.name in name)
    reader.run("generate")
    saved = reader["saved"].path.read_bytes()
    import diffusers

    vae_class = diffusers.AutoencoderKLLTXVideo if name.startswith("01") else diffusers.AutoencoderKLWan
    held = []

    def overflow(vae, latents, **given):
        pixels = latents.repeat(1, 1, 4, 1, 1)
        held.append(weakref.ref(pixels))
        raise torch.OutOfMemoryError(MESSAGE)

    with monkeypatch.context() as patched:
        patched.setattr(vae_class, "decode", overflow)
        with pytest.raises(torch.OutOfMemoryError) as kept:
            reader.run("decode")
    gc.collect()
    assert kept.value.__traceback__ and held[0]() is None
    said = capsys.readouterr().out
    assert "Out of memory in 'decode in tiles'" in said and "latents are safe in latents.safetensors" in said
    assert reader["saved"].path.read_bytes() == saved

    # What the lesson says: the cells down to the last frame, and on from decoding, as far as the comparison.
    fresh = Reader(name, reader["settings"].out_dir, CELLS[name].split(" fit ")[0] + " fit decode")
    assert fresh["frames"].shape == (9, 64, 64, 3) and "load" not in fresh.names
    reader.run("decode")
    assert (reader["frames"] == fresh["frames"]).all()
    for cell in ("grain", "stitch", "truth"):
        fresh.run(cell)
    assert fresh["settings"].folder.joinpath("continued.mp4").is_file()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_card_that_overflows_is_empty_afterwards(capsys):
    def layer(x, depth):
        y = torch.cat([x, x])
        return layer(y, depth - 1) if depth else y

    torch.cuda.set_per_process_memory_fraction(min(1.0, 2 * 2**30 / torch.cuda.get_device_properties(0).total_memory))
    try:
        before = torch.cuda.memory_allocated()
        with pytest.raises(torch.OutOfMemoryError) as kept:
            with VRAMMeter("too much", budget_gb=2, advice="Take less.") as meter:
                layer(torch.ones(2**24, device="cuda"), 99)
        assert kept.value.__traceback__ and torch.cuda.memory_allocated() == before
        assert meter.peak_allocated_gib > 0.5 and capsys.readouterr().out.endswith(" Take less.\n")
        assert torch.ones(2**28, device="cuda").sum() == 2**28  # a GiB in one piece
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# --- a kernel that dies, and one that is interrupted


def notebook_of(lesson, cells, folder):
    """The named cells of a lesson as a separate notebook."""
    notebook = nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", 4)
    notebook.cells = [cell for cell in notebook.cells if cell.id in cells.split()]
    path = folder / "lesson.ipynb"
    nbformat.write(notebook, path)
    return path


def command(path, out, **given):
    words = [word for name, value in (SMALL | given).items() for word in ("-p", name, str(value))]
    return [sys.executable, "-m", "helpers.run_lesson", str(path), "--out", str(out), *words]


def printed(out, cell_id):
    (cell,) = [cell for cell in nbformat.read(out / "lesson.ipynb", 4).cells if cell.id == cell_id]
    return "".join(output.get("text", "") for output in cell.outputs)


def shown(out, cell_id):
    """The text of what a cell ends in."""
    (cell,) = [cell for cell in nbformat.read(out / "lesson.ipynb", 4).cells if cell.id == cell_id]
    return "".join(output.data["text/plain"] for output in cell.outputs if output.output_type == "execute_result")


def until(happened, seconds=90):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.1)


def half_written(out):
    return [path for path in out.rglob("*") if "part" in path.name or "tmp" in path.name]


def test_one_expert_at_a_time_in_slices_makes_the_same_latents(tmp_path):
    name = "03_wan22_i2v_a14b_gguf"
    lean = {"one_expert_at_a_time": True, "low_cpu_mem_usage": True, "slice_tokens": 20}
    usual, lean = (
        Reader(name, tmp_path / str(len(more)), CELLS[name] + " generate", offload="group_leaf", compare=False, **more)
        for more in ({}, lean)
    )
    assert (usual["latents"] - lean["latents"]).abs().max() <= 1e-5
    assert not lean["runs"], "the modes that hold both experts are not measured"
    lean.measure("group_leaf")
    assert [run.failed for run in lean["runs"]] == [None]


@pytest.mark.notebook
def test_after_a_crash_the_rerun_skips_what_is_finished(tmp_path):
    cells = CELLS["01_ltx_video"] + " generate decode"
    path, out = notebook_of("01_ltx_video", cells, tmp_path), tmp_path / "out"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    endless = command(path, out, steps=100_000, compare=False)
    first = subprocess.Popen(endless, env=env, cwd=ROOT, stderr=subprocess.PIPE)
    until(lambda: started_generating(out))
    processes = [*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)]
    for process in reversed(processes):
        process.kill()
    assert first.wait() == -9
    psutil.wait_procs(processes, timeout=10)
    assert len(list((out / "embeddings").iterdir())) == 1
    assert not list(out.rglob("latents.safetensors"))
    for partial in out.glob("*.partial.ipynb"):  # papermill's own record of the run that was killed
        partial.unlink()
    assert half_written(out) == []

    for run in ("second", "third"):
        run_again = command(path, out, compare=False)
        subprocess.run(run_again, env=env, cwd=ROOT, check=True, stdout=subprocess.PIPE)
        assert "no encoder needed" in printed(out, "encode-prompt")
        assert ("loaded, not recomputed" in shown(out, "generate")) == (run == "third")
        assert "9 frames of 64x64" in printed(out, "decode")


def started_generating(out):
    """Whether papermill has begun the cell `generate`; it writes the notebook after each cell and at its start."""
    for path in out.glob("*.partial.ipynb"):
        try:
            cells = json.loads(path.read_text())["cells"]
        except ValueError:  # just being written
            return False
        begun = [cell["id"] for cell in cells if cell["metadata"].get("papermill", {}).get("status") == "running"]
        return begun == ["generate"]
    return False


@pytest.fixture
def kernel():
    with _this_python_as_kernel():
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(cwd=str(ROOT), env=os.environ | {"PYTHONPATH": str(ROOT)})
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        yield manager, client
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def execute(client, code, then=None):
    """Runs code; `then` is called at its first display. Returns what it prints, and the name of its error."""
    asked, text, error = client.execute(code), "", None
    while True:
        try:
            message = client.get_iopub_msg(timeout=120)
        except queue.Empty:
            pytest.fail("the kernel does not answer")
        if message["parent_header"].get("msg_id") != asked:
            continue
        kind, content = message["msg_type"], message["content"]
        if kind == "display_data" and then is not None:
            then, _ = None, then()
        elif kind == "stream":
            text += content["text"]
        elif kind == "error":
            error = content["ename"]
        elif kind == "status" and content["execution_state"] == "idle":
            return text, error


@pytest.mark.notebook
def test_an_interrupt_ends_the_meter_and_leaves_nothing_half_written(kernel, tmp_path):
    manager, client = kernel
    given = SMALL | {"out_dir": str(tmp_path), "steps": 100_000}
    cells = sources("01_ltx_video")
    for name in CELLS["01_ltx_video"].split():
        text, error = execute(client, cells[name])
        assert error is None, (name, text)
        if name == "parameters":
            values = "; ".join(f"{key} = {value!r}" for key, value in given.items())
            execute(client, values)

    def interrupt():
        time.sleep(2)  # the meter is on the page, and the steps have begun
        manager.interrupt_kernel()

    text, error = execute(client, cells["generate"], then=interrupt)
    assert error == "KeyboardInterrupt", text
    ask = "import threading; print([t.name for t in threading.enumerate() if 'VRAMMeter' in t.name])"
    assert execute(client, ask) == ("[]\n", None)
    assert half_written(tmp_path) == [] and not [path for path in (tmp_path / "ltx_video").rglob("*") if path.is_file()]

    execute(client, "import dataclasses; settings = dataclasses.replace(settings, steps=2)")
    assert execute(client, cells["generate"])[1] is None
    assert load_file(next(tmp_path.rglob("latents.safetensors")))["latents"].isfinite().all()
