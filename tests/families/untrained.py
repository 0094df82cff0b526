"""What the tests of the families share: small inputs, and doubles for a denoiser."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from data.make.clips.scenes import render
from data.make.miniatures.dataset import EVALUATION_SEEDS, make_latents

WANS = ("wan22_ti2v_5b", "wan22_i2v_a14b")
FAMILIES = (*WANS, "svd_xt", "cogvideox_5b_i2v")

every_family = pytest.mark.parametrize("untrained", FAMILIES, indirect=True)
both_wans = pytest.mark.parametrize("untrained", WANS, indirect=True)
svd_only = pytest.mark.parametrize("untrained", ["svd_xt"], indirect=True)
cogvideox_only = pytest.mark.parametrize("untrained", ["cogvideox_5b_i2v"], indirect=True)


def clip_of(family, frames=None):
    """A clip that training never uses, uint8 [1, T, 3, H, W], and its prompt."""
    look = {"frames": frames or family.frames, "size": family.size, "fps": family.fps}
    video, prompts = render("excavator", [EVALUATION_SEEDS + 5], **look)
    return (video * 255).round().byte(), prompts[0]


class NothingOnTheHost(TorchDispatchMode):
    """A context in which no tensor's value may be read on the host, because a CUDA graph would keep it forever."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def falls(denoising, denoiser, rate=2e-3):
    """Whether the loss falls when trained on two draws repeatedly. The step must also be recordable as a CUDA graph."""
    with NothingOnTheHost():
        denoising.loss(denoiser)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=rate)
    losses = []
    for step in range(12):
        torch.manual_seed(step % 2)
        loss = denoising.loss(denoiser)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[-1] + losses[-2] < 0.9 * (losses[0] + losses[1])


class Recorder:
    """A double for a denoiser that records its arguments and returns zeros of the latents' shape."""

    def __call__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs
        inputs = args[0] if args else kwargs["hidden_states"]
        self.noisy, self.given = inputs.chunk(2, dim=2)
        return (torch.zeros_like(self.noisy),)


def latents_of(family, work):
    """The training set of one small clip and its mirror image, and the VAE with its statistics."""
    vae = family.vae_class.from_pretrained(work / "vae", dtype=torch.float32)
    return make_latents(family, vae, 1, work, "cpu"), vae
