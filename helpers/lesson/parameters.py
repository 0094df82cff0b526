"""Checks of a lesson's parameters, of its prompt and of the machine, with errors that say what to do.

    from helpers.checks import environment, resolve

    settings = resolve("ltx_video", clip=clip, prompt=prompt, ...)  # every parameter of the lesson
    environment(settings)

A parameter that is `None` gets the model's own default. `environment` and what belongs to it are those of
`helpers.machine`.
"""

from __future__ import annotations

import difflib
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from helpers.checkpoints import checkpoint
from helpers.clips import ClipError, find
from helpers.machine import Environment, EnvironmentProblem, environment
from helpers.models import Model, model

__all__ = [
    "MAX_SEED", "OFFLOAD_MODES", "Environment", "EnvironmentProblem", "ParameterError", "Settings", "environment",
    "inside", "one_of", "prompt_cut", "resolve", "whole",
]  # fmt: skip

OFFLOAD_MODES = ("none", "model", "sequential", "group_block", "group_leaf")
MAX_SEED = 2**63 - 1  # the largest that torch.Generator.manual_seed takes as a positive number


class ParameterError(ValueError):
    """One or more of a lesson's parameters cannot be used; the message has a line for each."""


@dataclass(frozen=True)
class Settings:
    """A lesson's parameters, checked, with the model's defaults filled in.

    Attributes:
        model: The model.
        clip: Name of a bundled clip, or the path of a video.
        prompt, negative_prompt: What should happen next, and what should not. Not used by a model without a
            prompt.
        weights: Kind of weights, see `helpers.checkpoints.checkpoint`.
        offload: One of `OFFLOAD_MODES`.
        width, height: Size of the video, in pixels.
        num_frames: Number of frames the model makes, its context frames included.
        steps: Denoising steps.
        guidance_scale: Scale of classifier-free guidance, 1 for none.
        seed: Seed of the noise.
        vram_budget_gb: GiB of the graphics card to use, or `None` for the whole card.
        ram_budget_gb: GiB of RAM to stay within, or `None` for no check.
        out_dir: Where all lessons write.
        folder: Where this lesson writes, `out_dir/<model>`; it exists.
    """

    model: Model = field(repr=False)
    clip: str
    prompt: str
    negative_prompt: str
    weights: str
    offload: str
    width: int
    height: int
    num_frames: int
    steps: int
    guidance_scale: float
    seed: int
    vram_budget_gb: float | None
    ram_budget_gb: float | None
    out_dir: Path
    folder: Path


def resolve(
    model_name: str,
    *,
    clip: str,
    prompt: str,
    negative_prompt: str | None,
    weights: str,
    offload: str,
    width: int | None,
    height: int | None,
    num_frames: int | None,
    steps: int | None,
    guidance_scale: float | None,
    seed: int,
    vram_budget_gb: float | None,
    ram_budget_gb: float | None,
    out_dir: str | Path,
    ignore_prompt: bool = False,
) -> Settings:
    """Checks all parameters of a lesson and fills in the model's defaults for those that are `None`.

    Whole numbers may come as floats (25.0), as some programs pass them; text is never read as a number.

    Args: see `Settings`; `out_dir` is the folder in which the model's own folder is created. A model that takes no
    prompt refuses one, unless `ignore_prompt` says to go on without it.

    Raises:
        ValueError: If there is no such model.
        ParameterError: If any parameter cannot be used. All of them are listed, each with the nearest valid
            value.
    """
    entry = model(model_name)
    problems: list[str] = []

    weights = _text(problems, "weights", weights)
    try:
        if weights is not None and weights != "dummy":  # that one is written later, when it is needed
            checkpoint(entry.name, weights)
    except ValueError as error:
        problems.append(f"weights={weights!r}: {error}")
    # A folder of one's own holds a real model as a rule.
    defaults = entry.defaults.get(weights, entry.defaults["pretrained"])
    # What is fixed was fixed by training, and a miniature was trained at a size of its own.
    rules = replace(
        entry,
        fixed_size=entry.fixed_size and (defaults.width, defaults.height),
        fixed_frames=entry.fixed_frames and defaults.num_frames,
    )

    clip = _text(problems, "clip", str(clip) if isinstance(clip, Path) else clip)
    try:
        if clip is not None:
            find(clip)
    except ClipError as error:
        problems.append(f"clip={clip!r}: {error}")

    prompt = _text(problems, "prompt", prompt)
    if entry.max_prompt_tokens is not None and prompt is not None and not prompt.strip():
        problems.append(
            "prompt is empty: describe what should happen next, for example "
            '"the excavator lifts its bucket and turns to the left".'
        )
    elif entry.max_prompt_tokens is None and prompt is not None and prompt.strip():
        if ignore_prompt:
            prompt = ""
        else:
            problems.append(
                f"prompt={prompt!r}: {entry.title} takes no prompt, only a picture. Leave it empty, or set "
                "ignore_prompt=True to go on without it."
            )
    negative_prompt = _text(problems, "negative_prompt", "" if negative_prompt is None else negative_prompt)

    offload = _text(problems, "offload", offload)
    if offload is not None and offload not in OFFLOAD_MODES:
        near = difflib.get_close_matches(offload, OFFLOAD_MODES, n=1, cutoff=0.4)
        hint = f"nearest: {near[0]!r}; " if near else ""
        problems.append(f"offload={offload!r}: {hint}there are {', '.join(OFFLOAD_MODES)}.")

    width = _whole(problems, "width", defaults.width if width is None else width)
    height = _whole(problems, "height", defaults.height if height is None else height)
    nearest = rules.nearest_size(
        defaults.width if width is None else width, defaults.height if height is None else height
    )
    for name, value, valid in (("width", width, nearest[0]), ("height", height, nearest[1])):
        if value is not None and value != valid:
            problems.append(f"{name}={value}: {entry.title} makes {rules.size_rule}; nearest: {valid}.")

    num_frames = _whole(problems, "num_frames", defaults.num_frames if num_frames is None else num_frames)
    if num_frames is not None and num_frames != (valid := rules.nearest_frames(num_frames)):
        problems.append(
            f"num_frames={num_frames}: {entry.title} makes {rules.frames_rule}; nearest: {valid}."
        )

    steps = _whole(problems, "steps", defaults.steps if steps is None else steps, least=1)
    guidance_scale = _number(
        problems, "guidance_scale", defaults.guidance_scale if guidance_scale is None else guidance_scale
    )
    if guidance_scale is not None and guidance_scale < 1:
        problems.append(
            f"guidance_scale={guidance_scale:g}: at least 1, which switches guidance off; nearest: 1."
        )
    seed = _whole(problems, "seed", seed, least=0, most=MAX_SEED)

    budgets = {}
    for name, value, meaning in (
        ("vram_budget_gb", vram_budget_gb, "the whole card"),
        ("ram_budget_gb", ram_budget_gb, "no check"),
    ):
        budgets[name] = value if value is None else _number(problems, name, value)
        if budgets[name] is not None and budgets[name] <= 0:
            problems.append(f"{name}={value:g}: give more than 0 GiB, or None for {meaning}.")

    folder = _writable(problems, out_dir, entry.name)
    if problems:
        count = "1 parameter cannot" if len(problems) == 1 else f"{len(problems)} parameters cannot"
        raise ParameterError("\n- ".join([f"{count} be used:", *problems]))
    return Settings(
        model=entry,
        clip=clip,
        prompt=prompt,
        negative_prompt=negative_prompt,
        weights=weights,
        offload=offload,
        width=width,
        height=height,
        num_frames=num_frames,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        out_dir=folder.parent,
        folder=folder,
        **budgets,
    )


def inside(name: str, value: float | None, low: float, high: float) -> float | None:
    """Returns a lesson's own parameter, a number between two others, or `None` as it came.

    Raises:
        ParameterError: If it is no number, or not between them.
    """
    problems: list[str] = []
    if value is not None:
        value = _number(problems, name, value)
        if value is not None and not low < value < high:
            problems.append(f"{name}={value:g}: between {low:g} and {high:g}, or None for the model's own.")
    if problems:
        raise ParameterError(problems[0])
    return value


def whole(name: str, value: float, least: float, most: float) -> int:
    """Returns a lesson's own parameter, a whole number from `least` to `most`.

    Raises:
        ParameterError: If it is none of these; the message names the nearest.
    """
    problems: list[str] = []
    number = _whole(problems, name, value, least, most)
    if problems:
        raise ParameterError(problems[0])
    return number


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """Returns a lesson's own parameter, one of a few words.

    Raises:
        ParameterError: If it is none of them; the message names all.
    """
    if value not in choices:
        raise ParameterError(f"{name}={value!r}: there are {', '.join(choices)}.")
    return value


def _text(problems: list[str], name: str, value: Any) -> str | None:
    """Returns a text, or `None` after noting the problem."""
    if isinstance(value, str):
        return value
    problems.append(f"{name}={value!r}: give a text in quotes, not {type(value).__name__}.")
    return None


def _number(problems: list[str], name: str, value: Any) -> float | None:
    """Returns a finite number as a float, or `None` after noting the problem."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        problems.append(f"{name}={value!r}: give a number, without quotes.")
        return None
    return float(value)


def _whole(
    problems: list[str], name: str, value: Any, least: float = -math.inf, most: float = math.inf
) -> int | None:
    """Returns a whole number, or `None` after noting the problem."""
    if _number(problems, name, value) is None:
        return None
    # Compared as they came: a seed by way of float would be rounded.
    if value != int(value):
        problems.append(f"{name}={value}: give a whole number; nearest: {max(round(value), least)}.")
    elif not least <= value <= most:
        problems.append(f"{name}={value}: out of range; nearest: {least if value < least else most}.")
    else:
        return int(value)
    return None


def _writable(problems: list[str], out_dir: Any, model_name: str) -> Path | None:
    """Creates `out_dir/<model>` and tries to write there. Returns it, or `None` after noting the problem."""
    if not isinstance(out_dir, str | Path) or not str(out_dir):
        problems.append(f"out_dir={out_dir!r}: give the path of a folder in quotes.")
        return None
    folder = Path(out_dir).expanduser() / model_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problems.append(
            f"out_dir={str(out_dir)!r}: cannot write to {folder} ({error.strerror}); give another folder."
        )
        return None
    return folder


def prompt_cut(tokenizer: Any, prompt: str, max_tokens: int) -> str:
    """Returns the end of a prompt that the text encoder will not see, or "" if it sees all of it.

    Args:
        tokenizer: A fast tokenizer of transformers, the pipeline's own.
        prompt: The prompt.
        max_tokens: `Model.max_prompt_tokens`; the tokenizer's own end token counts as one of them.
    """
    room = max_tokens - tokenizer.num_special_tokens_to_add()
    spans = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    return prompt[spans[room][0] :].strip() if len(spans) > room else ""
