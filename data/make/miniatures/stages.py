"""The stages of a training run: the VAE, the denoisers, and the VAE's decoder once more on generated latents."""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from helpers.models import MODELS

from .dataset import draw_clips, encoded_clips, joined, make_latents, mixed_precision, normalize, pixels
from .families import Family
from .families.protocol import Denoising, ExpertDenoising, SteppedDenoising
from .losses import reconstruction_loss
from .optimize import fit, layout_of, use_fast_layout
from .processes import RANK, STARTED, agreed, barrier, say


@dataclass(frozen=True)
class Run:
    """One run of `train`.

    Attributes:
        options: Its command line.
        work: The folder for states and trained components.
        device: "cuda" or "cpu".
    """

    model: str
    family: Family
    options: argparse.Namespace
    work: Path
    device: str

    def read_vae(self) -> torch.nn.Module:
        """The trained VAE, in fp32."""
        return self.family.vae_class.from_pretrained(self.work / "vae").float().to(self.device).eval()

    def is_trained(self, component: str) -> bool:
        return (self.work / component / "config.json").exists()


def train_vae(run: Run) -> tuple[torch.nn.Module, dict]:
    """Train the VAE to encode and reconstruct clips; returns it and its log."""
    family, options, device = run.family, run.options, run.device
    torch.manual_seed(1)
    vae = family.build_vae()
    if options.start_from:
        vae = family.vae_class.from_pretrained(options.start_from / "vae").float()
    vae = vae.to(device)
    torch.manual_seed(1 + 100 * RANK)
    use_fast_layout(vae)
    pool = torch.cat([clips for clips, _ in draw_clips(options.vae_clips, RANK * options.vae_clips, family, device)])
    say("drawn", tuple(pool.shape), "for the VAE of", millions(vae))
    window, crop = min(17, family.frames), 144
    posterior_of, rebuilt = family.encoder_and_decoder(vae, options.compile)

    def loss():
        pick = torch.randint(len(pool), (options.vae_batch,), device=device)
        start = int(torch.randint(pool.shape[1] - window + 1, ()))
        left = int(torch.randint((pool.shape[4] - crop) // 2 + 1, ())) * 2
        x = pixels(pool[pick, start : start + window, :, :, left : left + crop])
        if torch.rand(()).item() < 0.5:
            x = x.flip(4)
        x = x.contiguous(memory_format=layout_of(x))
        with mixed_precision(device):
            posterior = posterior_of(x)
            y = rebuilt(posterior.sample())
        # Where a pipeline only scales the latents (`vaes.scale_to_one`), their channels should be centred on zero.
        centre = posterior.mean.float().mean((0, 2, 3, 4)).square().mean()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        return reconstruction_loss(y.float(), x) + 3e-4 * kl + 0.03 * centre

    vae, log = fit(
        "vae", vae, loss, options.vae_minutes, run.work, lr=options.vae_lr, warmup=100, ema_decay=0.998, device=device
    )
    vae = vae.to(memory_format=torch.contiguous_format)
    pool = None  # gigabytes
    if device == "cuda":
        torch.cuda.empty_cache()
    return vae, log


def train_denoisers(run: Run, vae: torch.nn.Module) -> dict[str, dict]:
    """Train each denoiser that is not trained yet, all on the same latents; returns their logs by stage."""
    family, options, work, device = run.family, run.options, run.work, run.device
    torch.manual_seed(2)
    made = make_latents(family, vae, options.latents, work, device)
    if RANK == 0:
        vae.half().save_pretrained(work / "vae")  # again, now with the statistics of the latents
    embeds, mask = embedded_prompts(run)
    logs, before = {}, None
    for component, stage in family.denoisers.items():
        if not run.is_trained(component):
            denoising = family.denoising(*made, embeds, mask, options.batch, component)
            if before:  # two experts: the later one starts from the predictions of the earlier one
                with mixed_precision(device):
                    cast(ExpertDenoising, denoising).follow(read_denoiser(family, work / before).to(device))
            denoiser, logs[stage] = train_denoiser(run, denoising, component, stage, before)
            if RANK == 0:
                denoiser.half().save_pretrained(work / component)
            barrier()
        before = component
    return logs


def train_denoiser(
    run: Run, denoising: Denoising, component: str, stage: str, before: str | None
) -> tuple[torch.nn.Module, dict]:
    """Train a denoiser, starting from the weights given by `--start-from`, else from the expert `before`, else from new
    ones; returns it and its log.
    """
    family, options, work, device = run.family, run.options, run.work, run.device
    given = options.start_from and options.denoisers_too and (options.start_from / component).exists()
    start = options.start_from / component if given else before and work / before
    denoiser = (read_denoiser(family, start) if start else family.build_denoiser()).to(device)
    torch.manual_seed(2 + 100 * RANK)
    say(stage, "of", millions(denoiser))
    if options.compile:
        if denoiser._repeated_blocks:
            denoiser.compile_repeated_blocks(dynamic=False)  # one compiled block serves all
        else:
            denoiser.compile(dynamic=False)

    def loss():
        with mixed_precision(device):
            return denoising.loss(denoiser)

    minutes, deadline = options.denoiser_minutes / len(family.denoisers), None
    if options.within:  # the remaining time, shared by the experts that are not trained yet
        end = STARTED + 60 * (options.within - options.decoder_minutes * family.finishes_decoder)
        left = (end - time.time()) / sum(not run.is_trained(later) for later in family.denoisers)
        minutes, deadline = agreed(left / 60, device), time.time() + left
        say(stage, f"gets {minutes:.1f} minutes")
    return fit(
        stage, denoiser, loss, minutes, work, lr=options.lr, warmup=300, ema_decay=0.9995, device=device,
        cuda_graph=options.cuda_graph, deadline=deadline,
    )  # fmt: skip


def finish_decoder(run: Run, vae: torch.nn.Module) -> tuple[torch.nn.Module, dict]:
    """Train the decoder on latents that the denoisers generate, whose errors differ from those of the encoder.

    The encoder stays unchanged, so the denoisers remain valid. Half of the decoder's inputs still come from the
    encoder. Returns the VAE and the log.
    """
    family, options, work, device = run.family, run.options, run.work, run.device
    torch.manual_seed(3 + 100 * RANK)
    first = 3_000_000 + RANK * options.vae_clips  # other clips than those the denoisers were trained on
    rows = list(encoded_clips(family, vae, options.vae_clips, first, work, device, mirrored=False))
    clips = torch.cat([row[0] for row in rows])
    latents, conditions, prompts, spread = joined(row[1:] for row in rows)
    mean, std = (t.float().to(device) for t in family.statistics(vae))
    normalize((latents, conditions), mean, std)
    spread = spread / std
    rest = (*embedded_prompts(run), options.batch, next(iter(family.denoisers)))
    denoising = cast(SteppedDenoising, family.denoising(latents, conditions, prompts, spread, *rest))
    denoisers = {
        read_denoiser(family, work / component).to(device).eval(): family.least_noise(component)
        for component in family.denoisers
    }
    with mixed_precision(device):
        made = generate_latents(denoising, denoisers, MODELS[run.model].defaults["miniature"].steps)
    say("generated", tuple(made.shape), f"error {(made.float() - latents.float()).square().mean().item():.4f}")
    del rows, denoising, denoisers, conditions
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    _, rebuilt = family.encoder_and_decoder(vae, options.compile)
    shape = (1, -1, 1, 1, 1)
    half = max(1, options.vae_batch // 4)

    def loss():
        pick = torch.randint(len(clips), (2 * half,), device=device)
        x = pixels(clips[pick])
        encoded = latents[pick[half:]].float()
        encoded = encoded + spread.view(shape) * torch.randn_like(encoded)
        z = torch.cat([made[pick[:half]].float(), encoded]) * std.view(shape) + mean.view(shape)
        z = z.contiguous(memory_format=layout_of(z))
        with mixed_precision(device):
            y = rebuilt(z)
        return reconstruction_loss(y.float(), x)

    use_fast_layout(vae.decoder)
    decoder, log = fit(
        "decoder", vae.decoder, loss, options.decoder_minutes, work, lr=options.vae_lr / 4, warmup=100,
        ema_decay=0.998, device=device, deadline=options.within and STARTED + 60 * options.within,
    )  # fmt: skip
    vae.decoder.load_state_dict(decoder.state_dict())
    return vae.to(memory_format=torch.contiguous_format), log


@torch.no_grad()
def generate_latents(
    denoising: SteppedDenoising, denoisers: Mapping[torch.nn.Module, float], steps: int
) -> torch.Tensor:
    """Generate latents for the clips of a training set, [N, C, T, H, W] normalised.

    Args:
        denoisers: Each with the lowest noise level at which it is used, in the order of denoising.
        steps: Denoising steps, at about the noise levels of the scheduler.
    """
    made = torch.empty_like(denoising.latents)
    for pick in torch.arange(len(made), device=made.device).split(denoising.batch_size):
        estimate = denoising.latents[pick].float()  # invisible under the noise of the first step
        for sigma in denoising.levels(steps):
            denoiser = next(one for one, least in denoisers.items() if sigma >= least - 1e-6)
            level = torch.full((len(pick), 1, 1, 1, 1), sigma, device=made.device)
            estimate = denoising.predict(denoiser, pick, estimate, level, denoising.prompts[pick])
        made[pick] = estimate.to(made.dtype)
    return made


def embedded_prompts(run: Run) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """`Family.embed_prompts`, on the device."""
    embeds, mask = run.family.embed_prompts(run.work)
    return (None, None) if embeds is None else (embeds.to(run.device), mask.to(run.device))


def read_denoiser(family: Family, folder: Path) -> torch.nn.Module:
    """A denoiser prepared for training, with the weights in a component's folder."""
    denoiser = family.build_denoiser()
    denoiser.load_state_dict(family.read_denoiser(folder).state_dict())
    return denoiser


def millions(module: torch.nn.Module) -> str:
    """The size of a module, for a line of progress."""
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters"
