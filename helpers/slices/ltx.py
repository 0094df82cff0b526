"""LTX-Video's transformer in slices of tokens."""

from __future__ import annotations

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_ltx import (
    LTXVideoTransformer3DModel,
    LTXVideoTransformerBlock,
    apply_rotary_emb,
)
from diffusers.utils import apply_lora_scale

from helpers.slices.held import hold
from helpers.slices.tokens import Rows, spans


class SlicedLTXBlock(LTXVideoTransformerBlock):
    """`LTXVideoTransformerBlock`, changing `hidden_states` in place, for `slice_tokens` tokens at a time."""

    slice_tokens: int

    def forward(self, hidden_states, encoder_hidden_states, temb: Rows, image_rotary_emb, encoder_attention_mask=None):
        x, pieces = hidden_states, spans(hidden_states.shape[1], self.slice_tokens)
        table = self.scale_shift_table.to(temb.values.device)
        temb = Rows(table + temb.values.unflatten(1, (len(table), -1)), temb.index)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = range(6)
        cos, sin = image_rotary_emb

        # Self-attention: each token sees the keys and values of all others, so these are made first.
        attn = self.attn1
        keys, values = torch.empty_like(x), torch.empty_like(x)
        to_k, norm_k, to_v = (hold(layer, pieces) for layer in (attn.to_k, attn.norm_k, attn.to_v))
        normed = [self.norm1(x[:, s]) * (1 + temb.part(scale, s)) + temb.part(shift, s) for s in pieces]
        for s, inputs in zip(pieces, normed, strict=True):
            keys[:, s] = apply_rotary_emb(norm_k(to_k(inputs)), (cos[:, s], sin[:, s]))
            values[:, s] = to_v(inputs)
        del inputs, to_k, norm_k, to_v
        to_q, norm_q, to_out = (hold(layer, pieces) for layer in (attn.to_q, attn.norm_q, attn.to_out[0]))
        for s in pieces:
            query = apply_rotary_emb(norm_q(to_q(normed.pop(0))), (cos[:, s], sin[:, s]))
            x[:, s] += to_out(self._attend(attn, query, keys, values)) * temb.part(gate, s)
        del query, keys, values, to_q, norm_q, to_out

        # Cross-attention: the prompt's keys and values are few.
        attn, mask = self.attn2, encoder_attention_mask
        if mask is not None:
            batch, length = encoder_hidden_states.shape[:2]
            mask = attn.prepare_attention_mask(mask, length, batch).view(batch, attn.heads, -1, mask.shape[-1])
        keys, values = attn.norm_k(attn.to_k(encoder_hidden_states)), attn.to_v(encoder_hidden_states)
        to_q, norm_q, to_out = (hold(layer, pieces) for layer in (attn.to_q, attn.norm_q, attn.to_out[0]))
        for s in pieces:  # contiguous: for other tensors `linear` rounds before it adds the bias
            x[:, s] += to_out(self._attend(attn, norm_q(to_q(x[:, s].contiguous())), keys, values, mask))
        del keys, values, to_q, norm_q, to_out

        # Feed-forward: no token sees another one.
        activation, _, down = self.ff.net
        up, down = hold(activation.proj, pieces), hold(down, pieces)
        for s in pieces:
            inputs = self.norm2(x[:, s]) * (1 + temb.part(ff_scale, s)) + temb.part(ff_shift, s)
            x[:, s] += down(activation.gelu(up(inputs))) * temb.part(ff_gate, s)
        return x

    @staticmethod
    def _attend(attn, query, keys, values, mask=None):
        heads = (tensor.unflatten(2, (attn.heads, -1)) for tensor in (query, keys, values))
        out = dispatch_attention_fn(*heads, attn_mask=mask, backend=attn.processor._attention_backend)
        return out.flatten(2, 3).to(query.dtype)


class SlicedLTX(LTXVideoTransformer3DModel):
    """`LTXVideoTransformer3DModel` with each timestep's vectors and each position's angles made once."""

    slice_tokens: int

    @apply_lora_scale("attention_kwargs")
    def forward(
        self, hidden_states, encoder_hidden_states, timestep, encoder_attention_mask, num_frames=None, height=None,
        width=None, rope_interpolation_scale=None, video_coords=None, attention_kwargs=None, return_dict=True,
    ):  # fmt: skip
        # Without `video_coords`, all batch entries have the same positions.
        alike = hidden_states[:1] if video_coords is None else hidden_states
        rotary_emb = self.rope(alike, num_frames, height, width, rope_interpolation_scale, video_coords)
        if encoder_attention_mask is not None and encoder_attention_mask.ndim == 2:
            encoder_attention_mask = (1 - encoder_attention_mask.to(hidden_states.dtype)) * -10000.0
            encoder_attention_mask = encoder_attention_mask.unsqueeze(1)
        x = self.proj_in(hidden_states)
        steps = Rows.of(timestep)
        temb, embedded = self.time_embed(steps.values, batch_size=len(steps.values), hidden_dtype=x.dtype)
        context = self.caption_projection(encoder_hidden_states).view(len(x), -1, x.shape[-1])
        for block in self.transformer_blocks:
            x = block(x, context, Rows(temb, steps.index), rotary_emb, encoder_attention_mask)

        embedded = Rows(self.scale_shift_table + embedded[:, None], steps.index)
        everything = slice(0, x.shape[1])
        out = self.proj_out(self.norm_out(x) * (1 + embedded.part(1, everything)) + embedded.part(0, everything))
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)
