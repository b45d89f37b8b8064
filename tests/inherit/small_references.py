"""Small references of every kind of decoder that Lathe has, with random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from lathe.model.checkpoint import build_model, save_checkpoint
from lathe.model.decoder import Decoder
from lathe.shape import Shape
from tests.hub.foreign_models import VOCAB, random_tokens, random_weights

SMALL = Shape(d_model=24, n_layers=4, n_heads=4, n_kv_heads=2, d_head=6, d_ff=40, vocab_size=VOCAB, max_seq_len=48)
GPT2 = dataclasses.replace(
    SMALL, n_kv_heads=4, norm="layernorm", mlp="gelu-tanh", position="learned", bias="all", tied=True
)
SHAPES = {
    "llama": SMALL,
    "llama-tied": dataclasses.replace(SMALL, tied=True, bias="all"),
    "wide-heads": dataclasses.replace(SMALL, d_head=10, qk_norm="head", bias="qkv"),
    "gpt2": GPT2,
    "opt-plain": dataclasses.replace(GPT2, norm="layernorm-plain", bias="none", mlp="relu", position_offset=2),
    "neox": dataclasses.replace(
        GPT2, position="rotary", rotary_fraction=0.4, mlp="gelu", tied=False, parallel_residual=True
    ),
    "openlm": dataclasses.replace(SMALL, norm="layernorm-gain", qk_norm="full"),
    "olmo": dataclasses.replace(SMALL, norm="layernorm-plain", qk_norm="full"),
    "qk-rms": dataclasses.replace(SMALL, qk_norm="full", position="none", tied=True),
    "immediate": dataclasses.replace(SMALL, sharing="immediate", sharing_count=2),
    "all-over": dataclasses.replace(GPT2, sharing="all-over", sharing_count=2),
    "reverse": dataclasses.replace(SMALL, sharing="reverse", sharing_count=2, tied=True),
}


def decoder(shape: Shape, weights: dict[str, Tensor]) -> Decoder:
    return build_model(shape, weights, dtype="fp32", device="cpu", source="the test's weights")


def logits(shape: Shape, weights: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return decoder(shape, weights)(random_tokens())


def save_reference(folder: Path, shape: Shape = SMALL, *, tokenizer: bool = True) -> Path:
    save_checkpoint(folder, shape, random_weights(shape))
    if tokenizer:
        words = Tokenizer(WordLevel({f"w{i}": i for i in range(shape.vocab_size)}, unk_token="w0"))
        words.save(str(folder / "tokenizer.json"))
    return folder
