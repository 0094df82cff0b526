"""A VAE that decodes in small pieces and leaves them in RAM, so that the GPU never holds the whole video."""

from __future__ import annotations

import torch

# Tiles of the VAEs whose own are a large part of the picture. Overlaps are those of the usual tiles: 64 pixels, and a
# sixth of the height and a fifth of the width.
SMALL_TILES = {
    "AutoencoderKLLTXVideo": {
        "tile_sample_min_height": 256, "tile_sample_min_width": 256,
        "tile_sample_stride_height": 192, "tile_sample_stride_width": 192,
    },
    "AutoencoderKLCogVideoX": {"tile_sample_min_height": 144, "tile_sample_min_width": 200},
}  # fmt: skip
UNDO = "_undo_lean_decoding"


def decode_lean(vae: torch.nn.Module, on: bool = True) -> None:
    """Send each piece that the decoder returns, a tile or some frames, to RAM, where they are blended and joined.

    The frames of Wan's VAEs and of Stable Video Diffusion's are the same. LTX-Video and CogVideoX also get smaller
    tiles (`SMALL_TILES`): around the edges of tiles, where two are blended, their frames differ a little. With
    `on=False` the VAE becomes what it was.
    """
    if hasattr(vae, UNDO):
        hook, before = getattr(vae, UNDO)
        hook.remove()
        vars(vae).update(before)
        delattr(vae, UNDO)
    if not on:
        return
    hook = vae.decoder.register_forward_hook(_to_ram)
    before = {name: value for name, value in vars(vae).items() if name.startswith(("tile_", "use_tiling"))}
    if tiles := SMALL_TILES.get(type(vae).__name__):
        vae.enable_tiling(**tiles)
        vae.use_tiling = before["use_tiling"]
    setattr(vae, UNDO, (hook, before))


def _to_ram(decoder: torch.nn.Module, inputs: tuple, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
    if isinstance(output, tuple):  # CogVideoX: the piece, and a cache for the next one
        return output[0].to("cpu"), *output[1:]
    return output.to("cpu")
