"""Encode a prompt on the CPU. Lesson 01 writes these functions out and explains them."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import attach_align_device_hook

from helpers.models.lazy_weights import LazyWeights


def encoder_from_files(checkpoint, encoder_class):
    """A text encoder with its weights on disk: each layer reads its weights when it is called, and frees them after."""
    weights = LazyWeights(checkpoint, "text_encoder")
    with torch.device("meta"):
        encoder = encoder_class(encoder_class.config_class.from_json_file(weights.config)).eval()
    encoder.set_input_embeddings(weights.rows("shared.weight"))
    attach_align_device_hook(encoder, execution_device=torch.device("cpu"), offload=True, weights_map=weights)
    return encoder


def prompt_cut(tokenizer: Any, prompt: str, max_tokens: int) -> str:
    """Return the end of a prompt that the text encoder will not see, or "" if it sees the whole prompt.

    Args:
        tokenizer: The pipeline's tokenizer, a fast tokenizer of transformers.
        prompt: The prompt.
        max_tokens: `Model.max_prompt_tokens`, which includes the tokenizer's end token.
    """
    room = max_tokens - tokenizer.num_special_tokens_to_add()
    spans = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    return prompt[spans[room][0] :].strip() if len(spans) > room else ""
