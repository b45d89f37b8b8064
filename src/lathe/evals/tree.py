"""Lay the options of a question out so that what they begin with is computed once: a prefix, and a branch an option.

Axes in names: b rows of a batch, t tokens of a row, n places whose next token is asked for, m targets.

An option is scored where its continuation stands: each place there predicts the next token. Options of one question
mostly share their context. A model reads the prefixes of many questions, keeps their keys and values, and then the
branches, each behind its prefix. A place in the prefix may predict the first token of many options: a question that is
answered by a letter has no branches at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = tuple[int, ...]
Option = tuple[Ids, Ids]
"""The ids of a context and those of the continuation to score."""
KEPT = 8
"""Rows of prefixes that are kept at once: their keys and values stand in memory."""
LEAST_SHARED = 4
"""A shorter prefix is not worth a branch: each option is then a prefix of its own."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Hold a prefix, what is left of each sequence behind it, and what is asked.

    Of each target: the sequence it belongs to, its place in that sequence and its id. `sequence_o` says which sequence
    each option is, -1 where it is in another tree: equal options are one.
    """

    question: int
    prefix: Ids
    branches: tuple[Ids, ...]
    owners: Ids
    places: Ids
    targets: Ids
    sequence_o: Ids
    cut_o: Ids


@dataclass(frozen=True, slots=True)
class Rows:
    """Hold rows of about one length, padded with zeros on the right.

    `tree_b` says whose prefix each row is, or before which branch that prefix stands.
    """

    tokens_bt: NDArray[np.int64]
    lengths: tuple[int, ...]
    tree_b: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """Hold trees, their prefixes in rows, longest first, and then their branches in rows, longest first.

    The hidden states that are needed stand at `places_n` of all rows' tokens laid end to end, prefixes first; `at_m`
    says for each target which of them predicts it.
    """

    trees: tuple[Tree, ...]
    prefixes: tuple[Rows, ...]
    branches: tuple[Rows, ...]
    places_n: NDArray[np.int64]
    at_m: NDArray[np.int64]
    targets_m: NDArray[np.int64]


def plant(question: int, options: Sequence[Option], *, max_tokens: int | None, branching: bool = True) -> list[Tree]:
    """Make the tree of a question; or, without `branching` or much to share, one tree an option.

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
    shared = _count_shared([ids[:-1] for ids, _ in distinct])
    if len(distinct) == 1 or (branching and shared >= LEAST_SHARED):
        return [_grow(question, distinct, shared, sequence_o, tuple(cut))]
    return [
        _grow(question, [one], len(one[0]) - 1, tuple(0 if s == i else -1 for s in sequence_o), tuple(cut))
        for i, one in enumerate(distinct)
    ]


def _grow(question: int, sequences: list[tuple[Ids, int]], shared: int, sequence_o: Ids, cut_o: Ids) -> Tree:
    owners: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    for i, (ids, scored) in enumerate(sequences):
        owners += [i] * scored
        places += range(len(ids) - 1 - scored, len(ids) - 1)
        targets += ids[-scored:]
    branches = tuple(ids[shared:-1] for ids, _ in sequences)
    prefix = sequences[0][0][:shared]
    return Tree(question, prefix, branches, tuple(owners), tuple(places), tuple(targets), sequence_o, cut_o)


def _count_shared(sequences: list[Ids]) -> int:
    """Count the tokens that all sequences begin with."""
    low, high = min(sequences), max(sequences)  # these two differ first
    for at, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return at
    return min(len(low), len(high))


def batch_trees(trees: Sequence[Tree], *, batch_tokens: int) -> Iterator[TreeBatch]:
    """Batch trees of about equal prefixes, longest first; rows hold `batch_tokens` at most, or one row.

    Branches of KEPT as many prefixes are sorted among themselves, so that little of their rows is padding. The batches
    do not depend on the order of the trees.
    """
    ordered = sorted(trees, key=lambda tree: (-len(tree.prefix), tree.prefix, tree.branches, tree.targets))
    start = 0
    while start < len(ordered):
        count = max(1, KEPT * batch_tokens // len(ordered[start].prefix))
        yield _pack(ordered[start : start + count], batch_tokens=batch_tokens)
        start += count


def _pack(trees: list[Tree], *, batch_tokens: int) -> TreeBatch:
    prefixes = [(row, 0, tree.prefix) for row, tree in enumerate(trees)]
    branches = [(row, i, ids) for row, tree in enumerate(trees) for i, ids in enumerate(tree.branches) if ids]
    branches.sort(key=lambda one: -len(one[2]))
    prefix_rows, begin_of, total = _lay_rows(prefixes, batch_tokens=batch_tokens, begin=0)
    branch_rows, branch_begin_of, _ = _lay_rows(branches, batch_tokens=batch_tokens, begin=total)
    flat_m = np.array(
        [
            begin_of[row, 0] + place
            if place < len(tree.prefix)
            else branch_begin_of[row, owner] + place - len(tree.prefix)
            for row, tree in enumerate(trees)
            for owner, place in zip(tree.owners, tree.places, strict=True)
        ]
    )
    places_n, at_m = np.unique(flat_m, return_inverse=True)
    targets_m = np.concatenate([tree.targets for tree in trees])
    return TreeBatch(tuple(trees), prefix_rows, branch_rows, places_n, at_m, targets_m)


def _lay_rows(
    parts: Sequence[tuple[int, int, Ids]], *, batch_tokens: int, begin: int
) -> tuple[tuple[Rows, ...], dict[tuple[int, int], int], int]:
    """Lay ids, longest first, into rows; says too where each begins among all tokens, and where those end."""
    found: list[Rows] = []
    begin_of: dict[tuple[int, int], int] = {}
    start = 0
    while start < len(parts):
        width = len(parts[start][2])
        taken = parts[start : start + max(1, batch_tokens // width)]
        tokens_bt = np.zeros((len(taken), width), dtype=np.int64)
        for i, (row, branch, ids) in enumerate(taken):
            tokens_bt[i, : len(ids)] = ids
            begin_of[row, branch] = begin + i * width
        found.append(Rows(tokens_bt, tuple(len(ids) for *_, ids in taken), np.array([row for row, *_ in taken])))
        begin += tokens_bt.size
        start += len(taken)
    return tuple(found), begin_of, begin
