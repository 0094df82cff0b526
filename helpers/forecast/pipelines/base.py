"""What the families share: a request, its rules, and a base class of the stages.

A stage follows its pipeline's own lines in diffusers 0.42 (each class names the file), so that the tensors that the
pipeline keeps alive are alive here too. A denoising step is one whole step of the loop, with both passes of
classifier-free guidance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from helpers.forecast.recording.replay import Method
from helpers.models.architecture import Architecture
from helpers.slices.slicing import slice_activations
from helpers.slices.vae import decode_lean

MOST_PIECES = 1000  # slices of a forward


class RequestError(ValueError):
    """A size, a number of frames or an option that the model cannot work with; the message names the nearest."""


@dataclass(frozen=True)
class Request:
    """What to generate.

    Attributes:
        width, height: Pixels.
        num_frames: Frames, including the given one.
        guidance: Whether classifier-free guidance is on, which doubles the denoiser's work.
        tiling: Whether the VAE works in tiles, or `None` for where it does in the lessons.
        chunking: Whether the feed-forward layers work in chunks (the SVD UNet's `enable_forward_chunking`).
        decode_chunk_size: Frames that the SVD decoder takes at once.
        slice_tokens: Tokens that the denoiser computes at a time, or `None` for all.
        lean_decoding: Whether the VAE decodes as `decode_lean` makes it, or `None` for with slices alone.
    """

    width: int
    height: int
    num_frames: int
    guidance: bool = True
    tiling: bool | None = None
    chunking: bool = True
    decode_chunk_size: int = 8
    slice_tokens: int | None = None
    lean_decoding: bool | None = None

    @property
    def size_text(self) -> str:
        return f"{self.width}x{self.height}, {self.num_frames} frames"


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


class Stages(ABC):
    """The stages of one family.

    Attributes:
        prompt_tokens: Length that the pipeline pads prompts to.
        size_multiple: Width and height must be multiples of this, in pixels.
        frames_multiple: m where the number of frames must be m*k + 1, or `None` if any number works.
        fixed_size: The only (width, height) that works, or `None`.
        options: The options of a request, beyond size and frames, that each stage depends on.
        encodes_in_tiles: Whether the lesson of this family encodes the given frame in tiles. All decode in tiles.
        blends: Names of the VAE's methods that blend tiles.
        left_out: What the forecast does not cover, as a sentence, or "".

    Raises:
        RequestError: If the model cannot generate what is requested.
    """

    prompt_tokens = 0
    size_multiple = 8
    frames_multiple: int | None = None
    options = {
        "encode_image": ("tiling",),
        "denoise": ("guidance", "slice_tokens"),
        "decode": ("tiling", "lean_decoding"),
    }
    encodes_in_tiles = False
    blends: tuple[str, ...] = ("blend_v", "blend_h")
    left_out = ""

    def __init__(self, arch: Architecture, request: Request) -> None:
        self.arch, self.request = arch, request
        self.vae = arch.component("vae")
        self.denoiser = arch.component(arch.denoisers[0])
        self.config = self.denoiser.config
        self.dtype = arch.dtype(arch.denoisers[0])
        self.batch = 2 if request.guidance else 1
        self.check()

    def check(self) -> None:
        """Raise a RequestError for a size or a number of frames that the pipeline would refuse or round."""
        for name, side in (("width", self.request.width), ("height", self.request.height)):
            multiple = self.size_multiple
            if side < multiple or side % multiple:
                near = multiple * max(1, round(side / multiple))
                raise RequestError(f"{name}={side}: this model makes multiples of {multiple}; nearest: {near}.")
        frames, multiple = self.request.num_frames, self.frames_multiple
        if multiple and (frames < 1 or (frames - 1) % multiple):
            near = multiple * max(1, round((frames - 1) / multiple)) + 1
            raise RequestError(f"num_frames={frames}: this model makes {multiple}k+1 frames; nearest: {near}.")
        if frames < 1:
            raise RequestError(f"num_frames={frames}: give at least 1.")
        if self.pieces > MOST_PIECES:
            least = -(-self.tokens // MOST_PIECES)
            raise RequestError(
                f"slice_tokens={self.request.slice_tokens} makes {self.pieces:,} slices, and a GPU would do little but "
                f"begin them; nearest: {least}."
            )

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens of a clip in the denoiser, the prompt's not counted: what `slice_tokens` is compared with."""

    @property
    def pieces(self) -> int:
        """How many slices the denoiser works in."""
        return 1 if self.request.slice_tokens is None else -(-self.tokens // self.request.slice_tokens)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        return None

    @property
    def latent_frames(self) -> int:
        frames, multiple = self.request.num_frames, self.frames_multiple
        return (frames - 1) // multiple + 1 if multiple else frames

    def image(self, frames: int | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Pixels [1, 3, H, W], or [1, 3, frames, H, W], in the VAE's data type."""
        shape = (1, 3) if frames is None else (1, 3, frames)
        return empty(*shape, self.request.height, self.request.width, dtype=dtype or self.arch.dtype("vae"))

    def finish(self, video: torch.Tensor) -> None:
        """What `VideoProcessor.postprocess_video` does before the pixels [1, 3, frames, H, W] leave the GPU."""
        from diffusers.image_processor import VaeImageProcessor

        pixels = VaeImageProcessor.denormalize(video[0].transpose(0, 1))
        del video, pixels

    def option(self, name: str, stage: str) -> object:
        """The value of a request's option in a stage."""
        value = getattr(self.request, name)
        if name == "tiling" and value is None:
            return stage == "decode" or self.encodes_in_tiles
        if name == "lean_decoding" and value is None:
            return self.request.slice_tokens is not None
        return value

    @contextmanager
    def prepared(self, stage: str) -> Iterator[None]:
        """Switch the components' options as requested while the stage runs, and back afterwards.

        The components are shared by all requests for one architecture.
        """
        before = self.vae.use_tiling
        try:
            if self.option("tiling", stage):
                self.vae.enable_tiling()
            else:
                self.vae.disable_tiling()
            yield
        finally:
            self.vae.use_tiling = before

    @contextmanager
    def sliced(self, stage: str) -> Iterator[None]:
        """Switch slices on as requested while the stage runs, and off afterwards."""
        slice_tokens = self.request.slice_tokens if stage == "denoise" else None
        lean = stage == "decode" and self.option("lean_decoding", stage)
        try:
            if slice_tokens is not None:
                slice_activations(self.denoiser, slice_tokens)
            if lean:
                decode_lean(self.vae)
            yield
        finally:
            if slice_tokens is not None:
                slice_activations(self.denoiser, None)
            if lean:
                decode_lean(self.vae, on=False)

    def alike(self) -> list[list[Method]]:
        """Methods that do the same to tensors of the same shapes, for `helpers.forecast.recording.replay.remembering`.

        These are the VAE's two halves, which see one tile after another, the methods that blend the tiles, and those
        members of the denoiser's module lists that have the same class and parameters, and more than one layer.
        """
        groups: dict[tuple, list[Method]] = {}
        for owner in self.denoiser.modules():
            if not isinstance(owner, torch.nn.ModuleList):
                continue
            for member in owner:
                shapes = tuple((name, weight.shape, weight.dtype) for name, weight in member.named_parameters())
                if shapes and any(member.children()):
                    groups.setdefault((type(member), shapes), []).append((member, "forward"))
        blends = [[(self.vae, name)] for name in self.blends]
        return [[(self.vae.encoder, "forward")], [(self.vae.decoder, "forward")], *blends, *groups.values()]

    def run(self, stage: str) -> None:
        """Run one of the three stages."""
        {"encode_image": self.encode_image, "denoise": self.denoise, "decode": self.decode}[stage]()

    @abstractmethod
    def encode_image(self) -> None:
        """From the given frame's pixels to the denoiser's condition."""

    @abstractmethod
    def denoise(self) -> None:
        """One step of the loop, with its guidance."""

    @abstractmethod
    def decode(self) -> None:
        """From latents to pixels, ready to leave the GPU."""
