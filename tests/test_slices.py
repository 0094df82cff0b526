"""Slices of activations: the same latents through the real pipelines, what cannot be sliced, and lean decoding."""

import functools
import json
import weakref
from collections import Counter

import diffusers
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from PIL import Image
from torch.nn import functional

from data.make.miniatures.families import family_of
from data.make.slices import largest
from helpers import slices
from helpers.forecast import RequestError, forecast, forecasts
from helpers.forecast.ram import PROCESS_GIB
from helpers.lesson import offload_in_groups, offload_sequentially, use_onednn
from helpers.models import MINIATURES, MODELS, gguf_path, in_turn
from helpers.scoreboard import sliced_records, sliced_table
from helpers.slices import Rows, SliceError, spans
from helpers.slices.held import Holding
from tests.notebook_style import ROOT

pytestmark = pytest.mark.slices

SIZES = {  # width, height, frames of a quick run, and a number of tokens that makes several slices of it
    "ltx_video": (192, 128, 17, 40),
    "wan22_ti2v_5b": (192, 128, 9, 20),
    "wan22_i2v_a14b": (128, 64, 9, 40),
    "svd_xt": (128, 128, 5, 1),
    "cogvideox_5b_i2v": (240, 160, 17, 200),
}


def loaded(name):
    pipe = family_of(name).continuer(MINIATURES / name, "cpu").pipe
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", autouse=True)
def one_kernel():
    """Which of two kernels PyTorch takes for a 3D convolution depends on the batch; the lessons always take one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "conv3d", functional.conv3d)  # put back afterwards
        use_onednn()
        yield


@pytest.fixture(scope="module", params=MODELS)
def named(request):
    """A model's name and its miniature's pipeline."""
    return request.param, loaded(request.param)


def latents_of(name, pipe, steps=2):
    """Latents of a short run with guidance, which makes batches of two in three of the models."""
    width, height, frames, _ = SIZES[name]
    pixels = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(1))
    given = dict(
        image=Image.fromarray((255 * pixels).byte().numpy()), width=width, height=height, num_frames=frames,
        num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="latent",
    )  # fmt: skip
    if name != "svd_xt":
        given |= dict(prompt="the excavator digs", negative_prompt="blurred", guidance_scale=3.0)
    return pipe(**given).frames


def test_slices_are_about_equally_long_and_cover_every_token_once():
    assert [s.stop - s.start for s in spans(75_600, 8192)] == [7680] * 9 + [6480]
    assert spans(100, 1000) == [slice(0, 100)] and spans(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    for tokens, size in ((1, 1), (129, 128), (6144, 2048), (1000, 999)):
        found = spans(tokens, size)
        assert [s.start for s in found[1:]] == [s.stop for s in found[:-1]] and found[-1].stop == tokens
        assert found[0].start == 0 and max(s.stop - s.start for s in found) <= size


def test_latents_are_those_of_the_plain_model_and_off_is_as_before(named):
    name, pipe = named
    plain = latents_of(name, pipe)
    classes = {path: type(module) for path, module in pipe.components[denoiser(pipe)].named_modules()}
    for size in (SIZES[name][3], 10**6):
        slices.slice_activations(pipe, size)
        assert type(pipe.components[denoiser(pipe)]) is not classes[""] or name == "cogvideox_5b_i2v"
        assert (latents_of(name, pipe) - plain).abs().max() <= 1e-5, size
    slices.slice_activations(pipe, None)
    model = pipe.components[denoiser(pipe)]
    assert {path: type(module) for path, module in model.named_modules()} == classes
    assert not any("slice_tokens" in vars(module) for module in model.modules())
    assert torch.equal(latents_of(name, pipe), plain)


def denoiser(pipe):
    return "unet" if "unet" in pipe.components else "transformer"


OFFLOADS = {
    "group_block": lambda pipe: offload_in_groups(pipe, "block_level", "cpu"),
    "group_leaf": lambda pipe: offload_in_groups(pipe, "leaf_level", "cpu"),
    "sequential": lambda pipe: offload_sequentially(pipe, "cpu"),
}


@pytest.mark.parametrize("offload", OFFLOADS)
def test_every_mode_bears_slices_and_copies_each_layers_weights_once(named, offload):
    name, usual = named
    if name == "wan22_i2v_a14b" and offload == "sequential":
        pytest.skip("GGUF weights do not bear sequential offload")
    pipe = loaded(name)
    slices.slice_activations(pipe, SIZES[name][3])
    calls = Counter()
    for path, module in pipe.components[denoiser(pipe)].named_modules():
        if path == "" or isinstance(module, Holding):
            module.register_forward_pre_hook(lambda *_, path=path: calls.update([path]))
    OFFLOADS[offload](pipe)
    assert (latents_of(name, pipe, steps=1) - latents_of(name, usual, steps=1)).abs().max() <= 1e-5
    assert set(calls.values()) == {calls[""]} and (len(calls) > 20 or name == "svd_xt"), calls
    with pytest.raises(SliceError, match="is offloaded already: slice a fresh one"):
        slices.slice_activations(pipe, None)


@pytest.mark.parametrize("size", [0, -5, 2.5, "8192", True])
def test_a_number_of_tokens_that_is_none(size):
    with pytest.raises(SliceError, match="give a number of tokens, 1 or more, or None"):
        slices.slice_activations(torch.nn.Linear(2, 2), size)
    with pytest.raises(RequestError, match="slice_tokens="):
        forecasts("ltx_video", width=256, height=160, num_frames=9, slice_tokens=size)


def test_what_cannot_be_sliced_says_why():
    with pytest.raises(SliceError, match="Linear has no denoiser to slice"):
        slices.slice_activations(torch.nn.Linear(2, 2), 64)
    transformer = loaded("wan22_ti2v_5b").transformer
    transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(SliceError, match=r"has a cache.*disable_cache\(\)"):
        slices.slice_activations(transformer, 64)
    transformer.disable_cache()
    slices.slice_activations(transformer, 64)
    fused = loaded("wan22_ti2v_5b").transformer
    fused.blocks[0].attn1.fuse_projections()
    with pytest.raises(SliceError, match="fused projections"):
        slices.slice_activations(fused, 64)
    older = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, ffn_dim=16, text_dim=8, added_kv_proj_dim=24,
        image_dim=8,
    )  # fmt: skip
    with pytest.raises(SliceError, match="Wan 2.1"):
        slices.slice_activations(older, 64)


def test_rows_hold_each_timestep_once():
    timestep = torch.tensor([[0.0, 0.0, 7.0, 7.0, 7.0], [0.0, 7.0, 7.0, 7.0, 7.0]])
    rows = Rows.of(timestep)
    assert rows.values.tolist() == [0.0, 7.0] * 64, "the two of them, and again until there are 128 rows"
    vectors = Rows(torch.stack([rows.values, -rows.values], dim=1)[..., None], rows.index)  # two entries, one channel
    assert torch.equal(vectors.part(0, slice(1, 4))[..., 0], timestep[:, 1:4])
    assert torch.equal(vectors.part(1, slice(0, 5))[..., 0], -timestep)
    alike = Rows.of(torch.tensor([5.0, 6.0]))
    assert alike.index is None and Rows(alike.values[:, None, None], None).part(0, slice(0, 9)).shape == (2, 1, 1)


def test_an_adapters_scale_is_still_applied():
    """`attention_kwargs={"scale": ...}` reaches the sliced forward of the models that have one of their own."""
    for name in ("ltx_video", "wan22_ti2v_5b"):
        pipe = loaded(name)
        before = latents_of(name, pipe)
        slices.slice_activations(pipe, 64)
        assert pipe.transformer.forward.__wrapped__.__name__ == "forward"
        assert (latents_of(name, pipe) - before).abs().max() <= 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_lean_decoding_leaves_the_frames_in_ram_and_can_be_undone(name):
    vae = loaded(name).vae
    before = {key: value for key, value in vars(vae).items() if key.startswith(("tile_", "use_tiling"))}
    channels = vae.config.get("z_dim") or vae.config.latent_channels
    torch.manual_seed(0)
    if name == "svd_xt":
        latents, options = torch.randn(2, channels, 16, 16), {"num_frames": 2}
    else:
        vae.enable_tiling()
        latents, options = torch.randn(1, channels, 3, 12, 20), {}
    arguments = (torch.zeros(1),) if name == "ltx_video" and vae.config.timestep_conditioning else ()
    with torch.no_grad():
        usual = vae.decode(latents, *arguments, **options).sample
        slices.decode_lean(vae)
        slices.decode_lean(vae)  # twice is once
        lean = vae.decode(latents, *arguments, **options).sample
        slices.decode_lean(vae, on=False)
        again = vae.decode(latents, *arguments, **options).sample
    assert torch.equal(again, usual) and lean.shape == usual.shape
    if name in ("ltx_video", "cogvideox_5b_i2v"):  # smaller tiles
        assert (lean - usual).abs().mean() < 0.05 * usual.std()
    else:
        assert torch.equal(lean, usual)
    if name != "svd_xt":
        vae.disable_tiling()
    assert {key: value for key, value in vars(vae).items() if key in before} == before


def test_experts_in_turn_make_the_same_latents_and_are_never_in_ram_together():
    folder, name = MINIATURES / "wan22_i2v_a14b", "wan22_i2v_a14b"
    config = diffusers.WanTransformer3DModel.load_config(folder, subfolder="transformer")
    alive: list[weakref.ref] = []
    most: list[int] = []

    def load(expert):
        one = diffusers.WanTransformer3DModel.from_single_file(
            str(gguf_path(folder, expert, "Q4_0")), config=str(folder), subfolder=expert, torch_dtype=torch.float32,
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
        )  # fmt: skip
        alive.append(weakref.ref(one))
        most.append(sum(ref() is not None for ref in alive))
        return one

    usual = diffusers.WanImageToVideoPipeline.from_pretrained(
        folder, dtype=torch.float32, transformer=load("transformer"), transformer_2=load("transformer_2")
    )
    usual.set_progress_bar_config(disable=True)
    expected = latents_of(name, usual, steps=4)
    del usual
    alive.clear(), most.clear()
    loads = {key: functools.partial(load, key) for key in ("transformer", "transformer_2")}
    experts = in_turn(loads, config, torch.float32)
    pipe = diffusers.WanImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32, **experts)
    pipe.set_progress_bar_config(disable=True)
    assert not alive, "nothing is loaded before the first step"
    assert torch.equal(latents_of(name, pipe, steps=4), expected)
    assert most == [1, 1]


def test_the_forecast_knows_slices_and_lean_decoding():
    size = dict(width=640, height=384, num_frames=81)
    plain = forecasts("wan22_i2v_a14b", **size, modes=("none", "group_block", "group_leaf"))
    sliced = forecasts("wan22_i2v_a14b", **size, slice_tokens=2048, modes=("none", "group_block", "group_leaf"))
    for mode in plain:
        before, after = plain[mode].stages, sliced[mode].stages
        assert after["denoise"].activations_gib < 0.5 * before["denoise"].activations_gib
        assert after["decode"].activations_gib < 0.9 * before["decode"].activations_gib
        assert after["encode_image"].activations_gib < 0.5 * before["encode_image"].activations_gib, "in tiles"
        assert 1 <= sliced[mode].step_seconds / plain[mode].step_seconds < 1.25
    usual = forecast("wan22_i2v_a14b", **size, slice_tokens=2048, lean_decoding=False, offload="group_block")
    assert usual.stages["decode"].peak_gib == plain["group_block"].stages["decode"].peak_gib
    assert sliced["group_block"].ram["decode"] > usual.ram["decode"], "the pieces are joined in RAM"


@pytest.mark.parametrize("record", sliced_records(), ids=lambda one: f"{one['model']}-{one['width']}")
def test_recorded_runs_stayed_below_their_cap_and_near_todays_forecast(record):
    assert record["failed"] is None and record["latents_finite"] and record["frames_finite"]
    assert record["peak_allocated_gib"] <= record["peak_reserved_gib"] <= record["vram_cap_gib"]
    size = {name: record[name] for name in ("width", "height", "num_frames", "slice_tokens", "guidance")}
    one = forecast(
        record["model"], offload=record["offload"], decode_chunk_size=record["decode_chunk_size"],
        one_expert_at_a_time=record["one_expert_at_a_time"], low_cpu_mem_usage=record["low_cpu_mem_usage"], gpu="H100",
        **size,
    )  # fmt: skip
    assert one.peak_vram_gib == pytest.approx(record["peak_allocated_gib"], rel=0.05, abs=0.15)
    assert one.peak_vram_gib == pytest.approx(record["forecast"]["peak_vram_gib"], abs=0.01), "as recorded"
    ram = {phase["name"]: phase["peak_ram_gib"] for phase in record["phases"] if phase["name"] != "decode"}
    if record["model"] == "wan22_i2v_a14b":  # before the first expert is loaded, and when the second one is
        alone, moment = ram["encode_image"], "load"
    else:  # with all weights on the GPU
        alone, moment = record["baseline"]["meter"]["phases"][2]["peak_ram_gib"], "generate"
    if record["steps"] > 2:  # fewer call one expert only
        assert one.ram[moment] - PROCESS_GIB + alone == pytest.approx(max(ram.values()), rel=0.1)


def test_the_runs_are_shown_side_by_side():
    rows = {(row[0], row[2]): dict(zip(sliced_table().columns, row, strict=True)) for row in sliced_table().rows}
    famous = rows["A14B Q4 1280x720x81", "group_leaf"]
    assert (famous["cap, GiB"], famous["latents"], famous["x baseline"]) == ("4", "equal", "1.07")
    lean = rows["A14B Q4 1280x720x81", "group_block, less pinned"]
    assert float(lean["RAM, GiB"]) < 12.5 and lean["latents"] == "equal"
    assert "off by" in rows["SVD XT 1024x576x25", "group_block"]["latents"]


def test_the_picture_of_the_largest_videos_is_of_its_record_and_of_todays_forecast():
    record = json.loads((ROOT / "data" / "largest.json").read_text(encoding="utf-8"))
    assert (ROOT / "data" / "pictures" / "largest.svg").read_text(encoding="utf-8") == largest.drawn(record) + "\n"
    (cell,) = (one for one in record["cards"]["4"] if one["width"] == 1280)
    assert cell["peak_vram_gib"] + record["context_gib"] <= 4 < largest.peak((1280, 720), cell["num_frames"] + 4) + 0.5
    assert cell["num_frames"] >= 81, "five seconds of 720p on 4 GB, as the README says"


def test_the_forecast_knows_one_expert_at_a_time_and_the_prompt_layer_by_layer():
    size = dict(width=256, height=144, num_frames=5, offload="group_block", slice_tokens=2048)
    both = forecast("wan22_i2v_a14b", **size)
    one = forecast("wan22_i2v_a14b", **size, one_expert_at_a_time=True, encode="layer_by_layer", low_cpu_mem_usage=True)
    assert both.ram["load"] - one.ram["load"] > 12 and one.peak_ram_gib < 11
    assert one.ram["encode the prompt"] < 3 < both.ram["encode the prompt"]
    assert one.peak_vram_gib == both.peak_vram_gib
    with pytest.raises(RequestError, match="encode='bf16': there are fp32, layer_by_layer"):
        forecast("wan22_i2v_a14b", **size, encode="bf16")
