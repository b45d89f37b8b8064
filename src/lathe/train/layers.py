"""Look at what the layers do while they are trained, on a small part of the held-out text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lathe.errors import EvaluationError
from lathe.evals.analyse import SEQ_LEN, analyse, draw_sequences
from lathe.evals.analysis import Analysis
from lathe.model.decoder import Decoder
from lathe.train.text import Text

SEQUENCES = 20
"""Of an analysis in training, at most: a fifth of what `lathe analyse` reads, for it comes again and again."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Hold sequences of the first validation set, [n, t], and that set's name."""

    dataset: str
    tokens_nt: Tensor

    def analyse(self, decoder: Decoder, *, name: str) -> Analysis:
        """Analyse a decoder on the sample. Raises EvaluationError for values that are no numbers."""
        return analyse(decoder, self.tokens_nt, name=name, dataset=self.dataset)


def draw_sample(text: Text, *, seq_len: int) -> Sample:
    """Draw the same sequences for every analysis of a run, none longer than those trained on.

    Raises EvaluationError for a held-out text without a whole sequence.
    """
    dataset, split = next(iter(text.validation.items()))
    seq_len = min(seq_len, SEQ_LEN)
    if split.tokens < seq_len:
        raise EvaluationError(
            f"{split.dataset.folder} holds out {split.tokens:,} tokens, and an analysis reads {seq_len} or more; hold "
            "more out, or leave analyse_every out"
        )
    return Sample(dataset, draw_sequences(split, sequences=min(SEQUENCES, split.tokens // seq_len), seq_len=seq_len))
