"""Wan's transformers in slices of tokens: Wan2.2's two experts, TI2V-5B, and Wan 2.1's text-only cross-attention.

Lesson 07 builds this block piece by piece.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel, WanTransformerBlock
from diffusers.utils import apply_lora_scale

from helpers.slices.held import hold
from helpers.slices.tokens import Rows, spans


class SlicedWanBlock(WanTransformerBlock):
    """`WanTransformerBlock`, changing `hidden_states` in place, for `slice_tokens` tokens at a time."""

    slice_tokens: int

    def forward(self, hidden_states, encoder_hidden_states, temb: Rows, rotary_emb):
        x, pieces = hidden_states, spans(hidden_states.shape[1], self.slice_tokens)
        temb = Rows(self.scale_shift_table + temb.values.float(), temb.index)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = range(6)

        def part(number, s):
            return temb.part(number, s)

        def normed(s):
            return (self.norm1(x[:, s].float()) * (1 + part(scale, s)) + part(shift, s)).type_as(x)

        # Self-attention: each token sees the keys and values of all others, so these are made first.
        attn = self.attn1
        keys, values = self._heads(attn, torch.empty_like(x)), self._heads(attn, torch.empty_like(x))
        to_k, norm_k, to_v = (hold(layer, pieces) for layer in (attn.to_k, attn.norm_k, attn.to_v))
        for s in pieces:
            inputs = normed(s)
            keys[:, s] = rotate(self._heads(attn, norm_k(to_k(inputs))), rotary_emb, s)
            values[:, s] = self._heads(attn, to_v(inputs))
        del inputs, to_k, norm_k, to_v
        to_q, norm_q, to_out = (hold(layer, pieces) for layer in (attn.to_q, attn.norm_q, attn.to_out[0]))
        for s in pieces:
            query = rotate(self._heads(attn, norm_q(to_q(normed(s)))), rotary_emb, s)
            out = to_out(self._attend(attn, query, keys, values))
            x[:, s] = (x[:, s].float() + out * part(gate, s)).type_as(x)
        del query, out, keys, values, to_q, norm_q, to_out

        # Cross-attention: the prompt's keys and values are few.
        attn = self.attn2
        keys = self._heads(attn, attn.norm_k(attn.to_k(encoder_hidden_states)))
        values = self._heads(attn, attn.to_v(encoder_hidden_states))
        layers = self.norm2, attn.to_q, attn.norm_q, attn.to_out[0]
        norm, to_q, norm_q, to_out = (hold(layer, pieces) for layer in layers)
        for s in pieces:
            query = self._heads(attn, norm_q(to_q(norm(x[:, s].float()).type_as(x))))
            x[:, s] += to_out(self._attend(attn, query, keys, values))
        del query, keys, values, norm, to_q, norm_q, to_out

        # Feed-forward: no token sees another one.
        activation, _, down = self.ffn.net
        up, down = hold(activation.proj, pieces), hold(down, pieces)
        for s in pieces:
            inputs = (self.norm3(x[:, s].float()) * (1 + part(ff_scale, s)) + part(ff_shift, s)).type_as(x)
            out = down(activation.gelu(up(inputs)))
            x[:, s] = (x[:, s].float() + out.float() * part(ff_gate, s)).type_as(x)
        return x

    @staticmethod
    def _heads(attn, tensor):
        return tensor.unflatten(2, (attn.heads, -1))

    @staticmethod
    def _attend(attn, query, keys, values):
        out = dispatch_attention_fn(query, keys, values, backend=attn.processor._attention_backend)
        return out.flatten(2, 3).type_as(query)


class SlicedWan(WanTransformer3DModel):
    """`WanTransformer3DModel` with its first and last layers in slices, and the timestep's vectors made once each."""

    slice_tokens: int

    @apply_lora_scale("attention_kwargs")
    def forward(
        self, hidden_states, timestep, encoder_hidden_states, encoder_hidden_states_image=None, return_dict=True,
        attention_kwargs=None,
    ):  # fmt: skip
        batch, _, frames, height, width = hidden_states.shape
        patch = self.config.patch_size
        grid = frames // patch[0], height // patch[1], width // patch[2]
        rotary_emb = self.rope(hidden_states)

        dtype = self.patch_embedding.weight.dtype
        x = hidden_states.new_empty(batch, *grid, self.patch_embedding.out_channels, dtype=dtype)
        parts = hidden_states.split(patch[0], dim=2)
        embed = hold(self.patch_embedding, parts)
        for frame, patches in enumerate(parts):
            x[:, frame] = embed(patches)[:, :, 0].movedim(1, -1)
        del embed
        x = x.flatten(1, 3)

        steps = Rows.of(timestep)
        temb, projected, context, _ = self.condition_embedder(steps.values, encoder_hidden_states)
        projected = Rows(projected.unflatten(1, (6, -1)), steps.index)
        for block in self.blocks:
            x = block(x, context, projected, rotary_emb)

        temb = Rows(self.scale_shift_table.to(temb.device) + temb[:, None], steps.index)
        out = x.new_empty(*x.shape[:2], self.proj_out.out_features)
        # The keys and values are gone, so these slices can be longer: kernels for few rows may sum in another order.
        pieces = spans(x.shape[1], max(self.slice_tokens, -(-x.shape[1] // 4)))
        proj_out = hold(self.proj_out, pieces)
        for s in pieces:
            out[:, s] = proj_out(
                (self.norm_out(x[:, s].float()) * (1 + temb.part(1, s)) + temb.part(0, s)).type_as(x)
            )
        del x, proj_out
        out = out.reshape(batch, *grid, *patch, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
        out = out.flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return Transformer2DModelOutput(sample=out) if return_dict else (out,)


def rotate(heads: torch.Tensor, rotary_emb: tuple[torch.Tensor, torch.Tensor], span: slice) -> torch.Tensor:
    """Wan's rotary positions for [batch, tokens of the span, heads, channels], as in `WanAttnProcessor`."""
    first, second = heads.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary_emb[0][:, span, :, 0::2], rotary_emb[1][:, span, :, 1::2]
    out = torch.empty_like(heads)
    out[..., 0::2] = first * cos - second * sin
    out[..., 1::2] = first * sin + second * cos
    return out

