"""The forecast: against a measured run, against arithmetic, and what it says to bad input."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.forecast import DEFAULT_GPU, GPU, GPUS, Placement, RequestError, Tape, forecast, forecasts, gpu, plan
from helpers.forecast.__main__ import main
from helpers.forecast.ram import PROCESS_GIB
from helpers.forecast.rates import PCIE, PINNED
from helpers.forecast.recording.allocators import power_of_two
from helpers.forecast.recording.replay import remembering
from helpers.forecast.result import FASTEST_FIRST
from helpers.models import CONFIGS, MODELS, OFFLOAD_MODES, Architecture, ArchitectureError
from helpers.units import GIB
from tests.notebook_style import ROOT

pytestmark = pytest.mark.forecast

MINIATURE = ROOT / "data" / "miniatures" / "ltx_video"
A14B = dict(width=1280, height=720)


# --- the architectures


@pytest.mark.parametrize("name", MODELS)
def test_each_component_has_the_published_number_of_parameters(name):
    arch = Architecture(name, quantization="none")
    parameters = {one: sum(p.numel() for p in arch.component(one).parameters()) for one in arch.components}
    assert parameters == MODELS[name].parameters
    assert all(p.is_meta for one in arch.components for p in arch.component(one).parameters())
    assert arch.pipeline == MODELS[name].pipeline


def test_components_have_the_data_types_that_the_lessons_load():
    arch = Architecture("wan22_ti2v_5b")
    kinds = {name: p.dtype for name, p in arch.component("transformer").named_parameters()}
    assert kinds["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    # `from_pretrained` keeps these in fp32: WanTransformer3DModel._keep_in_fp32_modules
    kept = ("condition_embedder.time_embedder.linear_1.weight", "blocks.0.scale_shift_table", "blocks.0.norm2.bias")
    assert {kinds[name] for name in kept} == {torch.float32}
    assert {p.dtype for p in arch.component("vae").parameters()} == {torch.float32}
    assert {p.dtype for p in Architecture("svd_xt").component("unet").parameters()} == {torch.float16}
    full = Architecture("svd_xt", dtype=torch.float32)
    assert {p.dtype for p in full.component("vae").parameters()} == {torch.float32}


def test_q4_k_takes_four_and_a_half_bits_a_weight():
    import gguf
    from diffusers.quantizers.gguf.utils import GGUFLinear, dequantize_gguf_tensor

    expert = Architecture("wan22_i2v_a14b").component("transformer")
    layer = expert.blocks[0].ffn.net[2]
    assert isinstance(layer, GGUFLinear) and layer.weight.quant_type == gguf.GGMLQuantizationType.Q4_K
    assert layer.weight.numel() == 13824 * 5120 * 4.5 / 8
    assert dequantize_gguf_tensor(layer.weight).shape == (5120, 13824)
    assert type(expert.proj_out) is nn.Linear and expert.patch_embedding.weight.dtype == torch.bfloat16
    packed = sum(p.numel() for p in expert.parameters() if p.dtype == torch.uint8)
    assert 7.4 < packed / GIB < 7.5


# --- where weights are


class Tower(nn.Module):
    """Two blocks of one layer each, and a head that is in no block; each layer has 256 KiB of weights."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(256, 256, bias=False)) for _ in range(2))
        self.head = nn.Linear(256, 256, bias=False)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize(
    ("offload", "use_stream", "most"),
    [
        ("none", False, 4),  # all layers, and the other component
        ("sequential", False, 1),
        ("group_leaf", False, 1),
        ("group_leaf", True, 2),  # one that computes and one that is copied
        ("group_block", False, 1 + 1),  # a block, and the head
        ("group_block", True, 2 + 1),
    ],
)
def test_the_most_weights_on_the_gpu(offload, use_stream, most):
    with torch.device("meta"):
        tower, vae = Tower(), nn.Linear(256, 256, bias=False)
    tape = Tape()
    tape.exclude(tower)
    tape.exclude(vae)
    with tape:
        tower(torch.empty(1, 256, device="meta"))
    placement = Placement({"transformer": tower, "vae": vae}, offload, use_stream=use_stream)
    assert placement.weights(tape).max() == most * 256 * 256 * 4
    travel, layer = placement.travel(tape), 256 * 256 * 4
    if offload == "none":
        assert travel.to_gpu == 0
    elif offload == "group_block" and use_stream:
        assert (travel.streamed, travel.blocking, travel.back) == (2 * layer, layer, layer)
    elif use_stream:
        assert (travel.streamed, travel.blocking, travel.back) == (3 * layer, 0, 0)
    else:
        back = 0 if offload == "sequential" else 3 * layer
        assert (travel.streamed, travel.blocking, travel.back) == (0, 3 * layer, back)


def test_the_vae_is_onloaded_when_it_is_called_and_offloaded_when_the_groups_are():
    with torch.device("meta"):
        tower, vae = Tower(), nn.Linear(512, 512, bias=False)  # as large as four layers of the tower
    layer, whole = 256 * 256 * 4, 512 * 512 * 4
    for offload_vae, expected in ((True, [whole, layer, whole]), (False, [whole, whole + layer, whole])):
        placement = Placement({"transformer": tower, "vae": vae}, "group_leaf", False, offload_vae)
        highest = []
        for component in (vae, tower, vae):
            tape = Tape()
            tape.exclude(tower)
            tape.exclude(vae)
            with tape:
                component(torch.empty(1, 512 if component is vae else 256, device="meta"))
            highest.append(int(placement.weights(tape).max()))
        assert highest == expected


def test_model_offload_evicts_only_the_preceding_component():
    with torch.device("meta"):
        components = {name: nn.Linear(64, 64, bias=False) for name in ("transformer", "transformer_2", "vae")}
    tape, x, size = Tape(), torch.empty(1, 64, device="meta"), 64 * 64 * 4
    for component in components.values():
        tape.exclude(component)
    with tape:
        for name in ("vae", "transformer", "transformer_2", "vae"):
            components[name](x)
    weights = Placement(components, "model").weights(tape)
    # the VAE stays until it is called again, and this call evicts the second expert
    assert [weights[event] // size for _, event in tape.entries] == [1, 2, 2, 1]


def test_pinned_memory_comes_in_powers_of_two():
    assert [power_of_two(size) for size in (0, 1, 512, 513, 14_745_600)] == [0, 1, 512, 1024, 2**24]
    baseline = forecast("wan22_ti2v_5b", offload="group_leaf", width=640, height=384, num_frames=5)
    saving = forecast(
        "wan22_ti2v_5b", offload="group_leaf", width=640, height=384, num_frames=5, low_cpu_mem_usage=True
    )
    # 3072 x 3072 in bf16 are 18 MiB, which take 32; 3072 x 14336 are 84, which take 128
    assert 1.4 < (baseline.ram["generate"] - PROCESS_GIB) / (saving.ram["generate"] - PROCESS_GIB) < 1.8
    assert baseline.peak_vram_gib == saving.peak_vram_gib


# --- against measurements and arithmetic


def test_the_miniatures_run_on_a_gpu_was_as_forecast():
    record = json.loads((ROOT / "data" / "measurements" / "ltx_video_miniature_h200.json").read_text())
    size = {key: record[key] for key in ("width", "height", "num_frames")}
    expected = forecasts(MINIATURE, **size, guidance=False, dtype=torch.float32, gpu="H200")
    for measured in record["modes"]:
        stages = expected[measured["offload"]].stages
        peak = max(stages["encode_image"].peak_gib, stages["denoise"].peak_gib)  # two steps to latents
        assert abs(peak - measured["peak_allocated_gib"]) < 0.05 * measured["peak_allocated_gib"], measured["offload"]
    assert expected["none"].peak_ram_gib == pytest.approx(record["peak_ram_gib"], abs=0.15)


def test_activations_do_not_depend_on_the_mode_and_weights_do():
    short = forecasts("wan22_i2v_a14b", num_frames=5, **A14B)
    assert list(short) == list(OFFLOAD_MODES)
    none, model, block, leaf = (short[mode].stages["denoise"] for mode in OFFLOAD_MODES if mode != "sequential")
    for one in (model, block):
        # the peak may move to a neighbouring operation
        assert one.activations_gib == pytest.approx(none.activations_gib, abs=0.05)
    assert none.weights_gib > model.weights_gib > block.weights_gib > leaf.weights_gib
    # both experts and the VAE; one expert and the VAE; two blocks of forty, and the rest
    expert, vae = short["model"].stages["denoise"].weights_gib - 0.47, 0.47
    assert none.weights_gib == pytest.approx(2 * expert + vae, abs=0.05)
    assert block.weights_gib < 2 / 40 * expert + 0.2 + 0.1
    assert short["group_leaf"].moved_gib == pytest.approx(2 * expert, rel=0.02), "two passes of guidance"


def test_attention_makes_a_step_grow_faster_than_the_video():
    few, many = (
        forecast("wan22_i2v_a14b", offload="group_leaf", num_frames=frames, width=640, height=384, gpu="H100")
        for frames in (21, 81)
    )
    tokens = (81 // 4 + 1) / (21 // 4 + 1)
    assert tokens < many.tflops / few.tflops < tokens**2
    added = few.stages["denoise"].activations_gib, many.stages["denoise"].activations_gib
    assert added[1] / added[0] == pytest.approx(tokens, rel=0.35)
    assert many.step_seconds >= many.resident_step_seconds


def test_tiling_and_chunking_lower_what_they_should():
    size = dict(width=768, height=512, num_frames=17)
    tiled, whole = (forecast("ltx_video", offload="model", tiling=tiling, **size) for tiling in (True, False))
    assert tiled.stages["decode"].activations_gib < 0.8 * whole.stages["decode"].activations_gib
    assert tiled.stages["denoise"] == whole.stages["denoise"]
    size = dict(width=512, height=320, num_frames=14)
    chunked, baseline = (forecast("svd_xt", offload="model", chunking=chunking, **size) for chunking in (True, False))
    assert chunked.stages["denoise"].peak_gib < baseline.stages["denoise"].peak_gib
    assert "cannot tile" in " ".join(chunked.left_out)
    few = forecast("svd_xt", offload="model", decode_chunk_size=2, **size)
    assert few.stages["decode"].activations_gib < 0.5 * chunked.stages["decode"].activations_gib


def test_sequential_offload_of_gguf_is_forecast_to_fail():
    assert "14691" in forecasts("wan22_i2v_a14b", num_frames=5, **A14B)["sequential"].fails
    unquantized = forecast("wan22_i2v_a14b", offload="sequential", num_frames=5, quantization="none", **A14B)
    assert not unquantized.fails and unquantized.fits(12) and unquantized.peak_ram_gib > 53


# --- how it shows itself


def test_all_modes_as_text_table_picture_and_json(capsys):
    arguments = ["--width", "1280", "--height", "720", "--num-frames", "5"]
    assert main(["wan22_i2v_a14b", *arguments]) == 0
    text = capsys.readouterr().out
    assert all(mode in text for mode in OFFLOAD_MODES) and "peak VRAM, GiB" in text and "sequential fails" in text
    assert main(["wan22_i2v_a14b", *arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    modes = printed.pop("modes")
    size = dict(width=1280, height=720, num_frames=5)
    assert printed == {"model": "wan22_i2v_a14b", **size, "gpu": "RTX 4070 Ti", "quantization": "Q4_K_M"}
    assert set(modes) == set(OFFLOAD_MODES) and set(modes["sequential"]) == {"fails"}
    leaf = modes["group_leaf"]
    assert set(leaf["stages"]) == {"encode_image", "denoise", "decode"}
    assert leaf["peak_vram_gib"] == max(leaf["stages"].values()) and leaf["step_seconds"] > 0 < leaf["peak_ram_gib"]

    result = forecasts("wan22_i2v_a14b", num_frames=5, **A14B)
    for picture in (result.chart(12), result.timelines(12), result["model"]):
        bundle = picture._repr_mimebundle_()
        assert bundle["image/svg+xml"].startswith("<svg") and "aria-label" in bundle["image/svg+xml"]
        assert len(bundle["image/svg+xml"]) < 60_000 and "Wan2.2 I2V-A14B" in bundle["text/plain"]
    assert "activations" in repr(result["model"]) and "transformer." in repr(result["model"])
    assert "<table>" in result._repr_mimebundle_()["text/html"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["wan22_i2v_a14b", "--width", "1285"], "width=1285: this model makes multiples of 16; nearest: 1280"),
        (["ltx_video", "--num-frames", "50"], "num_frames=50: this model makes 8k+1 frames; nearest: 49"),
        (["wan22_i2v_a15b"], "did you mean 'wan22_i2v_a14b'"),
        (["cogvideox_5b_i2v", "--width", "1280"], "nearest: 720x480"),
        (["ltx_video", "--gpu", "RTX 4070 Tie"], "did you mean 'RTX 4070 Ti'"),
        (["ltx_video", "--gpu", "RTX 3060"], "did you mean 'RTX 3060 8GB' or 'RTX 3060 12GB' or 'RTX 3060 Ti'"),
        (["wan22_i2v_a14b", "--quantization", "Q4_K_XL"], "is not known here: give Q4_K_M"),
        ([str(MINIATURE)], "give --width, --height, --num-frames"),
    ],
)
def test_bad_input_names_the_nearest_valid_value(arguments, error, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and error in printed.err


def test_a_folder_that_is_no_supported_checkpoint(tmp_path):
    size = dict(width=512, height=512, num_frames=9)
    with pytest.raises(ArchitectureError, match="model_index.json is missing"):
        forecasts(tmp_path, **size)
    index = tmp_path / "model_index.json"
    index.write_text("{")
    with pytest.raises(ArchitectureError, match="cannot read"):
        forecasts(tmp_path, **size)
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ArchitectureError, match="FluxPipeline.*LTX, Wan"):
        forecasts(tmp_path, **size)
    index.write_text((CONFIGS / "ltx_video" / "model_index.json").read_text())
    with pytest.raises(ArchitectureError, match="config.json is missing"):
        forecasts(tmp_path, **size)
    with pytest.raises(RequestError, match="there are none, model"):
        forecast("ltx_video", offload="models", **size)


def test_another_member_of_a_family_needs_no_table(tmp_path):
    """LTX-Video with half the layers, say: its folder is all that is known of it."""
    for path in (CONFIGS / "ltx_video").rglob("*.json"):
        target = tmp_path / path.relative_to(CONFIGS / "ltx_video")
        target.parent.mkdir(exist_ok=True)
        target.write_text(re.sub(r'"num_layers": 28', '"num_layers": 14', path.read_text()))
    size = dict(width=256, height=256, num_frames=9)
    half, whole = (forecast(folder, offload="model", **size) for folder in (tmp_path, "ltx_video"))
    saved = whole.stages["denoise"].weights_gib - half.stages["denoise"].weights_gib
    assert saved == pytest.approx(14 / 28 * 3.58, rel=0.05)


def test_the_charts_in_the_readme_are_what_the_forecast_says_now():
    from data.make.measurements.forecasts import forecast_of
    from data.make.measurements.set_ups import BUDGET_GIB, SET_UPS

    published = json.loads((ROOT / "data" / "forecasts.json").read_text())
    assert set(published) == set(SET_UPS)
    now = forecast_of("ltx_video")
    for mode, figures in now.as_json()["modes"].items():
        assert published["ltx_video"]["modes"][mode]["stages"] == pytest.approx(figures["stages"], rel=0.01)
    drawn = (ROOT / "data" / "pictures" / "forecast_ltx_video.svg").read_text()
    assert drawn.count("<rect") == now.chart(BUDGET_GIB).svg.count("<rect")
    for one in now.values():
        assert f">{one.peak_vram_gib:.2f}<" in drawn


# --- seconds


def test_a_step_is_the_longer_of_computing_and_copying_when_streamed():
    # in a slot so slow that the hooks between the copies do not count
    rates = replace(gpu("RTX 4070 Ti").rates, pinned=PINNED * PCIE[3])
    size = dict(width=640, height=384, num_frames=5, gpu=replace(gpu("RTX 4070 Ti"), rates=rates))
    streamed = forecast("wan22_ti2v_5b", offload="group_leaf", **size)
    waiting = forecast("wan22_ti2v_5b", offload="group_leaf", use_stream=False, **size)
    copying = streamed.moved_gib * GIB / (1e9 * rates.pinned)
    assert streamed.step_seconds == pytest.approx(max(copying, streamed.resident_step_seconds), rel=0.05)
    back_and_forth = streamed.moved_gib * GIB / 1e9 * (1 / rates.pageable + 1 / rates.to_host)
    assert waiting.step_seconds == pytest.approx(waiting.resident_step_seconds + back_and_forth, rel=0.1)


@pytest.mark.parametrize("model", ["ltx_video", "svd_xt"])
def test_today_s_forecast_is_as_near_to_the_measured_runs_as_the_readme_says(model):
    """The rows that are forecast fastest; `python -m data.make.measurements.stages --compare` compares all of them."""
    from data.make.measurements.stage_accuracy import compare, peak_misses, step_miss
    from data.make.measurements.stages import gpu_of

    record = json.loads((ROOT / "data" / "measurements" / "stages_h200.json").read_text())
    rows = [row for row in record["rows"] if row["model"] == model and row["width"] <= 1024]
    assert [row["offload"] for row in rows] == list(OFFLOAD_MODES)
    for row in rows:
        now = compare(row, CONFIGS, gpu_of(record["device"]))
        assert (peak_misses(now), step_miss(now)) == ({}, "")


def test_attention_with_small_heads_waits_for_its_exponentials():
    """TFLOP/s in bf16 with 17,776 tokens, measured on an H200: 436 with heads of 64 channels, 641 with heads of 128."""
    speeds = {}
    for channels in (64, 128):
        tape = Tape()
        with tape:
            query = torch.empty(2, 3072 // channels, 17776, channels, device="meta", dtype=torch.bfloat16)
            nn.functional.scaled_dot_product_attention(query, query, query)
        speeds[channels] = tape.flops.sum() / gpu("H200").rates.clock(tape)[-1] / 1e12
    assert speeds == pytest.approx({64: 436, 128: 641}, rel=0.15)


def test_a_layer_that_is_called_repeatedly_is_prefetched_only_once():
    """A chunked feed-forward: a layer prefetches what follows its last call, so all other copies block."""

    class Chunked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4096, 4096, bias=False) for _ in range(3))

        def forward(self, x, calls):
            for index in calls:
                x = self.layers[index](x)
            return x

    rates = gpu("RTX 4070 Ti").rates
    seconds = {}
    for calls in ((0, 1, 0, 1, 2), (0, 1, 2)):
        with torch.device("meta"):
            component = Chunked()
        tape = Tape()
        tape.exclude(component)
        with tape:
            component(torch.empty(1, 4096, device="meta"), calls)
        placement = Placement({"transformer": component}, "group_leaf")
        seconds[calls] = placement.seconds(tape, placement.weights(tape), rates.clock(tape), rates)
    copy = 4096 * 4096 * 4 / (1e9 * rates.pinned)
    assert seconds[0, 1, 2] == pytest.approx(3 * copy, rel=0.1)  # the first blocks, the others are streamed
    assert seconds[0, 1, 0, 1, 2] == pytest.approx(6 * copy, rel=0.1)  # layer 2 is copied with each call of layer 1


def test_model_offload_swaps_two_experts_once_per_clip():
    size = dict(num_frames=5, gpu="H100", **A14B)
    left_out = " ".join(forecast("wan22_i2v_a14b", offload="model", **size).left_out)
    assert "swapped on the GPU once per clip: about" in left_out
    assert forecast("wan22_i2v_a14b", offload="group_leaf", **size).left_out == ()


def test_the_faster_gpu_is_faster_and_t4_has_no_bf16():
    seconds = {
        name: forecast("ltx_video", offload="none", width=512, height=320, num_frames=25, gpu=name).step_seconds
        for name in GPUS
    }
    assert seconds["H100"] < seconds["RTX 4090"] < seconds["RTX 4070 Ti"] < seconds["RTX 3060 12GB"] < seconds["T4"]
    assert all(one.rates.source for one in GPUS.values())


# --- a GPU that we know nothing of


UNKNOWN = GPU("Some GPU", 12.0)


def test_without_rates_memory_is_forecast_and_seconds_are_not():
    size = dict(width=256, height=160, num_frames=9)
    known, unknown = (forecasts(MINIATURE, gpu=one, **size) for one in (DEFAULT_GPU, UNKNOWN))
    for mode, one in unknown.items():
        assert {name: stage.peak_gib for name, stage in one.stages.items()} == {
            name: stage.peak_gib for name, stage in known[mode].stages.items()
        }
        assert one.ram == known[mode].ram and one.moved_gib == known[mode].moved_gib
        assert one.step_seconds is one.resident_step_seconds is one.slowdown is None
        assert {stage.seconds for stage in one.stages.values()} == {None}
        assert "measure_gpu()" in repr(one) and "seconds unknown" in repr(one) and "None" not in repr(one)
        assert one._repr_mimebundle_()["image/svg+xml"].startswith("<svg")
        assert "seconds" not in one._repr_mimebundle_()["image/svg+xml"]  # no time axis
    printed = unknown.as_json()
    assert printed["gpu"] == "Some GPU"
    assert {figures["step_seconds"] for figures in printed["modes"].values()} == {None}
    assert "measure_gpu()" in repr(unknown) and "–" in repr(unknown.table())
    for picture in (unknown.chart(12), unknown.timelines(12)):
        assert picture.svg.startswith("<svg") and "None" not in picture.svg
    assert "step time unknown for Some GPU" in unknown.chart(12).svg


def test_without_rates_the_modes_keep_their_usual_order():
    size = dict(width=256, height=160, num_frames=9, gpu=UNKNOWN)
    result = forecasts(MINIATURE, **size)
    assert set(FASTEST_FIRST) == set(OFFLOAD_MODES)
    lighter = result.lighter("none", 12)
    assert lighter and lighter == sorted(lighter, key=FASTEST_FIRST.index)
    assert result.fastest(12).offload == "none" and result.fastest(0.1) is None
    planned = plan(MINIATURE, vram_budget_gb=12, grow=False, **size)
    assert planned.best.offload == "none" and "step time unknown" in planned.reasons["none"]
    assert "swapped on the GPU once per clip" in " ".join(
        forecast("wan22_i2v_a14b", offload="model", num_frames=5, gpu=UNKNOWN, **A14B).left_out
    )


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_a_block_takes_on_the_gpu_what_the_tape_says(kind):
    from diffusers import LTXVideoTransformer3DModel

    def run(device):
        with torch.device(device):
            model = LTXVideoTransformer3DModel(num_layers=1, num_attention_heads=8, attention_head_dim=64).to(kind)
            inputs = dict(
                hidden_states=torch.randn(1, 4096, 128, dtype=kind), timestep=torch.ones(1),
                encoder_hidden_states=torch.randn(1, 128, 4096, dtype=kind), num_frames=4, height=32, width=32,
            )  # fmt: skip
        return model.eval(), inputs

    model, inputs = run("meta")
    tape = Tape()
    tape.exclude(model)
    with tape, remembering(tape):
        model(**inputs)
    model, inputs = run("cuda")
    with torch.no_grad():
        model(**inputs)  # cuBLAS takes its workspace
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model(**inputs)
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(tape.peak_bytes, rel=0.05)


@pytest.mark.parametrize(("name", "usual"), [("Q4_K_M", "Q4_K"), ("Q5_K_M", "Q5_K")])
def test_a_files_mixture_of_types_is_forecast_layer_by_layer(name, usual):
    block = Architecture(CONFIGS / "wan22_i2v_a14b", name).component("transformer").blocks[0]
    kinds = {path: layer.weight.quant_type.name for path, layer in block.named_modules()
             if hasattr(getattr(layer, "weight", None), "quant_type")}  # fmt: skip
    finer = {path for path, kind in kinds.items() if kind == "Q6_K"}
    assert finer == {"attn1.to_v", "attn2.to_v", "ffn.net.2"} and len(kinds) == 10
    assert {kinds[path] for path in kinds.keys() - finer} == {usual}
