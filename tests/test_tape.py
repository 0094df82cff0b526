"""The tape: bytes that a computation takes, worked out by hand, and replays that are exact."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.forecast import STAGES, Request, Tape, stages
from helpers.forecast.recording.allocators import rounded
from helpers.forecast.recording.replay import remembering
from helpers.models import CONFIGS, Architecture

pytestmark = pytest.mark.forecast


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def recorded(work, *weights):
    tape = Tape()
    for module in weights:
        tape.exclude(module)
    with tape:
        work()
    return tape


def test_every_storage_is_a_multiple_of_512_bytes():
    assert [rounded(size) for size in (0, 1, 512, 513)] == [0, 512, 512, 1024]
    assert recorded(lambda: meta(3) + 1).peak_bytes == 2 * 512


def test_a_tensor_lives_until_its_last_reference_goes():
    def work():
        x = meta(1024)  # 4 KiB
        x = x * 2  # both for a moment
        x = x + 1
        x.mul_(3)  # in place
        return x.view(32, 32)  # and no copy

    tape = recorded(work)
    assert tape.peak_bytes == 2 * 4096
    assert [tape.where(event)[0] for event in range(tape.count)] == ["empty", "mul", "add", "mul_"]
    assert list(tape.live) == [4096, 8192, 8192, 4096] and tape.now == 0


def test_weights_are_not_activations_and_module_calls_are_noted():
    layer = nn.Linear(64, 256, device="meta")
    model = nn.Sequential(layer, nn.ReLU())
    tape = recorded(lambda: model(meta(16, 64)), model)
    # 16x64 in, 16x256 out of the linear layer, and as much again for the rectified
    assert tape.peak_bytes == 4 * (16 * 64 + 2 * 16 * 256)
    assert tape.flops.sum() == 2 * 16 * 64 * 256
    ((start, end),) = tape.calls[layer]
    assert tape.entries == [(model, 1)] and 1 < start < end <= tape.count
    assert tape.where(int((tape.live + tape.work).argmax()))[0] == "relu"


def test_fused_attention_stores_no_scores():
    def work():
        q, k, v = (meta(1, 8, 4096, 64, dtype=torch.bfloat16) for _ in range(3))
        out = F.scaled_dot_product_attention(q, k, v)
        assert out.shape == q.shape and out.transpose(1, 2).is_contiguous()

    tape = recorded(work)
    one, sums = 8 * 4096 * 64 * 2, 8 * 4096 * 4
    assert tape.peak_bytes == 4 * one + sums  # the scores alone would be 256 MiB
    assert tape.flops.sum() == 2 * 2 * 8 * 4096 * 4096 * 64


@pytest.mark.parametrize(
    ("layer", "dtype", "kernel", "copies"),
    [
        (nn.Conv3d, torch.float32, 3, 1),
        (nn.Conv3d, torch.bfloat16, 3, 1),
        (nn.Conv2d, torch.float32, 3, 1),
        (nn.Conv2d, torch.float32, 1, 0),
        (nn.Conv2d, torch.float16, 3, 0),
    ],
)
def test_which_convolutions_work_on_copies(layer, dtype, kernel, copies):
    convolution = layer(16, 32, kernel, padding="same", bias=False, device="meta", dtype=dtype)
    dimensions = 3 if layer is nn.Conv3d else 2
    tape = recorded(lambda: convolution(meta(1, 16, *[8] * dimensions, dtype=dtype)), convolution)
    counts = 16 * 8**dimensions, 32 * 8**dimensions, convolution.weight.numel()
    given, made, weights = (count * dtype.itemsize for count in counts)
    assert tape.peak_bytes == given + made + copies * (given + made + weights)


def test_an_expanded_tensor_moves_no_more_than_its_storage():
    tape = recorded(lambda: meta(1, 1024).expand(1000, 1024).sum(0))
    assert tape.moved.sum() == 2 * 4096


class Cached(nn.Module):
    """A block like those of a video decoder: it keeps a piece of its input in a list that the caller owns."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(4, 4, 3, padding=1, device="meta")

    def forward(self, x, cache):
        y = self.layer(x if cache[0] is None else torch.cat([cache[0], x], -1))
        cache[0] = x[..., -2:].clone()
        return F.silu(y)


def test_a_replay_leaves_the_same_tape_as_a_run():
    blocks = nn.ModuleList(Cached() for _ in range(4))

    def work():
        x, caches = meta(1, 4, 128), [[None] for _ in blocks]
        for _ in range(3):
            for block, cache in zip(blocks, caches, strict=True):
                y = block(x, cache)
        assert y.shape == (1, 4, 130) and all(cache[0].shape == (1, 4, 2) for cache in caches)

    baseline, replayed = Tape(), Tape()
    for tape in (baseline, replayed):
        tape.exclude(blocks)
    with baseline:
        work()
    forwards = []
    blocks[0].layer.register_forward_hook(lambda *_: forwards.append(1))
    with replayed, remembering(replayed, [(block, "forward") for block in blocks]):
        work()
    assert len(forwards) == 2, "one run without a cache and one with it"
    assert "forward" not in vars(blocks[0])
    for name in ("live", "work", "flops", "moved", "kinds"):
        assert (getattr(baseline, name) == getattr(replayed, name)).all(), name
    assert baseline.calls == replayed.calls
    events = range(baseline.count)
    assert [baseline.where(event) for event in events] == [replayed.where(event) for event in events]
    assert baseline.now == replayed.now == 0


@pytest.mark.parametrize(
    ("model", "request_"),
    [
        ("ltx_video", Request(768, 512, 9)),  # three tiles by two
        ("wan22_ti2v_5b", Request(384, 256, 9)),
        ("wan22_i2v_a14b", Request(384, 192, 9, guidance=False)),
        ("cogvideox_5b_i2v", Request(720, 480, 5, guidance=False)),
        ("svd_xt", Request(128, 128, 3, decode_chunk_size=2)),
    ],
)
def test_every_family_is_the_same_with_and_without_replays(model, request_, tmp_path):
    arch = Architecture(shallow(model, tmp_path))
    steps = stages(arch, request_)
    for stage in STAGES:
        tapes = []
        for alike in ([], steps.alike()):
            tape = Tape()
            with steps.prepared(stage):
                for name in arch.on_gpu:
                    tape.exclude(arch.component(name))
                with tape, remembering(tape, *alike):
                    steps.run(stage)
            tapes.append(tape)
        baseline, replayed = tapes
        assert (baseline.live + baseline.work == replayed.live + replayed.work).all(), stage
        assert baseline.flops.sum() == replayed.flops.sum() > 0 and baseline.calls.keys() == replayed.calls.keys()
        assert baseline.now == replayed.now == 0


@pytest.mark.parametrize("model", ["ltx_video", "svd_xt"])
def test_a_stage_leaves_the_shared_components_as_they_were(model, tmp_path):
    arch = Architecture(shallow(model, tmp_path))
    state = options_of(arch)
    for tiling, chunking in ((True, True), (False, False)):
        steps = stages(arch, Request(256, 128, 9, tiling=tiling, chunking=chunking))
        assert options_of(arch) == state
        for stage in STAGES:
            with steps.prepared(stage):
                switched = options_of(arch)
            assert options_of(arch) == state, stage
            if model == "ltx_video":
                assert switched["tiling"] is tiling
            else:
                assert switched["chunks"] == ({1} if chunking else {None})
                assert switched["dtypes"] == ({torch.float32} if stage == "encode_image" else {torch.float16})


def options_of(arch):
    """What a request can switch in the VAE and the denoiser."""
    vae, denoiser = arch.component("vae"), arch.component(arch.denoisers[0])
    return {
        "tiling": getattr(vae, "use_tiling", None),
        "chunks": {vars(module)["_chunk_size"] for module in denoiser.modules() if "_chunk_size" in vars(module)},
        "dtypes": {parameter.dtype for parameter in vae.parameters()},
    }


def shallow(model, folder):
    """The architecture with few layers, so that a run without replays is quick."""
    few = {"num_layers": 2, "layers_per_block": 1, "num_res_blocks": 1}
    shutil.copytree(CONFIGS / model, folder, dirs_exist_ok=True)
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        less = {name: number for name, number in few.items() if isinstance(config.get(name), int)}
        path.write_text(json.dumps(config | less))
    return folder
