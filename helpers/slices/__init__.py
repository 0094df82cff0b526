"""Activations in slices: a denoiser that computes some thousand tokens at a time, with the same results.

    from helpers import slices

    slices.slice_activations(pipe, 8192)  # before the offload mode; None makes the model what it was
    slices.decode_lean(pipe.vae)          # decoded tiles are joined in RAM

Lesson 07 builds the sliced block piece by piece and measures each.
"""

from helpers.faces import late

__all__, __getattr__, __dir__ = late(__name__, {
    "slicing": ("slice_activations",),
    "held": ("Held", "hold"),
    "tokens": ("Rows", "SliceError", "spans"),
    "vae": ("decode_lean",),
    "wan": ("SlicedWanBlock", "rotate"),
})
