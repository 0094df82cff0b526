"""The training data: clips drawn while training runs, and their latents."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from data.make.clips.scenes import MACHINES, PROMPTS, render

from .families import Family
from .processes import RANK, WORLD, broadcast, say

EVALUATION_SEEDS = 10_000_000  # training never uses the seeds from here on: `evaluate` draws its clips from them


def mixed_precision(device: str) -> torch.autocast:
    """A context of mixed precision, with bf16 on a GPU and fp32 alone on a CPU."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def pixels(clips: torch.Tensor) -> torch.Tensor:
    """uint8 [B, T, 3, H, W] to float [B, 3, T, H, W] in -1..1, the layout of a VAE."""
    return (clips.float() / 127.5 - 1).permute(0, 2, 1, 3, 4)


def draw_clips(
    number: int, first_seed: int, family: Family, device: str, batch: int = 24
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Draw clips in the family's size, length and frame rate, one machine after another.

    Args:
        number: How many clips; a multiple of `family.hops`.
        first_seed: Seed of the first clip; the others follow it.
        batch: Clips per batch; b below is at most this.

    Yields:
        Clips, uint8 [b, T, 3, H, W], and their prompts' indices in `PROMPTS` [b]. For an ambient family the clips are
        ambient, with their amounts of motion, 0 to 1, instead of the indices.
    """
    look = {"frames": family.frames, "size": family.size, "fps": family.fps, "device": device}
    assert first_seed + number < EVALUATION_SEEDS
    for i, start in enumerate(range(0, number, batch)):
        seeds = range(first_seed + start, first_seed + min(start + batch, number))
        machine = MACHINES[i % len(MACHINES)]
        if family.hops > 1:
            yield draw_chains(machine, seeds[:: family.hops], family, device)
            continue
        if family.ambient:
            amounts = torch.rand(len(seeds), generator=torch.Generator().manual_seed(seeds[0])).to(device)
            video, _ = render(machine, seeds, ambient=amounts, **look)
            yield (video * 255).round().byte(), amounts
            continue
        video, prompts = render(machine, seeds, **look)
        yield (video * 255).round().byte(), torch.tensor([PROMPTS.index(p) for p in prompts], device=device)


def draw_chains(machine: str, seeds: Sequence[int], family: Family, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw long clips and cut each into `family.hops` that overlap by `family.context` frames.

    Half of them begin up to ten seconds after the action began. In half of them the action changes, where the context
    of one of the clips ends.

    Returns:
        Clips, uint8 [b * hops, T, 3, H, W], those of a seed one after another, and their prompts' indices [b * hops].
    """
    drawn = torch.rand(3, generator=torch.Generator().manual_seed(seeds[0])).tolist()
    start = 10 * drawn[0] ** 2 if drawn[1] < 0.5 else None
    step, context = family.frames - family.context, family.context
    changed = 1 + int(drawn[2] * 2 * (family.hops - 1))  # the first clip with the other action, if there is one
    then = [((step * changed + context - 1) / family.fps, None)] if changed < family.hops else []
    frames = family.frames + step * (family.hops - 1)
    video, prompts = render(
        machine, seeds, start=start, frames=frames, size=family.size, fps=family.fps, device=device, then=then
    )
    clips = (video * 255).round().byte().unfold(1, family.frames, step).movedim(-1, 2)  # [b, hops, T, 3, H, W]
    index = [PROMPTS.index(p.split(" | ")[-1 if hop >= changed else 0]) for p in prompts for hop in range(family.hops)]
    return clips.flatten(0, 1).contiguous(), torch.tensor(index, device=device)


@torch.no_grad()
def encode(posterior_of, clips: torch.Tensor, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean [B, C, T, H, W] of clips [B, T, 3, H, W] in 0..255, and the posterior's standard deviation [C].

    `posterior_of` is the first function of `Family.encoder_and_decoder`.
    """
    with mixed_precision(device):
        posterior = posterior_of(pixels(clips))
    return posterior.mean.float(), posterior.std.float().mean((0, 2, 3, 4))


def encoded_clips(
    family: Family, vae, number: int, first_seed: int, work: Path, device: str, mirrored: bool = True
) -> Iterator[tuple]:
    """Draw and encode new clips.

    Args:
        mirrored: Whether each batch is followed by its mirror images, with left and right swapped in the prompts.

    Yields:
        Clips, uint8 [b, T, 3, H, W]; their latents [b, C, T, H, W] in fp16; the latents of `conditioning_frames` in
        fp16, or `None`; the prompts' indices [b], or the rows of `motion_conditioning`; and the posterior's standard
        deviation [C].
    """
    posterior_of, _ = family.encoder_and_decoder(vae, compiled=False)
    mirror = torch.tensor([PROMPTS.index(_mirrored(p)) for p in PROMPTS], device=device)
    rows_of = family.motion_conditioning(work, vae, device) if family.ambient else None
    for clips, prompt in draw_clips(number, first_seed, family, device):
        flipped = clips.flip(4)
        if rows_of:
            versions = ((clips, rows_of(clips, prompt)), (flipped, rows_of(flipped, prompt)))
        else:
            versions = ((clips, prompt), (flipped, mirror[prompt]))
        for version, index in versions[: 2 if mirrored else 1]:
            latents, std = encode(posterior_of, version, device)
            given = family.conditioning_frames(version)
            condition = None if given is None else encode(posterior_of, given, device)[0].half()
            yield version, latents.half(), condition, index, std


def joined(rows: Iterable[tuple]) -> tuple:
    """Concatenated latents, conditions (or `None`) and prompts of all rows, and the mean of the standard deviations."""
    latents, conditions, prompts, spread = zip(*rows, strict=True)
    conditions = None if conditions[0] is None else torch.cat(conditions)
    return torch.cat(latents), conditions, torch.cat(prompts), torch.stack(spread).mean(0)


def normalize(tensors: Iterable[torch.Tensor | None], mean: torch.Tensor, std: torch.Tensor) -> None:
    """Normalise latents [N, C, T, H, W] per channel [C], in place and in slices, because they take gigabytes."""
    shape = (1, -1, 1, 1, 1)
    for tensor in tensors:
        for rows in tensor.split(2000) if tensor is not None else ():
            rows.sub_(mean.view(shape).half()).div_(std.view(shape).half())


def make_latents(family: Family, vae, number: int, work: Path, device: str) -> tuple:
    """The training set of a denoiser: new clips and their mirror images, encoded and normalised per channel.

    The statistics of the latents are stored in the VAE.

    Args:
        number: Clips, mirror images apart, over all processes.

    Returns:
        Latents [N, C, T, H, W] in fp16; the latents of `conditioning_frames`, or `None`; the prompts' indices [N], or
        the rows of `motion_conditioning`; and the posterior's standard deviation [C] in normalised units.
    """
    number = number // WORLD
    rows = encoded_clips(family, vae, number, 1_000_000 + RANK * number, work, device)
    latents, conditions, prompts, spread = joined(row[1:] for row in rows)
    sample = latents[:4000].float()
    mean, std = sample.mean((0, 2, 3, 4)), sample.std((0, 2, 3, 4))
    broadcast(mean, std)
    mean, std = family.set_statistics(vae, mean, std)
    normalize((latents, conditions), mean, std)
    spread = spread / std
    say("latents", tuple(latents.shape), f"posterior std / latents' std {spread.mean().item():.3f}")
    return latents, conditions, prompts, spread


def _mirrored(prompt: str) -> str:
    swap = {"left": "right", "right": "left"}
    return " ".join(swap.get(word, word) for word in prompt.split(" "))
