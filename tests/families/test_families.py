"""Rules that hold for every family: the checkpoint, the forecast of it, its pipeline, and the protocol."""

import pytest
import torch

from data.make.miniatures.families import family_of
from data.make.miniatures.families.base import BaseFamily
from data.make.miniatures.families.protocol import Family
from helpers.models import MODELS, Architecture, model

from .untrained import WANS, clip_of, every_family


@every_family
def test_the_checkpoint_is_small_and_keeps_the_models_rules(untrained):
    family, _, folder = untrained
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 9_000_000
    entry = model(folder.name)
    assert all(side % entry.size_multiple == 0 for side in family.size)
    assert entry.fixed_frames or entry.nearest_frames(family.frames) == family.frames
    assert entry.fps == family.fps
    if own := entry.defaults.get("miniature"):  # none if it is not trained yet
        assert (own.width, own.height, own.num_frames) == (*family.size, family.frames)


@every_family
def test_the_forecast_reads_it(untrained):
    family, _, folder = untrained
    arch = Architecture(folder, dtype=torch.float32)
    pipe = family.continuer(folder, "cpu").pipe
    for component in arch.on_gpu:
        loaded = {name: tuple(t.shape) for name, t in getattr(pipe, component).named_parameters()}
        assert loaded == {name: tuple(t.shape) for name, t in arch.component(component).named_parameters()}, component


@every_family
def test_it_continues_a_frame_through_the_real_pipeline(untrained):
    family, _, folder = untrained
    continuer = family.continuer(folder, "cpu")
    continuer.frames = 17 if folder.name == "cogvideox_5b_i2v" else 5  # its positions are learned for 17
    clips, prompt = clip_of(family, frames=1)
    frames = continuer.from_one(clips[0, 0].float() / 255, 0.5 if family.ambient else prompt, 1, 0)
    assert frames.shape == (continuer.frames, 3, *reversed(family.size)) and torch.isfinite(frames).all()
    if family.context == 1:
        with pytest.raises(NotImplementedError, match="continues a single frame"):
            continuer.continuing(1)
    else:
        several, continuer.frames = torch.cat([frames, frames])[: family.context], family.frames
        more = continuer.from_several(several, prompt, 1, 0)
        assert more.shape == (family.frames, 3, *reversed(family.size)) and torch.isfinite(more).all()


@pytest.mark.parametrize("name", MODELS)
def test_every_family_implements_the_protocol(name):
    family = family_of(name)
    assert all(hasattr(family, attribute) for attribute in Family.__annotations__), name
    methods = [method for method, value in vars(Family).items() if callable(value) and not method.startswith("_")]
    assert len(methods) == 14 and all(getattr(type(family), one) is not getattr(Family, one) for one in methods), name
    needed = ["motion_conditioning"] * family.ambient + ["statistics"] * family.finishes_decoder
    assert all(getattr(type(family), one) is not getattr(BaseFamily, one) for one in needed)


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="'digger' has no family module"):
        family_of("digger")


@pytest.mark.parametrize("name", [*WANS, "cogvideox_5b_i2v"])
def test_a_whole_clip_gives_the_values_of_its_chunks(name):
    family = family_of(name)
    torch.manual_seed(0)
    vae = family.build_vae().eval()
    frames = family.frames if name == "cogvideox_5b_i2v" else 9
    posterior_of, rebuilt = family.encoder_and_decoder(vae, compiled=False)
    with torch.no_grad():
        for parameter in vae.parameters():  # including those initialised with zeros or ones
            parameter.add_(0.02 * torch.randn_like(parameter))
        clip = 2 * torch.rand(1, 3, frames, 32, 48) - 1
        chunked = vae.encode(clip).latent_dist
        assert (posterior_of(clip).parameters - chunked.parameters).abs().max() <= 1e-5
        one = vae.encode(clip[:, :, :1]).latent_dist.parameters
        assert (posterior_of(clip[:, :, :1]).parameters - one).abs().max() <= 1e-5
        difference = rebuilt(chunked.mean).clamp(-1, 1) - vae.decode(chunked.mean).sample.clamp(-1, 1)
        assert difference.shape == clip.shape and difference.abs().max() <= 1e-5
