"""Check all parameters of a lesson at once, and fill in the model's defaults.

    settings = resolve("ltx_video", globals())  # the lesson's parameters, by their names
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from helpers.clips.clip import ClipError
from helpers.clips.extending import ORIGINALS
from helpers.clips.fitting import FITS
from helpers.clips.reading import shown_size
from helpers.clips.resampling import WAYS
from helpers.clips.sources import SENTENCES, find
from helpers.clips.video.sound import AFTERWARDS
from helpers.lesson import values
from helpers.lesson.folders import from_root, joining_problems, writable
from helpers.lesson.values import ParameterError
from helpers.models.catalogue import ENCODE_WAYS, OFFLOAD_MODES, Model, model
from helpers.models.checkpoints import Checkpoint, checkpoint

MAX_SEED = 2**63 - 1  # the largest positive number that torch.Generator.manual_seed takes
MAX_SOFTEN = 10  # seconds


@dataclass(frozen=True)
class Settings:
    """A lesson's parameters, checked, with the model's defaults filled in.

    Attributes:
        model: The model.
        clip: Name of a bundled clip, or the path of a video.
        prompt, negative_prompt: What should happen next, and what should not. Unused by a model without a prompt.
        weights: Kind of weights; see `helpers.models.checkpoints.checkpoint`.
        offload: One of `OFFLOAD_MODES`.
        width, height: Size of the video in pixels.
        num_frames: Number of frames the model makes, context frames included.
        steps: Denoising steps.
        guidance_scale: Scale of classifier-free guidance; 1 switches it off.
        seed: Seed of the noise.
        vram_budget_gb: GiB of the GPU to use, or `None` for all of it.
        ram_budget_gb: GiB of RAM to stay within, or `None` for no check.
        out_dir: Where all lessons write. In the folder of the notebooks, relative paths count from the project's root.
        folder: Where this run writes, `out_dir/<model>/<clip>`; it exists.
        clip_size: (width, height) of the clip as a player shows it.
        revision: Branch, tag or commit of the Hub repository; `None` for its main branch.
        fit: How a clip with another aspect ratio is fitted, one of `FITS`.
        encode: How the prompt is encoded on the CPU, one of `ENCODE_WAYS`.
        resample: How the new frames get the clip's frame rate, one of `WAYS`.
        colour_match: How much of a colour shift at the join is corrected, 0 to 1.
        original: What happens to the clip's own frames, one of `ORIGINALS`, or `None` for "copy" where it is possible.
        sound: What is heard with the new frames, one of `AFTERWARDS`.
        soften: Seconds before the join over which the clip grows as soft as the new frames.
        slice_tokens: Tokens that the denoiser computes at a time (`helpers.slices`), or `None` for all.
        one_expert_at_a_time: Whether only one of two experts is in RAM at any time.
        low_cpu_mem_usage: Whether group offload pins only the weights that travel, which is slower and takes less RAM.
        compare: Whether the lesson takes two steps in every mode, not only in `offload`.
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
    clip_size: tuple[int, int]
    revision: str | None = None
    fit: str = "crop"
    encode: str = "fp32"
    resample: str = "blend"
    colour_match: float = 1.0
    original: str | None = None
    sound: str = "silence"
    soften: float = 0.0
    slice_tokens: int | None = None
    one_expert_at_a_time: bool = False
    low_cpu_mem_usage: bool = False
    compare: bool = True

    @property
    def size(self) -> dict[str, int]:
        """`width`, `height` and `num_frames`, as the pipelines and the forecasts take them."""
        return {"width": self.width, "height": self.height, "num_frames": self.num_frames}

    @property
    def real_size(self) -> dict[str, int | None]:
        """What to forecast for the real model: the size of this run, or with a miniature the real model's default size;
        and what saves memory besides the mode.
        """
        if self.weights != "miniature":
            return self.size | self.savings
        real = self.model.defaults["pretrained"]
        if self.model.fixed_size is None and self.height > self.width:
            real = real.turned()
        return {"width": real.width, "height": real.height, "num_frames": real.num_frames} | self.savings

    @property
    def savings(self) -> dict[str, Any]:
        """What saves memory besides the mode, as the forecasts take it."""
        return {name: getattr(self, name) for name in ("slice_tokens", "one_expert_at_a_time", "low_cpu_mem_usage")}

    def loaded(self, dtype: Any) -> dict[str, Any]:
        """What to forecast for the weights of this run, loaded in a torch `dtype`, as `forecast.forecasts` takes it.

        A half data type is left out: the model's configuration says which of its components stay in fp32.
        """
        kept = {"dtype": dtype} if str(dtype) == "torch.float32" else {}
        size = self.size | self.savings
        return {"checkpoint": self.checkpoint.local_folder(), **size, "guidance": self.guidance, **kept}

    def compares(self, mode: str) -> bool:
        """Whether the lesson takes two steps in this mode: in all, or with `compare=False` in that of the final run."""
        return self.compare or mode == self.offload

    @property
    def is_unknown_world(self) -> bool:
        """Whether a miniature is to continue another clip than the sample clips, the only world it knows."""
        return self.weights == "miniature" and self.clip not in SENTENCES

    @property
    def guidance(self) -> bool:
        """Whether classifier-free guidance is on."""
        return self.guidance_scale > 1

    @property
    def prompts(self) -> list[str]:
        """The prompts to encode: the negative one is used only with guidance."""
        return [self.prompt, self.negative_prompt] if self.guidance else [self.prompt]

    @property
    def checkpoint(self) -> Checkpoint:
        """The weights. Dummy weights are written on first use, which takes tens of GB."""
        return checkpoint(self.model.name, self.weights, self.revision)


def resolve(model_name: str, parameters: Mapping[str, Any]) -> Settings:
    """Check all parameters of a lesson, and fill in the model's defaults for those that are `None`.

    Whole numbers may come as floats (25.0), because some programs pass them so; text is never read as a number.

    Args:
        model_name: A name in `helpers.models.MODELS`.
        parameters: The lesson's parameters by name, a notebook's `globals()` for example; other names are ignored.
            `revision`, `fit`, `encode`, `resample`, `colour_match`, `original`, `sound`, `soften`,
            `slice_tokens`, the switches and `ignore_prompt` may be missing. A model that takes no prompt refuses one,
            unless `ignore_prompt` is set.

    Raises:
        ValueError: If there is no such model.
        ParameterError: If any parameter cannot be used. All of them are listed, each with the nearest valid value.
    """
    entry = model(model_name)
    given = parameters.get
    problems: list[str] = []

    weights = values.text(problems, "weights", given("weights"))
    try:
        if weights is not None and weights != "dummy":  # those are written when they are first needed
            checkpoint(entry.name, weights)
    except ValueError as error:
        problems.append(f"weights={weights!r}: {error}")
    # A folder of the reader's own usually holds a real model.
    defaults = entry.defaults.get(weights, entry.defaults["pretrained"])
    # Training fixed what is fixed, and a miniature was trained at another size.
    rules = replace(
        entry,
        fixed_size=entry.fixed_size and (defaults.width, defaults.height),
        fixed_frames=entry.fixed_frames and defaults.num_frames,
    )

    clip = given("clip")
    clip = values.text(problems, "clip", str(clip) if isinstance(clip, Path) else clip)
    clip_size = None
    try:
        if clip is not None:
            clip = _found(clip)
            clip_size = shown_size(clip)
    except ClipError as error:
        problems.append(f"clip={clip!r}: {error}")
    if given("width") is None and given("height") is None and clip_size and rules.fixed_size is None:
        defaults = defaults.turned() if clip_size[1] > clip_size[0] else defaults

    def asked(name: str) -> Any:
        value = given(name)
        return getattr(defaults, name) if value is None else value

    prompt = _prompt(problems, entry, given("prompt"), clip, bool(given("ignore_prompt")))
    negative = given("negative_prompt")
    negative = values.text(problems, "negative_prompt", "" if negative is None else negative)

    offload = values.text(problems, "offload", given("offload"))
    if offload is not None and offload not in OFFLOAD_MODES:
        near = difflib.get_close_matches(offload, OFFLOAD_MODES, n=1, cutoff=0.4)
        hint = f"nearest: {near[0]!r}; " if near else ""
        problems.append(f"offload={offload!r}: {hint}choose from {', '.join(OFFLOAD_MODES)}.")

    width, height = (values.whole_number(problems, name, asked(name)) for name in ("width", "height"))
    nearest = rules.nearest_size(asked("width"), asked("height"))
    for name, value, valid in (("width", width, nearest[0]), ("height", height, nearest[1])):
        if value is not None and value != valid:
            problems.append(f"{name}={value}: {entry.title} makes {rules.size_rule}; nearest: {valid}.")

    num_frames = values.whole_number(problems, "num_frames", asked("num_frames"))
    if num_frames is not None and num_frames != (valid := rules.nearest_frames(num_frames)):
        problems.append(f"num_frames={num_frames}: {entry.title} makes {rules.frames_rule}; nearest: {valid}.")

    steps = values.whole_number(problems, "steps", asked("steps"), least=1)
    guidance_scale = values.number(problems, "guidance_scale", asked("guidance_scale"))
    if guidance_scale is not None and guidance_scale < 1:
        problems.append(f"guidance_scale={guidance_scale:g}: at least 1, which switches guidance off; nearest: 1.")
    seed = values.whole_number(problems, "seed", given("seed"), least=0, most=MAX_SEED)

    revision = given("revision")
    if revision is not None and (not isinstance(revision, str) or not revision):
        problems.append(f"revision={revision!r}: give a branch, tag or commit in quotes, or None.")
    words = {
        name: values.word(problems, name, parameters.get(name, choices[0]), choices)
        for name, choices in (("fit", FITS), ("encode", ENCODE_WAYS), ("resample", WAYS), ("sound", AFTERWARDS))
    }
    colour_match = values.number(problems, "colour_match", parameters.get("colour_match", 1.0))
    if colour_match is not None and not 0 <= colour_match <= 1:
        problems.append(f"colour_match={colour_match:g}: from 0, which corrects nothing, to 1; nearest: 1.")
    original = given("original")
    if original is not None:
        original = values.word(problems, "original", original, ORIGINALS)
    soften = values.number(problems, "soften", parameters.get("soften", 0.0))
    if soften is not None and not 0 <= soften <= MAX_SOFTEN:
        problems.append(f"soften={soften:g}: from 0, which leaves your clip as it is, to {MAX_SOFTEN} seconds.")
    if soften and original == "copy":
        problems.append("soften needs the clip to be encoded: leave original=None, or set soften=0 to copy it.")
    slice_tokens = given("slice_tokens")
    if slice_tokens is not None:
        slice_tokens = values.whole_number(problems, "slice_tokens", slice_tokens, least=1)
    switches = {
        name: values.switch(problems, name, parameters.get(name, usual))
        for name, usual in (("one_expert_at_a_time", False), ("low_cpu_mem_usage", False), ("compare", True))
    }
    switches["compare"] = switches["compare"] and not switches["one_expert_at_a_time"]  # most modes hold both
    if switches["one_expert_at_a_time"] and offload in OFFLOAD_MODES and not offload.startswith("group"):
        problems.append(f"one_expert_at_a_time does not go with offload={offload!r}; nearest: 'group_leaf'.")
    budgets = {
        name: _budget(problems, name, given(name), meaning)
        for name, meaning in (("vram_budget_gb", "the whole card"), ("ram_budget_gb", "no check"))
    }
    folder = writable(problems, given("out_dir"), Path(entry.name), clip)
    if clip_size is not None and folder is not None:
        problems += joining_problems(find(clip), folder, original)
    if problems:
        if folder is not None:
            with suppress(OSError):
                folder.rmdir()  # only succeeds if it is empty
        count = "1 parameter cannot" if len(problems) == 1 else f"{len(problems)} parameters cannot"
        raise ParameterError("\n- ".join([f"{count} be used:", *problems]))
    return Settings(
        model=entry, clip=clip, prompt=prompt, negative_prompt=negative, weights=weights, offload=offload, width=width,
        height=height, num_frames=num_frames, steps=steps, guidance_scale=guidance_scale, seed=seed,
        out_dir=folder.parents[1], folder=folder, clip_size=clip_size, revision=revision, original=original,
        colour_match=colour_match, soften=soften, slice_tokens=slice_tokens, **switches, **budgets, **words,
    )  # fmt: skip


def _found(clip: str) -> str:
    """The clip's name or path. A relative path counts from the current folder, then as in `from_root`."""
    path = from_root(Path(clip).expanduser())
    if not Path(clip).expanduser().exists() and path.exists():
        clip = str(path)
    find(clip)
    return clip


def _prompt(problems: list[str], entry: Model, prompt: Any, clip: str | None, ignore: bool) -> str | None:
    if prompt is None:
        prompt = "" if entry.max_prompt_tokens is None else SENTENCES.get(clip)
        if prompt is None:
            problems.append(
                "prompt=None: only the sample clips have a sentence of their own. Say what happens next in your clip, "
                'for example "the dog jumps over the fence".'
            )
        return prompt
    prompt = values.text(problems, "prompt", prompt)
    if prompt is None:
        return None
    if entry.max_prompt_tokens is not None and not prompt.strip():
        problems.append(
            "prompt is empty: describe what should happen next, for example "
            '"the excavator lifts its bucket and turns to the left".'
        )
    if entry.max_prompt_tokens is None and prompt.strip():
        if ignore:
            return ""
        problems.append(
            f"prompt={prompt!r}: {entry.title} takes no prompt, only a picture. Leave it empty, or set "
            "ignore_prompt=True to ignore it."
        )
    return prompt


def _budget(problems: list[str], name: str, value: Any, meaning: str) -> float | None:
    if value is None:
        return None
    budget = values.number(problems, name, value)
    if budget is not None and budget <= 0:
        problems.append(f"{name}={value:g}: give more than 0 GiB, or None for {meaning}.")
    return budget
