"""Encode a prompt on the CPU. Lesson 01 writes these functions out and explains them."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import attach_align_device_hook

from helpers.lesson.cache import CachedEmbeddings
from helpers.measure.meter import VRAMMeter
from helpers.models.lazy_weights import LazyWeights


def encoder_from_files(checkpoint, encoder_class):
    """A text encoder with its weights on disk: each layer reads its weights when it is called, and frees them after."""
    weights = LazyWeights(checkpoint, "text_encoder")
    with torch.device("meta"):
        encoder = encoder_class(encoder_class.config_class.from_json_file(weights.config)).eval()
    encoder.set_input_embeddings(weights.rows("shared.weight"))
    attach_align_device_hook(encoder, execution_device=torch.device("cpu"), offload=True, weights_map=weights)
    return encoder


def encode_prompts(load_text_half, encode, settings, prompts=None):
    """The embeddings [tokens, channels] of each prompt, on the CPU in fp32, from the cache or from the encoder.

    `load_text_half()` returns a pipeline with tokenizer and encoder, `encode(text_pipe, prompts, limit)` embeddings of
    all prompts at once, at most `limit` tokens of each. Also returns this pipeline (`None` if all prompts were in the
    cache), and the meter. By default the prompts are those of the settings.
    """
    prompts = prompts or settings.prompts
    cache = CachedEmbeddings(settings.out_dir / "embeddings", settings.checkpoint, dtype=torch.float32)
    text_embeds, text_pipe, limit = [cache.load(prompt) for prompt in prompts], None, settings.model.max_prompt_tokens
    with VRAMMeter("encode the prompt") as meter, torch.no_grad():
        if any(embeds is None for embeds in text_embeds):
            text_pipe = load_text_half()
            cuts = {prompt: prompt_cut(text_pipe.tokenizer, prompt, limit) for prompt in prompts}
            print("not seen by the encoder:", {prompt: cut for prompt, cut in cuts.items() if cut} or "nothing")
            text_embeds = list(encode(text_pipe, prompts, limit))
            for prompt, embeds in zip(prompts, text_embeds, strict=True):
                cache.save(prompt, embeds)
    how = "encoded" if text_pipe else "found in the cache, no encoder needed,"
    print(f"{how} in {meter.seconds:.1f} s: embeddings {[tuple(embeds.shape) for embeds in text_embeds]}")
    return text_embeds, text_pipe, meter


def encoder_for(settings, encoder_class):
    """What `from_pretrained` is told about the encoder: nothing, or to take the one from files if the settings ask."""
    lazy = settings.encode == "layer_by_layer"
    return {"text_encoder": encoder_from_files(settings.checkpoint, encoder_class)} if lazy else {}


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
