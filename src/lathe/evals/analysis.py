"""Hold what a decoder's layers do on a text: ranks of attention, each block's influence, losses along the way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lathe.errors import EvaluationError
from lathe.evals.spectrum import check_share
from lathe.shape import Shape, count_forward_flops

LAZY = 1.5
"""The largest rank over its heads up to which a layer is lazy: it is 1 on most sequences, for every head."""
Heads = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """Hold measures by visit, those of attention also by head; without sharing, visits are layers. All count from 0.

    `rank` and `mass` are means over `sequences` of `seq_len` tokens of what `lathe.evals.spectrum` counts for `share`.
    `influence` is 1 less the mean cosine between a block's input and output (Men et al. 2024, ShortGPT,
    arXiv:2403.03853, equation 1). `lens_losses` are the losses, in nats per token, of final norm and head on the stream
    after the embedding and after each visit (nostalgebraist 2020, the logit lens): one more than visits, or none where
    they were not asked for. `flops` is what it took. Raises EvaluationError for counts that are not the shape's.
    """

    name: str
    shape: Shape
    dataset: str
    seq_len: int
    sequences: int
    share: float = 0.9
    rank: Heads
    mass: Heads
    influence: tuple[float, ...]
    lens_losses: tuple[float, ...] = ()
    flops: float

    def __post_init__(self) -> None:
        check_share(self.share)
        visits, heads = self.shape.n_layers, self.shape.n_heads
        for what in ("rank", "mass"):
            if [len(row) for row in getattr(self, what)] != [heads] * visits:
                raise EvaluationError(f"{what} is not of {visits} visits by {heads} heads, as the shape has them")
        if len(self.influence) != visits:
            raise EvaluationError(f"influence has {len(self.influence)} values; the shape has {visits} visits")
        if len(self.lens_losses) not in (0, visits + 1):
            raise EvaluationError(
                f"lens_losses has {len(self.lens_losses)} values; wanted {visits + 1}, the embedding's first, or none"
            )
        values = [*self.influence, *self.lens_losses, *(x for row in (*self.rank, *self.mass) for x in row)]
        if not all(math.isfinite(x) for x in values):
            raise EvaluationError(
                f"the analysis of {self.name} has values that are no numbers; look for broken weights"
            )

    @property
    def rank_max(self) -> tuple[float, ...]:
        """Give each visit's largest rank over its heads."""
        return tuple(map(max, self.rank))

    @property
    def mass_max(self) -> tuple[float, ...]:
        """Give each visit's largest mass over its heads."""
        return tuple(map(max, self.mass))

    @property
    def lazy_visits(self) -> tuple[int, ...]:
        """List the visits whose largest rank is LAZY or less."""
        return tuple(visit for visit, rank in enumerate(self.rank_max) if rank <= LAZY)

    @property
    def effective_depth(self) -> int:
        """Count the fewest visits whose influences sum to `share` of all visits'. This measure is Lathe's own."""
        total, reached = math.fsum(self.influence), 0.0
        for count, influence in enumerate(sorted(self.influence, reverse=True), start=1):
            reached += influence
            if reached >= self.share * total * (1 - 1e-10):
                return count
        return len(self.influence)


def count_analysis_flops(shape: Shape, *, sequences: int, seq_len: int, lens: bool = True) -> float:
    """Count the FLOPs of an analysis.

    The blocks' forward pass, attention's queries, keys and scores once more (whole squares), A·Aᵀ and its eigenvalues
    (2 and 4/3 t³; Golub and Van Loan, Matrix Computations, section 8.3), and with the lens a head after each visit.
    """
    tokens, heads = sequences * seq_len, shape.n_heads
    qkv_width = (heads + 2 * shape.n_kv_heads) * shape.d_head
    body = tokens * count_forward_flops(shape, (seq_len + 1) / 2, logits=False)
    again = tokens * shape.n_layers * 2.0 * (shape.d_model * qkv_width + heads * shape.d_head * seq_len)
    spectra = shape.n_layers * heads * sequences * (2 + 4 / 3) * float(seq_len) ** 3
    heads_after = shape.n_layers + 1 if lens else 0
    return body + again + spectra + heads_after * sequences * (seq_len - 1) * 2.0 * shape.vocab_size * shape.d_model
