"""Measure how accurately a miniature continues clips that it was never trained on, through its real pipeline.

    python -m data.make.miniatures.evaluate ltx_video --clips 48 --seed 0 --json

The pipeline gets the last seen frame of each clip and its prompt; the result is compared with the frames that really
follow. For comparison, the same figures for:

- "freeze": the last seen frame, repeated;
- "oracle": the VAE's reconstruction of the truth, the best that any continuation with this VAE can reach;
- "steady": its reconstruction of the truth filmed with a steady camera, since a single frame does not reveal how the
  hand-held camera sways;
- "wrong_prompt": a prompt with another action;
- "context" against "single": several given frames against one, over the same frames.

A model without prompts gets an amount of motion, the truth is an ambient clip with that amount, and "wrong_motion"
replaces "wrong_prompt". PSNR in dB over all new frames of a clip; "moving" counts only the pixels where the truth
differs from the last seen frame by more than 0.08. All figures are medians over clips.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from data.make import ROOT
from data.make.clips.scenes import ACTIONS, MACHINES, SPEEDS, prompt_of, render
from helpers.lesson import use_onednn
from helpers.models import MODELS

from .dataset import EVALUATION_SEEDS
from .families import Family, family_of
from .families.protocol import Continuer

MOVES = 0.08  # least difference from the last seen frame of a pixel that moves, of 1
AMOUNTS = (0.25, 0.5, 1.0)  # of ambient motion
Case = tuple[str, dict[str, Any], str | float, str | float]  # see `cases_of`


def psnr(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of frames [T, 3, H, W] in 0..1, over all pixels or those where the mask `where`
    [T, 1, H, W] is 1.
    """
    error = (a - b) ** 2
    mean = error.mean() if where is None else (error * where).sum() / (3 * where.sum()).clamp(min=1)
    return float(-10 * torch.log10(mean.clamp(min=1e-10)))


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Structural similarity (Wang et al., 2004: Gaussian window 11, sigma 1.5), mean over frames and channels."""
    at = torch.arange(11, dtype=a.dtype) - 5
    window = torch.exp(-(at**2) / (2 * 1.5**2))
    window = window / window.sum()
    a, b = (x.reshape(-1, 1, *x.shape[-2:]) for x in (a, b))

    def blur(x):
        return F.conv2d(F.conv2d(x, window.view(1, 1, 1, -1)), window.view(1, 1, -1, 1))

    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma * ma, blur(b * b) - mb * mb, blur(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return float((((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma * ma + mb * mb + c1) * (va + vb + c2))).mean())


@torch.no_grad()
def rebuilt(family: Family, vae, frames: torch.Tensor) -> torch.Tensor:
    """Frames [T, 3, H, W] in 0..1 after the VAE's encoding and decoding."""
    x = (frames * 2 - 1).permute(1, 0, 2, 3)[None].to(vae.device)
    posterior_of, decoded = family.encoder_and_decoder(vae, compiled=False)
    y = decoded(posterior_of(x).mode())
    return ((y[0] + 1) / 2).clamp(0, 1).permute(1, 0, 2, 3).float().cpu()


def cases_of(family: Family) -> list[Case]:
    """The kinds of clips: the machine, other arguments of `render`, and the right and a wrong prompt (or amount)."""
    if family.ambient:
        return [(m, {"ambient": [a]}, a, 0.25 if a > 0.5 else 1.0) for a in AMOUNTS for m in MACHINES]
    cases: list[Case] = []
    for speed in SPEEDS:
        for machine in MACHINES:
            for i, action in enumerate(ACTIONS[machine]):
                other = ACTIONS[machine][(i + 1) % len(ACTIONS[machine])]
                right, wrong = (prompt_of(machine, one, speed) for one in (action, other))
                cases.append((machine, {"action": action, "speed": speed}, right, wrong))
    return cases


def evaluate(
    name: str, folder: Path, clips: int, seed: int, steps: int, device: str = "cpu", sheet: Path | None = None
) -> dict:
    """Measure a miniature.

    Args:
        name: The model's name.
        folder: The assembled miniature.
        clips: How many clips to draw.
        seed: Selects the clips, none of which occurs in training.
        steps: Denoising steps.
        sheet: A PNG to write, with the truth and the continuation of the first clips.

    Returns:
        The figures that `--json` prints.
    """
    family = family_of(name)
    use_onednn()
    continuer = family.continuer(folder, device)
    cases, wrong = cases_of(family), "wrong_motion" if family.ambient else "wrong_prompt"
    rows, pictures = [], []
    for i in range(clips):
        case = cases[(i * 7) % len(cases)]  # 7 divides neither 30 nor 9, so all cases occur
        number = EVALUATION_SEEDS + seed * 100_000 + i
        row, truth, frames = evaluate_clip(family, continuer, case, wrong, number, i, steps)
        rows.append(row)
        if sheet and len(pictures) < 24:
            at = (0, len(frames) // 2, len(frames) - 1)
            pictures += [torch.cat([truth[0], *(some[k] for k in at)], 2) for some in (truth[1:], frames)]
    result = {
        key: round(statistics.median(r[key] for r in rows), 3) for key in rows[0] if "psnr" in key or "ssim" in key
    }
    share = lambda a, b: round(sum(r[a] > r[b] for r in rows) / len(rows), 4)  # noqa: E731
    result["beats_freeze"] = share("psnr_generated", "psnr_freeze")
    result["right_beats_wrong"] = share("psnr_generated", f"psnr_{wrong}")
    if family.context > 1:
        result["context_beats_single"] = share("psnr_context", "psnr_single")
    result["seconds_per_clip"] = round(statistics.median(r["seconds"] for r in rows), 2)
    figures = [f"{measure}_{kind}" for measure in ("psnr", "moving_psnr") for kind in ("generated", "freeze", "oracle")]
    result["by_machine"] = {
        machine: {key: round(statistics.median(r[key] for r in rows if r["machine"] == machine), 2) for key in figures}
        for machine in MACHINES
        if any(r["machine"] == machine for r in rows)
    }
    used = torch.cuda.get_device_name() if device == "cuda" else device
    result |= {"model": name, "clips": clips, "seed": seed, "steps": steps, "device": used}
    if sheet:
        from PIL import Image

        picture = torch.cat(pictures, 1).permute(1, 2, 0)
        Image.fromarray((picture * 255).round().byte().numpy()).save(sheet)
    return result


def evaluate_clip(
    family: Family, continuer: Continuer, case: Case, wrong: str, number: int, seed: int, steps: int
) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Continue one clip and compare.

    Args:
        wrong: What to call the figures of the wrong prompt or amount.
        number: The seed of the clip.
        seed: The seed of the noise.

    Returns:
        The figures; the truth [T, 3, H, W], which begins with the last seen frame; and the new frames
        [T - 1, 3, H, W].
    """
    machine, drawn, prompt, other = case
    context, vae = family.context, continuer.pipe.vae
    look = {"frames": context - 1 + family.frames, "size": family.size, "fps": family.fps}
    video, _ = render(machine, [number], **drawn, **look)
    steady, _ = render(machine, [number], **drawn, **look, steady_from=context - 1)
    past, true = video[0, :context], video[0, context:]  # past ends with the last seen frame
    last = past[-1]
    began = time.perf_counter()
    generated = continuer.from_one(last, prompt, steps, seed)[1:]
    row = {"machine": machine, "seconds": time.perf_counter() - began}
    compared = {
        "generated": generated,
        "freeze": last.expand_as(true),
        "oracle": rebuilt(family, vae, video[0, context - 1 :])[1:],
        "steady": rebuilt(family, vae, steady[0, context - 1 :])[1:],
        wrong: continuer.from_one(last, other, steps, seed)[1:],
    }
    moves = ((true - last).abs().amax(1, keepdim=True) > MOVES).float()
    for kind, frames in compared.items():
        row[f"psnr_{kind}"], row[f"ssim_{kind}"] = psnr(frames, true), ssim(frames, true)
        row[f"moving_psnr_{kind}"] = psnr(frames, true, moves)
    if context > 1:
        several = continuer.from_several(past, prompt, steps, seed)[context:]
        n = len(several)
        row["psnr_context"], row["psnr_single"] = psnr(several, true[:n]), psnr(generated[:n], true[:n])
        row["moving_psnr_context"] = psnr(several, true[:n], moves[:n])
        row["moving_psnr_single"] = psnr(generated[:n], true[:n], moves[:n])
    return row, video[0, context - 1 :], generated


def command_line(summary: str, clips: int, sheet: str) -> argparse.ArgumentParser:
    """The options of a command that measures a miniature on a number of clips; `sheet` says what its picture shows."""
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("model", choices=MODELS, metavar="MODEL", help=f"one of {', '.join(MODELS)}")
    parser.add_argument("--folder", type=Path, help="the checkpoint (default: data/miniatures/MODEL)")
    parser.add_argument("--clips", type=int, default=clips, help="clips to continue (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="selects the clips (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="denoising steps (default: those of the miniature)")
    parser.add_argument("--sheet", type=Path, help=f"PNG file for {sheet}")
    parser.add_argument("--json", action="store_true", help="print a single JSON object")
    return parser


def folder_and_steps(args: argparse.Namespace) -> tuple[Path, int]:
    """What the options say, or the shipped miniature and its own number of steps."""
    folder = args.folder or ROOT / "data" / "miniatures" / args.model
    return folder, args.steps or MODELS[args.model].defaults["miniature"].steps


def show(result: dict, as_json: bool) -> None:
    """Print the figures, as one JSON object or a line each."""
    if as_json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:28s} {value}")


def main() -> None:
    sheet = "the truth and the continuation of the first clips"
    args = command_line(__doc__.splitlines()[0], 48, sheet).parse_args()
    folder, steps = folder_and_steps(args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    show(evaluate(args.model, folder, args.clips, args.seed, steps, device, args.sheet), args.json)


if __name__ == "__main__":
    main()
