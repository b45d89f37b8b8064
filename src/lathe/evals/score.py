"""Score continuations: their log-probability after a context, whatever stands in the same batch.

A score is a function of context and continuation: batch, order and padding move it by rounding alone, some 1e-6 a token
in fp32 (`ROUNDING` bounds it, in tests).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lathe.errors import EvaluationError
from lathe.evals.encode import encode_pairs
from lathe.evals.scorer import Scored, Scorer
from lathe.evals.tree import Option, TreeBatch, batch_trees, plant

ROUNDING = 1e-5
"""What batch, order and padding may move a log-probability by, in nats a token, in fp32."""
AHEAD = 1
"""Batches that a device may be given before the one before is read: it need not wait for us."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Score:
    """Hold a continuation's log-probability in nats over its `tokens`.

    `lead` is the least by which a token's logit leads all others, negative where one does not. `cut` tokens on the left
    were more than the model reads.
    """

    log_prob: float
    tokens: int
    lead: float
    cut: int

    @property
    def greedy(self) -> bool:
        """Say whether greedy decoding would write this continuation."""
        return self.lead > 0


def score_pairs(
    scorer: Scorer,
    questions: Sequence[Sequence[tuple[str, str]]],
    *,
    batch_tokens: int | None = None,
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[list[Score]]:
    """Score the (context, continuation) texts of each question's options.

    See `score_tokens`. Raises EvaluationError, also for a continuation that adds no token to its context.
    """
    options = encode_pairs(scorer, questions, names=names)
    return score_tokens(scorer, options, batch_tokens=batch_tokens, names=names, progress=progress)


def score_tokens(
    scorer: Scorer,
    questions: Sequence[Sequence[Option]],
    *,
    batch_tokens: int | None = None,
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[list[Score]]:
    """Score the (context, continuation) ids of each question's options; what they share is computed once.

    Args:
        batch_tokens: how many tokens a batch holds at most, if not one row is longer; what suits the device if not
            given.
        names: what to call the questions in errors.
        progress: called with the questions done and all of them.

    Raises:
        EvaluationError: a model that gives what is no number, naming the question.
    """
    budget = scorer.batch_tokens if batch_tokens is None else batch_tokens
    if budget < 1:
        raise EvaluationError(f"batch_tokens={budget}; wanted 1 or more")
    found: list[list[Score | None]] = [[None] * len(options) for options in questions]
    trees = [
        tree
        for i, options in enumerate(questions)
        for tree in plant(i, options, max_tokens=scorer.max_tokens, branching=scorer.branching)
    ]
    done = 0
    for batch, scored in _run_ahead(scorer, batch_trees(trees, batch_tokens=budget)):
        _collect(batch, *scored.read(), found, names)
        done += len(batch.trees)
        if progress is not None:
            progress(done * len(questions) // len(trees), len(questions))
    return [[score for score in row if score is not None] for row in found]


def _run_ahead(scorer: Scorer, batches: Iterable[TreeBatch]) -> Iterable[tuple[TreeBatch, Scored]]:
    """Start each batch before the one before is read."""
    started: deque[tuple[TreeBatch, Scored]] = deque()
    for batch in batches:
        started.append((batch, scorer.score(batch)))
        if len(started) > AHEAD:
            yield started.popleft()
    yield from started


def _collect(
    batch: TreeBatch,
    log_prob_m: NDArray[np.float64],
    lead_m: NDArray[np.float64],
    found: list[list[Score | None]],
    names: Sequence[str] | None,
) -> None:
    """Sum each option's targets, and put its score where it belongs."""
    start = 0
    for tree in batch.trees:
        end = start + len(tree.targets)
        if not np.isfinite(log_prob_m[start:end]).all():
            name = f"item {tree.question + 1}" if names is None else names[tree.question]
            raise EvaluationError(
                f"{name}: the model's logits are no numbers; its weights, or its dtype's range, are at fault: try fp32"
            )
        owner_m = np.array(tree.owners)
        tokens = np.bincount(owner_m)
        log_prob = np.bincount(owner_m, weights=log_prob_m[start:end])
        lead = np.full(len(tokens), np.inf)
        np.minimum.at(lead, owner_m, lead_m[start:end])
        for option, sequence in enumerate(tree.sequence_o):
            if sequence >= 0:
                found[tree.question][option] = Score(
                    float(log_prob[sequence]), int(tokens[sequence]), float(lead[sequence]), tree.cut_o[option]
                )
        start = end
