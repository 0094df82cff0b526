"""Stable Video Diffusion's UNet, one entry of the batch at a time.

Guidance makes a batch of two, which never meet: each is a forward of its own, with its own skip connections.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.unets.unet_spatio_temporal_condition import (
    UNetSpatioTemporalConditionModel,
    UNetSpatioTemporalConditionOutput,
)


class SlicedSVD(UNetSpatioTemporalConditionModel):
    """`UNetSpatioTemporalConditionModel` for as many batch entries at once as `slice_tokens` covers, but at least one.

    A token is a latent position of a frame, so that an entry has frames x height x width of them.
    """

    slice_tokens: int

    def forward(self, sample, timestep, encoder_hidden_states, added_time_ids, return_dict=True):
        batch, frames, _, height, width = sample.shape
        size = max(1, self.slice_tokens // (frames * height * width))
        parts = zip(*(one.split(size) for one in (sample, encoder_hidden_states, added_time_ids)), strict=True)
        forward = super().forward
        with _as_in_a_batch(self.time_embedding, batch), _as_in_a_batch(self.add_embedding, batch):
            out = torch.cat([forward(part, timestep, text, ids, return_dict=False)[0] for part, text, ids in parts])
        return UNetSpatioTemporalConditionOutput(sample=out) if return_dict else (out,)


@contextmanager
def _as_in_a_batch(embedding: torch.nn.Module, batch: int) -> Iterator[None]:
    """Give the embedding of the time as many rows as in the whole batch: for one row, kernels sum in another order."""

    rows = []

    def repeated(_: torch.nn.Module, inputs: tuple) -> tuple:
        rows.append(len(inputs[0]))
        return inputs[0].repeat(-(-batch // rows[-1]), 1)[:batch], *inputs[1:]

    hooks = [
        embedding.register_forward_pre_hook(repeated),
        embedding.register_forward_hook(lambda _, inputs, output: output[: rows.pop()]),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
