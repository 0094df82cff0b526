"""Measure how a miniature's video changes while it goes on, hop after hop, on clips that it was never trained on.

    python -m data.make.measurements.drift ltx_video --clips 24 --hops 5 --seed 0 --json
    python -m data.make.measurements.drift ltx_video --clips 4 --ways last_frame several --sheet hops.png

A hop is as many frames as one call makes from a single frame. Each way of going on gets the same clips, prompts and
noise, and is compared with the frames that really follow:

- "last_frame": the last frame is handed over, and nothing is corrected;
- "several": as many frames as the model takes are handed over, decoded and encoded again;
- "latents": their latents are handed over as they are, except for the first, which holds a single frame;
- "anchor": the same, and the first is that of the clip's last frame, in every hop.

All but the first give the new frames the grain that the model's own version of the clip's last frame lacks, wherever
nothing has moved since.

All figures are medians over clips, in lists with an entry per hop: "psnr" and "moving_psnr" in dB, the latter over
pixels that differ from the clip's last frame; "contrast", "saturation" and "sharpness" relative to the first hop's
(`helpers.clips.Looks`); "seam_over_usual", the step across the join over the usual step, of the frames before it.
"beats_freeze" and "right_beats_wrong" are shares of the clips over all hops. The figures of the best way have plain
names, those of the others end in the way's name.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.make.clips.scenes import render
from data.make.miniatures.dataset import EVALUATION_SEEDS
from data.make.miniatures.evaluate import MOVES, cases_of, command_line, folder_and_steps, psnr, show
from data.make.miniatures.families import Family, family_of
from data.make.miniatures.families.protocol import Continuer
from helpers.clips import Looks, carry_detail
from helpers.hops import hop_frames, hop_latents
from helpers.lesson import use_onednn

WAYS = ("last_frame", "several", "latents", "anchor")
RATIOS = ("contrast", "saturation", "sharpness")


def pixels(frames: torch.Tensor) -> np.ndarray:
    """Frames [T, 3, H, W] in 0..1 as `np.uint8` [T, H, W, 3], as a file would keep them."""
    return (frames.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).byte().numpy()


def floats(frames: np.ndarray) -> torch.Tensor:
    """The way back."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def go_on(
    continuer: Continuer, family: Family, way: str, past: np.ndarray, prompt: str, count: int, steps: int, seed: int
) -> np.ndarray:
    """`count` frames that continue `past`, `np.uint8` [T, H, W, 3], hop after hop, each with noise of its own."""
    new, hop, latents = past[:0], 0, None
    model = continuer.continuing(steps) if way != "last_frame" else None
    anchor = model.encode(past[-1:]) if way == "anchor" else None
    ours = model.decode(model.encode(past[-family.context :]))[-1] if model else None
    while len(new) < count:
        seen = np.concatenate([past, new])[-family.context :]
        noise = 1000 * seed + hop
        if model is None:
            made = pixels(continuer.from_one(floats(seen)[-1], prompt, steps, noise))[1:]
        else:
            previous = None if way == "several" else latents
            latents = hop_latents(model, seen, previous, prompt, noise, anchor)
            made = carry_detail(hop_frames(model, seen, latents)[1:], ours, past[-1])
        new, hop = np.concatenate([new, made]), hop + 1
    return new[:count]


def figures(new: np.ndarray, true: np.ndarray, last: np.ndarray, hops: int) -> dict[str, list[float]]:
    """The figures of one continuation, by hop; `last` is the clip's last frame [H, W, 3]."""
    made, follows, frozen = floats(new), floats(true), floats(last[None])
    moves = ((follows - frozen).abs().amax(1, keepdim=True) > MOVES).float()
    each, looks = len(new) // hops, Looks().add(np.concatenate([last[None], new]))
    rows: dict[str, list[float]] = {}
    first = looks.mean(1, each + 1)
    for hop in range(hops):
        part = slice(hop * each, (hop + 1) * each)
        mean = looks.mean(part.start + 1, part.stop + 1)
        steps = [row[-1] for row in looks.rows[part.start + 1 : part.stop + 1]]  # the first is the step across the join
        one = {
            "psnr": psnr(made[part], follows[part]),
            "moving_psnr": psnr(made[part], follows[part], moves[part]),
            "psnr_freeze": psnr(frozen.expand_as(follows[part]), follows[part]),
            "seam_over_usual": steps[0] / max(statistics.median(steps[1:]), 1e-6),
        }
        one |= {name: mean[name] / max(first[name], 1e-9) for name in RATIOS}
        for name, value in one.items():
            rows.setdefault(name, []).append(value)
    return rows


def measure(
    name: str, folder: Path, clips: int, hops: int, seed: int, steps: int, ways: list[str], sheet: Path | None = None
) -> dict:
    """Continue the clips in each way; the last of `ways` is the best one, whose figures have plain names."""
    family = family_of(name)
    use_onednn()
    continuer, cases, began = family.continuer(folder, "cpu"), cases_of(family), time.perf_counter()
    by_way: dict[str, list[dict]] = {way: [] for way in ways}
    wrong, pictures, given = [], [], max(family.context, family.fps)
    for i in range(clips):
        machine, drawn, prompt, other = cases[(i * 7) % len(cases)]
        number, count = EVALUATION_SEEDS + seed * 100_000 + i, hops * (family.frames - 1)
        video, _ = render(machine, [number], **drawn, frames=given + count, size=family.size, fps=family.fps)
        video = pixels(video[0])
        past, true = video[:given], video[given:]
        for way in ways:
            new = go_on(continuer, family, way, past, prompt, count, steps, i)
            by_way[way].append(figures(new, true, past[-1], hops))
            if sheet and len(pictures) < 12:
                each = count // hops
                pictures.append(np.concatenate([past[-1], *new[each - 1 :: each]], axis=1))
        astray = go_on(continuer, family, ways[-1], past, other, count, steps, i)
        wrong.append(figures(astray, true, past[-1], hops))
    result: dict = {}
    for way, rows in by_way.items():
        suffix = "" if way == ways[-1] else f"_{way}"
        for key in rows[0]:
            if key != "psnr_freeze" or not suffix:
                medians = [statistics.median(row[key][hop] for row in rows) for hop in range(hops)]
                result[key + suffix] = [round(value, 3) for value in medians]
    best = by_way[ways[-1]]
    share = lambda others, key: sum(  # noqa: E731
        statistics.mean(row["psnr"]) > statistics.mean(other[key]) for row, other in zip(best, others, strict=True)
    ) / len(best)
    result |= {"beats_freeze": share(best, "psnr_freeze"), "right_beats_wrong": share(wrong, "psnr")}
    result |= {
        "model": name, "best": ways[-1], "clips": clips, "hops": hops, "seed": seed, "steps": steps,
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    if sheet:
        Image.fromarray(np.concatenate(pictures)).save(sheet)
    return result


def main(argv: list[str] | None = None) -> None:
    sheet = "the end of each hop of the first clips, a row per way"
    parser = command_line(__doc__.splitlines()[0], 24, sheet)
    parser.add_argument("--hops", type=int, default=5, help="how often each is continued (default: %(default)s)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="the last one is the best (default: all that it can)")
    args = parser.parse_args(argv)
    folder, steps = folder_and_steps(args)
    ways = args.ways or list(WAYS if family_of(args.model).context > 1 else WAYS[:1])
    show(measure(args.model, folder, args.clips, args.hops, args.seed, steps, ways, args.sheet), args.json)


if __name__ == "__main__":
    main()
