"""The miniatures' prompt side: a T5 tokenizer trained on our prompts, a small T5 encoder with random weights.

Random is enough here: an untrained transformer already gives every sentence its own embedding, and the denoiser learns
what each one means. The classes, the files and the calls are those of the real models.
"""

import io
import json
import shutil
from pathlib import Path

import sentencepiece
import torch
import transformers
from transformers import T5TokenizerFast

from .scenes import PROMPTS

WIDTH = 32  # of an embedding
MAX_TOKENS = 128  # what LTX-Video's pipeline pads a prompt to


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
    """Make the small encoder of the class `encoder` from a seed and save it in fp16."""
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


@torch.no_grad()
def embed(folder: Path, prompts: list[str], positions: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [N, L, WIDTH] and mask [N, L] as the pipeline computes them.

    A T5 encoder sees all of `MAX_TOKENS` positions, as in LTX-Video's pipeline; a UMT5 encoder is given the mask, as in
    Wan's. The denoiser masks the padding or has zeros there, so it is cut after the longest prompt. Not so CogVideoX's,
    which attends to all `positions` that its pipeline pads a prompt to: these are kept where they are given.
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
    """Save a pipeline, and beside its fast tokenizer the sentencepiece model that this was made from."""
    pipe.save_pretrained(folder)
    shutil.copyfile(work / "tokenizer" / "spiece.model", folder / "tokenizer" / "spiece.model")
