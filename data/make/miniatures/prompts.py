"""The miniatures' prompts: a T5 tokenizer trained on them, and a small T5 encoder with random weights.

Random weights are enough: an untrained encoder already gives every sentence a distinct embedding, and the denoiser
learns what each one means. The classes, files and calls are those of the real models.
"""

import io
import json
import shutil
from pathlib import Path

import sentencepiece
import torch
import transformers
from transformers import T5TokenizerFast

from data.make.clips.scenes import PROMPTS

WIDTH = 32  # of an embedding
MAX_TOKENS = 128  # LTX-Video's pipeline pads a prompt to this length


def save_tokenizer(folder: Path) -> None:
    """Train a sentencepiece model on the prompts and save it as a T5 tokenizer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROMPTS * 20),
        model_writer=model,
        model_type="unigram",
        vocab_size=120,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="</s>",
        unk_piece="<unk>",
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=MAX_TOKENS).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(model.getvalue())


def save_encoder(folder: Path, vocab_size: int, encoder: str = "T5EncoderModel", seed: int = 0) -> None:
    """Save a small encoder of the class `encoder` with random weights from a seed, in fp16."""
    torch.manual_seed(seed)
    encoder_class = getattr(transformers, encoder)
    config = encoder_class.config_class(
        vocab_size=vocab_size,
        d_model=WIDTH,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
    )
    encoder_class(config).half().save_pretrained(folder)


def save_tokenizer_and_encoder(work: Path, encoder: str) -> None:
    """Save a new tokenizer and a small encoder of the class `encoder` in the folders that a pipeline expects."""
    (work / "tokenizer").mkdir(exist_ok=True)
    save_tokenizer(work / "tokenizer")
    save_encoder(work / "text_encoder", len(T5TokenizerFast.from_pretrained(work / "tokenizer")), encoder)


@torch.no_grad()
def embed(folder: Path, prompts: list[str], positions: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed prompts as the pipeline does.

    A T5 encoder attends to all `MAX_TOKENS` positions, as in LTX-Video's pipeline; a UMT5 encoder gets the mask, as in
    Wan's.

    Args:
        folder: Holds `tokenizer` and `text_encoder`.
        positions: The number of positions to keep, for a denoiser that also attends to the padding (CogVideoX). By
            default the padding is cut after the longest prompt, because the denoiser masks it or has zeros there.

    Returns:
        Embeddings [N, L, WIDTH] in fp32 and mask [N, L].
    """
    tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer")
    (name,) = json.loads((folder / "text_encoder" / "config.json").read_text())["architectures"]
    encoder = getattr(transformers, name).from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    room = positions or MAX_TOKENS
    tokens = tokenizer(prompts, padding="max_length", max_length=room, truncation=True, return_tensors="pt")
    longest = positions or int(tokens.attention_mask.sum(1).max())
    seen = {"attention_mask": tokens.attention_mask} if name.startswith("UMT5") else {}
    return encoder(tokens.input_ids, **seen)[0][:, :longest].clone(), tokens.attention_mask[:, :longest].clone()


def save_pipeline(pipe, work: Path, folder: Path) -> None:
    """Save a pipeline, and with its fast tokenizer the sentencepiece model that the tokenizer was made from."""
    pipe.save_pretrained(folder)
    shutil.copyfile(work / "tokenizer" / "spiece.model", folder / "tokenizer" / "spiece.model")


def drop_some(prompts: torch.Tensor, empty: int) -> torch.Tensor:
    """Prompt indices [n] with 8 % of them replaced by the index of the empty prompt, for classifier-free guidance."""
    return torch.where(torch.rand(len(prompts), device=prompts.device) < 0.08, empty, prompts)
