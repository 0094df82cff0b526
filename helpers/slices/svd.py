"""Stable Video Diffusion's UNet, one entry of the batch at a time.

Guidance makes a batch of two, which never meet: each is a forward of its own, with its own skip connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from diffusers.models.unets.unet_spatio_temporal_condition import (
    UNetSpatioTemporalConditionModel,
    UNetSpatioTemporalConditionOutput,
)

FEW_ROWS = ("time_embedding", "add_embedding", "time_emb_proj", "time_pos_embed", "attn2.to_k", "attn2.to_v")


class SlicedSVD(UNetSpatioTemporalConditionModel):
    """`UNetSpatioTemporalConditionModel` for as many batch entries at once as `slice_tokens` covers, but at least one.

    A token is a latent position of a frame, so that an entry has frames x height x width of them.
    """

    slice_tokens: int

    def forward(self, sample, timestep, encoder_hidden_states, added_time_ids, return_dict=True):
        batch, frames, _, height, width = sample.shape
        size = max(1, self.slice_tokens // (frames * height * width))
        parts = zip(*(one.split(size) for one in (sample, encoder_hidden_states, added_time_ids)), strict=True)
        layers = [layer for name, layer in self.named_modules() if name.endswith(FEW_ROWS)]
        out = []
        for number, (part, text, ids) in enumerate(parts):
            with _as_in_a_batch(layers, number, -(-batch // size)):
                out.append(super().forward(part, timestep, text, ids, return_dict=False)[0])
        out = torch.cat(out)
        return UNetSpatioTemporalConditionOutput(sample=out) if return_dict else (out,)


@contextmanager
def _as_in_a_batch(layers: Iterable[torch.nn.Module], number: int, times: int) -> Iterator[None]:
    """Give layers that see few rows, of the time and of the picture's embedding, `times` as many: those of a batch.

    For fewer rows, or rows at another place, kernels sum in another order, and the largest noise levels magnify what
    differs a thousandfold. So part `number` of the batch takes the rows at its own place.
    """

    def repeated(_: torch.nn.Module, inputs: tuple) -> tuple:
        return torch.cat([inputs[0]] * times), *inputs[1:]

    def own(_: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return output.chunk(times)[number]

    hooks = [layer.register_forward_pre_hook(repeated) for layer in layers]
    hooks += [layer.register_forward_hook(own) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
