"""Measure a miniature and write its model card: `metrics.json` and `README.md` beside the weights, and a picture.

python -m data.make.miniatures.model_card ltx_video               # measures 48 clips, about ten minutes on a laptop
python -m data.make.miniatures.model_card ltx_video --no-measure  # rewrites the card from metrics.json
"""

import argparse
import json
import textwrap
from pathlib import Path

import numpy as np
import torch

from data.make import ROOT
from data.make.clips.sample_clips import SCENES
from data.make.clips.scenes import prompt_of
from helpers import clips
from helpers.models import MODELS

from .evaluate import evaluate
from .families import family_of

PICTURES = ROOT / "data" / "pictures"

CARD = """# {title} miniature

The same classes as the real model with small configurations, trained on clips drawn by `data/make/clips`. It continues
pictures of an excavator, a wheel loader and a wood chipper for {seconds} ({frames} frames of {width}x{height} at
{fps} per second). {behaviour} The miniature lets every cell of the
lessons run on any machine.

## Accuracy

Medians over {clips} clips that were never trained on, with {steps} denoising steps and the unmodified pipeline, measured by
`python -m data.make.miniatures.model_card {model}`. PSNR is in dB over the new frames; "moving" counts only the pixels
that differ from the last seen frame in the truth.

| | PSNR | SSIM | PSNR, moving |
|---|---|---|---|
| generated | {psnr_generated:.2f} | {ssim_generated:.3f} | {moving_psnr_generated:.2f} |
| last frame repeated | {psnr_freeze:.2f} | {ssim_freeze:.3f} | {moving_psnr_freeze:.2f} |
| VAE reconstruction of the truth (the upper limit) | {psnr_oracle:.2f} | {ssim_oracle:.3f} | {moving_psnr_oracle:.2f} |
| the same with a steady camera, because a single frame does not reveal how the camera sways | {psnr_steady:.2f} | {ssim_steady:.3f} | {moving_psnr_steady:.2f} |
| generated with {wrong_prompt} | {psnr_wrong:.2f} | {ssim_wrong:.3f} | {moving_psnr_wrong:.2f} |

- {beats_freeze:.1%} of the continuations are closer to the truth than the repeated frame.
- {right_beats_wrong:.1%} are closer with the right {told} than with {other}.
{context}- One clip takes {seconds_per_clip} s on the measuring machine ({device}).

Limits: {limits}

## Training

`python -m data.make.miniatures.train {model}` trains everything from scratch. These weights were trained in several
runs, each starting from the previous weights (`--start-from`):

{stages}

{encoder} {storage} Licence: Apache 2.0, as the project.
"""
# for a model that takes several frames
CONTEXT = """- Over the first {several} frames: {psnr_context:.2f} dB with {given} frames of context, {psnr_single:.2f} dB with
one (moving pixels: {moving_psnr_context:.2f} and {moving_psnr_single:.2f} dB).
"""
PROMPTED = {
    "behaviour": """It follows prompts such as "the excavator raises its arm slowly". It knows nothing else: other
pictures give broken clips, and other words have no meaning to it.""",
    "told": "prompt",
    "other": "another action",
    "wrong_prompt": "another action in the prompt",
    "limits": """small, fast objects (the teeth of a bucket, chips in the air) blur towards the end of the clip, and whatever a
moving object uncovers is guessed.""",
    "encoder": """The text encoder is a small {kind} with random weights from a fixed seed, which is enough to tell the prompts apart. The
tokenizer is a sentencepiece model trained on the prompts.""",
}
AMBIENT = {
    "behaviour": """It moves clouds, trees, dust, smoke and the camera as much as `motion_bucket_id` says.
The machine always stops, because there is no prompt that could tell it to continue. Other pictures give smeared clips.""",
    "told": "`motion_bucket_id`",
    "other": "another",
    "wrong_prompt": "another `motion_bucket_id`",
    "limits": """fine texture (the ground, branches) blurs as the camera drifts in, and whatever is uncovered is guessed.""",
    "encoder": """The image encoder is a small CLIP with random weights from a fixed seed, which is enough to tell pictures apart.""",
}


def card(name: str, metrics: dict) -> str:
    """The text of a model card.

    Args:
        metrics: From `metrics.json`: the figures of `evaluate`, and "training", the stages of `train`.
    """
    entry, family = MODELS[name], family_of(name)
    size = entry.defaults["miniature"]
    stages = "\n".join(
        f"- {stage['stage']}: {stage['steps']:,} steps in {stage['seconds']:.0f} s on {stage['device']}"
        for stage in metrics["training"]
    )
    seconds = round(size.num_frames / family.fps)
    wrong = "wrong_motion" if family.ambient else "wrong_prompt"
    words = AMBIENT if family.ambient else PROMPTED
    encoder = words["encoder"].format(kind=family.encoder.removesuffix("EncoderModel"))
    several = {"given": family.context, "several": size.num_frames - family.context}
    text = CARD.format(
        title=entry.title,
        frames=size.num_frames,
        width=size.width,
        height=size.height,
        fps=family.fps,
        seconds="one second" if seconds == 1 else f"{seconds} seconds",
        stages=stages,
        storage=family.storage,
        context=CONTEXT.format(**several, **metrics) if "psnr_context" in metrics else "",
        **{f"{measure}_wrong": metrics[f"{measure}_{wrong}"] for measure in ("psnr", "ssim", "moving_psnr")},
        **words | {"encoder": encoder},
        **metrics,
    )
    return "\n\n".join(map(_wrapped, text.strip().split("\n\n"))) + "\n"


def _wrapped(block: str) -> str:
    """A paragraph or a list of the card with lines of at most 120 characters; headings and tables as they are."""
    if block.startswith(("#", "|")):
        return block
    items = block.split("\n- ") if block.startswith("- ") else [block]
    wrap = textwrap.TextWrapper(120, break_on_hyphens=False, break_long_words=False)
    if block.startswith("- "):
        wrap.initial_indent, wrap.subsequent_indent = "- ", "  "
    return "\n".join(wrap.fill(item.removeprefix("- ")) for item in items)


def draw_picture(name: str, folder: Path, device: str) -> None:
    """Save a picture with the last frames of the sample clips and how the miniature continues them."""
    family = family_of(name)
    continuer = family.continuer(folder, device)
    steps = MODELS[name].defaults["miniature"].steps
    rows = {}
    for clip_name, (machine, action, speed, _) in SCENES.items():
        clip = clips.read(clip_name).fit(*family.size)
        last = torch.from_numpy(clip.frames[-1]).permute(2, 0, 1).float() / 255
        prompt = 0.5 if family.ambient else prompt_of(machine, action, speed)
        new = continuer.from_one(last, prompt, steps, seed=0)[1:]
        new = (new * 255).round().byte().permute(0, 2, 3, 1).numpy()
        past = clip.frames[[-48, -24, -1]]
        rows[clip_name.replace("_", " ")] = np.concatenate([past, new[[len(new) * k // 3 - 1 for k in (1, 2, 3)]]])
    PICTURES.mkdir(exist_ok=True)
    clips.save_image(PICTURES / f"{name}.png", clips.side_by_side(rows, count=6, height=108))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=MODELS, metavar="MODEL", help=f"one of {', '.join(MODELS)}")
    parser.add_argument("--clips", type=int, default=48, help="clips to measure (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="selects the clips (default: %(default)s)")
    parser.add_argument(
        "--measure", action=argparse.BooleanOptionalAction, default=True, help="or use metrics.json as it is"
    )
    args = parser.parse_args()
    folder = ROOT / "data" / "miniatures" / args.model
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {"training": []}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.measure:
        steps = MODELS[args.model].defaults["miniature"].steps
        metrics |= evaluate(args.model, folder, args.clips, args.seed, steps, device)
        path.write_text(json.dumps(metrics, indent=1) + "\n")
    (folder / "README.md").write_text(card(args.model, metrics))
    draw_picture(args.model, folder, device)


if __name__ == "__main__":
    main()
