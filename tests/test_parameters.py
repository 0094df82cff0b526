"""The checks of a lesson's parameters, of the prompt and of the machine."""

import importlib.metadata
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from data.make.clips.sample_clips import SCENES
from data.make.clips.scenes import prompt_of
from helpers.clips import Clip, write
from helpers.clips.sources import SENTENCES
from helpers.clips.video import ffmpeg
from helpers.lesson import (
    EnvironmentProblem,
    ParameterError,
    environment,
    folders,
    one_of,
    prompt_cut,
    resolve,
    whole,
)
from helpers.lesson.folders import fingerprint
from helpers.models import OFFLOAD_MODES, checkpoints

pytestmark = pytest.mark.lesson


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """The bytes of a small video, 16:9."""
    frames = np.zeros((4, 36, 64, 3), np.uint8)
    return write(tmp_path_factory.mktemp("film") / "film.mp4", Clip(frames, 24.0)).read_bytes()


@pytest.fixture
def given(tmp_path, monkeypatch, film):
    """Valid parameters of the LTX lesson, as a reader leaves them, with a miniature and a clip to find."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "MINIATURES", tmp_path / "miniatures")
    for name in ("ltx_video", "cogvideox_5b_i2v"):
        folder = tmp_path / "miniatures" / name
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
    (tmp_path / "mine.mp4").write_bytes(film)
    Image.new("RGB", (64, 36)).save(tmp_path / "photo.png")
    return {
        "clip": "mine.mp4",
        "prompt": "the excavator lifts its bucket",
        "negative_prompt": "",
        "weights": "miniature",
        "offload": "group_leaf",
        "width": None,
        "height": None,
        "num_frames": None,
        "steps": None,
        "guidance_scale": None,
        "seed": 0,
        "vram_budget_gb": 12,
        "ram_budget_gb": None,
        "out_dir": "outputs",
    }


def test_none_becomes_the_default_of_these_weights(given, tmp_path):
    settings = resolve("ltx_video", given)
    assert (settings.width, settings.height, settings.num_frames, settings.steps) == (288, 160, 25, 4)
    assert (settings.guidance_scale, settings.vram_budget_gb, settings.ram_budget_gb) == (1.0, 12.0, None)
    assert settings.model.name == "ltx_video"
    assert settings.folder == settings.out_dir / "ltx_video" / "mine" and (tmp_path / settings.folder).is_dir()
    assert list((tmp_path / settings.folder).iterdir()) == []

    pretrained = resolve("ltx_video", given | {"weights": "pretrained"})
    assert (pretrained.width, pretrained.height, pretrained.num_frames) == (768, 512, 121)


@pytest.mark.parametrize(
    "changed",
    [
        {"width": 160, "height": 288},  # portrait
        {"num_frames": 49.0, "steps": 4.0, "guidance_scale": 3},
        {"negative_prompt": None, "vram_budget_gb": None, "ram_budget_gb": 32},
        {"seed": 2**63 - 1},
        {"soften": 0.5, "original": "encode"},
        {"slice_tokens": 64, "offload": "group_block"},
        *({"offload": mode} for mode in OFFLOAD_MODES),
    ],
)
def test_valid_parameters(given, changed):
    settings = resolve("ltx_video", given | changed)
    for name, value in changed.items():
        assert getattr(settings, name) == ("" if name == "negative_prompt" else value)
    assert all(
        type(getattr(settings, name)) is int for name in ("width", "height", "num_frames", "steps", "seed")
    )


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"num_frames": 50}, "num_frames=50: LTX-Video makes 8k+1 frames; nearest: 49."),
        ({"num_frames": 0}, "num_frames=0: LTX-Video makes 8k+1 frames; nearest: 9."),
        ({"num_frames": 49.5}, "num_frames=49.5: give a whole number; nearest: 50."),
        ({"num_frames": "49"}, "num_frames='49': give a number, without quotes."),
        (
            {"width": 300},
            "width=300: LTX-Video makes widths and heights that are multiples of 32; nearest: 288.",
        ),
        (
            {"height": -32},
            "height=-32: LTX-Video makes widths and heights that are multiples of 32; nearest: 32.",
        ),
        ({"steps": 0}, "steps=0: out of range; nearest: 1."),
        ({"steps": True}, "steps=True: give a number, without quotes."),
        ({"guidance_scale": 0.5}, "guidance_scale=0.5: at least 1, which switches guidance off; nearest: 1."),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan: give a number, without quotes."),
        ({"seed": -1}, "seed=-1: out of range; nearest: 0."),
        ({"seed": 2**63}, f"seed={2**63}: out of range; nearest: {2**63 - 1}."),
        ({"seed": None}, "seed=None: give a number, without quotes."),
        ({"soften": -1}, "soften=-1: from 0, which leaves your clip as it is, to 10 seconds."),
        ({"soften": 0.5, "original": "copy"}, "soften needs the clip to be encoded: leave original=None, or"),
        ({"slice_tokens": 0, "offload": "model"}, "slice_tokens=0: out of range; nearest: 1."),
        ({"vram_budget_gb": 0}, "vram_budget_gb=0: give more than 0 GiB, or None for the whole card."),
        ({"ram_budget_gb": -8}, "ram_budget_gb=-8: give more than 0 GiB, or None for no check."),
        (
            {"offload": "group-leaf"},
            "offload='group-leaf': nearest: 'group_leaf'; choose from none, model, sequential",
        ),
        ({"offload": None}, "offload=None: give a text in quotes, not NoneType."),
        ({"prompt": "  "}, "prompt is empty: describe what should happen next, for example"),
        ({"prompt": None}, "prompt=None: only the sample clips have a sentence of their own."),
        ({"original": "copy", "clip": "photo.png"}, "original='copy': the clip cannot be copied, it is not"),
        ({"prompt": 7}, "prompt=7: give a text in quotes, not int."),
        ({"negative_prompt": 7}, "negative_prompt=7: give a text in quotes, not int."),
        ({"clip": "gone.mp4"}, "clip='gone.mp4': gone.mp4 does not exist"),
        ({"clip": None}, "clip=None: give a text in quotes"),
        ({"weights": "dumy"}, "weights='dumy': no weights are called 'dumy'"),
        ({"weights": 1}, "weights=1: give a text in quotes, not int."),
        ({"out_dir": "mine.mp4"}, "out_dir='mine.mp4': cannot write to mine.mp4/ltx_video/mine"),
        ({"out_dir": ""}, "out_dir='': give the path of a folder in quotes."),
        ({"out_dir": None}, "out_dir=None: give the path of a folder in quotes."),
    ],
)
def test_a_parameter_that_cannot_be_used(given, changed, line):
    with pytest.raises(ParameterError) as error:
        resolve("ltx_video", given | changed)
    first, *lines = str(error.value).split("\n- ")
    assert first == "1 parameter cannot be used:"
    assert len(lines) == 1 and lines[0].startswith(line)


def test_all_problems_come_at_once(given):
    wrong = {
        "width": 300,
        "height": 170,
        "num_frames": 50,
        "offload": "leaf",
        "seed": "7",
        "prompt": "",
        "clip": "excavater",
    }
    with pytest.raises(ParameterError) as error:
        resolve("ltx_video", given | wrong)
    lines = str(error.value).split("\n- ")
    assert lines[0] == "7 parameters cannot be used:"
    assert [re.split("[= ]", line)[0] for line in lines[1:]] == [
        "clip", "prompt", "offload", "width", "height", "num_frames", "seed",
    ]  # fmt: skip


def test_rules_of_the_other_models(given):
    real = given | {"weights": "pretrained"}
    with pytest.raises(
        ParameterError, match="width=640: CogVideoX-5B I2V makes only 720x480 pixels; nearest: 720"
    ):
        resolve("cogvideox_5b_i2v", real | {"width": 640})
    for num_frames in (13, 48, 57):
        with pytest.raises(ParameterError, match=f"num_frames={num_frames}: .* makes exactly 49 frames"):
            resolve("cogvideox_5b_i2v", real | {"num_frames": num_frames})
    with pytest.raises(ParameterError, match=r"num_frames=24: .* makes exactly 25 frames; nearest: 25"):
        resolve("svd_xt", real | {"prompt": "", "num_frames": 24})
    with pytest.raises(ParameterError, match="width=720: .* makes only 240x160 pixels; nearest: 240"):
        resolve("cogvideox_5b_i2v", given | {"width": 720})


def test_a_model_without_words_refuses_a_prompt_or_goes_on_when_told(given):
    wordless = given | {"prompt": "", "weights": "pretrained"}
    assert resolve("svd_xt", wordless).prompt == ""
    said = r"prompt='dig': Stable Video Diffusion XT takes no prompt(.|\n)*ignore_prompt"
    with pytest.raises(ParameterError, match=said):
        resolve("svd_xt", wordless | {"prompt": "dig"})
    assert resolve("svd_xt", wordless | {"prompt": "dig", "ignore_prompt": True}).prompt == ""


@pytest.mark.parametrize(
    ("value", "message"),
    [(0, "nearest: 1"), (26, "nearest: 25"), (2.5, "nearest: 2"), ("8", "without quotes"), (None, "give a number")],
)
def test_a_lessons_own_whole_number(value, message):
    assert whole("decode_chunk_size", 8.0, 1, 25) == 8
    with pytest.raises(ParameterError, match=f"decode_chunk_size={value!r}.*{message}"):
        whole("decode_chunk_size", value, 1, 25)


def test_a_lessons_own_word():
    assert one_of("fit", "pad", ("crop", "pad")) == "pad"
    with pytest.raises(ParameterError, match="fit='squeeze': choose from crop, pad"):
        one_of("fit", "squeeze", ("crop", "pad"))


def test_in_the_folder_of_the_notebooks_paths_count_from_the_root(given, tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(folders, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path / "notebooks")
    settings = resolve("ltx_video", given)
    assert settings.out_dir == tmp_path / "outputs" and settings.clip == str(tmp_path / "mine.mp4")
    assert list((tmp_path / "notebooks").iterdir()) == []
    (tmp_path / "notebooks/mine.mp4").write_bytes((tmp_path / "mine.mp4").read_bytes())
    assert resolve("ltx_video", given).clip == "mine.mp4"


def test_an_unknown_model_is_named(given):
    with pytest.raises(ValueError, match="did you mean 'ltx_video'"):
        resolve("ltx", given)


@pytest.fixture(scope="module")
def tokenizer():
    """A fast tokenizer with a token for each word and an end token, as T5 has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "bucket": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize(
    ("prompt", "cut"),
    [
        ("", ""),
        ("lift the bucket", ""),  # three words and the end token
        ("lift the bucket slowly", "slowly"),
        ("lift the  bucket, then  turn Left", ", then  turn Left"),
    ],
)
def test_prompt_cut(tokenizer, prompt, cut):
    assert prompt_cut(tokenizer, prompt, max_tokens=4) == cut
    seen = tokenizer(prompt, truncation=True, max_length=4).input_ids
    kept = prompt.removesuffix(cut)
    assert tokenizer(kept).input_ids == seen


def test_environment_of_this_machine(given):
    settings = resolve("ltx_video", given | {"ram_budget_gb": 1e6})
    machine = environment(settings)
    assert machine.device in ("cpu", "cuda")
    assert 0 < machine.ram_available_gib <= machine.ram_gib
    assert machine.versions["diffusers"] == importlib.metadata.version("diffusers")
    assert any("ram_budget_gb=1e+06" in note for note in machine.notes)
    bundle = machine._repr_mimebundle_()
    assert "free disk" in bundle["text/plain"] and "free disk</th>" in bundle["text/html"]


def test_environment_with_a_card_smaller_than_the_budget(given, monkeypatch):
    import torch

    class Card:
        name = "NVIDIA GeForce RTX 3060"
        total_memory = 8 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    machine = environment(resolve("ltx_video", given))
    assert (machine.device, machine.vram_gib) == ("cuda", 8)
    assert machine.notes[0].startswith("this miniature knows only the world of the sample clips")
    assert machine.notes[1:] == ("the GPU has 8.0 GiB, less than vram_budget_gb=12: its size is the limit",)
    assert "NVIDIA GeForce RTX 3060, 8.0 GiB" in repr(machine)


def test_environment_with_an_ffmpeg_that_is_too_old(monkeypatch, tmp_path):
    old = tmp_path / "ffmpeg"  # what version 4.2 says
    old.write_text("""#!/bin/sh\necho "Unrecognized option 'fps_mode'." >&2\nexit 1\n""")
    old.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(old))
    monkeypatch.setattr(ffmpeg, "_packaged", list)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentProblem, match="too old: run `pip install --upgrade imageio-ffmpeg`"):
        environment()


def test_environment_lists_everything_that_is_missing(monkeypatch):
    versions = {"diffusers": "0.35.2", "torch": "2.13.0", "accelerate": "1.0"}

    def version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", sys.executable + "-missing")
    monkeypatch.setattr(ffmpeg, "_packaged", list)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentProblem) as error:
        environment()
    program, diffusers, transformers = str(error.value).splitlines()
    assert "-missing, which is no program: run `pip install --upgrade imageio-ffmpeg`" in program
    assert diffusers.startswith(
        'diffusers is 0.35.2, and 0.42 or later is needed: run `pip install "diffusers>=0.42"`'
    )
    assert transformers.startswith("transformers is not installed")


@pytest.mark.parametrize(("name", "size"), [("ltx_video", (160, 288)), ("cogvideox_5b_i2v", (240, 160))])
def test_a_portrait_clip_takes_a_portrait_size_where_the_model_allows(given, tmp_path, name, size):
    frames = np.zeros((4, 64, 36, 3), np.uint8)
    write(tmp_path / "tall.mp4", Clip(frames, 24.0))
    settings = resolve(name, given | {"clip": "tall.mp4"})
    assert (settings.width, settings.height) == size and settings.clip_size == (36, 64)
    notes = " ".join(environment(settings).notes)
    assert ("of this clip's picture goes on" in notes) == (name == "cogvideox_5b_i2v")
    landscape = resolve(name, given)
    assert landscape.width > landscape.height


def test_a_result_that_goes_on_does_not_replace_itself(given, tmp_path):
    settings = resolve("ltx_video", given)
    again = tmp_path / settings.folder / "continued.mp4"
    again.write_bytes((tmp_path / "mine.mp4").read_bytes())
    longer = resolve("ltx_video", given | {"clip": str(again)})
    assert longer.folder.name == "mine_continued" != settings.folder.name


def test_a_clip_that_cannot_be_read_is_named_with_the_other_parameters(given, tmp_path):
    (tmp_path / "mine.mp4").write_bytes(b"no film")
    with pytest.raises(ParameterError, match="(?s)2 parameters.*clip='mine.mp4': mine.mp4 is not a video.*steps=0"):
        resolve("ltx_video", given | {"steps": 0})


def test_sample_clips_have_the_sentences_that_they_were_drawn_from(given):
    assert SENTENCES == {name: prompt_of(*scene[:3]) for name, scene in SCENES.items()}
    for clip, sentence in SENTENCES.items():
        assert resolve("ltx_video", given | {"clip": clip, "prompt": None}).prompt == sentence


def test_clips_of_one_name_keep_their_results_apart(given, tmp_path, film):
    for folder in ("A", "B"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.mp4").write_bytes(film + folder.encode())
    first = resolve("ltx_video", given | {"clip": "A/mine.mp4"})
    record = {"parameters": {"source": fingerprint(first.clip)}}
    (first.folder / "run.json").write_text(json.dumps(record))
    assert resolve("ltx_video", given | {"clip": "A/mine.mp4"}).folder == first.folder
    second = resolve("ltx_video", given | {"clip": "B/mine.mp4"}).folder
    assert second == first.folder.with_name("mine_2")


def test_a_refused_clip_leaves_no_folder(given, tmp_path):
    with pytest.raises(ParameterError):
        resolve("ltx_video", given | {"clip": "gone.mp4"})
    assert not list(tmp_path.rglob("gone"))
