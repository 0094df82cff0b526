"""Finish a lesson: save the longer clip and the record, and compare the new frames with what really came next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.clips.clip import Clip
from helpers.clips.joining import psnr, seam, stitch
from helpers.clips.pictures import poster, save_image, show, side_by_side
from helpers.clips.reading import continuation_truth
from helpers.clips.writing import write
from helpers.lesson.cache import SavedLatents
from helpers.lesson.parameters import Settings
from helpers.measure.comparison import ModeRun
from helpers.measure.meter import VRAMMeter
from helpers.measure.records import record, save


def save_clip(longer: Clip, source: Clip, settings: Settings) -> None:
    """Write `continued.mp4` and `poster.png` into the lesson's folder, and show the last seconds of the clip.

    Args:
        longer: The clip with its continuation.
        source: The clip that was read, whose sound plays under the beginning.
    """
    video = write(settings.folder / "continued.mp4", longer, audio_from=source)
    picture = save_image(settings.folder / "poster.png", poster(longer, count=6, height=160))
    print(f"{source.seconds:.1f} s became {longer.seconds:.1f} s at {longer.fps:g} fps and "
          f"{longer.width}x{longer.height}: {video.name}, {picture.name}")  # fmt: skip
    show(longer[-2 * (len(longer) - len(source)) :])


def extend_clip(frames: np.ndarray, source: Clip, past: Clip, settings: Settings) -> None:
    """Join the model's frames to the clip, save the result, and print how well they join. Lesson 01 writes this out.

    Args:
        frames: `np.uint8` [T, H, W, 3] as the model made them; the first repeats the clip's last frame.
        source: The clip that was read.
        past: The clip at the model's size.
    """
    longer = stitch(
        past, frames, fps=settings.model.fps, resampled=settings.resample, fitted_from=source, fitted=settings.fit
    )
    save_clip(longer, source, settings)
    print(seam(past, frames[1:], fps=settings.model.fps))


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
    **extra: object,
) -> Path:
    """Write the record of the run, `run.json`, into the lesson's folder.

    Args:
        runs: The modes that were compared.
        saved: The latents of the run; their notes say which mode made them, and what the meter measured.
        encode_prompt, decode: The meters of these stages.
        extra: More keys for the record.

    Returns:
        The path of `run.json`.
    """
    notes = saved.notes
    meters = {"encode_prompt": encode_prompt, "generate": notes["meter"], "decode": decode}
    chosen = next(run for run in runs if run.offload == notes["offload"])
    stages = {"denoise": notes["meter"]["phases"][-1]["seconds"], "decode": decode.seconds}
    if encode_prompt is not None:
        stages = {"encode_prompt": encode_prompt.seconds, **stages}
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
        **extra,
    )
    return save(made, settings.folder / "run.json")
