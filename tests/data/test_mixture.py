"""Mixtures: the word and its file, exact quotas in every block, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_datasets import count_up

from lathe import codec
from lathe.data.mixture import (
    BLOCK,
    Mixture,
    apportion,
    deal,
    deal_block,
    load_mixture,
    open_sources,
    whole_shares,
)
from lathe.errors import CodecError, DataError

WEIGHTS = st.lists(st.floats(0, 1e6) | st.sampled_from([0.0, 0.1, 1 / 3, 1e-9, 7.0]), min_size=1, max_size=12)


def mixture_of(weights: list[float]) -> Mixture:
    names = [f"s{number:02}" for number in range(len(weights))]
    return Mixture(sources={n: n for n in names}, weights=dict(zip(names, weights, strict=True)))


class TestQuotas:
    @given(weights=WEIGHTS.filter(any), blocks=st.integers(0, 10**7))
    def test_shares_after_any_block(self, weights: list[float], blocks: int) -> None:
        """Within .1 % of a block's samples after every block, and never further off than a few samples."""
        shares = whole_shares(mixture_of(weights))
        asked = [w / sum(weights) for w in weights if w > 0]
        for blocks_so_far in (1, blocks + 1):
            count = blocks_so_far * BLOCK
            found = apportion(count, shares)
            assert sum(found) == count
            off = [abs(f - count * a) for f, a in zip(found, asked, strict=True)]
            assert max(off) <= 2 + 1e-12 * count
            assert max(off) / count < 1e-3

    @given(shares=st.lists(st.integers(1, 1000), min_size=1, max_size=20), count=st.integers(0, 10**15))
    def test_no_source_ever_gives_back(self, shares: list[int], count: int) -> None:
        more = [
            after - before for before, after in zip(apportion(count, shares), apportion(count + 1, shares), strict=True)
        ]
        assert sorted(more) == [0] * (len(shares) - 1) + [1]

    def test_known_answers(self) -> None:
        assert apportion(10_000, (1, 1, 1)) == [3333, 3334, 3333]
        assert apportion(10_000, (5, 3, 2)) == [5000, 3000, 2000]
        assert apportion(7, (1, 10**9)) == [0, 7]
        assert whole_shares(mixture_of([0.1, 0.2, 0.7])) == (1, 2, 7)
        assert whole_shares(mixture_of([3, 0.5, 0])) == (6, 1)

    def test_realised_shares_over_many_blocks(self) -> None:
        weights = [0.62, 0.25, 0.1, 0.02, 0.0003]
        shares = whole_shares(mixture_of(weights))
        asked = np.array(weights) / sum(weights)
        seen = np.zeros(len(weights))
        for block in range(40):
            seen += np.bincount(deal_block(block, shares=shares, seed=3)[0], minlength=len(weights))
            assert np.abs(seen / seen.sum() - asked).max() < 1e-3
            assert np.abs(seen - seen.sum() * asked).max() < 2

    def test_inside_a_block_the_sources_are_shuffled(self) -> None:
        sources, _ = deal_block(0, shares=(1, 1), seed=0)
        other, _ = deal_block(0, shares=(1, 1), seed=1)
        later, _ = deal_block(1, shares=(1, 1), seed=0)
        assert abs(np.bincount(sources[:1000])[0] - 500) < 80
        assert 0.4 < np.mean(sources == other) < 0.6
        assert 0.4 < np.mean(sources == later) < 0.6

    @settings(max_examples=20, deadline=None)
    @given(shares=st.lists(st.integers(1, 50), min_size=1, max_size=6), seed=st.integers(0, 99), data=st.data())
    def test_each_source_gives_its_samples_in_their_order(
        self, shares: list[int], seed: int, data: st.DataObject
    ) -> None:
        """Dealt in arbitrary slices across blocks: numbers 0, 1, 2, … of every source."""
        cuts = [0, *sorted(data.draw(st.lists(st.integers(0, 3 * BLOCK), max_size=4))), 3 * BLOCK]
        parts = [deal(a, b - a, shares=tuple(shares), seed=seed) for a, b in itertools.pairwise(cuts) if b > a]
        sources, numbers = (np.concatenate(column) for column in zip(*parts, strict=True))
        for source in range(len(shares)):
            mine = numbers[sources == source]
            assert mine.tolist() == list(range(len(mine)))


class TestWord:
    def test_file(self, tmp_path: Path) -> None:
        (tmp_path / "mix.toml").write_text(
            '[sources]\nwiki = "wiki"\ncode = "/data/code"\n[weights]\nwiki = 3\ncode = 0.5\n[repeats]\nwiki = 4\n'
        )
        found = load_mixture(tmp_path / "mix.toml")
        assert found == Mixture(
            sources={"wiki": str(tmp_path / "wiki"), "code": "/data/code"},
            weights={"wiki": 3.0, "code": 0.5},
            repeats={"wiki": 4.0},
        )
        codec.save(found, tmp_path / "mix.json", kind="mixture")
        assert codec.load(Mixture, tmp_path / "mix.json", kind="mixture") == found

    @pytest.mark.parametrize(
        ("weights", "repeats", "message"),
        [
            ({"a": 1.0}, {}, "'b' has no weight"),
            ({"a": 1.0, "b": 1.0, "bb": 1.0}, {}, "weights names 'bb', which is no source; did you mean 'b'"),
            ({"a": 0.0, "b": 0.0}, {}, "weights sum to 0"),
            ({"a": 2.0, "b": -1.0}, {}, r"weights.b=-1.0; wanted"),
            ({"a": float("nan"), "b": 1.0}, {}, r"weights.a=nan"),
            ({"a": float("inf"), "b": 1.0}, {}, r"weights.a=inf"),
            ({"a": 1.0, "b": 1.0}, {"c": 2.0}, "repeats names 'c'"),
            ({"a": 1.0, "b": 1.0}, {"a": 0.0}, "repeats.a=0"),
            ({"a": 1.0, "b": 1.0}, {"a": float("nan")}, "repeats.a=nan"),
        ],
    )
    def test_refused(self, weights: dict[str, float], repeats: dict[str, float], message: str) -> None:
        with pytest.raises(DataError, match=message):
            Mixture(sources={"a": "a", "b": "b"}, weights=weights, repeats=repeats)

    def test_nothing_at_all(self) -> None:
        with pytest.raises(DataError, match="weights sum to 0"):
            Mixture(sources={}, weights={})

    def test_file_errors_name_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "mix.toml").write_text('[sources]\na = "a"\n[weights]\na = -1\n')
        with pytest.raises(CodecError, match=r"mix.toml.*weights.a=-1"):
            load_mixture(tmp_path / "mix.toml")
        (tmp_path / "mix.toml").write_text('[sources]\na = "a"\n[weight]\na = 1\n')
        with pytest.raises(CodecError, match="unknown key 'weight'; did you mean 'weights'"):
            load_mixture(tmp_path / "mix.toml")


class TestSources:
    def test_a_source_that_is_missing(self, tmp_path: Path) -> None:
        count_up(tmp_path / "a", 10)
        mixture = Mixture(sources={"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}, weights={"a": 1.0, "b": 1.0})
        with pytest.raises(DataError, match=r"the mixture's source 'b': .*is no dataset"):
            open_sources(mixture)
        without = Mixture(sources=mixture.sources, weights={"a": 1.0, "b": 0.0})
        assert list(open_sources(without)) == ["a"]

    @pytest.mark.parametrize(
        ("about", "message"),
        [
            ({"vocab_size": 2**20 + 1}, "different vocabularies: 'a' has 1048576 and 'b' has 1048577"),
            ({"tokenizer_sha256": "beef"}, "different tokenizers: 'a' has none and 'b' has beef"),
            ({"end_of_text": 0}, "different end-of-text ids: 'a' has none and 'b' has 0"),
        ],
    )
    def test_ids_that_mean_different_things(self, tmp_path: Path, about: dict[str, int], message: str) -> None:
        count_up(tmp_path / "a", 10)
        count_up(tmp_path / "b", 10, **about)
        mixture = Mixture(sources={"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}, weights={"a": 1.0, "b": 1.0})
        with pytest.raises(DataError, match=message):
            open_sources(mixture)
