"""Untrained miniatures, and families that draw clips of a few pixels."""

import pytest
import torch

from data.make.miniatures.families import cogvideox_5b_i2v, family_of, svd_xt


@pytest.fixture(scope="module")
def untrained(request, tmp_path_factory):
    """A family, its work folder with untrained components, and the checkpoint assembled from them."""
    family, work = family_of(request.param), tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    family.save_encoder(work, None)
    vae = family.build_vae()
    channels = vae.config.get("z_dim") or vae.config.latent_channels
    family.set_statistics(vae, torch.linspace(-0.5, 0.5, channels), torch.linspace(0.5, 1.5, channels))
    vae.half().save_pretrained(work / "vae")
    for component in family.denoisers:
        family.build_denoiser().half().save_pretrained(work / component)
    folder = tmp_path_factory.mktemp("checkpoint") / request.param
    family.assemble(work, folder)
    return family, work, folder


@pytest.fixture
def small(monkeypatch):
    """The SVD and CogVideoX families with clips of a few pixels; the VAE and the denoiser's blocks are unchanged."""
    monkeypatch.setattr(svd_xt.FAMILY, "frames", 3)
    monkeypatch.setattr(svd_xt.FAMILY, "size", (64, 64))
    monkeypatch.setattr(svd_xt, "LATENT", (8, 8, 8))
    monkeypatch.setattr(cogvideox_5b_i2v.FAMILY, "size", (48, 32))
    monkeypatch.setitem(cogvideox_5b_i2v.TRANSFORMER, "sample_width", 6)
    monkeypatch.setitem(cogvideox_5b_i2v.TRANSFORMER, "sample_height", 4)
