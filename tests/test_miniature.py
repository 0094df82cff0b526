"""The bundled miniatures are the real classes with small configurations, and they continue clips they never saw."""

import json
import math
import re
import subprocess
import sys

import pytest
import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    LTXImageToVideoPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from gguf import GGMLQuantizationType
from safetensors.torch import load_file
from transformers import T5EncoderModel, T5TokenizerFast, UMT5EncoderModel

from data.make.miniatures.evaluate import evaluate
from data.make.miniatures.families import family_of
from data.make.miniatures.model_card import card
from data.make.miniatures.optimize import as_cuda_graph
from data.make.miniatures.train import add_stages
from helpers.models import MODELS, model
from tests.notebook_style import ROOT

MINIATURES = ROOT / "data" / "miniatures"
FOLDER = MINIATURES / "ltx_video"
WEIGHTS = "diffusion_pytorch_model.safetensors"
WAN = ["wan22_ti2v_5b", "wan22_i2v_a14b"]
STEPS = model("ltx_video").defaults["miniature"].steps


@pytest.fixture(scope="module")
def measured():
    return evaluate("ltx_video", FOLDER, clips=3, seed=1, steps=STEPS)


def test_it_loads_as_the_published_model_does():
    pipe = LTXImageToVideoPipeline.from_pretrained(FOLDER, dtype=torch.float32)
    assert {name: type(component) for name, component in pipe.components.items()} == {
        "scheduler": FlowMatchEulerDiscreteScheduler, "vae": AutoencoderKLLTXVideo, "text_encoder": T5EncoderModel,
        "tokenizer": T5TokenizerFast, "transformer": LTXVideoTransformer3DModel,
    }  # fmt: skip
    assert pipe.transformer.dtype == torch.float32 == pipe.vae.dtype


@pytest.mark.parametrize("name", WAN)
def test_the_wan_miniatures_load_as_the_published_models_do(name):
    family = family_of(name)
    pipe = family.continuer(MINIATURES / name, "cpu").pipe
    experts = dict.fromkeys(family.denoisers, WanTransformer3DModel)
    kinds = {key: type(one) for key, one in pipe.components.items() if isinstance(one, torch.nn.Module)}
    assert kinds == experts | {"vae": AutoencoderKLWan, "text_encoder": UMT5EncoderModel}
    assert type(pipe) is WanImageToVideoPipeline and isinstance(pipe.scheduler, UniPCMultistepScheduler)
    if name == "wan22_ti2v_5b":
        assert pipe.config.expand_timesteps and pipe.vae.config.is_residual
    else:  # two experts with different weights, in four bits
        first, second = (getattr(pipe, component).blocks[0].ffn.net[2].weight for component in family.denoisers)
        assert first.quant_type == second.quant_type == GGMLQuantizationType.Q4_0
        assert first.shape == second.shape and not torch.equal(first, second)


@pytest.mark.parametrize("name", ["ltx_video", *WAN])
def test_it_is_small_and_holds_weights_only(name):
    files = [path for path in (MINIATURES / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 9_000_000
    assert {path.suffix for path in files} - {".gguf"} == {".safetensors", ".json", ".model", ".md"}


@pytest.mark.parametrize("name", ["ltx_video", *WAN])
def test_the_cards_state_the_recorded_figures_and_they_are_good(name):
    metrics = json.loads((MINIATURES / name / "metrics.json").read_text())
    assert metrics["clips"] >= 48 and metrics["steps"] == model(name).defaults["miniature"].steps
    check_card((MINIATURES / name / "README.md").read_text(), metrics)
    assert metrics["psnr_steady"] > metrics["psnr_generated"] >= metrics["psnr_freeze"] + 5
    assert metrics["moving_psnr_generated"] >= metrics["moving_psnr_freeze"] + 6
    assert metrics["psnr_oracle"] >= 32 and metrics["ssim_oracle"] >= 0.955
    assert metrics["beats_freeze"] >= 0.97 and metrics["right_beats_wrong"] >= 0.98
    if name == "ltx_video":  # several frames of context are better than one, though it has learned to distrust them
        assert metrics["psnr_context"] > metrics["psnr_single"]
        assert metrics["moving_psnr_context"] > metrics["moving_psnr_single"]


def check_card(text, metrics):
    for kind in ("generated", "freeze", "oracle", "steady", "wrong_prompt"):
        psnr, ssim, moving = (metrics[f"{measure}_{kind}"] for measure in ("psnr", "ssim", "moving_psnr"))
        assert f"{psnr:.2f} | {ssim:.3f} | {moving:.2f}" in text, kind
    for stage in metrics["training"]:
        assert re.search(rf"- {re.escape(stage['stage'])}: {stage['steps']:,} steps", text)


@pytest.mark.parametrize("name", MODELS)
def test_the_committed_cards_are_what_the_command_writes(name):
    folder = MINIATURES / name
    assert (folder / "README.md").read_text() == card(name, json.loads((folder / "metrics.json").read_text()))


@pytest.mark.slow
def test_it_continues_clips_that_it_never_saw(measured):
    assert measured["psnr_generated"] > measured["psnr_freeze"] + 2
    assert measured["moving_psnr_generated"] > measured["moving_psnr_freeze"] + 4
    assert measured["psnr_generated"] > measured["psnr_wrong_prompt"] + 1
    assert measured["psnr_oracle"] > measured["psnr_generated"]
    assert measured["right_beats_wrong"] == 1 and measured["beats_freeze"] >= 0.6
    assert all(math.isfinite(value) for value in measured.values() if isinstance(value, float))


@pytest.mark.slow
def test_its_recorded_figures_are_those_of_these_weights(measured):
    metrics = json.loads((FOLDER / "metrics.json").read_text())
    assert set(metrics) == {*measured, "training"}
    # a handful of clips scatters, but another model's figures would be far off
    assert abs(metrics["psnr_generated"] - measured["psnr_generated"]) < 4


@pytest.mark.slow
def test_training_runs_and_resumes_where_it_stopped(tmp_path):
    tiny = "--vae-minutes 0.02 --denoiser-minutes 0.02 --decoder-minutes 0.02".split()
    tiny += "--vae-clips 3 --latents 3 --vae-batch 1 --batch 1".split()
    command = [sys.executable, "-m", "data.make.miniatures.train", "ltx_video", "--work", tmp_path]
    command += ["--no-compile", "--no-assemble"]
    first = subprocess.run([*command, *tiny], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "for the VAE of" in first.stdout and "denoiser of" in first.stdout
    log = json.loads((tmp_path / "training.json").read_text())
    assert all(log[stage]["steps"] > 0 for stage in ("vae", "denoiser", "decoder"))
    before, after = (load_file(tmp_path / name / WEIGHTS) for name in ("vae_before", "vae"))
    changed = {name.split(".")[0] for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {"decoder"}, "the denoiser depends on the encoder's latents"
    again = subprocess.run([*command, *tiny], cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout == "", "a finished stage was repeated"

    (tmp_path / "transformer" / "config.json").unlink()  # the denoiser's saved state remains
    more = subprocess.run([*command, *tiny], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "denoiser resumes at step" in more.stdout and "for the VAE of" not in more.stdout


@pytest.mark.slow
def test_training_starts_from_a_miniature(tmp_path):
    command = [sys.executable, "-m", "data.make.miniatures.train", "ltx_video"]
    command += ["--start-from", FOLDER, "--work", tmp_path]
    command += "--vae-minutes 0 --denoiser-minutes 0.01 --decoder-minutes 0 --latents 3 --batch 1".split()
    command += ["--no-compile", "--no-assemble"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "denoiser of" in done.stdout and "for the VAE of" not in done.stdout
    shipped, kept = (load_file(folder / "vae" / WEIGHTS) for folder in (FOLDER, tmp_path))
    assert all(torch.equal(kept[name], shipped[name].half()) for name in shipped if "latents" not in name)
    words = "tokenizer/spiece.model"
    assert (tmp_path / words).read_bytes() == (FOLDER / words).read_bytes()  # what the weights were trained with

    log = json.loads((tmp_path / "training.json").read_text())
    add_stages(tmp_path, log, FOLDER)
    before, stages = (json.loads((folder / "metrics.json").read_text())["training"] for folder in (FOLDER, tmp_path))
    assert stages[:-1] == before and stages[-1]["stage"] == "denoiser" and stages[-1].keys() == before[-1].keys()
    add_stages(tmp_path, json.loads((tmp_path / "training.json").read_text()), tmp_path)  # again
    assert json.loads((tmp_path / "metrics.json").read_text())["training"] == stages
    add_stages(tmp_path, log, FOLDER, denoisers_too=False)
    stages = json.loads((tmp_path / "metrics.json").read_text())["training"]
    of_the_vae = [stage for stage in before if stage["stage"] != "denoiser"]
    assert stages[:-1] == of_the_vae and len(of_the_vae) < len(before) and stages[-1]["stage"] == "denoiser"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_recorded_as_a_cuda_graph_runs_each_time():
    total = torch.zeros((), device="cuda")

    def step():
        chance = torch.rand((), device="cuda")
        total.add_(1)
        return chance

    again = as_cuda_graph(step)  # after three runs
    drawn = [again().item() for _ in range(3)]
    assert total.item() == 6 and len(set(drawn)) == 3


def test_no_miniature_says_where_it_was_made():
    for path in MINIATURES.glob("*/*/config.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8"), path
