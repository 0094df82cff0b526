"""What training, evaluation and the model card require of a family.

Shapes: B clips of a batch, N clips of a training set, T frames, C channels, H x W pixels or latent pixels. A
*component* is a module of the pipeline under its name there, such as `transformer` or `vae`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from helpers.hops import Continuing


class Denoising(Protocol):
    """The training task of a denoiser: it holds the training set and computes the loss."""

    latents: torch.Tensor  # [N, C, T, H, W] fp16, normalised as the pipeline normalises them
    prompts: torch.Tensor  # [N] long, or the rows of `Family.motion_conditioning` where there are no prompts
    batch_size: int

    def loss(self, denoiser: torch.nn.Module) -> torch.Tensor:
        """The loss of the denoiser on a random batch, a scalar. It must not read any tensor's value on the host, so
        that the step can be recorded as a CUDA graph.
        """
        ...


class SteppedDenoising(Denoising, Protocol):
    """A `Denoising` that can also sample, for families whose decoder is finished on generated latents."""

    def levels(self, steps: int) -> list[float]:
        """The noise levels, 1 to 0, of the scheduler's steps."""
        ...

    def predict(
        self,
        denoiser: torch.nn.Module,
        pick: torch.Tensor,
        estimate: torch.Tensor,
        sigma: torch.Tensor,
        prompt: torch.Tensor,
    ) -> torch.Tensor:
        """The clean latents [B, C, T, H, W] that the denoiser predicts.

        Args:
            pick: [B], the clips' indices in the training set.
            estimate: [B, C, T, H, W], the current estimate of the clean latents, to which noise is added.
            sigma: [B, 1, 1, 1, 1], the noise level.
            prompt: [B], the prompts' indices.
        """
        ...


class ExpertDenoising(SteppedDenoising, Protocol):
    """A `SteppedDenoising` for families with several experts."""

    def follow(self, denoiser: torch.nn.Module) -> None:
        """Start from the predictions of the expert that denoises before this one."""
        ...


class Continuer(Protocol):
    """An assembled miniature that continues clips through its real pipeline.

    Frames are float [T, 3, H, W] in 0..1, on the CPU. The first frames of a result repeat the given ones. `prompt` is
    the amount of motion, 0 to 1, where a model has no prompt.
    """

    pipe: Any

    def from_one(self, frame: torch.Tensor, prompt: str | float, steps: int, seed: int) -> torch.Tensor:
        """Continue from one frame [3, H, W]."""
        ...

    def from_several(self, frames: torch.Tensor, prompt: str | float, steps: int, seed: int) -> torch.Tensor:
        """Continue from `Family.context` frames.

        Raises:
            NotImplementedError: If that is 1.
        """
        ...

    def continuing(self, steps: int) -> Continuing:
        """What continues latents, hop after hop.

        Raises:
            NotImplementedError: If `Family.context` is 1.
        """
        ...


class Family(Protocol):
    """A model family.

    Attributes:
        frames: Length of a clip.
        size: (width, height) of a clip in pixels.
        fps: Frames per second of a clip.
        context: How many given frames the model can continue from; 1 if it takes a single frame only.
        hops: How many clips of the training set follow each other, each beginning with the last `context` frames of the
            one before. If more than 1, clips also begin later in an action, and the prompt changes between some.
        ambient: Whether the model has no prompt. It then learns ambient clips, each with an amount of motion, 0 to 1.
        denoisers: The component of each denoiser and the name of the stage that trains it, in the order of denoising.
        vae_class, denoiser_class: Their classes in diffusers.
        encoder: Class name of the text or image encoder in transformers.
        positions: Number of text positions that the denoiser attends to, padding included; `None` if it masks padding.
        storage: A sentence for the model card that says in which format the weights are stored.
        finishes_decoder: Whether the VAE's decoder is trained again at the end, on generated latents. If so,
            `statistics` must be implemented, and `denoising` must return a `SteppedDenoising`, or an
            `ExpertDenoising` if there are several denoisers.
    """

    frames: int
    size: tuple[int, int]
    fps: int
    context: int
    hops: int
    ambient: bool
    denoisers: Mapping[str, str]
    vae_class: Any
    denoiser_class: Any
    encoder: str
    positions: int | None
    storage: str
    finishes_decoder: bool

    def build_vae(self) -> torch.nn.Module:
        """A new VAE."""
        ...

    def build_denoiser(self) -> torch.nn.Module:
        """A new denoiser, prepared for training."""
        ...

    def read_denoiser(self, folder: Path) -> torch.nn.Module:
        """A denoiser with the weights in a component's folder of a work folder or of an assembled miniature."""
        ...

    def save_encoder(self, work: Path, start_from: Path | None) -> None:
        """Write the encoder of prompts or pictures into the work folder, taken from the miniature `start_from` if its
        denoiser depends on it.
        """
        ...

    def embed_prompts(self, work: Path) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Embeddings [P + 1, L, width] of all P prompts and, last, of the empty prompt, and their mask [P + 1, L];
        `None` twice for an ambient family.
        """
        ...

    def motion_conditioning(self, work: Path, vae: torch.nn.Module, device: str) -> Callable[..., torch.Tensor]:
        """For an ambient family: a function from uint8 clips [B, T, 3, H, W] and amounts of motion [B] to the rows
        [B, ...] that replace prompt indices.
        """
        ...

    def encoder_and_decoder(self, vae: Any, compiled: bool) -> tuple[Callable[..., Any], Callable[..., torch.Tensor]]:
        """Functions from pixels [B, 3, T, H, W] in -1..1 to the posterior distribution of the latents, and from latents
        [B, C, T, h, w] to pixels. Both take a whole clip at once.
        """
        ...

    def conditioning_frames(self, clips: torch.Tensor) -> torch.Tensor | None:
        """The frames [B, T', 3, H, W] in 0..255 that the pipeline encodes as conditioning, given clips
        [B, T, 3, H, W]; `None` if it needs no latents besides the clip's own.
        """
        ...

    def set_statistics(self, vae: Any, mean: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the mean and the standard deviation of the latents' channels [C] in the VAE.

        Returns:
            The mean and the standard deviation [C] to train with: as given, or what the pipeline can apply of them.
        """
        ...

    def statistics(self, vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The stored mean and standard deviation [C]."""
        ...

    def least_noise(self, component: str) -> float:
        """The lowest noise level, 0 to 1, at which a denoiser is used."""
        ...

    def denoising(
        self,
        latents: torch.Tensor,
        conditions: torch.Tensor | None,
        prompts: torch.Tensor,
        posterior_std: torch.Tensor,
        embeds: torch.Tensor | None,
        mask: torch.Tensor | None,
        batch_size: int,
        component: str,
    ) -> Denoising:
        """The training task of a denoiser.

        Args:
            latents: [N, C, T, H, W] fp16, normalised.
            conditions: [N, C, T', H, W] fp16, normalised: the encoded `conditioning_frames`, or `None`.
            prompts: [N] long, indices into `embeds`; or the rows of `motion_conditioning`.
            posterior_std: [C], the posterior's standard deviation in normalised units.
            embeds, mask: From `embed_prompts`.
            component: Which denoiser.
        """
        ...

    def assemble(self, work: Path, folder: Path) -> None:
        """Assemble the trained components in `work` into a pipeline folder in the diffusers layout."""
        ...

    def continuer(self, folder: Path, device: str) -> Continuer:
        """The assembled miniature, loaded in fp32."""
        ...
