"""The planner: which mode to use, how far the video can grow, and the controls that redraw the forecast."""

import json
import re
import threading

import pytest

from helpers.forecast import CONTEXT_GIB, GPU, Controls, RequestError, Verdict, find_way, forecast, forecasts, plan
from helpers.forecast.__main__ import main
from helpers.models import MODELS
from tests.notebook_style import ROOT

pytestmark = pytest.mark.forecast

SMALL = dict(width=256, height=160, num_frames=9)


def test_the_fastest_mode_that_fits_both_budgets():
    size = dict(width=640, height=384, num_frames=5, grow=False)
    roomy = plan("wan22_ti2v_5b", vram_budget_gb=24, **size)
    assert roomy.best.offload == "none"
    tight = plan("wan22_ti2v_5b", vram_budget_gb=12, **size)
    assert tight.best.offload in ("group_leaf", "group_block") and tight.best.fits(12)
    assert not tight.all["none"].fits(12)
    assert "not enough VRAM" in tight.reasons["none"] and "of weights" in tight.reasons["none"]
    assert tight.reasons["group_leaf"].startswith("fits: ") and "use this" in repr(tight)
    # sequential offload fits too, and waits for every layer
    assert tight.all["sequential"].fits(12) and tight.all["sequential"].step_seconds > 1.1 * tight.best.step_seconds


def test_little_ram_rules_modes_out():
    size = dict(width=640, height=384, num_frames=5, grow=False)
    assert plan("wan22_ti2v_5b", vram_budget_gb=12, ram_budget_gb=16, **size).best is None
    reasons = plan("wan22_ti2v_5b", vram_budget_gb=12, ram_budget_gb=16, **size).reasons
    assert "not enough RAM" in reasons["sequential"] and "encode the prompt" in reasons["sequential"]
    assert "not enough RAM" in reasons["group_leaf"] and "load" in reasons["group_leaf"], "while the weights are pinned"


@pytest.mark.parametrize("budget", [0.55, 0.57, 5.0])
def test_the_most_frames_and_the_largest_size_are_the_last_that_fit(budget):
    result = plan("data/miniatures/ltx_video", vram_budget_gb=budget, **SMALL)

    def fits(mode, **changed):
        return forecasts("data/miniatures/ltx_video", **(SMALL | changed))[mode].fits(budget)

    for mode, frames in result.most_frames.items():
        assert fits(mode, num_frames=frames)
        assert frames == 257 or not fits(mode, num_frames=frames + 8), mode
        width, height = result.largest_size[mode]
        assert fits(mode, width=width, height=height) and width % 32 == height % 32 == 0
        assert width / height == pytest.approx(256 / 160, rel=0.08)
    if budget < 1:  # the budget bites
        assert max(result.most_frames.values()) < 257


def test_nothing_fits_beside_the_cuda_context_alone():
    result = plan("data/miniatures/ltx_video", vram_budget_gb=CONTEXT_GIB, **SMALL)
    assert result.best is None and set(result.most_frames.values()) == {None} == set(result.largest_size.values())
    assert "use this" not in repr(result)


def test_a_model_of_one_size_has_no_largest_size():
    result = plan("cogvideox_5b_i2v", vram_budget_gb=1, width=720, height=480, num_frames=5)
    assert set(result.largest_size.values()) == {None}


def test_the_controls_offer_what_the_model_can_make_and_the_chart_follows():
    controls = Controls("ltx_video", vram_budget_gb=12)
    assert controls.size.value == (768, 512) and controls.frames.value == 121
    assert all((frames - 1) % 8 == 0 for frames in controls.frames.options)
    controls.frames.value = 9
    before = repr(controls.chart())
    assert "768x512, 9 frames" in before and "use none" in controls.status.value
    controls.frames.value = 25
    assert "768x512, 25 frames" in repr(controls.chart()) != before
    controls.vram.value = 4
    before = repr(controls.chart())
    assert "use group_" in controls.status.value
    controls.slices.value = 1024
    assert repr(controls.chart()) != before and "use group_leaf" in controls.status.value
    controls.slices.value = 0
    controls.mode.value = "group_leaf"
    assert "peak VRAM" in repr(controls.chart())
    controls.model.value = "cogvideox_5b_i2v"
    assert controls.size.options == (("720 x 480", (720, 480)),) and controls.frames.value == 49
    controls.model.value = "svd_xt"
    assert controls.frames.options == (25,) and controls.size.value == (1024, 576)


def test_the_chart_is_redrawn_in_place_once_for_a_change_of_model(monkeypatch):
    controls = Controls("ltx_video", delay=0)
    controls.frames.value = 9
    shown = []

    class Handle:
        def update(self, chart):
            shown.append(repr(chart))

    monkeypatch.setattr("IPython.display.display", lambda *_, **__: Handle())
    controls.show()
    controls.gpu.value = "H100"
    assert len(shown) == 1 and "H100" in shown[0]


def test_a_picked_mode_is_judged_beside_the_best():
    controls = Controls("ltx_video", vram_budget_gb=4)
    controls.frames.value, controls.mode.value = 25, "none"
    controls.chart()
    assert "use group_" in controls.status.value and "none does not fit" in controls.status.value
    assert "per clip" in controls.status.value


def test_many_changes_in_a_row_are_one_redraw(monkeypatch):
    controls = Controls("ltx_video", delay=0.2)
    controls.frames.value = 9
    drawn = threading.Event()
    shown = []

    class Handle:
        def update(self, chart):
            shown.append(repr(chart))
            drawn.set()

    monkeypatch.setattr("IPython.display.display", lambda *_, **__: Handle())
    controls.show()
    for frames in (17, 25, 33, 41):
        controls.frames.value = frames
    assert drawn.wait(30)
    assert len(shown) == 1 and "41 frames" in shown[0]


SMALL_LTX = dict(width=256, height=160, num_frames=9)


def test_a_verdict_names_the_fastest_mode_that_fits_and_the_minutes():
    every = forecasts("ltx_video", **SMALL_LTX)
    verdict = Verdict.of(every, steps=50, vram_budget_gb=12, ram_budget_gb=32)
    assert verdict.fits and verdict.offload == "none" and "of RAM" in verdict.why
    assert verdict.minutes_per_clip == pytest.approx(every["none"].minutes(50))
    slow = Verdict.of(every, steps=50, vram_budget_gb=12, minutes=verdict.minutes_per_clip / 2)
    assert not slow.fits and "minutes per clip" in slow.why
    small = Verdict.of(every, vram_budget_gb=0.6)
    assert not small.fits and "no mode fits" in small.why and small.minutes_per_clip is None
    with pytest.raises(RequestError, match="minutes cannot be estimated"):
        Verdict.of(every, vram_budget_gb=12, minutes=5)


def test_the_swap_of_two_experts_counts_once_per_clip():
    one = forecasts("data/miniatures/wan22_i2v_a14b", width=256, height=144, num_frames=5, modes=("model",))["model"]
    others = one.stages["encode_image"].seconds + one.stages["decode"].seconds
    assert one.swap_seconds > 0
    assert one.minutes(10) == pytest.approx((others + 10 * one.step_seconds + one.swap_seconds) / 60)


def test_the_command_line_judges(capsys):
    size = ["--width", "256", "--height", "160", "--num-frames", "9"]
    assert main(["ltx_video", *size, "--vram", "12", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["verdict"]["fits"] is True and printed["verdict"]["slice_tokens"] is None
    keys = {"fits", "offload", "slice_tokens", "minutes_per_clip", "why", "options"}
    assert set(printed["verdict"]) == keys and printed["verdict"]["options"] == {}
    assert (printed["model"], printed["width"], printed["gpu"]) == ("ltx_video", 256, "RTX 4070 Ti")
    assert main(["ltx_video", *size, "--vram", "0.6"]) == 0
    said = capsys.readouterr().out
    assert "It does not fit: no mode fits" in said
    assert "The most frugal way, group_leaf with slice_tokens=1024, low_cpu_mem_usage, encode=layer_by_layer," in said
    assert main(["ltx_video", *size, "--json"]) == 0 and "verdict" not in json.loads(capsys.readouterr().out)


def test_what_no_mode_fits_may_fit_in_slices_and_with_little_ram(capsys):
    size = dict(width=640, height=384, num_frames=17)
    assert plan("wan22_i2v_a14b", vram_budget_gb=2.6, grow=False, **size).best is None
    way = find_way("wan22_i2v_a14b", vram_budget_gb=3, ram_budget_gb=13, **size)
    assert set(way.options) == {"slice_tokens", "encode", "one_expert_at_a_time", "low_cpu_mem_usage"}
    assert way.forecast.fits(3, 13) and way.forecast.offload == "group_leaf" and "encode=layer_by_layer" in way.text
    roomy = find_way("wan22_i2v_a14b", vram_budget_gb=24, ram_budget_gb=17, **size)
    assert "one_expert_at_a_time" not in roomy.options or roomy.forecast.offload.startswith("group"), "as in lesson 03"
    plain = find_way("wan22_i2v_a14b", vram_budget_gb=12, ram_budget_gb=22, **size)
    assert "slice_tokens" not in plain.options, "what lowers RAM is tried before slices"
    assert find_way("wan22_i2v_a14b", vram_budget_gb=0.6, **size) is None
    assert main(["ltx_video", "--num-frames", "97", "--vram", "2.5", "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out)["verdict"]
    assert verdict["fits"] and verdict["options"] == {"slice_tokens": verdict["slice_tokens"]} != {"slice_tokens": None}
    assert main(["ltx_video", "--num-frames", "97", "--vram", "2.5"]) == 0
    printed = capsys.readouterr().out
    assert "As it is, no mode fits. With slice_tokens=" in printed and "in a lesson: -p offload group_" in printed
    assert main(["wan22_i2v_a14b", "--num-frames", "5", "--offload", "sequential", "--vram", "8"]) == 0
    assert "It does not fit: sequential does not work: " in capsys.readouterr().out
    assert main(["ltx_video", "--slice-tokens", "1"]) == 2
    assert "makes 6,144 slices" in capsys.readouterr().err


def test_a_verdict_on_one_mode_is_about_that_mode(capsys):
    size = ["--width", "256", "--height", "160", "--num-frames", "9", "--offload", "none"]
    assert main(["ltx_video", *size, "--vram", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"]["offload"] == "none"
    assert main(["ltx_video", *size, "--vram", "4"]) == 0
    assert "It does not fit: none needs" in capsys.readouterr().out


def test_too_little_ram_for_the_prompt_alone_has_a_remedy(capsys):
    size = ["--width", "256", "--height", "160", "--num-frames", "9", "--vram", "12", "--ram", "16"]
    assert main(["ltx_video", *size]) == 0
    assert "With encode=layer_by_layer, it fits: none takes" in capsys.readouterr().out
    assert main(["ltx_video", *size, "--encode", "layer_by_layer"]) == 0
    assert "It fits: none" in capsys.readouterr().out


def test_the_command_line_forecasts_the_file_that_the_lesson_downloads(capsys):
    size = ["--width", "256", "--height", "144", "--num-frames", "5", "--offload", "model", "--json"]
    assert main(["wan22_i2v_a14b", *size]) == 0
    assert json.loads(capsys.readouterr().out)["quantization"] == "Q4_K_M"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ltx_video", "--no-chunking"], "--chunking does nothing here"),
        (["svd_xt", "--tiling"], "--tiling does nothing here"),
        (["ltx_video", "--offload", "model", "--low-cpu-mem-usage"], "--low-cpu-mem-usage does nothing here"),
        (["ltx_video", "--one-expert-at-a-time"], "--one-expert-at-a-time does nothing here"),
        (["ltx_video", "--decode-chunk-size", "2"], "--decode-chunk-size does nothing here"),
        (["svd_xt", "--encode", "layer_by_layer"], "--encode does nothing here"),
        (["nowhere"], "no model or folder 'nowhere'"),
        (["data/miniatures/ltx_video", "--vram", "12"], "give --width, --height, --num-frames for a folder"),
    ],
)
def test_the_command_line_refuses_what_makes_no_sense(arguments, expected, capsys):
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err


def test_the_readmes_cards_hold_what_it_says():
    """Each "TITLE WxHxF ... with `mode`" in the README's table of cards fits its card."""
    names = {"LTX-Video": "ltx_video", "CogVideoX-5B": "cogvideox_5b_i2v", "TI2V-5B": "wan22_ti2v_5b",
             "A14B": "wan22_i2v_a14b", "Stable Video Diffusion": "svd_xt"}  # fmt: skip
    rows = re.findall(r"^\| (\d+) GiB \| (.+) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert [int(card) for card, _ in rows] == [4, 6, 8, 12]
    claims = 0
    for card, text in rows:
        for part in re.findall(r"([^;`]+?) with `(\w+)`", text):
            for title, *size in re.findall(rf"({'|'.join(names)}) (\d+)x(\d+)x(\d+)", part[0]):
                width, height, frames = map(int, size)
                name, size = names[title], dict(width=width, height=height, num_frames=frames)
                one = forecast(name, offload=part[1], quantization=MODELS[name].quantization, **size)
                assert one.fits(float(card)), (card, title, size, part[1])
                claims += 1
    assert claims == 9


def test_a_plan_stays_within_minutes():
    size = {"width": 768, "height": 512, "num_frames": 121, "gpu": "RTX 4070 Ti"}
    any_time = plan("ltx_video", **size, steps=8, guidance=False)
    enough = any_time.best.minutes(8) * 1.01
    within = plan("ltx_video", **size, steps=8, guidance=False, minutes=enough)
    assert within.best.offload == any_time.best.offload
    assert within.most_frames[within.best.offload] < any_time.most_frames[within.best.offload]
    assert f"{within.best.minutes(8):.1f} minutes with 8 steps" in within.reasons[within.best.offload]
    late = plan("ltx_video", **size, steps=8, guidance=False, minutes=enough / 2, grow=False)
    assert late.best is None and late.way is None
    with pytest.raises(RequestError, match="minutes cannot be estimated"):
        plan("ltx_video", **(size | {"gpu": GPU("a new one", 8.0)}), minutes=5)
