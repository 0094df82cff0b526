"""Defaults of the families, and the loop around their pipelines that most of them share."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data.make.clips.scenes import PROMPTS
from helpers.hops import Continuing

from .. import prompts
from .protocol import Family


class BaseFamily(Family):
    """The defaults: a family with prompts, a single given frame, a single denoiser, and weights in fp16."""

    context = 1
    hops = 1
    ambient = False
    denoisers = {"transformer": "denoiser"}
    encoder = "T5EncoderModel"
    positions: int | None = None
    storage = "All weights are stored in fp16."
    finishes_decoder = False

    def read_denoiser(self, folder: Path) -> torch.nn.Module:
        return self.denoiser_class.from_pretrained(folder)

    def save_encoder(self, work: Path, start_from: Path | None) -> None:
        if (work / "text_encoder" / "config.json").exists():
            return
        if start_from and (start_from / "tokenizer").exists():  # its denoiser knows these embeddings
            for component in ("tokenizer", "text_encoder"):
                shutil.copytree(start_from / component, work / component, dirs_exist_ok=True)
        else:
            prompts.save_tokenizer_and_encoder(work, self.encoder)

    def embed_prompts(self, work: Path) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        return prompts.embed(work, [*PROMPTS, ""], self.positions)

    def motion_conditioning(self, work: Path, vae: torch.nn.Module, device: str) -> Callable[..., torch.Tensor]:
        raise NotImplementedError(f"{type(self).__name__} has prompts")

    def conditioning_frames(self, clips: torch.Tensor) -> torch.Tensor | None:
        return None

    def statistics(self, vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
        raise NotImplementedError(f"{type(self).__name__} does not finish its decoder")

    def least_noise(self, component: str) -> float:
        return 0.0


class PromptContinuer:
    """Continues one frame with a pipeline that is called with `image` and `prompt`.

    Args:
        pipe: The pipeline, in fp32.
        frames: Length of a result, the given frame included.
    """

    def __init__(self, pipe: Any, frames: int, device: str):
        self.pipe, self.frames = pipe.to(device), frames
        self.pipe.set_progress_bar_config(disable=True)

    def from_one(
        self, frame: torch.Tensor, prompt: str | float, steps: int, seed: int, output_type: str = "pt"
    ) -> torch.Tensor:
        height, width = frame.shape[-2:]
        out = self.pipe(
            height=height, width=width, num_frames=self.frames, num_inference_steps=steps,
            generator=torch.Generator().manual_seed(seed), output_type=output_type, **self.arguments(frame, prompt),
        )  # fmt: skip
        return out.frames[0].float().cpu()

    def arguments(self, frame: torch.Tensor, prompt: str | float) -> dict[str, Any]:
        """The arguments of the pipeline that depend on the model."""
        return {"image": frame[None], "prompt": prompt, "guidance_scale": 1.0}

    def from_several(self, frames: torch.Tensor, prompt: str | float, steps: int, seed: int) -> torch.Tensor:
        raise NotImplementedError("this model continues a single frame")

    def continuing(self, steps: int) -> Continuing:
        raise NotImplementedError("this model continues a single frame")
