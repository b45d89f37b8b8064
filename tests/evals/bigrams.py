"""A model whose probabilities are known: each token's next depends on that token alone, by a table."""

import math
from collections.abc import Mapping

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from lathe.evals.scorer import DecoderScorer, Words
from lathe.model.decoder import Decoder
from lathe.shape import Shape

END = "<end>"


def make_scorer(table: Mapping[str, Mapping[str, float]], *, max_seq_len: int = 64) -> DecoderScorer:
    """Make a scorer of words with these probabilities of the next word; what a row leaves out shares the rest equally.

    Blocks write nothing to the stream, so a token's embedding, one entry of its own, reaches the head as it is.
    """
    words = sorted({END, *table, *(word for row in table.values() for word in row)})
    size = len(words)
    prob_vv = torch.full((size, size), 1 / size, dtype=torch.float64)
    for word, row in table.items():
        rest = (1 - sum(row.values())) / max(1, size - len(row))
        prob_vv[words.index(word)] = torch.tensor([row.get(other, rest) for other in words])
    shape = Shape.of(d_model=size, n_layers=1, n_heads=1, d_head=2, vocab_size=size, max_seq_len=max_seq_len)
    decoder = Decoder(shape)
    with torch.no_grad():
        for block in decoder.blocks:
            block.attention.out.weight.zero_()
            block.mlp.down.weight.zero_()
        decoder.embedding.weight.copy_(torch.eye(size))
        decoder.head.weight.copy_(prob_vv.clamp(min=1e-30).log().T / math.sqrt(size))  # the norm gives √size
    return DecoderScorer(decoder.eval().requires_grad_(False), make_words(words))


def make_words(words: list[str]) -> Words:
    """Make a tokenizer of whole words."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = words.index(END)
    return Words(tokenizer=tokenizer, prefix=end, begin_text=END, stop_tokens=(end,))
