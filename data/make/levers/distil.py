"""Train a LoRA with which a miniature gives in a step or two the answer that takes it 20.

    python -m data.make.levers.distil ltx_video              # minutes on one GPU
    python -m data.make.levers.distil wan22_i2v_a14b --steps 2 --clips 400 --minutes 2

The teacher is the miniature itself, with 20 steps. From the same noise, the student shall predict the teacher's answer
at each noise level of its few steps. This is how the published few-step LoRAs began (progressive distillation,
arXiv:2202.00512); theirs are trained further, with adversarial losses, because their teachers' answers are not what
an average would be.

Writes data/loras/MODEL/, a safetensors file for each denoiser, as `load_lora_weights` takes it, and
data/measurements/levers/lora_MODEL.json: medians over clips that neither the miniature nor the LoRA was trained on,
by number of steps, with and without the LoRA. "psnr" and "moving_psnr" compare with the truth, "psnr_to_20" with the
20-step answer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from data.make import ROOT
from data.make.clips.scenes import render
from data.make.miniatures.dataset import EVALUATION_SEEDS
from data.make.miniatures.evaluate import MOVES, cases_of, psnr
from data.make.miniatures.families import family_of
from helpers import measure
from helpers.files import replacing
from helpers.lesson import use_onednn
from helpers.models import Architecture

TEACHER, BATCH = 20, 16  # steps, clips
RANK, TARGETS = 8, ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]
SEEDS = 5_000_000  # of the clips: neither those of the miniatures' training nor those of evaluation
MODELS = {"ltx_video": 1, "wan22_i2v_a14b": 2}  # and the student's steps


class Calls:
    """Records what the denoisers of a pipeline are called with, step by step."""

    def __init__(self, pipe, names: tuple[str, ...]):
        self.seen: list[tuple[str, dict]] = []
        for name in names:
            getattr(pipe, name).register_forward_pre_hook(self._recorder(name), with_kwargs=True)

    def _recorder(self, name: str):
        def record(_, args, kwargs):
            self.seen.append((name, kwargs))

        return record

    def take(self) -> list[tuple[str, dict]]:
        """What was recorded since the last time."""
        seen, self.seen = self.seen, []
        return seen


def drawn_clips(family, count: int, seed: int, frames: int) -> Iterator[tuple[torch.Tensor, str]]:
    """`count` clips [frames, 3, H, W] and what happens in them; `seed` is that of the first."""
    cases = cases_of(family)
    for i in range(count):
        machine, drawn, prompt, _ = cases[(i * 7) % len(cases)]
        video, _ = render(machine, [seed + i], **drawn, frames=frames, size=family.size, fps=family.fps)
        yield video[0], prompt


def recorded(continuer, calls: Calls, frame, prompt, steps: int, seed: int) -> list[tuple[str, dict]]:
    """What the denoisers are called with in the pipeline's own run."""
    calls.take()
    continuer.from_one(frame, prompt, steps, seed, output_type="latent")
    return calls.take()


class Schedule:
    """The calls of a run with a number of steps: which denoiser, at which time and noise level.

    Latents and noise are [B, tokens, channels] for LTX-Video and [B, channels, frames, rows, columns] for Wan, as the
    denoisers see them. `first` is what a denoiser is called with first, when the latents are pure noise.
    """

    def __init__(self, pipe, calls: list[tuple[str, dict]]):
        self.sigmas = [float(sigma) for sigma in pipe.scheduler.sigmas[: len(calls)]] + [0.0]
        self.names = [name for name, _ in calls]
        self.times = [kwargs["timestep"] for _, kwargs in calls]
        self.predicts_clean = pipe.scheduler.config.get("prediction_type") == "sample"
        self.channels = pipe.vae.config.get("z_dim")  # Wan's condition lies beside the noise, in further channels

    def noise(self, first: dict) -> torch.Tensor:
        """The latents of the first call."""
        hidden = first["hidden_states"]
        return hidden[:, : self.channels] if hidden.dim() == 5 else hidden

    def wanted(self, at: int, like: torch.Tensor) -> torch.Tensor:
        """1 where something is to be predicted; a token that is given has the time 0."""
        times = self.times[at].expand(len(like), *self.times[at].shape[1:])
        wanted = (times > 0).to(like.dtype)
        return wanted[..., None] if times.dim() > 1 else wanted.view(-1, *[1] * (like.dim() - 1))

    def predict(self, denoiser, at: int, first: dict, latents: torch.Tensor) -> torch.Tensor:
        """The clean latents that call number `at` predicts."""
        hidden = first["hidden_states"]
        full = torch.cat([latents, hidden[:, self.channels :]], dim=1) if hidden.dim() == 5 else latents
        times = self.times[at].expand(len(latents), *self.times[at].shape[1:])
        out = denoiser(**first | {"hidden_states": full, "timestep": times, "return_dict": False})[0]
        return out if self.predicts_clean else latents - self.sigmas[at] * out

    @torch.no_grad()
    def answer(self, pipe, first: dict) -> torch.Tensor:
        """The latents after all steps, by Euler's method."""
        latents = noise = self.noise(first)
        for at, name in enumerate(self.names):
            clean = self.predict(getattr(pipe, name), at, first, latents)
            latents = clean + (latents - clean) * self.sigmas[at + 1] / self.sigmas[at]
            latents = torch.lerp(noise, latents, self.wanted(at, latents))  # what is given stays
        return latents

    def loss(self, denoiser, at: int, first: dict, answer: torch.Tensor) -> torch.Tensor:
        """The mean square error of the clean latents that call number `at` predicts from the answer with noise."""
        mixed = torch.lerp(answer, self.noise(first), self.sigmas[at])
        predicted = self.predict(denoiser, at, first, mixed)
        return ((predicted - answer) * self.wanted(at, answer)).square().mean()


def batched(rows: list[dict]) -> dict:
    """The tensors of several calls, one after another; what is no tensor, or has no entry per clip, is the first's."""
    first = rows[0]
    stacked = {}
    for key, value in first.items():
        per_clip = isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == 1
        stacked[key] = torch.cat([row[key] for row in rows]) if per_clip else value
    return stacked


def train(denoiser, student: Schedule, at: int, firsts: list[dict], answers: list, minutes: float) -> dict:
    """Add a LoRA to a denoiser and train it; returns its weights, fp16."""
    from peft import LoraConfig, get_peft_model_state_dict

    denoiser.requires_grad_(False)
    denoiser.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
    weights = [one for one in denoiser.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0)
    began, limit, step, losses = time.perf_counter(), 60 * minutes, 0, []
    while (passed := time.perf_counter() - began) < limit:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * max(0.0, 1 - passed / limit)
        pick = torch.randint(len(answers), (BATCH,)).tolist()
        loss = student.loss(
            denoiser, at, batched([firsts[i] for i in pick]), torch.stack([answers[i] for i in pick])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        step += 1
        if step % 200 == 0:
            print(f"  step {step}, {passed:.0f} s, loss {statistics.mean(losses[-200:]):.5f}", flush=True)
    return {key: value.half().cpu() for key, value in get_peft_model_state_dict(denoiser).items()}


def evaluate(continuer, cases: list, steps: tuple[int, ...], answers: list[torch.Tensor]) -> dict[int, dict]:
    """The figures by number of steps; `answers` are the plain 20-step ones, in pixels."""
    rows: dict[int, list] = {count: [] for count in steps}
    for i, ((video, prompt), answer) in enumerate(zip(cases, answers, strict=True)):
        true = video[1:]
        moves = ((true - video[:1]).abs().amax(1, keepdim=True) > MOVES).float()
        for count in steps:
            made = continuer.from_one(video[0], prompt, count, i)[1:]
            rows[count].append((psnr(made, true), psnr(made, true, moves), psnr(made, answer)))
    names = ("psnr", "moving_psnr", "psnr_to_20")
    median = lambda column: round(statistics.median(column), 3)  # noqa: E731
    medians = {count: [median(one) for one in zip(*some, strict=True)] for count, some in rows.items()}
    return {count: dict(zip(names, figures, strict=True)) for count, figures in medians.items()}


def distil(model: str, steps: int, clips: int, minutes: float, evaluated: int, folder: Path, device: str) -> dict:
    """Train, save into `folder` and measure; returns the record."""
    use_onednn()
    family, arch = family_of(model), Architecture(ROOT / "data" / "miniatures" / model)
    continuer = family.continuer(ROOT / "data" / "miniatures" / model, device)
    pipe, calls = continuer.pipe, Calls(continuer.pipe, arch.denoisers)
    held_out = list(drawn_clips(family, evaluated, EVALUATION_SEEDS, family.frames))
    teacher = [continuer.from_one(video[0], prompt, TEACHER, i)[1:] for i, (video, prompt) in enumerate(held_out)]
    plain = evaluate(continuer, held_out, (1, 2, 4, TEACHER), teacher)
    print("plain", plain, flush=True)

    video, prompt = held_out[0]
    student = Schedule(pipe, recorded(continuer, calls, video[0], prompt, steps, 0))
    full = Schedule(pipe, recorded(continuer, calls, video[0], prompt, TEACHER, 0))
    firsts, answers, began = [], [], time.perf_counter()
    for i, (video, prompt) in enumerate(drawn_clips(family, clips, SEEDS, 1)):
        firsts.append(recorded(continuer, calls, video[0], prompt, 1, SEEDS + i)[0][1])
    for begin in range(0, clips, BATCH):
        answers += full.answer(pipe, batched(firsts[begin : begin + BATCH])).unbind()
    print(f"{clips} answers of the teacher, {time.perf_counter() - began:.0f} s", flush=True)
    files = {}
    for at, name in enumerate(student.names):
        weights = train(getattr(pipe, name), student, at, firsts, answers, minutes)
        files[name] = f"{name}_{steps}_step{'s' if steps > 1 else ''}.safetensors"
        with replacing(folder / files[name]) as temporary:
            type(pipe).save_lora_weights(
                temporary.parent, transformer_lora_layers=weights, weight_name=temporary.name
            )
    with_lora = evaluate(continuer, held_out, (steps,), teacher)
    print("with the LoRA", with_lora, flush=True)
    return {
        "model": model, "steps": steps, "files": files, "rank": RANK, "clips": clips, "minutes": minutes,
        "evaluated": evaluated, "plain": plain, "lora": with_lora,
        "device": torch.cuda.get_device_name() if device == "cuda" else device, "versions": measure.versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--steps", type=int, help="of the student (default: 1, of the A14B 2, one for each expert)")
    parser.add_argument("--clips", type=int, default=600, help="to learn from (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=1.5, help="for each denoiser (default: %(default)s)")
    parser.add_argument("--evaluated", type=int, default=24, help="clips to measure on (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "data", help="folder of loras/ and measurements/")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    record = distil(
        args.model, args.steps or MODELS[args.model], args.clips, args.minutes, args.evaluated,
        args.out / "loras" / args.model, device,
    )  # fmt: skip
    with replacing(args.out / "measurements" / "levers" / f"lora_{args.model}.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
