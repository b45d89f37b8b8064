"""Lay the options of a question into one row: what they begin with once, then what is left of each.

Axes in names: b rows of a batch, t tokens of a row, n places whose next token is asked for, m targets.

An option is scored where its continuation stands: each place there predicts the next token. Options of one question
mostly share their context, so a row holds the shared prefix and then a branch an option; a branch sees the prefix and
itself (`lathe.model.attention.branch_mask`). A place in the prefix may predict the first token of many options: a
question answered by one letter is one row without branches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = tuple[int, ...]
Option = tuple[Ids, Ids]
"""The ids of a context and those of the continuation to score."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Hold one row: its tokens, which branch each belongs to (0: the prefix), and what is asked of it.

    For each target: the place in the row that predicts it, its id, and the sequence it belongs to. `sequence_o` says
    which sequence each option is: equal options are one.
    """

    question: int
    tokens: Ids
    branches: Ids
    places: Ids
    targets: Ids
    owners: Ids
    sequence_o: Ids
    cut_o: Ids

    @property
    def branching(self) -> bool:
        """Say whether anything stands behind the prefix."""
        return bool(self.branches) and self.branches[-1] > 0


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """Hold rows of about one length, padded on the right, and the targets of all of them.

    `branches_bt` is None where no row has branches: then plain causal attention will do. `places_n` are places in the
    flattened rows, each once; `at_m` says for each target which of them predicts it.
    """

    trees: tuple[Tree, ...]
    tokens_bt: NDArray[np.int64]
    branches_bt: NDArray[np.int64] | None
    places_n: NDArray[np.int64]
    at_m: NDArray[np.int64]
    targets_m: NDArray[np.int64]


def plant(question: int, options: Sequence[Option], *, max_tokens: int | None, branching: bool = True) -> list[Tree]:
    """Make the row of a question, or without `branching` one row an option.

    A model reads `max_tokens` at most: what is more is cut from the left of each option, as the field does. Options
    need a token of context and one of continuation.
    """
    kept, cut = [], []
    for context, continuation in options:
        whole = context + continuation
        excess = 0 if max_tokens is None else max(0, len(whole) - 1 - max_tokens)
        kept.append((whole[excess:], min(len(continuation), len(whole) - excess - 1)))
        cut.append(excess)
    distinct = list(dict.fromkeys(kept))
    sequence_o = tuple(distinct.index(one) for one in kept)
    if branching:
        return [_grow(question, distinct, sequence_o, tuple(cut))]
    return [
        _grow(question, [one], tuple(0 if s == i else -1 for s in sequence_o), tuple(cut))
        for i, one in enumerate(distinct)
    ]


def _grow(question: int, sequences: list[tuple[Ids, int]], sequence_o: Ids, cut_o: Ids) -> Tree:
    shared = _count_shared([ids[:-1] for ids, _ in sequences])
    tokens, branches = list(sequences[0][0][:shared]), [0] * shared
    places: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for i, (ids, scored) in enumerate(sequences):
        shift = len(tokens) - shared  # from a place in the option to its place in the row, behind the prefix
        first = len(ids) - 1 - scored
        places += [at if at < shared else at + shift for at in range(first, len(ids) - 1)]
        targets += ids[-scored:]
        owners += [i] * scored
        tokens += ids[shared:-1]
        branches += [i + 1] * (len(ids) - 1 - shared)
    return Tree(
        question, tuple(tokens), tuple(branches), tuple(places), tuple(targets), tuple(owners), sequence_o, cut_o
    )


def _count_shared(sequences: list[Ids]) -> int:
    """Count the tokens that all sequences begin with."""
    low, high = min(sequences), max(sequences)  # these two differ first
    for at, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return at
    return min(len(low), len(high))


def batch_trees(trees: Sequence[Tree], *, batch_tokens: int) -> Iterator[TreeBatch]:
    """Batch rows of about equal length, longest first: as many as `batch_tokens` holds, one at least.

    Rows without branches go by themselves. The batches do not depend on the order of the trees.
    """
    ordered = sorted(trees, key=lambda tree: (tree.branching, -len(tree.tokens), tree.tokens, tree.branches))
    start = 0
    while start < len(ordered):
        first = ordered[start]
        count = max(1, batch_tokens // len(first.tokens))
        rows = [tree for tree in ordered[start : start + count] if tree.branching == first.branching]
        yield _pack(rows)
        start += len(rows)


def _pack(trees: list[Tree]) -> TreeBatch:
    t = len(trees[0].tokens)
    tokens_bt = np.zeros((len(trees), t), dtype=np.int64)
    branches_bt = np.full((len(trees), t), -1, dtype=np.int64)
    for row, tree in enumerate(trees):
        tokens_bt[row, : len(tree.tokens)] = tree.tokens
        branches_bt[row, : len(tree.tokens)] = tree.branches
    flat_m = np.concatenate([np.add(tree.places, row * t) for row, tree in enumerate(trees)])
    places_n, at_m = np.unique(flat_m, return_inverse=True)
    return TreeBatch(
        trees=tuple(trees),
        tokens_bt=tokens_bt,
        branches_bt=branches_bt if trees[0].branching else None,
        places_n=places_n,
        at_m=at_m,
        targets_m=np.concatenate([tree.targets for tree in trees]),
    )
