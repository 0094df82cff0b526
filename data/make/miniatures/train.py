"""Train a miniature on one GPU in minutes.

    python -m data.make.train ltx_video                      # train, then put data/miniatures/ltx_video together
    python -m data.make.train ltx_video --vae-minutes 1 --denoiser-minutes 1 --work /tmp/quick --no-assemble
    torchrun --nproc-per-node 4 -m data.make.train ltx_video  # the same on several GPUs: each draws clips of its own

Stages, each skipped when its result is in the work folder already: the prompt's encoder (the picture's in a model
without prompts), the VAE, the latents' statistics, the denoiser and, where a family asks for it, the VAE's decoder once
more, on what the denoiser makes. A stage is a time budget, not a step count: on any GPU its learning rate has run down
when the time is up. Interrupted, it goes on from its last saved state. All data is drawn by `data.make.scenes` on the
way.
"""

import argparse
import copy
import importlib
import json
import math
import os
import shutil
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from helpers.models import MODELS

from . import text
from .muon import Muon
from .scenes import MACHINES, PROMPTS, render

ROOT = Path(__file__).resolve().parents[2]
TRUTH_SEEDS = 10_000_000  # seeds from here on are never trained on: `data.make.truth` draws its clips there
LEGS = {"vae": "VAE", "decoder": "decoder, on what the denoiser makes"}  # what the card calls a stage
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
_started = time.time()


def say(*words):
    if RANK == 0:
        print(f"[{time.time() - _started:6.1f}]", *words, flush=True)


def average_gradients(parameters):
    """Mean of the gradients over all GPUs; nothing to do on one."""
    if WORLD > 1:
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients]) / WORLD
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def agreed(value: float, device) -> float:
    """The first GPU's value, on all of them: so that all stop at the same step."""
    if WORLD == 1:
        return value
    shared = torch.tensor(value, device=device, dtype=torch.float64)
    dist.broadcast(shared, 0)
    return shared.item()


def pixels(clips: torch.Tensor) -> torch.Tensor:
    """uint8 [B, T, 3, H, W] to float [B, 3, T, H, W] in -1..1, as a VAE takes it."""
    return (clips.float() / 127.5 - 1).permute(0, 2, 1, 3, 4)


def is_ambient(family) -> bool:
    """Whether the family has no prompt, and learns ambient clips, each with an amount of motion."""
    return getattr(family, "AMBIENT", False)


def draw_clips(number: int, first_seed: int, family, device, batch: int = 24):
    """Yield (uint8 [b, T, 3, H, W], prompt indices [b]), the machines in turn, seeds counted up from `first_seed`.

    The clips have the family's size, number of frames and frame rate. For a family without a prompt they are ambient,
    and their amounts of motion, 0 to 1, take the place of the prompts.
    """
    look = {"frames": family.FRAMES, "size": family.SIZE, "fps": family.FPS, "device": device}
    assert first_seed + number < TRUTH_SEEDS
    for i, start in enumerate(range(0, number, batch)):
        seeds = range(first_seed + start, first_seed + min(start + batch, number))
        machine = MACHINES[i % len(MACHINES)]
        if is_ambient(family):
            amounts = torch.rand(len(seeds), generator=torch.Generator().manual_seed(seeds[0])).to(device)
            video, _ = render(machine, seeds, ambient=amounts, **look)
            yield (video * 255).round().byte(), amounts
            continue
        video, prompts = render(machine, seeds, **look)
        yield (video * 255).round().byte(), torch.tensor([PROMPTS.index(p) for p in prompts], device=device)


def recorded(step):
    """The function `step` as a CUDA graph: what it launches is recorded once and then only launched again.

    A step of such a small model is a thousand short kernels, and Python takes longer to launch them than the GPU to
    compute them. What the function decides on the host is decided for good.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # CUDA asks for some runs on the stream of the recording
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # NCCL's threads may ask CUDA meanwhile
        result = step()

    def replay():
        graph.replay()
        return result

    return replay


def matrices_of_blocks(module) -> tuple[list, list]:
    """A transformer's parameters, or a VAE's: the matrices and kernels of its blocks, which Muon learns, and others."""
    inner, others = [], []
    for name, parameter in module.named_parameters():
        learnt_by_muon = "block" in name and name.endswith("weight") and parameter.dim() >= 2
        (inner if learnt_by_muon else others).append(parameter)
    return inner, others


def fit(name, module, loss_fn, minutes, work, *, lr, warmup, ema_decay, device, save_every=60, record=False, ends=None):
    """Minimise `loss_fn()` over the module's parameters for a number of minutes; returns the averaged weights' module.

    With `ends`, a time as `time.time()` gives it, all must be done by then, compiling included.

    The learning rate falls along a cosine of the time used. State is saved to `work/<name>.pt` so that an interrupted
    stage goes on; weights returned are an exponential moving average. With `record` a step is recorded as a CUDA graph,
    for a `loss_fn` that decides nothing on the host.
    """
    state_path = work / f"{name}.pt"
    on_gpu = device == "cuda"
    rate, kept = torch.tensor(lr, device=device), torch.tensor(0.0, device=device)  # tensors, for a recorded step
    inner, others = matrices_of_blocks(module)
    optimizers = [
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=on_gpu, capturable=on_gpu)
    ]
    if inner:
        optimizers.append(Muon(inner, lr=rate))
    average = copy.deepcopy(module).requires_grad_(False)
    step, used, history = 0, 0.0, []
    if state_path.exists():
        state = torch.load(state_path, map_location=device, weights_only=True)
        module.load_state_dict(state["module"]), average.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            for group in optimizer.param_groups:
                group["lr"] = rate
        step, used, history = state["step"], state["used"], state["history"]
        say(name, "goes on at step", step, f"after {used:.0f} s")

    def save():
        if RANK != 0:
            return
        state = {
            "module": module.state_dict(),
            "average": average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
            "used": used,
            "history": history,
        }
        torch.save(state, state_path.with_suffix(".part"))
        state_path.with_suffix(".part").replace(state_path)

    module.train()
    live, slow = list(module.parameters()), list(average.parameters())

    def advance():
        module.zero_grad(set_to_none=True)
        loss = loss_fn()
        loss.backward()
        average_gradients(live)
        torch.nn.utils.clip_grad_norm_(live, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            torch._foreach_mul_(slow, kept)
            torch._foreach_add_(slow, torch._foreach_mul(live, 1 - kept))
        return loss.detach()

    losses, budget, told, saved = [], minutes * 60, used, used
    first_step, used_before, clock = step, used, None
    while used < budget:
        rate.fill_(lr * min(1, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * used / budget))))
        kept.fill_(min(ema_decay, (step + 1) / (step + 21)))
        if record and on_gpu and step - first_step == 3:
            advance = recorded(advance)
        losses.append(advance().clone())
        step += 1
        if step % 10 == 0 or step - first_step < 3:
            losses = losses[-50:]
            mean = torch.stack(losses).mean().item()  # waits for the GPU, so that the clock is true
            if not math.isfinite(mean):
                raise FloatingPointError(f"{name}: the loss is {mean} at step {step}")
            if clock is None or step - first_step < 3:
                clock = time.time()  # the first steps compile and choose kernels: that is no training time
            used = agreed(used_before + time.time() - clock, device)
            if ends:
                budget = agreed(used + ends - time.time(), device)
            if used - told > 10 or step == 10:
                history.append((step, round(used, 1), round(mean, 5)))
                told = used
                say(name, "step", step, f"{used:.0f} s, loss {mean:.4f}")
            if used - saved > save_every:
                saved = used
                save()
    save()
    for buffer, value in zip(average.buffers(), module.buffers(), strict=True):
        buffer.copy_(value)
    where = f"{WORLD} x {torch.cuda.get_device_name()}" if on_gpu else "cpu"
    return average.eval(), {"steps": step, "seconds": round(used, 1), "loss": history, "device": where}


def cast(device):
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def ssim_in_blocks(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean structural similarity of videos [B, 3, T, H, W] in -1..1, over 7 x 7 windows."""
    a, b = ((v.transpose(1, 2).flatten(0, 1) + 1) / 2 for v in (a, b))
    mean = lambda v: F.avg_pool2d(v, 7, stride=2)  # noqa: E731
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    return (((2 * ma * mb + 1e-4) * (2 * cov + 9e-4)) / ((ma * ma + mb * mb + 1e-4) * (va + vb + 9e-4))).mean()


def unlikeness(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """How unlike the rebuilt videos `y` are to `x`, both [B, 3, T, H, W] in -1..1; what moves is counted more."""
    error = y - x
    moves = ((x - x.median(dim=2, keepdim=True).values).abs().amax(1, keepdim=True) > 0.08).float()
    weight = 1 + 4 * moves
    weight = weight / weight.mean()
    edges = sum(error.diff(dim=d).abs().mean() for d in (2, 3, 4))
    exact = (weight * error.abs()).mean() + 0.5 * edges + 5 * (weight * error**2).mean()
    return exact + 0.1 * (1 - ssim_in_blocks(y, x))


def layout_of(tensor: torch.Tensor) -> torch.memory_format:
    """The layout in which 3D convolutions are fastest where the tensor lies."""
    return torch.channels_last_3d if tensor.is_cuda else torch.contiguous_format


def channels_last(module: torch.nn.Module) -> None:
    """Lay out the kernels of 3D convolutions so, too."""
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv3d):
            layer.to(memory_format=layout_of(layer.weight))


def train_vae(family, args, work, device):
    """Learn to encode and rebuild clips."""
    torch.manual_seed(1)
    vae = family.build_vae()
    if args.start_from:
        vae = type(vae).from_pretrained(args.start_from / "vae").float()
    vae = vae.to(device)
    torch.manual_seed(1 + 100 * RANK)
    channels_last(vae)
    pool = torch.cat([clips for clips, _ in draw_clips(args.vae_clips, RANK * args.vae_clips, family, device)])
    say(
        "drawn",
        tuple(pool.shape),
        "for the VAE of",
        f"{sum(p.numel() for p in vae.parameters()) / 1e6:.2f} M parameters",
    )
    window, crop = min(17, family.FRAMES), 144
    posterior_of, rebuilt = family.halves(vae, args.compile)

    def loss():
        pick = torch.randint(len(pool), (args.vae_batch,), device=device)
        start = int(torch.randint(pool.shape[1] - window + 1, ()))
        left = int(torch.randint((pool.shape[4] - crop) // 2 + 1, ())) * 2
        x = pixels(pool[pick, start : start + window, :, :, left : left + crop])
        if torch.rand(()).item() < 0.5:
            x = x.flip(4)
        x = x.contiguous(memory_format=layout_of(x))
        with cast(device):
            posterior = posterior_of(x)
            y = rebuilt(posterior.sample())
        # where a pipeline only scales latents (`vaes.scale_to_one`), their channels had better lie around zero
        centre = posterior.mean.float().mean((0, 2, 3, 4)).square().mean()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        return unlikeness(y.float(), x) + 3e-4 * kl + 0.03 * centre

    vae, log = fit("vae", vae, loss, args.vae_minutes, work, lr=args.vae_lr, warmup=100, ema_decay=0.998, device=device)
    vae = vae.to(memory_format=torch.contiguous_format)
    pool = None  # gigabytes
    torch.cuda.empty_cache() if device == "cuda" else None
    return vae, log


@torch.no_grad()
def encode(posterior_of, clips: torch.Tensor, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean of uint8 clips and its std per channel [C]; `posterior_of` is the first of a family's `halves`."""
    with cast(device):
        posterior = posterior_of(pixels(clips))
    return posterior.mean.float(), posterior.std.float().mean((0, 2, 3, 4))


def encoded_clips(family, vae, number, first_seed, work, device, mirrored=True):
    """Yield fresh clips, uint8 [b, T, 3, H, W], with what the denoiser is to learn of them.

    That is: their latents [b, C, T, H, W] in fp16; those of the picture that the family's denoiser is conditioned on,
    or `None`; the prompts' indices [b], or the rows of the family's `Told` where there are no prompts; and the
    posterior's standard deviation [C]. With `mirrored` the same follows of the mirror images (left and right swap in
    the prompt).
    """
    posterior_of, _ = family.halves(vae, compiled=False)
    mirror = torch.tensor([PROMPTS.index(_mirrored(p)) for p in PROMPTS], device=device)
    told = family.Told(work, vae, device) if is_ambient(family) else None
    for clips, prompt in draw_clips(number, first_seed, family, device):
        flipped = clips.flip(4)
        if told:
            versions = ((clips, told(clips, prompt)), (flipped, told(flipped, prompt)))
        else:
            versions = ((clips, prompt), (flipped, mirror[prompt]))
        for version, index in versions[: 2 if mirrored else 1]:
            latents, std = encode(posterior_of, version, device)
            picture = family.picture(version)
            condition = None if picture is None else encode(posterior_of, picture, device)[0].half()
            yield version, latents.half(), condition, index, std


def joined(rows) -> tuple:
    """Of all rows together: latents, conditions or `None`, prompts, and the mean of the standard deviations."""
    latents, conditions, prompts, spread = zip(*rows, strict=True)
    conditions = None if conditions[0] is None else torch.cat(conditions)
    return torch.cat(latents), conditions, torch.cat(prompts), torch.stack(spread).mean(0)


def normalize(tensors, mean, std):
    """In place, part by part: there are gigabytes of them. `None` is left out."""
    shape = (1, -1, 1, 1, 1)
    for tensor in tensors:
        for part in tensor.split(2000) if tensor is not None else ():
            part.sub_(mean.view(shape).half()).div_(std.view(shape).half())


def make_latents(family, vae, args, work, device):
    """Encode fresh clips and their mirror images; normalised per channel, and the VAE told how.

    Returns latents [N, C, T, H, W] in fp16; what the family's denoiser is conditioned on beside them, or `None`; the
    prompts' indices [N], or the rows of the family's `Told`; and the posterior's standard deviation [C] in normalised
    units.
    """
    number = args.latents // WORLD
    rows = encoded_clips(family, vae, number, 1_000_000 + RANK * number, work, device)
    latents, conditions, prompts, spread = joined(row[1:] for row in rows)
    sample = latents[:4000].float()
    mean, std = sample.mean((0, 2, 3, 4)), sample.std((0, 2, 3, 4))
    if WORLD > 1:
        dist.broadcast(mean, 0), dist.broadcast(std, 0)
    mean, std = family.set_statistics(vae, mean, std) or (mean, std)  # or what of them the pipeline can apply
    normalize((latents, conditions), mean, std)
    spread = spread / std
    say("latents", tuple(latents.shape), f"posterior std over latents' std {spread.mean().item():.3f}")
    return latents, conditions, prompts, spread


def _mirrored(prompt: str) -> str:
    swap = {"left": "right", "right": "left"}
    return " ".join(swap.get(word, word) for word in prompt.split(" "))


def train_denoisers(family, vae, args, work, device) -> dict:
    """Train each denoiser that is not there yet, all on the same latents; returns their logs by stage."""
    torch.manual_seed(2)
    made = make_latents(family, vae, args, work, device)
    if RANK == 0:
        vae.half().save_pretrained(work / "vae")  # again: now with the latents' statistics
    embeds, mask = embedded_prompts(family, work, device)
    logs, before = {}, None
    for part, stage in family.DENOISERS.items():
        if not (work / part / "config.json").exists():
            denoising = family.Denoising(*made, embeds, mask, args.batch, part)
            if before:  # two experts: the later one goes on from what the earlier one answers
                with cast(device):
                    denoising.follow(read_denoiser(family, work / before).to(device))
            denoiser, logs[stage] = train_denoiser(family, denoising, part, stage, before, args, work, device)
            if RANK == 0:
                denoiser.half().save_pretrained(work / part)
            wait()
        before = part
    return logs


def embedded_prompts(family, work, device) -> tuple:
    """Embeddings of all prompts and, last, of none, and their mask; `None` where there are no prompts."""
    if is_ambient(family):
        return None, None
    embedded = text.embed(work, [*PROMPTS, ""], getattr(family, "POSITIONS", None))
    return tuple(t.to(device) for t in embedded)


@torch.no_grad()
def generated(denoising, denoisers: dict, steps: int) -> torch.Tensor:
    """What the denoisers make of the clips, [N, C, T, H, W] normalised, in about the steps of the scheduler.

    Args:
        denoisers: Each with the least noise that it works at, from the noisy end on.
    """
    made = torch.empty_like(denoising.latents)
    for pick in torch.arange(len(made), device=made.device).split(denoising.batch_size):
        below = denoising.latents[pick].float()  # nothing is seen of it under the first step's noise
        for sigma in denoising.levels(steps):
            denoiser = next(one for one, least in denoisers.items() if sigma >= least - 1e-6)
            level = torch.full((len(pick), 1, 1, 1, 1), sigma, device=made.device)
            below = denoising.answer(denoiser, pick, below, level, denoising.prompts[pick])
        made[pick] = below.to(made.dtype)
    return made


def finish_decoder(family, vae, args, work, device):
    """Learn to make pictures of what the denoisers make, whose errors are not those that the encoder makes.

    The encoder stays as it is, and with it all that the denoisers know. Half of what the decoder sees still is the
    encoder's.
    """
    torch.manual_seed(3 + 100 * RANK)
    first = 3_000_000 + RANK * args.vae_clips  # other clips than the denoisers learnt from
    rows = list(encoded_clips(family, vae, args.vae_clips, first, work, device, mirrored=False))
    clips = torch.cat([row[0] for row in rows])
    latents, conditions, prompts, spread = joined(row[1:] for row in rows)
    mean, std = (t.float().to(device) for t in family.statistics(vae))
    normalize((latents, conditions), mean, std)
    spread = spread / std
    rest = (*embedded_prompts(family, work, device), args.batch)
    denoising = family.Denoising(latents, conditions, prompts, spread, *rest, next(iter(family.DENOISERS)))
    least = getattr(family, "SIGMAS", {})
    denoisers = {
        read_denoiser(family, work / part).to(device).eval(): least.get(part, (0, 1))[0] for part in family.DENOISERS
    }
    with cast(device):
        made = generated(denoising, denoisers, MODELS[args.model].defaults["miniature"].steps)
    say("generated", tuple(made.shape), f"error {(made.float() - latents.float()).square().mean().item():.4f}")
    del rows, denoising, denoisers, conditions
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    _, rebuilt = family.halves(vae, args.compile)
    shape = (1, -1, 1, 1, 1)
    half = max(1, args.vae_batch // 4)

    def loss():
        pick = torch.randint(len(clips), (2 * half,), device=device)
        x = pixels(clips[pick])
        encoders = latents[pick[half:]].float()
        encoders = encoders + spread.view(shape) * torch.randn_like(encoders)
        z = torch.cat([made[pick[:half]].float(), encoders]) * std.view(shape) + mean.view(shape)
        z = z.contiguous(memory_format=layout_of(z))
        with cast(device):
            y = rebuilt(z)
        return unlikeness(y.float(), x)

    channels_last(vae.decoder)
    decoder, log = fit(
        "decoder", vae.decoder, loss, args.decoder_minutes, work, lr=args.vae_lr / 4, warmup=100, ema_decay=0.998,
        device=device, ends=args.within and _started + 60 * args.within,
    )  # fmt: skip
    vae.decoder.load_state_dict(decoder.state_dict())
    return vae.to(memory_format=torch.contiguous_format), log


def read_denoiser(family, path: Path):
    """A denoiser as the family trains it, with the weights of a part's folder."""
    denoiser = family.build_denoiser()
    read = getattr(family, "read_denoiser", type(denoiser).from_pretrained)
    denoiser.load_state_dict(read(path).state_dict())
    return denoiser


def train_denoiser(family, denoising, part, stage, before, args, work, device):
    """Learn a denoiser: from the weights to start from, else from the expert `before`, else from nothing."""
    shipped = args.start_from and args.denoisers_too and (args.start_from / part).exists()
    start = args.start_from / part if shipped else before and work / before
    denoiser = (read_denoiser(family, start) if start else family.build_denoiser()).to(device)
    torch.manual_seed(2 + 100 * RANK)
    say(stage, "of", f"{sum(p.numel() for p in denoiser.parameters()) / 1e6:.2f} M parameters")
    if args.compile:
        if denoiser._repeated_blocks:
            denoiser.compile_repeated_blocks(dynamic=False)  # one block compiled serves all
        else:
            denoiser.compile(dynamic=False)

    def loss():
        with cast(device):
            return denoising.loss(denoiser)

    minutes, ends = args.denoiser_minutes / len(family.DENOISERS), None
    if args.within:  # what is left of it, shared by the experts that are still to come
        end = _started + 60 * (args.within - args.decoder_minutes * finishes(family))
        left = (end - time.time()) / sum(not (work / later / "config.json").exists() for later in family.DENOISERS)
        minutes, ends = agreed(left / 60, device), time.time() + left
        say(stage, f"gets {minutes:.1f} minutes")
    return fit(
        stage,
        denoiser,
        loss,
        minutes,
        work,
        lr=args.lr,
        warmup=300,
        ema_decay=0.9995,
        device=device,
        record=args.record,
        ends=ends,
    )


def finishes(family) -> bool:
    """Whether the family's decoder learns once more in the end."""
    return hasattr(family, "statistics")


def copy_parts(there: Path, work: Path, *parts: str) -> None:
    """Copy parts of a checkpoint into the work folder."""
    for part in parts:
        shutil.copytree(there / part, work / part, dirs_exist_ok=True)


def add_legs(folder: Path, log: dict, start_from: Path | None, denoisers_too: bool = True) -> None:
    """Write the log's stages into the miniature's `metrics.json`, after those of the weights that it started from.

    Without `denoisers_too` these are the VAE's alone. A stage that is there already is not written again: a finished
    training may be run and assembled once more.
    """
    path, earlier_path = folder / "metrics.json", (start_from or folder) / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    earlier = json.loads(earlier_path.read_text())["training"] if start_from and earlier_path.exists() else []
    earlier = [leg for leg in earlier if denoisers_too or leg["stage"].startswith(tuple(LEGS.values()))]
    legs = [{"stage": LEGS.get(stage, stage), **leg} for stage, leg in log.items() if leg["steps"]]
    metrics["training"] = earlier + [leg for leg in legs if leg not in earlier]
    path.write_text(json.dumps(metrics, indent=1) + "\n")


def forget_origins(folder: Path) -> None:
    """Take out of a pipeline's config files where its parts were loaded from: a folder of this machine."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=f"one of {', '.join(MODELS)}: there is a family module beside this one for each")
    parser.add_argument("--work", type=Path, help="where states and parts are kept (default: outputs/train/MODEL)")
    parser.add_argument(
        "--start-from",
        type=Path,
        help="a miniature's folder to start the weights from; with --vae-minutes 0 its VAE stays as it is",
    )
    parser.add_argument(
        "--denoisers-too", action=argparse.BooleanOptionalAction, default=True, help="start them from there as well"
    )
    parser.add_argument("--vae-minutes", type=float, default=6.0)
    parser.add_argument("--denoiser-minutes", type=float, default=9.0)
    parser.add_argument("--decoder-minutes", type=float, default=2.0)
    parser.add_argument("--within", type=float, help="minutes for the whole run: the denoiser gets what then is left")
    parser.add_argument("--vae-clips", type=int, default=2400)
    parser.add_argument("--latents", type=int, default=9000)
    parser.add_argument("--vae-batch", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--vae-lr", type=float, default=2e-3)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    parser.add_argument("--record", action=argparse.BooleanOptionalAction, default=True, help="steps as a CUDA graph")
    parser.add_argument("--assemble", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    try:
        family = importlib.import_module(f"data.make.{args.model}")
    except ModuleNotFoundError:
        parser.error(f"no family module data/make/{args.model}.py; there are {', '.join(MODELS)}")
    work = args.work or ROOT / "outputs" / "train" / args.model
    work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if WORLD > 1:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True

    log_path = work / "training.json"
    log = json.loads(log_path.read_text()) if log_path.exists() else {}

    if RANK == 0 and is_ambient(family):
        family.save_encoder(work)
    elif RANK == 0 and not (work / "text_encoder" / "config.json").exists():
        if args.start_from and (args.start_from / "tokenizer").exists():  # its weights know these words
            copy_parts(args.start_from, work, "tokenizer", "text_encoder")
        else:
            (work / "tokenizer").mkdir(exist_ok=True)
            text.save_tokenizer(work / "tokenizer")
            vocab_size = len(text.T5TokenizerFast.from_pretrained(work / "tokenizer"))
            text.save_encoder(work / "text_encoder", vocab_size, family.ENCODER)
    if RANK == 0 and args.start_from and not args.vae_minutes and not (work / "vae").exists():
        copy_parts(args.start_from, work, "vae")
    wait()
    if not (work / "vae" / "config.json").exists():
        vae, log["vae"] = train_vae(family, args, work, device)
        if RANK == 0:
            vae.half().save_pretrained(work / "vae")
            log_path.write_text(json.dumps(log))
    wait()
    read_vae = lambda: type(family.build_vae()).from_pretrained(work / "vae").float().to(device).eval()  # noqa: E731
    if args.denoiser_minutes and not all((work / part / "config.json").exists() for part in family.DENOISERS):
        log |= train_denoisers(family, read_vae(), args, work, device)
        if RANK == 0:
            log_path.write_text(json.dumps(log))
    wait()
    if finishes(family) and args.denoiser_minutes and args.decoder_minutes and "decoder" not in log:
        vae, log["decoder"] = finish_decoder(family, read_vae(), args, work, device)
        if RANK == 0:
            (work / "vae").rename(work / "vae_before")
            vae.half().save_pretrained(work / "vae")
            log_path.write_text(json.dumps(log))
    wait()
    if args.assemble and RANK == 0:
        folder = ROOT / "data" / "miniatures" / args.model
        family.assemble(work, folder)
        forget_origins(folder)
        add_legs(folder, log, args.start_from, args.denoisers_too)
        say("assembled", folder, "- its card: python -m data.make.card", args.model)
    if WORLD > 1:
        dist.destroy_process_group()


def wait():
    """Until every GPU's process is here, and has seen what the first one wrote."""
    if WORLD > 1:
        dist.barrier()


if __name__ == "__main__":
    main()
