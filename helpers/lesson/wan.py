"""What the two lessons on Wan2.2 share. Lesson 02 writes these functions out and explains them."""

from __future__ import annotations

import torch

from helpers.lesson.decoding import to_frames


def pad_embeddings(embeds, length):
    """Embeddings [1, length, channels]: the prompt's own tokens [tokens, channels], then zeros."""
    return torch.cat([embeds, embeds.new_zeros(length - len(embeds), embeds.shape[1])])[None]


def decode_wan(vae, latents):
    """Frames, np.uint8 [T, H, W, 3], of normalized latents [1, channels, frames, rows, columns]."""
    mean, std = (torch.tensor(vae.config[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    with torch.no_grad():
        return to_frames(vae.decode((latents.float() * std + mean).to(vae.device)).sample)
