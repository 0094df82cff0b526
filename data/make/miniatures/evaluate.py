"""How true is a miniature's continuation? Measured on clips that were never trained on, through the real pipeline.

    python -m data.make.truth ltx_video --clips 48 --seed 0 --json

Each clip's last seen frame and its prompt go into the pipeline; the answer is compared with the frames that really come
next. Beside it stand: the last frame held still ("freeze"), the VAE's own reconstruction of the truth (the "oracle": no
continuation of this VAE can look better), its reconstruction of the truth with a steady camera ("steady": no one frame
tells how the hand sways), a wrong action in the prompt, and several frames of context in place of one.
A model without a prompt is given an amount of motion instead, and the truth is an ambient clip with that amount; in the
wrong action's place stands a wrong amount ("wrong_motion").
PSNR in dB over all new frames of a clip; "moving" counts only the pixels where the truth differs from the last seen
frame by more than 0.08. Medians over clips.
"""

import argparse
import importlib
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from helpers import kernels
from helpers.models import model

from .scenes import ACTIONS, MACHINES, SPEEDS, prompt_of, render
from .train import ROOT, TRUTH_SEEDS, is_ambient

MOVES = 0.08
AMOUNTS = (0.25, 0.5, 1.0)  # of ambient motion


def psnr(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of frames [T, 3, H, W] in 0..1, over all pixels or `where` [T, 1, H, W]."""
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
def rebuilt(family, vae, frames: torch.Tensor) -> torch.Tensor:
    """Frames [T, 3, H, W] in 0..1 after the VAE's encoding and decoding."""
    x = (frames * 2 - 1).permute(1, 0, 2, 3)[None].to(vae.device)
    posterior_of, decoded = family.halves(vae, compiled=False)
    y = decoded(posterior_of(x).mode())
    return ((y[0] + 1) / 2).clamp(0, 1).permute(1, 0, 2, 3).float().cpu()


def cases_of(family) -> list[tuple[str, dict, object, object]]:
    """Each kind of clip: its machine, what `render` draws it with, and what tells the model of it, right and wrong."""
    if is_ambient(family):
        return [(m, {"ambient": [a]}, a, 0.25 if a > 0.5 else 1.0) for a in AMOUNTS for m in MACHINES]
    cases = []
    for speed in SPEEDS:
        for machine in MACHINES:
            for i, action in enumerate(ACTIONS[machine]):
                other = ACTIONS[machine][(i + 1) % len(ACTIONS[machine])]
                prompts = (prompt_of(machine, one, speed) for one in (action, other))
                cases.append((machine, {"action": action, "speed": speed}, *prompts))
    return cases


def truth(
    name: str, folder: Path, clips: int, seed: int, steps: int, device: str = "cpu", sheet: Path | None = None
) -> dict:
    """Measure a miniature folder; returns the figures that `--json` prints."""
    family = importlib.import_module(f"data.make.{name}")
    kernels.use_onednn()
    continuer = family.Continuer(folder, device)
    context = continuer.context
    cases, wrong_one = cases_of(family), "wrong_motion" if is_ambient(family) else "wrong_prompt"
    rows, times, pictures = [], [], []
    for i in range(clips):
        machine, drawn, told, wrong = cases[(i * 7) % len(cases)]  # 7 divides neither 30 nor 9: all cases come round
        number = TRUTH_SEEDS + seed * 100_000 + i
        look = {"frames": context - 1 + family.FRAMES, "size": family.SIZE, "fps": family.FPS}
        video, _ = render(machine, [number], **drawn, **look)
        steady, _ = render(machine, [number], **drawn, **look, steady_from=context - 1)
        past, true = video[0, :context], video[0, context:]  # past ends with the last seen frame
        last = past[-1]
        began = time.perf_counter()
        generated = continuer.from_one(last, told, steps, i)[1:]
        times.append(time.perf_counter() - began)
        answers = {
            "generated": generated,
            "freeze": last.expand_as(true),
            "oracle": rebuilt(family, continuer.pipe.vae, video[0, context - 1 :])[1:],
            "steady": rebuilt(family, continuer.pipe.vae, steady[0, context - 1 :])[1:],
            wrong_one: continuer.from_one(last, wrong, steps, i)[1:],
        }
        moves = ((true - last).abs().amax(1, keepdim=True) > MOVES).float()
        row = {"machine": machine, "told": told}
        for kind, answer in answers.items():
            row[f"psnr_{kind}"], row[f"ssim_{kind}"] = psnr(answer, true), ssim(answer, true)
            row[f"moving_psnr_{kind}"] = psnr(answer, true, moves)
        if context > 1:  # the model takes several frames, too
            several = continuer.from_several(past, told, steps, i)[context:]
            n = len(several)
            row["psnr_context"], row["psnr_single"] = psnr(several, true[:n]), psnr(generated[:n], true[:n])
            row["moving_psnr_context"] = psnr(several, true[:n], moves[:n])
            row["moving_psnr_single"] = psnr(generated[:n], true[:n], moves[:n])
        rows.append(row)
        if sheet and len(pictures) < 24:
            at = (0, len(true) // 2, len(true) - 1)
            pictures += [torch.cat([last, *(frames[k] for k in at)], 2) for frames in (true, generated)]
    result = {
        key: round(statistics.median(r[key] for r in rows), 3) for key in rows[0] if "psnr" in key or "ssim" in key
    }
    share = lambda a, b: round(sum(r[a] > r[b] for r in rows) / len(rows), 4)  # noqa: E731
    result["beats_freeze"] = share("psnr_generated", "psnr_freeze")
    result["right_beats_wrong"] = share("psnr_generated", f"psnr_{wrong_one}")
    if context > 1:
        result["context_beats_single"] = share("psnr_context", "psnr_single")
    result["seconds_per_clip"] = round(statistics.median(times), 2)
    result["by_machine"] = {
        m: {
            k: round(statistics.median(r[k] for r in rows if r["machine"] == m), 2)
            for k in (
                "psnr_generated",
                "psnr_freeze",
                "psnr_oracle",
                "moving_psnr_generated",
                "moving_psnr_freeze",
                "moving_psnr_oracle",
            )
        }
        for m in MACHINES
        if any(r["machine"] == m for r in rows)
    }
    used = torch.cuda.get_device_name() if device == "cuda" else device
    result |= {"model": name, "clips": clips, "seed": seed, "steps": steps, "device": used}
    if sheet:
        from PIL import Image

        picture = torch.cat(pictures, 1).permute(1, 2, 0)
        Image.fromarray((picture * 255).round().byte().numpy()).save(sheet)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--folder", type=Path, help="the checkpoint (default: data/miniatures/MODEL)")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="denoising steps (default: the miniature's own)")
    parser.add_argument("--sheet", type=Path, help="write truth and continuation of the first clips into this PNG")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    args = parser.parse_args()
    folder = args.folder or ROOT / "data" / "miniatures" / args.model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    steps = args.steps or model(args.model).defaults["miniature"].steps
    result = truth(args.model, folder, args.clips, args.seed, steps, device, args.sheet)
    if args.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:28s} {value}")


if __name__ == "__main__":
    main()
