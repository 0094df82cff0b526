"""Measure a miniature and write its card: `metrics.json`, `README.md` beside the weights, and the README's picture.

python -m data.make.card ltx_video               # measures 48 clips, some ten minutes on a laptop
python -m data.make.card ltx_video --no-measure  # writes the card anew from metrics.json
"""

import argparse
import importlib
import json
from pathlib import Path

import numpy as np
import torch

from helpers import clips, pictures
from helpers.models import model

from .sample_clips import SCENES
from .scenes import prompt_of
from .train import ROOT, is_ambient
from .truth import truth

CONTEXT = """- over the first {several} frames: {psnr_context:.2f} dB from nine frames of context, {psnr_single:.2f} dB from one
  (moving pixels {moving_psnr_context:.2f} and {moving_psnr_single:.2f});
"""  # for a model that takes several frames

PICTURES = ROOT / "data" / "pictures"

CARD = """# The miniature of {title}

The same classes as the real model, with tiny configurations, trained on clips that `data/make/scenes.py` draws. It
continues pictures of an excavator, a wheel loader and a wood chipper for {seconds} ({frames} frames of {width}x{height}
at {fps} a second), and {follows}. It exists so that every cell of the lessons runs anywhere.

## How true it is

Medians over {clips} clips that were never trained on, {steps} denoising steps, through the unmodified pipeline; made with
`python -m data.make.card {model}`. PSNR in dB over the new frames, "moving" over the pixels that differ from the last
seen frame in the truth.

| | PSNR | SSIM | PSNR, moving |
|---|---|---|---|
| generated | {psnr_generated:.2f} | {ssim_generated:.3f} | {moving_psnr_generated:.2f} |
| the last frame held still | {psnr_freeze:.2f} | {ssim_freeze:.3f} | {moving_psnr_freeze:.2f} |
| the VAE's own reconstruction of the truth (the ceiling) | {psnr_oracle:.2f} | {ssim_oracle:.3f} | {moving_psnr_oracle:.2f} |
| the same, had the camera been steady: no single frame tells how it will sway | {psnr_steady:.2f} | {ssim_steady:.3f} | {moving_psnr_steady:.2f} |
| generated, {wrongly} | {psnr_wrong:.2f} | {ssim_wrong:.3f} | {moving_psnr_wrong:.2f} |

- {beats_freeze:.1%} of the continuations are nearer to the truth than the frozen frame;
- {right_beats_wrong:.1%} are nearer with the right {told} than with {other};
{context}- {seconds_per_clip} s a clip on the machine that measured ({device}).

What it cannot do well: {weak}.

## How it was made

`python -m data.make.train {model}` trains both parts from nothing. These weights were trained in legs, each starting from
the last one's weights with `--start-from`:

{legs}

{encoder} {stored} Licence: Apache 2.0, as the project.
"""
PROMPTED = {
    "follows": """follows prompts such as "the excavator raises its arm slowly". It knows nothing else: other
pictures come out broken, other words are noise to it""",
    "told": "prompt",
    "other": "another action",
    "wrongly": "with another action in the prompt",
    "weak": """what moves fast and is small (a bucket's teeth, chips in the air) softens towards the end of the
clip, and what a moving part uncovers is guessed""",
    "encoder": """The text encoder is a small {kind} with random weights from a fixed seed: enough to tell the prompts apart. The tokenizer is a
sentencepiece model trained on the prompts.""",
}
AMBIENT = {
    "follows": """moves them as much as `motion_bucket_id` says: clouds, trees, dust, smoke and the
camera. The machine stops, whatever it did: there is no prompt to tell it to go on. Other pictures come out smeared""",
    "told": "`motion_bucket_id`",
    "other": "another",
    "wrongly": "with another `motion_bucket_id`",
    "weak": "fine texture (the ground, branches) softens as the camera drifts in, and what is uncovered is guessed",
    "encoder": "The image encoder is a small CLIP with random weights from a fixed seed: enough to tell pictures apart.",
}


def write_card(name: str, folder: Path, metrics: dict) -> None:
    """`README.md` in the miniature's folder, from its metrics."""
    entry = model(name)
    size = entry.defaults["miniature"]
    family = importlib.import_module(f"data.make.{name}")
    legs = "\n".join(
        f"- {leg['stage']}: {leg['steps']:,} steps in {leg['seconds']:.0f} s on {leg['device']}"
        for leg in metrics["training"]
    )
    seconds = round(size.num_frames / family.FPS)
    wrong = "wrong_motion" if is_ambient(family) else "wrong_prompt"
    words = AMBIENT
    if not is_ambient(family):
        kind = family.ENCODER.removesuffix("EncoderModel")
        words = PROMPTED | {"encoder": PROMPTED["encoder"].format(kind=kind)}
    several = size.num_frames - family.Continuer.context
    text = CARD.format(
        title=entry.title,
        frames=size.num_frames,
        width=size.width,
        height=size.height,
        fps=family.FPS,
        seconds="one second" if seconds == 1 else f"{seconds} seconds",
        legs=legs,
        **{f"{measure}_wrong": metrics[f"{measure}_{wrong}"] for measure in ("psnr", "ssim", "moving_psnr")},
        **words,
        stored=getattr(family, "STORED", "All is stored in fp16."),
        context=CONTEXT.format(several=several, **metrics) if "psnr_context" in metrics else "",
        **metrics,
    )
    (folder / "README.md").write_text(text)


def draw_picture(name: str, folder: Path, device: str) -> None:
    """The sample clips' last frames and what the miniature makes of them, in one picture."""
    family = importlib.import_module(f"data.make.{name}")
    continuer = family.Continuer(folder, device)
    rows = {}
    for clip_name, (machine, action, speed, _) in SCENES.items():
        clip = clips.read(clip_name).fit(*family.SIZE)
        last = torch.from_numpy(clip.frames[-1]).permute(2, 0, 1).float() / 255
        steps = model(name).defaults["miniature"].steps
        told = 0.5 if is_ambient(family) else prompt_of(machine, action, speed)
        new = continuer.from_one(last, told, steps, seed=0)[1:]
        new = (new * 255).round().byte().permute(0, 2, 3, 1).numpy()
        past = clip.frames[[-48, -24, -1]]
        rows[clip_name.replace("_", " ")] = np.concatenate([past, new[[len(new) * k // 3 - 1 for k in (1, 2, 3)]]])
    PICTURES.mkdir(exist_ok=True)
    pictures.save_image(PICTURES / f"{name}.png", pictures.side_by_side(rows, count=6, height=108))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    folder = ROOT / "data" / "miniatures" / args.model
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {"training": []}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.measure:
        steps = model(args.model).defaults["miniature"].steps
        metrics |= truth(args.model, folder, args.clips, args.seed, steps, device)
        path.write_text(json.dumps(metrics, indent=1) + "\n")
    write_card(args.model, folder, metrics)
    draw_picture(args.model, folder, device)


if __name__ == "__main__":
    main()
