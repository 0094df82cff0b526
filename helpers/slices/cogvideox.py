"""CogVideoX's transformer in slices of tokens."""

from __future__ import annotations

import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock

from helpers.slices.held import hold
from helpers.slices.tokens import spans


class SlicedCogVideoXBlock(CogVideoXBlock):
    """`CogVideoXBlock`, changing both hidden states in place: the text's as one slice, the video's in several.

    Text and video are one sequence to the attention, the text first.
    """

    slice_tokens: int

    def forward(self, hidden_states, encoder_hidden_states, temb, image_rotary_emb=None, attention_kwargs=None):
        text = encoder_hidden_states.shape[1]
        # Each piece: the tensor, its tokens there, and its tokens in the sequence.
        pieces = [(encoder_hidden_states, slice(0, text), slice(0, text))] + [
            (hidden_states, s, slice(text + s.start, text + s.stop))
            for s in spans(hidden_states.shape[1], self.slice_tokens)
        ]

        def modulation(norm):
            """A function that norms one piece, and one that returns its gate."""
            shift, scale, gate, *others = norm.linear(norm.silu(temb))[:, None].chunk(6, dim=2)
            of_text = dict(zip(("shift", "scale", "gate"), others, strict=True))
            of_video = {"shift": shift, "scale": scale, "gate": gate}

            normalize = hold(norm.norm, pieces)

            def normed(x, s):
                by = of_text if x is encoder_hidden_states else of_video
                return normalize(x[:, s]) * (1 + by["scale"]) + by["shift"]

            return normed, lambda x: (of_text if x is encoder_hidden_states else of_video)["gate"]

        # Self-attention: each token sees the keys and values of all others, so these are made first.
        attn = self.attn1
        normed, gate = modulation(self.norm1)
        batch, tokens = len(hidden_states), text + hidden_states.shape[1]
        channels = attn.to_k.out_features // attn.heads
        keys, values = (hidden_states.new_empty(batch, attn.heads, tokens, channels) for _ in range(2))

        def heads(tensor):
            return tensor.unflatten(2, (attn.heads, -1)).transpose(1, 2)

        def placed(tensor, norm, x, s):
            """Query or key of one piece, with its rotary positions; words have none."""
            tensor = heads(tensor) if norm is None else norm(heads(tensor))
            if image_rotary_emb is None or x is encoder_hidden_states:
                return tensor
            return apply_rotary_emb(tensor, tuple(one[s] for one in image_rotary_emb))

        to_k, norm_k, to_v = (hold(layer, pieces) for layer in (attn.to_k, attn.norm_k, attn.to_v))
        inputs_of = [normed(x, s) for x, s, _ in pieces]
        for (x, s, place), inputs in zip(pieces, inputs_of, strict=True):
            keys[:, :, place] = placed(to_k(inputs), norm_k, x, s)
            values[:, :, place] = heads(to_v(inputs))
        del inputs, to_k, norm_k, to_v
        to_q, norm_q, to_out = (hold(layer, pieces) for layer in (attn.to_q, attn.norm_q, attn.to_out[0]))
        for x, s, _ in pieces:
            query = placed(to_q(inputs_of.pop(0)), norm_q, x, s)
            out = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2, 3)
            x[:, s] += gate(x) * to_out(out)
        del query, out, keys, values, to_q, norm_q, to_out

        # Feed-forward: no token sees another one.
        normed, gate = modulation(self.norm2)
        activation, _, down, *_ = self.ff.net
        up, down = hold(activation.proj, pieces), hold(down, pieces)
        for x, s, _ in pieces:
            x[:, s] += gate(x) * down(activation.gelu(up(normed(x, s))))
        return hidden_states, encoder_hidden_states
