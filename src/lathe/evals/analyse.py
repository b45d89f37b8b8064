"""Analyse what a decoder's layers do on a text, a few sequences at a time: one layer's attention stands at once.

Axes in names: n sequences, b sequences of a batch, t tokens, d d_model, h heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from lathe.data.store import Split
from lathe.errors import EvaluationError
from lathe.evals.analysis import Analysis, count_analysis_flops
from lathe.evals.sources import Source, open_sources
from lathe.evals.spectrum import attention_mass, attention_rank, check_share
from lathe.model.attention import Window
from lathe.model.decoder import Decoder
from lathe.model.loss import position_losses

SEQUENCES, SEQ_LEN = 100, 100
"""Of an analysis, as in Sanyal et al. 2024, arXiv:2404.08634."""
BATCH_TOKENS, WEIGHT_BYTES = 2048, 64 * 2**20
"""Tokens computed with at once, and what their attention weights of one layer may take in fp32."""
Progress = Callable[[str, float], None]


def analyse(
    model: Decoder,
    tokens_nt: Tensor,
    *,
    name: str,
    dataset: str,
    share: float = 0.9,
    batch_sequences: int | None = None,
    lens: bool = True,
    progress: Progress | None = None,
) -> Analysis:
    """Measure attention, influence and losses of every visit on sequences of ids, at least two tokens each.

    The model is left as it was, and no random number is drawn. A batch goes through all layers before the next one
    does, so memory holds one batch's stream and one layer's attention of it beside the weights.

    Args:
        name: of the model.
        dataset: where the sequences come from.
        share: of squares, for ranks and masses.
        batch_sequences: computed with at once; as many as take little memory if not given.
        lens: whether losses are measured along the way: a head after every visit, which may cost more than the blocks.

    Raises EvaluationError for sequences that the model cannot read, and for values that are no numbers.
    """
    check_share(share)
    _check_tokens(model, tokens_nt)
    sequences, seq_len = tokens_nt.shape
    shape = model.shape
    batch = batch_sequences or max(
        1, min(BATCH_TOKENS // seq_len, WEIGHT_BYTES // (4 * shape.n_heads * seq_len * seq_len))
    )
    sums = _Sums(model, share=share, lens=lens)
    with sums.watching():
        for at in range(0, sequences, batch):
            sums.add(tokens_nt[at : at + batch].to(model.embedding.weight.device))
            if progress is not None:
                progress(dataset, min(1.0, (at + batch) / sequences))
    rank_vh, mass_vh, influence_v, lens_v = sums.means(sequences, seq_len)
    return Analysis(
        name=name, shape=shape, dataset=dataset, seq_len=seq_len, sequences=sequences, share=share,
        rank=tuple(map(tuple, rank_vh)), mass=tuple(map(tuple, mass_vh)), influence=tuple(influence_v),
        lens_losses=tuple(lens_v),
        flops=count_analysis_flops(shape, sequences=sequences, seq_len=seq_len, lens=lens),
    )  # fmt: skip


class _Sums:
    """Sum what is measured over sequences: ranks and masses by visit and head, cosines and losses by visit."""

    def __init__(self, model: Decoder, *, share: float, lens: bool) -> None:
        self.model, self.share, self.lens = model, share, lens
        visits, heads = model.shape.n_layers, model.shape.n_heads
        self.rank_vh, self.mass_vh = (torch.zeros(visits, heads, dtype=torch.float64) for _ in range(2))
        self.cosine_v, self.loss_v = (torch.zeros(n, dtype=torch.float64) for n in (visits, visits + 1))
        self.targets_m = torch.zeros(0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at every block's input and output, in evaluation mode and not compiled."""
        model, training = self.model, self.model.training
        hooks = [model.blocks[stored].register_forward_hook(self._see) for stored in set(model.visits)]
        try:
            model.eval()
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            model.train(training)
            for hook in hooks:
                hook.remove()

    def add(self, tokens_bt: Tensor) -> None:
        """Run a batch of sequences through the model."""
        self.targets_m = tokens_bt[:, 1:].flatten()
        self.model.hidden(tokens_bt)

    def _see(self, block: nn.Module, given: tuple[Any, ...], out_btd: Tensor) -> None:
        x_btd, window, visit = given
        self._see_attention(block, x_btd, window, visit)
        self.cosine_v[visit] += F.cosine_similarity(x_btd.double(), out_btd.double(), dim=-1).sum().cpu()
        if self.lens:
            streams = {0: x_btd, 1: out_btd} if visit == 0 else {visit + 1: out_btd}
            for place, stream_btd in streams.items():
                x_md = self.model.norm(stream_btd[:, :-1]).flatten(0, 1)
                losses_m = position_losses(x_md, self.model.output_weight, self.targets_m)
                self.loss_v[place] += losses_m.sum(dtype=torch.float64).cpu()

    def _see_attention(self, block: Any, x_btd: Tensor, window: Window, visit: int) -> None:
        weights_bhtt = block.attention.weights(block.attention_norm(x_btd), window)
        b, h = weights_bhtt.shape[:2]
        weights_ntt = weights_bhtt.flatten(0, 1)
        for sums_vh, measure in ((self.rank_vh, attention_rank), (self.mass_vh, attention_mass)):
            try:
                counts_n = measure(weights_ntt, self.share)
            except EvaluationError as error:
                raise EvaluationError(f"layer {visit}: {error}") from None
            sums_vh[visit] += counts_n.view(b, h).sum(dim=0).cpu()

    def means(self, sequences: int, seq_len: int) -> tuple[Any, Any, list[float], list[float]]:
        """Give rank, mass, influence and, if asked for, losses."""
        losses = (self.loss_v / (sequences * (seq_len - 1))).tolist() if self.lens else []
        # identical vectors' cosine may round to just above 1
        influence_v = (1 - self.cosine_v / (sequences * seq_len)).clamp(min=0)
        return (self.rank_vh / sequences).tolist(), (self.mass_vh / sequences).tolist(), influence_v.tolist(), losses


def _check_tokens(model: Decoder, tokens_nt: Tensor) -> None:
    """Refuse sequences that the model cannot read."""
    shape = model.shape
    if tokens_nt.ndim != 2 or tokens_nt.shape[0] < 1 or tokens_nt.shape[1] < 2:
        raise EvaluationError(
            f"an analysis reads one sequence or more of two tokens or more; got {' × '.join(map(str, tokens_nt.shape))}"
        )
    if shape.position == "learned" and tokens_nt.shape[1] > shape.max_seq_len:
        raise EvaluationError(
            f"seq_len={tokens_nt.shape[1]} is more than the model's {shape.max_seq_len} learned positions; take "
            f"seq_len={shape.max_seq_len} or less"
        )
    if not 0 <= int(tokens_nt.min()) <= int(tokens_nt.max()) < shape.vocab_size:
        raise EvaluationError(
            f"the text holds ids from {int(tokens_nt.min())} to {int(tokens_nt.max())}, and the model has "
            f"{shape.vocab_size}; it was made with another tokenizer"
        )


def read_sequences(
    name: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
    sequences: int = SEQUENCES,
    seq_len: int = SEQ_LEN,
    seed: int = 0,
    split: str = "held-out",
    text_key: str = "text",
) -> Tensor:
    """Draw sequences from a dataset's folder, or from a file or folder of text, [n, t].

    The arguments are as in `lathe.evals.sources.open_sources` and `draw_sequences`, whose errors it raises.
    """
    found = open_sources([name], tokenizer, vocab_size, split=split, text_key=text_key)
    if len(found) > 1:
        parts = ", ".join(one.part or one.name for one in found.values())
        raise EvaluationError(f"{name} is a mixture of {parts}; name the folder of one of its datasets")
    return draw_sequences(*found.values(), sequences=sequences, seq_len=seq_len, seed=seed)


def draw_sequences(text: Source | Split, *, sequences: int, seq_len: int, seed: int = 0) -> Tensor:
    """Draw sequences that do not overlap, [n, t], in the text's order.

    Raises EvaluationError for a text that has not so many.
    """
    if sequences < 1 or seq_len < 2:
        raise EvaluationError(f"sequences={sequences} of seq_len={seq_len}; wanted 1 or more, of 2 tokens or more")
    places = text.tokens // seq_len
    if places < sequences:
        advice = f"--sequences {places}, or a longer text" if places else f"a longer text than {text.tokens:,} tokens"
        name = text.name if isinstance(text, Source) else f"{text.dataset.folder}: {text.name}"
        raise EvaluationError(
            f"{name} has {text.tokens:,} tokens: {places} sequences of {seq_len}, and {sequences} were asked for; "
            f"take {advice}"
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(places)[:sequences])
    rows = [text.read(int(place) * seq_len, seq_len).astype(np.int64) for place in chosen]
    return torch.from_numpy(np.stack(rows))
