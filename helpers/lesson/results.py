"""Finish a lesson: save the longer clip and the record, and compare the new frames with what really came next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.clips.clip import Clip
from helpers.clips.drift import Looks
from helpers.clips.extending import extend
from helpers.clips.fitting import soft_size, softened, unfit
from helpers.clips.joining import Seam, carry_detail, carry_grain, match_colour, psnr, seam, sharpness_kept
from helpers.clips.pictures import poster, save_image, show, side_by_side
from helpers.clips.reading import continuation_truth
from helpers.clips.resampling import at_rate, resample_pieces
from helpers.lesson.cache import SavedLatents
from helpers.lesson.folders import fingerprint
from helpers.lesson.parameters import Settings
from helpers.measure.comparison import ModeRun
from helpers.measure.meter import VRAMMeter
from helpers.measure.records import record, save

PIECE_BYTES = 64 * 2**20  # of large frames that are made at a time
SLOW = 10  # frames a second, of GIFs, time lapses and surveillance


def extend_clip(
    frames: np.ndarray, source: Clip, past: Clip, settings: Settings, before: Seam
) -> dict[str, object]:
    """Join the model's frames to the clip's whole file, show the end of the result, and say how well they join.

    Writes `continued.mp4` and `poster.png` into the run's folder. Lesson 01 explains the steps.

    Args:
        frames: `np.uint8` [T, H, W, 3] of the model's size; the first repeats the clip's last frame.
        source: The clip that was read.
        past: The clip at the model's size.
        before: The join before colours and grain were carried over.

    Returns:
        For the record: how the clip's own frames were kept, the figures of the join, and the drift.
    """
    return extend_clip_by(lambda: [frames[1:]], frames[:1], source, past, settings, before)


def extend_clip_by(
    hops: Callable[[], Iterable[np.ndarray]], ours: np.ndarray, source: Clip, past: Clip, settings: Settings,
    before: Seam,
) -> dict[str, object]:  # fmt: skip
    """`extend_clip` for new frames that come hop by hop, so that RAM does not grow with their number.

    Args:
        hops: Returns the new frames, `np.uint8` [T, H, W, 3] of the model's size, some at a time; called several times.
        ours: [1, H, W, 3], what the model makes of the clip's last frame.
        source, past, settings, before: As for `extend_clip`.
    """
    rate = new_rate(source, settings.model.fps)
    rates = {"fps": settings.model.fps, "to_fps": float(rate), "how": settings.resample}

    def at_new_rate() -> Iterator[np.ndarray]:
        return resample_pieces(hops(), past.frames[-1], **rates)

    last = source.frames[-1]
    soft = soft_size(source.size, *past.size, settings.fit) if settings.soften else None
    if soft is not None:
        last = softened(last[None], soft)[0]
    reference = unfit(ours, last, settings.fit)[0]

    def large(small: np.ndarray) -> np.ndarray:
        frames = unfit(small, last, settings.fit)
        return frames if soft is not None else carry_detail(frames, reference, last)

    count = max(1, PIECE_BYTES // last.nbytes)

    def pieces() -> Iterator[np.ndarray]:  # RAM holds a few large frames at a time
        for frames in at_new_rate():
            for begin in range(0, len(frames), count):
                yield large(frames[begin : begin + count])

    made = extend(
        source, pieces, rate=rate, path=settings.folder / "continued.mp4", original=settings.original,
        afterwards=settings.sound, soften=settings.soften, soft=soft,
    )  # fmt: skip
    looks, new = Looks(), next(iter(hops()))
    for frames in hops():
        looks.add(frames)
    first = next(at_new_rate())
    ending = at_rate(past, float(rate)).frames[-len(first) :]
    end = Clip(np.concatenate([ending, first]), float(rate), name=f"the join in {made.path.name}")
    picture = save_image(settings.folder / "poster.png", poster(end, count=6, height=160))
    print(f"{made}\n{made.path.name} and {picture.name} are in {made.path.parent}")
    remarks = list(_remarks(source, rate, settings))
    print(*remarks, sep="\n", end="\n" * bool(remarks))
    print(f"{end.seconds:.1f} s around the join, small:")
    show(end)
    joined, sharp = seam(past, new, fps=settings.model.fps), sharpness_kept(last, large(first[:1])[0])
    print(f"{joined}\nsharpness of the first new frame: {sharp:.0%} of the clip's last one")
    return {
        "original": made.how, "remarks": [made.why, *remarks], "join_seconds": made.join, "seconds": made.seconds,
        "sharpness_kept": sharp, "seam": asdict(joined), "seam_before_correction": asdict(before),
        "drift": drift_of(looks),
    }  # fmt: skip


def drift_of(looks: Looks) -> dict[str, dict[str, float]] | None:
    """For the record: how the end of the new frames differs from their beginning; `None` if they are too few."""
    return {**asdict(drift), "change": drift.change} if len(looks.rows) > 3 and (drift := looks.drift()) else None


def _remarks(source: Clip, rate: Fraction, settings: Settings) -> Iterator[str]:
    if rate != source.rate and len(source) > 1:
        yield f"Your clip has {source.fps:g} frames a second, too few for motion: the new ones come {rate} a second."
    if settings.is_unknown_world:
        yield (
            "The miniature knows only the world of the sample clips. For real pictures set weights to 'pretrained': "
            "-p weights pretrained"
        )


def carry_over(frames: np.ndarray, past: Clip, settings: Settings) -> tuple[np.ndarray, Seam]:
    """Give frames the clip's colours and grain.

    Args:
        frames: `np.uint8` [T, H, W, 3]; the first repeats the clip's last frame.
        past: The clip at the model's size.

    Returns:
        The frames, and how they joined the clip before.
    """
    last, before = past.frames[-1], seam(past, frames[1:], fps=settings.model.fps)
    return carry_grain(match_colour(frames, last, settings.colour_match), last), before


def new_rate(source: Clip, model_fps: float) -> Fraction:
    """The rate of the new frames: the clip's, but the model's after a single picture, or a clip slower than it."""
    slower = source.fps <= SLOW and source.fps < model_fps
    return Fraction(model_fps) if slower or len(source) == 1 else source.rate


def true_frames(source: Clip, past: Clip, count: int, fps: float, fit: str) -> np.ndarray | None:
    """What really came next, at the times of `count` new frames; `None` for clips without a known continuation.

    Args:
        source: The clip that was read.
        past: The clip at the model's size.
        count, fps: Number and rate of the new frames, without the one that repeats the clip's last frame.
        fit: How the clip was fitted.

    Returns:
        `np.uint8` [up to count, H, W, 3] at the model's size.
    """
    truth = continuation_truth(source, max_seconds=(count + 1) / fps)
    if truth is None:
        return None
    moments = (np.arange(1, count + 1) / fps * truth.fps).round().astype(int)  # in the truth's frames after the join
    return truth.fit(*past.size, fit).frames[moments[moments <= len(truth)] - 1]


def against_truth(new: np.ndarray, source: Clip, past: Clip, fps: float, settings: Settings) -> Image.Image:
    """Show new frames above the true ones, and print how similar they are (PSNR), beside a frozen last frame.

    Args:
        new: `np.uint8` [T, H, W, 3], without the frame that repeats the clip's last one.
        source, past, fps: As for `true_frames`.
    """
    rows, truth = {"generated": new}, true_frames(source, past, len(new), fps, settings.fit)
    if truth is not None:
        rows["truth"] = truth
        frozen = past.frames[-1:].repeat(len(truth), axis=0)
        print(f"PSNR {psnr(new[: len(truth)], truth):.1f} dB; last frame frozen {psnr(frozen, truth):.1f} dB")
    return side_by_side(rows, count=4, height=140)


def answered(number: int, answer: object) -> bool:
    """Whether a reader has answered an exercise; if the answer is still `None`, print that."""
    if answer is None:
        print(f"exercise {number}: no answer yet")
    return answer is not None


def record_run(
    settings: Settings,
    runs: Sequence[ModeRun],
    saved: SavedLatents,
    *,
    decode: VRAMMeter,
    encode_prompt: VRAMMeter | None = None,
    joined: dict[str, object] | None = None,
    parameters: Mapping[str, object] | None = None,
    **extra: object,
) -> Path:
    """Write the record of the run, `run.json`, into the lesson's folder.

    Args:
        runs: The modes that were compared.
        saved: The latents of the run; their notes say which mode made them, and what the meter measured.
        encode_prompt, decode: The meters of these stages.
        joined: What `extend_clip` returned.
        parameters: The lesson's own parameters, by name.
        extra: More keys for the record.

    Returns:
        The path of `run.json`, whose name is also printed.
    """
    notes = saved.notes
    meters = {"encode_prompt": encode_prompt, "generate": notes["meter"], "decode": decode}
    chosen = next((run for run in runs if run.offload == notes["offload"]), runs[0])
    stages = {"denoise": notes["meter"]["phases"][-1]["seconds"], "decode": decode.seconds}
    if encode_prompt is not None:
        stages = {"encode_prompt": encode_prompt.seconds, **stages}
    rest = {
        name: getattr(settings, name)
        for name in (
            "negative_prompt", "fit", "encode", "resample", "colour_match", "original", "sound", "soften", "revision",
            "slice_tokens", "one_expert_at_a_time", "low_cpu_mem_usage",
        )
    }  # fmt: skip
    made = record(
        settings,
        offload=notes["offload"],
        modes=runs,
        chosen=chosen,
        meters={stage: meter for stage, meter in meters.items() if meter is not None},
        step_seconds=notes["step_seconds"],
        stages=stages,
        forecast=chosen.forecast_gib,
        vram_cap_gib=None if decode.peak_allocated_gib is None else settings.vram_budget_gb,
        joined=joined,
        parameters=rest | {"source": fingerprint(settings.clip)} | dict(parameters or {}),
        **extra,
    )
    path = save(made, settings.folder / "run.json")
    print(f"the record: {path.name}, beside the clip")
    return path
