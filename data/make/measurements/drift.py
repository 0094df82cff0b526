"""Measure how a miniature's video changes while it goes on, hop after hop, on clips that it was never trained on.

    python -m data.make.measurements.drift ltx_video --clips 24 --hops 5 --seed 0 --json
    python -m data.make.measurements.drift ltx_video --clips 4 --ways last_frame several --sheet hops.png
    python -m data.make.measurements.drift ltx_video --hops 10 --jobs 2 --json > data/measurements/drift/ltx_video.json

A hop is as many frames as one call makes from a single frame. Each way of going on gets the same clips, prompts and
noise, and is compared with the frames that really follow:

- "last_frame": the last frame is handed over, and nothing is corrected;
- "several": as many frames as the model takes are handed over, decoded and encoded again;
- "latents": their latents are handed over as they are, except for the first, which holds a single frame;
- "anchor": the same, and the first is that of the clip's last frame, in every hop.

- "windows": `LTXI2VLongMultiPromptPipeline` makes all frames in one call, in windows that overlap by that many frames,
  whose latents are handed over whole; only LTX-Video has it, and only `--ways windows` measures it.

All but the first and the last give the new frames the grain that the model's own version of the clip's last frame
lacks, wherever nothing has moved since, and let each hop begin exactly where the one before it ended
(`helpers.clips.fade_in`).

All figures are medians over clips, in lists with an entry per hop: "psnr" and "moving_psnr" in dB, the latter over
pixels that differ from the clip's last frame; "contrast", "saturation" and "sharpness" relative to the first hop's
(`helpers.clips.Looks`); "seam_over_usual", the step across a join over the median step of the second before it, for the
worst of the joins in a hop, because a way with more context makes fewer new frames in a call.
"beats_freeze" and "right_beats_wrong" are shares of the clips over all hops. The figures of the best way have plain
names, those of the others end in the way's name.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.make.clips.scenes import render
from data.make.miniatures.dataset import EVALUATION_SEEDS
from data.make.miniatures.evaluate import MOVES, cases_of, command_line, folder_and_steps, psnr, show
from data.make.miniatures.families import Family, family_of
from data.make.miniatures.families.protocol import Continuer
from helpers.clips import Looks, carry_detail, fade_in
from helpers.hops import hop_frames, hop_latents
from helpers.lesson import use_onednn

WAYS = ("last_frame", "several", "latents", "anchor")
WINDOWS = "windows"
RATIOS = ("contrast", "saturation", "sharpness")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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
    if way == WINDOWS:
        return in_windows(continuer, family, past[-1], prompt, count, steps, seed)
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
            made = carry_detail(hop_frames(model, seen, latents), ours, past[-1])
            made = fade_in(made, seen[-1])[1:]
        new, hop = np.concatenate([new, made]), hop + 1
    return new[:count]


def in_windows(
    continuer: Continuer, family: Family, frame: np.ndarray, prompt: str, count: int, steps: int, seed: int
) -> np.ndarray:
    """`count` frames that continue one, by the pipeline that makes all windows in one call."""
    from diffusers import LTXI2VLongMultiPromptPipeline

    pipe, (width, height) = LTXI2VLongMultiPromptPipeline(**continuer.pipe.components), family.size
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(
        prompt=prompt, cond_image=Image.fromarray(frame), cond_strength=1.0, width=width, height=height,
        num_frames=count + 1, frame_rate=family.fps, num_inference_steps=steps, guidance_scale=1.0, seed=seed,
        temporal_tile_size=family.frames, temporal_overlap=family.context, temporal_overlap_cond_strength=1.0,
        decode_timestep=None, decode_noise_scale=None, decode_horizontal_tiles=1, decode_vertical_tiles=1,
        decode_overlap=1, generator=torch.Generator().manual_seed(seed), output_type="np",
    ).frames[0]  # fmt: skip
    return (frames * 255).round().clip(0, 255).astype("uint8")[1 : count + 1]  # the last window may go beyond


def figures(new: np.ndarray, true: np.ndarray, past: np.ndarray, hops: int, call: int) -> dict[str, list[float]]:
    """The figures of one continuation of the frames `past`, by hop, which a call made `call` frames at a time."""
    made, follows, frozen = floats(new), floats(true), floats(past[-1:])
    moves = ((follows - frozen).abs().amax(1, keepdim=True) > MOVES).float()
    each, before, looks = len(new) // hops, len(past), Looks().add(np.concatenate([past, new]))
    rows: dict[str, list[float]] = {}
    first, steps = looks.mean(before, before + each), [row[-1] for row in looks.rows]
    for hop in range(hops):
        part = slice(hop * each, (hop + 1) * each)
        mean = looks.mean(before + part.start, before + part.stop)
        joins = [before + at for at in range(part.start, part.stop) if at % call == 0]
        jumps = [steps[join] / max(statistics.median(steps[max(1, join - each) : join]), 1e-6) for join in joins]
        one = {
            "psnr": psnr(made[part], follows[part]),
            "moving_psnr": psnr(made[part], follows[part], moves[part]),
            "psnr_freeze": psnr(frozen.expand_as(follows[part]), follows[part]),
            "seam_over_usual": max(jumps),
        }
        one |= {name: mean[name] / max(first[name], 1e-9) for name in RATIOS}
        for name, value in one.items():
            rows.setdefault(name, []).append(value)
    return rows


def continue_clip(
    name: str, folder: Path, i: int, hops: int, seed: int, steps: int, ways: list[str]
) -> tuple[dict[str, dict], dict, list[np.ndarray]]:
    """Continue one clip in each way: the figures by way, those of a wrong prompt, and a row of pictures by way."""
    family = family_of(name)
    use_onednn()
    continuer, cases, given = family.continuer(folder, DEVICE), cases_of(family), max(family.context, family.fps)
    machine, drawn, prompt, other = cases[(i * 7) % len(cases)]
    number, count = EVALUATION_SEEDS + seed * 100_000 + i, hops * (family.frames - 1)
    video, _ = render(machine, [number], **drawn, frames=given + count, size=family.size, fps=family.fps)
    video = pixels(video[0])
    past, true = video[:given], video[given:]
    rows, pictures = {}, []
    for way in ways:
        new = go_on(continuer, family, way, past, prompt, count, steps, i)
        call = family.frames - (1 if way == "last_frame" else family.context)
        rows[way] = figures(new, true, past, hops, call)
        each = count // hops
        pictures.append(np.concatenate([past[-1], *new[each - 1 :: each]], axis=1))
    astray = go_on(continuer, family, ways[-1], past, other, count, steps, i)
    return rows, figures(astray, true, past, hops, call), pictures


def measure(
    name: str, folder: Path, clips: int, hops: int, seed: int, steps: int, ways: list[str], sheet: Path | None = None,
    jobs: int = 1,
) -> dict:  # fmt: skip
    """Continue the clips in each way; the last of `ways` is the best one, whose figures have plain names. `jobs`
    processes share the clips and the cores.
    """
    began, threads = time.perf_counter(), max(1, torch.get_num_threads() // jobs)
    work = partial(continue_clip, name, folder, hops=hops, seed=seed, steps=steps, ways=ways)
    if jobs == 1:
        done = [work(i) for i in range(clips)]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool:
            done = list(pool.map(work, range(clips)))
    by_way = {way: [rows[way] for rows, _, _ in done] for way in ways}
    wrong, pictures = [astray for _, astray, _ in done], [row for _, _, some in done for row in some][:12]
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
        "model": name, "best": ways[-1], "ways": list(ways), "clips": clips, "hops": hops, "seed": seed, "steps": steps,
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE,
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    if sheet:
        Image.fromarray(np.concatenate(pictures)).save(sheet)
    return result


def main(argv: list[str] | None = None) -> None:
    sheet = "the end of each hop of the first clips, a row per way"
    parser = command_line(__doc__.splitlines()[0], 24, sheet)
    parser.add_argument("--hops", type=int, default=5, help="how often each is continued (default: %(default)s)")
    help_ = "the last one is the best (default: all that it can)"
    parser.add_argument("--ways", nargs="+", choices=(*WAYS, WINDOWS), help=help_)
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the clips (default: %(default)s)")
    args = parser.parse_args(argv)
    folder, steps = folder_and_steps(args)
    ways = args.ways or list(WAYS if family_of(args.model).context > 1 else WAYS[:1])
    show(measure(args.model, folder, args.clips, args.hops, args.seed, steps, ways, args.sheet, args.jobs), args.json)


if __name__ == "__main__":
    main()
