"""The miniature of CogVideoX-5B I2V: positions that are learnt, and a VAE that normalises chunk by chunk."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch.nn import GroupNorm
from transformers import T5EncoderModel, T5TokenizerFast

from . import text, wan
from .stored import in_fp8
from .vaes import forward_replaced
from .vaes import scale_to_one as set_statistics  # noqa: F401 - part of what a family module offers

FRAMES, SIZE, FPS = 17, (240, 160), 8  # two chunks of the VAE; the shape of the real model's 720x480
# The VAE makes tiles half as large as this and lets them overlap by a sixth; diffusers can join them only where the
# rest is a multiple of 8 pixels, which 160 does not give (66) and 192 does (80).
TILED_HEIGHT = 192
DENOISERS = {"transformer": "denoiser"}
ENCODER = "T5EncoderModel"
POSITIONS = 226  # positions of the prompt, its padding included, all of which the transformer attends to
PUBLISHED = Path(__file__).resolve().parents[1] / "configs" / "cogvideox_5b_i2v"
STORED = "The transformer's feed-forward matrices are stored in fp8, all else in fp16."  # what the card says of it
VAE = dict(
    block_out_channels=(24, 24, 32, 32), layers_per_block=1, latent_channels=16, norm_num_groups=8,
    sample_width=SIZE[0], sample_height=TILED_HEIGHT, scaling_factor=1.0,
)  # fmt: skip
TRANSFORMER = dict(
    in_channels=32, out_channels=16, num_attention_heads=4, attention_head_dim=32, num_layers=5, time_embed_dim=64,
    text_embed_dim=text.WIDTH, max_text_seq_length=POSITIONS, patch_size=2, sample_width=SIZE[0] // 8,
    sample_height=SIZE[1] // 8, sample_frames=FRAMES, use_rotary_positional_embeddings=True,
    use_learned_positional_embeddings=True,
)  # fmt: skip


def build_vae() -> AutoencoderKLCogVideoX:
    return AutoencoderKLCogVideoX(**VAE)


def build_denoiser() -> CogVideoXTransformer3DModel:
    """The transformer, its positions ready to be learnt: the class holds them as a buffer, which no optimiser sees."""
    transformer = CogVideoXTransformer3DModel(**TRANSFORMER)
    positions = transformer.patch_embed._buffers.pop("pos_embedding")
    transformer.patch_embed.pos_embedding = torch.nn.Parameter(positions.float())  # they come in fp64
    transformer._repeated_blocks = ["CogVideoXBlock"]  # diffusers does not say so itself
    return transformer


def halves(vae: AutoencoderKLCogVideoX, compiled: bool):
    """Functions from pixels to the posterior, and from latents to pixels, for a single frame or a whole clip.

    The class itself works on nine frames, then on eight, and keeps features in between. Its convolutions are causal and
    its resampling goes by pairs, so one pass gives the same numbers if only the normalisation keeps to the chunks.
    """

    def encode(x):
        return vae.encoder(x)[0]

    def decode(z):
        return vae.decoder(z)[0]

    if compiled:
        encode, decode = torch.compile(encode, dynamic=False), torch.compile(decode, dynamic=False)

    @forward_replaced(GroupNorm, norm_of_chunks)
    def posterior_of(x):
        return DiagonalGaussianDistribution(encode(x))

    return posterior_of, forward_replaced(GroupNorm, norm_of_chunks)(decode)


def norm_of_chunks(layer: GroupNorm, x: torch.Tensor) -> torch.Tensor:
    """`GroupNorm.forward` on a whole clip, each of its two chunks for itself.

    Takes features [B, C, T, H, W] of one frame, or of 17 at any stage: 9 + 8, 5 + 4 or 3 + 2.
    """
    assert x.shape[2] in (1, 17, 9, 5), "clips of 17 frames, or single frames"
    chunks = x.split((x.shape[2] // 2 + 1, x.shape[2] // 2), dim=2) if x.shape[2] > 1 else (x,)
    normed = [torch.nn.functional.group_norm(c, layer.num_groups, layer.weight, layer.bias, layer.eps) for c in chunks]
    return torch.cat(normed, dim=2)


def picture(clips: torch.Tensor) -> torch.Tensor:
    """The given frame alone, as the pipeline encodes it: the normalisation makes it unlike the clip's first latents."""
    return clips[:, :1]


class Denoising:
    """The transformer's training loss on scaled latents, conditioned as `CogVideoXImageToVideoPipeline` does it.

    Args:
        latents: [N, C, T, H, W] fp16, scaled.
        conditions: [N, C, 1, H, W] fp16, the given frame's, scaled.
        prompts: [N] long, index of each clip's prompt in `embeds`, whose last entry is the empty prompt.
        posterior_std: [C], what sampling from the posterior adds to the given frame's latents, scaled.
        embeds: [P, POSITIONS, text.WIDTH].
    """

    def __init__(self, latents, conditions, prompts, posterior_std, embeds, mask, batch_size, part):
        self.latents, self.conditions, self.prompts, self.embeds = latents, conditions, prompts, embeds
        self.posterior_std, self.batch_size = posterior_std.view(-1, 1, 1, 1), batch_size
        # as much of the latents as is left at each of the 1000 time steps: all of it at first, nothing in the end
        self.left = scheduler().alphas_cumprod.float().to(latents.device)
        frames, height, width = latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2
        self.rotary = get_3d_rotary_pos_embed(
            TRANSFORMER["attention_head_dim"], ((0, 0), (height, width)), (height, width), frames, device=latents.device
        )

    def loss(self, transformer) -> torch.Tensor:
        device, n = self.latents.device, self.batch_size
        pick = torch.randint(len(self.latents), (n,), device=device)
        clean, prompt = self.latents[pick].float(), self.prompts[pick]
        prompt = torch.where(torch.rand(n, device=device) < 0.08, len(self.embeds) - 1, prompt)  # for guidance
        u = torch.rand(n, device=device)
        timestep = (1000 * 2 * u / (1 + u)).long().clamp(max=999)  # more of the noisy end, where the picture is decided
        left, noise = self.left[timestep].view(-1, 1, 1, 1, 1), torch.randn_like(clean)
        noisy = left.sqrt() * clean + (1 - left).sqrt() * noise
        given = torch.zeros_like(clean)
        first = self.conditions[pick].float()
        given[:, :, :1] = first + self.posterior_std * torch.randn_like(first)
        velocity = transformer(
            hidden_states=torch.cat([noisy, given], dim=1).transpose(1, 2),
            encoder_hidden_states=self.embeds[prompt],
            timestep=timestep,
            image_rotary_emb=self.rotary,
            return_dict=False,
        )[0].transpose(1, 2)
        wanted = left.sqrt() * noise - (1 - left).sqrt() * clean
        # an error of velocity moves the final latents by sqrt(1 - left) times as much: weighted between the two
        return ((1 - left).sqrt() * (velocity.float() - wanted) ** 2).mean()


def scheduler() -> CogVideoXDDIMScheduler:
    """The published scheduler."""
    return CogVideoXDDIMScheduler.from_pretrained(PUBLISHED, subfolder="scheduler")


def assemble(work: Path, folder: Path) -> None:
    """Put the trained parts of `work` together as a pipeline folder in the diffusers layout.

    All is in fp16 but the matrices of the feed-forward layers, in fp8: on five clips that changed the
    PSNR by -0.03 to 0.15 dB.
    """
    transformer = CogVideoXTransformer3DModel.from_pretrained(work / "transformer")
    pipe = CogVideoXImageToVideoPipeline(
        scheduler=scheduler(),
        vae=AutoencoderKLCogVideoX.from_pretrained(work / "vae", dtype=torch.float16),
        transformer=in_fp8(transformer, lambda name, layer: ".ff." in name),
        text_encoder=T5EncoderModel.from_pretrained(work / "text_encoder", dtype=torch.float16),
        tokenizer=T5TokenizerFast.from_pretrained(work / "tokenizer"),
    )
    text.save_pipeline(pipe, work, folder)


class Continuer(wan.Continuer):
    def __init__(self, folder: Path, device: str):
        super().__init__(CogVideoXImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32), FRAMES, device)
