import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.evals.tree import batch_trees, plant

ids = st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple)
options = st.lists(st.tuples(ids, ids), min_size=1, max_size=4)


def sequences(tree):
    """Put a tree's sequences together again: their input ids."""
    return [tree.prefix + branch for branch in tree.branches]


@given(options, st.booleans())
def test_trees_hold_every_option(options, branching):
    trees = plant(0, options, max_tokens=None, branching=branching)
    for o, (context, continuation) in enumerate(options):
        (tree,) = [tree for tree in trees if tree.sequence_o[o] >= 0]
        sequence = tree.sequence_o[o]
        assert sequences(tree)[sequence] == (context + continuation)[:-1]
        asked = list(zip(tree.owners, tree.places, tree.targets, strict=True))
        mine = [(place, target) for owner, place, target in asked if owner == sequence]
        assert tuple(target for _, target in mine) == continuation
        assert [place for place, _ in mine] == list(range(len(context) - 1, len(context) + len(continuation) - 1))


def test_what_options_share_stands_once():
    context = (1, 2, 3, 9, 9)
    (tree,) = plant(0, [(context, (4, 5)), (context, (6, 7)), (context, (4, 5))], max_tokens=None)
    assert (tree.prefix, tree.branches) == (context, ((4,), (6,)))
    assert tree.sequence_o == (0, 1, 0)
    assert tree.places == (4, 5, 4, 5)


def test_letters_need_no_branches():
    (tree,) = plant(0, [((1, 2, 3, 4), (3,)), ((1, 2, 3, 4), (4,))], max_tokens=None)
    assert tree.branches == ((), ())
    assert tree.places == (3, 3)


def test_little_in_common_is_not_shared():
    first, second = plant(0, [((1, 2), (3, 4)), ((1, 2), (5, 6))], max_tokens=None)
    assert (first.prefix, second.prefix) == ((1, 2, 3), (1, 2, 5))
    assert (first.sequence_o, second.sequence_o) == ((0, -1), (-1, 0))


def test_too_long_is_cut_on_the_left():
    first, second = plant(0, [((1, 2, 3, 4), (5, 6)), ((1,), (7,))], max_tokens=3)
    assert sequences(first) + sequences(second) == [(3, 4, 5), (1,)]
    assert first.cut_o == (2, 0)


def test_a_continuation_longer_than_the_model_reads():
    (tree,) = plant(0, [((1,), (2, 3, 4, 5))], max_tokens=2)
    assert tree.prefix == (3, 4)
    assert tree.targets == (4, 5)


def test_without_branching_each_option_is_a_row():
    rows = plant(3, [((1, 2), (3, 4)), ((1, 2), (5, 6)), ((1, 2), (3, 4))], max_tokens=None, branching=False)
    assert [row.prefix for row in rows] == [(1, 2, 3), (1, 2, 5)]
    assert [row.sequence_o for row in rows] == [(0, -1, 0), (-1, 0, -1)]


@pytest.mark.parametrize("budget", [1, 20, 1000])
def test_batches(budget):
    draw = random.Random(0)
    asked = []
    for _ in range(50):
        context = tuple(draw.choices(range(9), k=draw.randint(1, 12)))
        asked.append(
            [(context, tuple(draw.choices(range(9), k=draw.randint(1, 5)))) for _ in range(draw.randint(1, 3))]
        )
    trees = [tree for i, one in enumerate(asked) for tree in plant(i, one, max_tokens=None)]
    batches = list(batch_trees(trees, batch_tokens=budget))
    assert sorted(id(tree) for batch in batches for tree in batch.trees) == sorted(map(id, trees))
    for batch in batches:
        parts = [*batch.prefixes, *batch.branches]
        for rows in parts:
            assert rows.tokens_bt.size <= max(budget, rows.tokens_bt.shape[1])
        assert len(batch.targets_m) == len(batch.at_m)
        assert len(set(batch.places_n)) == len(batch.places_n)
        flat = np.concatenate([rows.tokens_bt.ravel() for rows in parts])
        found = flat[batch.places_n][batch.at_m]  # the token at the place that predicts each target
        wanted = [sequences(t)[o][p] for t in batch.trees for o, p in zip(t.owners, t.places, strict=True)]
        assert found.tolist() == wanted
    shuffled = draw.sample(trees, len(trees))
    again = list(batch_trees(shuffled, batch_tokens=budget))
    assert [r.tokens_bt.tolist() for b in batches for r in b.prefixes] == [
        r.tokens_bt.tolist() for b in again for r in b.prefixes
    ]
