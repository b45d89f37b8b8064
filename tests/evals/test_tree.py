import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.evals.tree import batch_trees, plant

ids = st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple)
options = st.lists(st.tuples(ids, ids), min_size=1, max_size=4)


def sequences(tree):
    """Put a row's sequences together again: their input ids."""
    shared = tree.tokens[: tree.branches.count(0)]
    numbers = sorted(set(tree.owners))
    return [shared + tuple(t for t, b in zip(tree.tokens, tree.branches, strict=True) if b == i + 1) for i in numbers]


@given(options)
def test_a_row_holds_every_option(options):
    (tree,) = plant(0, options, max_tokens=None)
    found = sequences(tree)
    for (context, continuation), sequence in zip(options, tree.sequence_o, strict=True):
        assert found[sequence] == (context + continuation)[:-1]
        scored = [t for t, o in zip(tree.targets, tree.owners, strict=True) if o == sequence]
        assert tuple(scored) == continuation


@given(options)
def test_a_place_precedes_its_target(options):
    (tree,) = plant(0, options, max_tokens=None)
    for owner in set(tree.owners):
        mine = [place for place, o in zip(tree.places, tree.owners, strict=True) if o == owner]
        row = [i for i, b in enumerate(tree.branches) if b in (0, owner + 1)]
        assert mine == row[-len(mine) :]


def test_what_options_share_stands_once():
    (tree,) = plant(0, [((1, 2, 3), (4, 5)), ((1, 2, 3), (6, 7)), ((1, 2, 3), (4, 5))], max_tokens=None)
    assert tree.tokens == (1, 2, 3, 4, 6)
    assert tree.branches == (0, 0, 0, 1, 2)
    assert tree.sequence_o == (0, 1, 0)
    assert tree.places == (2, 3, 2, 4)


def test_letters_need_no_branches():
    (tree,) = plant(0, [((1, 2), (3,)), ((1, 2), (4,))], max_tokens=None)
    assert tree.tokens == (1, 2)
    assert not tree.branching
    assert tree.places == (1, 1)


def test_too_long_is_cut_on_the_left():
    (tree,) = plant(0, [((1, 2, 3, 4), (5, 6)), ((1,), (7,))], max_tokens=3)
    assert sequences(tree) == [(3, 4, 5), (1,)]
    assert tree.cut_o == (2, 0)


def test_a_continuation_longer_than_the_model_reads():
    (tree,) = plant(0, [((1,), (2, 3, 4, 5))], max_tokens=2)
    assert tree.tokens == (3, 4)
    assert tree.targets == (4, 5)


def test_without_branching_each_option_is_a_row():
    rows = plant(3, [((1, 2), (3, 4)), ((1, 2), (5, 6)), ((1, 2), (3, 4))], max_tokens=None, branching=False)
    assert [row.tokens for row in rows] == [(1, 2, 3), (1, 2, 5)]
    assert [row.sequence_o for row in rows] == [(0, -1, 0), (-1, 0, -1)]


@pytest.mark.parametrize("budget", [1, 20, 1000])
def test_batches(budget):
    draw = random.Random(0)
    asked = [
        [
            (tuple(draw.choices(range(9), k=draw.randint(1, 9))), (draw.randrange(9), 1))
            for _ in range(draw.randint(1, 3))
        ]
        for _ in range(50)
    ]
    trees = [tree for i, one in enumerate(asked) for tree in plant(i, one, max_tokens=None)]
    batches = list(batch_trees(trees, batch_tokens=budget))
    assert sorted(tree.question for batch in batches for tree in batch.trees) == list(range(50))
    for batch in batches:
        assert batch.tokens_bt.size <= max(budget, len(batch.trees[0].tokens))
        flat = np.concatenate(
            [[t * 100 + b for t, b in zip(tree.targets, tree.owners, strict=True)] for tree in batch.trees]
        )
        assert len(batch.targets_m) == len(flat) == len(batch.at_m)
        assert len(set(batch.places_n)) == len(batch.places_n)
        assert (batch.branches_bt is None) == (not any(tree.branching for tree in batch.trees))
    shuffled = draw.sample(trees, len(trees))
    again = list(batch_trees(shuffled, batch_tokens=budget))
    assert [b.tokens_bt.tolist() for b in batches] == [b.tokens_bt.tolist() for b in again]
