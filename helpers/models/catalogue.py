"""The catalogue of the five image-to-video models.

    from helpers.models import model

    ltx = model("ltx_video")
    ltx.nearest_frames(50)  # 49: this model makes 8k+1 frames

The parameter counts come from building each model from its published configuration. The "pretrained" frames, steps
and guidance come from the model's own repository or its diffusers pipeline; the sizes are those that the lessons plan
for a 12 GB GPU.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from pathlib import Path

OFFLOAD_MODES = ("none", "model", "sequential", "group_block", "group_leaf")
# How the prompt is encoded on the CPU. Layer by layer the whole process stays below one GiB (encoding.json).
ENCODE_WAYS = ("fp32", "layer_by_layer")

DATA = Path(__file__).resolve().parents[2] / "data"
CONFIGS = DATA / "configs"  # the published models' architecture files, without weights
MINIATURES = DATA / "miniatures"  # the bundled small checkpoints
INDEX = "model_index.json"  # in a checkpoint: the class of the pipeline and of each component


@dataclass(frozen=True)
class Defaults:
    """The values a lesson uses for parameters that are `None`.

    Attributes:
        width, height: Size of the video, in pixels.
        num_frames: Number of frames the model makes, including its context frames.
        steps: Denoising steps.
        guidance_scale: Scale of classifier-free guidance; 1 turns it off and halves the work. For Stable Video
            Diffusion this is `max_guidance_scale`, reached at the last frame.
    """

    width: int
    height: int
    num_frames: int
    steps: int
    guidance_scale: float

    def turned(self) -> Defaults:
        """The same for a portrait clip."""
        return replace(self, width=self.height, height=self.width)


@dataclass(frozen=True)
class Model:
    """One image-to-video model, as published.

    Attributes:
        name: The name used in code, `ltx_video` for example.
        title: The name used in prose.
        short_title: The name used in charts and narrow tables.
        hub: Repository on the Hugging Face Hub, in the diffusers layout.
        pipeline: Class of the diffusers pipeline.
        licence: Name of the licence of the weights in `hub`.
        licence_url: URL of its text.
        gated: Whether the Hub requires you to log in and accept the licence before a download.
        size_multiple: Width and height must be multiples of this, in pixels.
        fixed_size: The only (width, height) the model makes, or `None`.
        frames_multiple: `m` if the number of frames must be `m * k + 1`, or `None` if `fixed_frames` is set.
        fixed_frames: The only number of frames the model makes, or `None`.
        fps: Frames per second of the video the model makes.
        max_prompt_tokens: Number of prompt tokens that the text encoder sees, including its end token; `None` if the
            model takes no prompt.
        parameters: Number of parameters of each component, by the component's name in the pipeline.
        quantization: GGUF type of the denoisers' files that the lesson downloads, or `None`.
        cast_when_loaded: Whether the files of `hub` hold the denoiser in another data type than it is loaded in, so
            that it is copied; else it is mapped, and takes RAM only where something copies it.
        defaults: `Defaults` for each kind of weights: always "pretrained", and "miniature" if there is one.
    """

    name: str
    title: str
    short_title: str
    hub: str
    pipeline: str
    licence: str
    licence_url: str
    gated: bool
    size_multiple: int
    fixed_size: tuple[int, int] | None
    frames_multiple: int | None
    fixed_frames: int | None
    fps: int
    max_prompt_tokens: int | None
    parameters: dict[str, int]
    defaults: dict[str, Defaults]
    quantization: str | None = None
    cast_when_loaded: bool = False

    @property
    def frames_rule(self) -> str:
        """The rule for the number of frames, in words."""
        if self.fixed_frames is not None:
            return f"exactly {self.fixed_frames} frames"
        return f"{self.frames_multiple}k+1 frames"

    @property
    def size_rule(self) -> str:
        """The rule for width and height, in words."""
        if self.fixed_size is not None:
            return "only {}x{} pixels".format(*self.fixed_size)
        return f"widths and heights that are multiples of {self.size_multiple}"

    def nearest_frames(self, n: float) -> int:
        """Return the valid number of frames nearest to `n`; of two equally near, the lower.

        The minimum is one step above a single frame, because a single frame continues nothing.
        """
        if self.fixed_frames is not None:
            return self.fixed_frames
        return self.frames_multiple * max(1, _round_half_down((n - 1) / self.frames_multiple)) + 1

    def nearest_size(self, width: float, height: float) -> tuple[int, int]:
        """Return the valid (width, height) nearest to the given one, in pixels, each side separately."""
        if self.fixed_size is not None:
            return self.fixed_size
        multiple = self.size_multiple
        return tuple(multiple * max(1, _round_half_down(side / multiple)) for side in (width, height))


def _round_half_down(x: float) -> int:
    return math.ceil(x - 0.5)


MODELS: dict[str, Model] = {
    entry.name: entry
    for entry in (
        Model(
            name="ltx_video",
            title="LTX-Video",
            short_title="LTX-Video",
            hub="Lightricks/LTX-Video",
            pipeline="LTXImageToVideoPipeline",
            # The diffusers folders of this repository hold version 0.9. Later versions have other licences.
            licence="LTX-Video 0.9 RAIL-M licence (research and academic use)",
            licence_url="https://huggingface.co/Lightricks/LTX-Video/blob/main/ltx-video-2b-v0.9.license.txt",
            gated=False,
            size_multiple=32,
            fixed_size=None,
            frames_multiple=8,
            fixed_frames=None,
            fps=24,
            max_prompt_tokens=128,
            parameters={"transformer": 1_923_385_472, "vae": 419_193_649, "text_encoder": 4_762_310_656},
            defaults={
                # The miniature's VAE compresses 16x16x4, but the pipeline enforces the real model's rules (32, 8k+1).
                "miniature": Defaults(width=288, height=160, num_frames=25, steps=4, guidance_scale=1.0),
                "pretrained": Defaults(width=768, height=512, num_frames=121, steps=50, guidance_scale=3.0),
            },
        ),
        Model(
            name="wan22_ti2v_5b",
            title="Wan2.2 TI2V-5B",
            short_title="TI2V-5B",
            hub="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            pipeline="WanImageToVideoPipeline",
            licence="Apache 2.0",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            gated=False,
            size_multiple=32,
            fixed_size=None,
            frames_multiple=4,
            fixed_frames=None,
            fps=24,
            max_prompt_tokens=512,
            parameters={"transformer": 4_999_787_712, "vae": 704_688_668, "text_encoder": 5_680_910_336},
            cast_when_loaded=True,  # fp32 in the files, bf16 in RAM
            defaults={
                "miniature": Defaults(width=288, height=160, num_frames=25, steps=4, guidance_scale=1.0),
                "pretrained": Defaults(width=640, height=384, num_frames=121, steps=50, guidance_scale=5.0),
            },
        ),
        Model(
            name="wan22_i2v_a14b",
            title="Wan2.2 I2V-A14B",
            short_title="A14B Q4",
            hub="Wan-AI/Wan2.2-I2V-A14B-Diffusers",
            pipeline="WanImageToVideoPipeline",
            licence="Apache 2.0",
            licence_url="https://www.apache.org/licenses/LICENSE-2.0",
            gated=False,
            size_multiple=16,
            fixed_size=None,
            frames_multiple=4,
            fixed_frames=None,
            fps=16,
            max_prompt_tokens=512,
            parameters={
                "transformer": 14_288_901_184,
                "transformer_2": 14_288_901_184,
                "vae": 126_892_531,
                "text_encoder": 5_680_910_336,
            },
            defaults={
                "miniature": Defaults(width=256, height=144, num_frames=17, steps=4, guidance_scale=1.0),
                "pretrained": Defaults(width=640, height=384, num_frames=81, steps=40, guidance_scale=3.5),
            },
            quantization="Q4_K_M",
        ),
        Model(
            name="svd_xt",
            title="Stable Video Diffusion XT",
            short_title="SVD XT",
            hub="stabilityai/stable-video-diffusion-img2vid-xt",
            pipeline="StableVideoDiffusionPipeline",
            licence="Stability AI Community License",
            licence_url="https://huggingface.co/stabilityai/stable-video-diffusion-img2vid-xt/blob/main/LICENSE.md",
            gated=True,
            # The pipeline itself requires multiples of 8; the UNet halves the latents (8x smaller) three more times.
            size_multiple=64,
            fixed_size=None,
            frames_multiple=None,
            fixed_frames=25,
            fps=7,
            max_prompt_tokens=None,
            parameters={"unet": 1_524_623_082, "vae": 97_742_847, "image_encoder": 632_076_800},
            defaults={
                "miniature": Defaults(width=256, height=128, num_frames=25, steps=8, guidance_scale=1.0),
                "pretrained": Defaults(width=1024, height=576, num_frames=25, steps=25, guidance_scale=3.0),
            },
        ),
        Model(
            name="cogvideox_5b_i2v",
            title="CogVideoX-5B I2V",
            short_title="CogVideoX-5B",
            hub="zai-org/CogVideoX-5b-I2V",
            pipeline="CogVideoXImageToVideoPipeline",
            licence="CogVideoX License",
            licence_url="https://huggingface.co/zai-org/CogVideoX-5b-I2V/blob/main/LICENSE",
            gated=False,
            size_multiple=16,
            # Its position embeddings were learned at this size and length. diffusers raises an error at any other
            # size; at another length it silently uses sinusoidal embeddings instead.
            fixed_size=(720, 480),
            frames_multiple=None,
            fixed_frames=49,
            fps=8,
            max_prompt_tokens=226,
            parameters={"transformer": 5_570_479_680, "vae": 215_583_907, "text_encoder": 4_762_310_656},
            defaults={
                "miniature": Defaults(width=240, height=160, num_frames=17, steps=8, guidance_scale=1.0),
                "pretrained": Defaults(width=720, height=480, num_frames=49, steps=50, guidance_scale=6.0),
            },
        ),
    )
}


def model(name: str) -> Model:
    """Return the model called `name`.

    Raises:
        ValueError: If there is none; the message suggests the closest name and lists all of them.
    """
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(str(name), MODELS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"no model is called {name!r}: {hint}The models are {', '.join(MODELS)}.")
