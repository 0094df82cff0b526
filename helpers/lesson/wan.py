"""What the two lessons on Wan2.2 share. Lesson 02 writes these functions out and explains them."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan

from helpers.lesson.decoding import to_frames


def encode_wan(text_pipe, prompts, limit):
    """The embeddings [tokens, channels] of each prompt, padded no further than to the longest of them."""
    counts = [min(len(text_pipe.tokenizer(prompt).input_ids), limit) for prompt in prompts]
    encoded, _ = text_pipe.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=max(counts), device="cpu",
    )
    return [embeds[:count] for embeds, count in zip(encoded, counts, strict=True)]


def load_wan_vae(checkpoint):
    """The VAE of a Wan2.2 checkpoint, in fp32, where its colours are right."""
    return AutoencoderKLWan.from_pretrained(
        checkpoint.repo, subfolder="vae", revision=checkpoint.revision, use_safetensors=True, dtype=torch.float32,
    )


def pad_embeddings(embeds, length):
    """Embeddings [1, length, channels]: the prompt's own tokens [tokens, channels], then zeros."""
    return torch.cat([embeds, embeds.new_zeros(length - len(embeds), embeds.shape[1])])[None]


def decode_wan(vae, latents):
    """Frames, np.uint8 [T, H, W, 3], of normalized latents [1, channels, frames, rows, columns]."""
    mean, std = (torch.tensor(vae.config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    with torch.no_grad():
        return to_frames(vae.decode((latents.float() * std + mean).to(vae.device)).sample)
