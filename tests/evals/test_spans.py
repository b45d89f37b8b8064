"""Spans: every target once, with the tokens before it that it should have, however they are batched."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lathe.data.loader import evaluation_windows
from lathe.errors import EvaluationError
from lathe.evals.results import Way
from lathe.evals.sources import Source
from lathe.evals.spans import Spans, check_way, cut, cut_texts, read_batches

PREFIX = 10**6
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def count_up(lengths: list[int]) -> Source:
    """Make a source in which every token says where it stands."""
    ends_d = np.cumsum(lengths)
    tokens_n = np.arange(ends_d[-1], dtype=np.uint32)
    return Source(
        name="made up", split="text", tokens=len(tokens_n), read=lambda start, count: tokens_n[start : start + count],
        begins_d=ends_d - lengths, ends_d=ends_d, end_of_text=None, vocab_size=2 * PREFIX, text=None,
    )  # fmt: skip


def contexts(source: Source, spans: Spans, *, batch_tokens: int = 64, across: bool = True) -> dict[int, list[int]]:
    """Read all batches, and give the tokens before each target; each target comes once."""
    found: dict[int, list[int]] = {}
    for read in read_batches(source, spans, batch_tokens=batch_tokens, across_documents=across, mask_documents=False):
        tokens_bt, targets_bt = read.batch.tokens_bt, read.batch.targets_bt
        assert tokens_bt.size <= batch_tokens or len(tokens_bt) == 1
        for row, place in np.argwhere(targets_bt >= 0):
            target = int(targets_bt[row, place])
            assert target not in found
            found[target] = tokens_bt[row, : place + 1].tolist()
    return found


@given(lengths=LENGTHS, seq_len=st.integers(1, 20), batch_tokens=st.integers(1, 90), data=st.data())
def test_every_target_of_the_stream_counts_once(
    lengths: list[int], seq_len: int, batch_tokens: int, data: st.DataObject
) -> None:
    source, stride = count_up(lengths), data.draw(st.integers(1, seq_len))
    if source.tokens < 2:
        return
    found = contexts(source, cut(source, way="strided", seq_len=seq_len, stride=stride), batch_tokens=batch_tokens)
    assert sorted(found) == list(range(1, source.tokens))
    for target, before in found.items():
        assert before == list(range(target - len(before), target))
        assert min(target, seq_len - stride + 1) <= len(before) <= seq_len


@given(
    lengths=LENGTHS, seq_len=st.integers(1, 20), batch_tokens=st.integers(1, 90),
    prefix=st.sampled_from([None, PREFIX]), data=st.data(),
)  # fmt: skip
def test_every_target_of_documents_counts_once(
    lengths: list[int], seq_len: int, batch_tokens: int, prefix: int | None, data: st.DataObject
) -> None:
    source, stride = count_up(lengths), data.draw(st.integers(1, seq_len))
    if prefix is None and max(lengths) == 1:
        return
    spans = cut(source, way="documents", seq_len=seq_len, stride=stride, prefix=prefix)
    found = contexts(source, spans, batch_tokens=batch_tokens)
    begins = source.begins_d.tolist()
    wanted = [t for t in range(source.tokens) if prefix is not None or t not in begins]
    assert sorted(found) == wanted
    for target, before in found.items():
        begin = max(b for b in begins if b <= target)
        whole = [*([] if prefix is None else [prefix]), *range(begin, target)]
        assert before == whole[len(whole) - len(before) :]
        assert len(before) >= min(len(whole), seq_len - stride + 1)


@given(lengths=LENGTHS, seq_len=st.integers(1, 20), most_tokens=st.integers(1, 200))
def test_windows_are_those_that_training_evaluates(lengths: list[int], seq_len: int, most_tokens: int) -> None:
    source = count_up(lengths)
    if source.tokens < 2:
        return
    spans = cut(source, way="windows", seq_len=seq_len, stride=seq_len, most_tokens=most_tokens)
    assert spans.sequences_s.tolist() == evaluation_windows(source, seq_len=seq_len, most_tokens=most_tokens).tolist()
    assert (spans.starts_s == spans.sequences_s * seq_len).all()
    assert (spans.firsts_s == spans.starts_s + 1).all()


@pytest.mark.parametrize("stride", [1, 3, 4, 7, 8])
def test_a_part_of_strided_windows_is_whole_sequences(stride: int) -> None:
    source = count_up([203])
    spans = cut(source, way="strided", seq_len=8, stride=stride, most_tokens=50)
    assert set(spans.sequences_s.tolist()) == {0, 4, 8, 13, 17, 21}
    whole = cut(source, way="strided", seq_len=8, stride=stride)
    targets = Counter(whole.sequences_s.tolist())
    assert all(count == targets[n] for n, count in Counter(spans.sequences_s.tolist()).items())
    if 8 % stride == 0:
        assert len(contexts(source, spans)) == 48


def test_a_part_of_documents_is_a_seeded_sample_within_its_tokens() -> None:
    source = count_up([5, 30, 1, 8, 8, 8, 40, 3, 9, 9])
    parts = [
        cut(source, way="documents", seq_len=8, stride=4, prefix=PREFIX, most_tokens=40, seed=seed)
        for seed in (0, 0, 1, 2)
    ]
    targets = [sorted(contexts(source, part)) for part in parts]
    assert targets[0] == targets[1]
    assert len({tuple(t) for t in targets}) > 1
    assert all(0 < len(t) <= 40 for t in targets)
    for part, found in zip(parts, targets, strict=True):
        chosen = {int(np.searchsorted(source.ends_d, t, side="right")) for t in found}
        assert len(found) == sum(int(source.ends_d[d] - source.begins_d[d]) for d in chosen)
        assert len(chosen) == len(set(part.sequences_s.tolist()))
    assert len(set(cut(source, way="documents", seq_len=8, stride=4, most_tokens=1).sequences_s.tolist())) == 1


def test_rows_of_a_batch_are_of_about_one_length() -> None:
    source = count_up([3, 50, 4, 49, 2, 48, 3, 50])
    spans = cut(source, way="documents", seq_len=64, stride=64)
    shapes = [
        read.batch.tokens_bt.shape
        for read in read_batches(source, spans, batch_tokens=100, across_documents=True, mask_documents=False)
    ]
    assert shapes == [(2, 49), (2, 48), (4, 3)]


def test_documents_within_a_window() -> None:
    source = count_up([3, 2, 6])
    spans = cut(source, way="windows", seq_len=6, stride=6)
    (read,) = read_batches(source, spans, batch_tokens=100, across_documents=False, mask_documents=True)
    assert read.batch.documents_bt.tolist() == [[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 0, 0]]
    assert read.batch.targets_bt.tolist() == [[1, 2, -1, 4, -1, 6], [7, 8, 9, 10, -1, -1]]
    assert read.batch.tokens_bt.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 0, 0]]
    assert len(contexts(source, spans, across=False)) == 8


def test_empty_texts_have_no_spans() -> None:
    places = np.array([0, 4, 4]), np.array([4, 4, 5])
    assert cut_texts(*places, seq_len=3, stride=2, prefix=None).sequences_s.tolist() == [0]
    assert cut_texts(*places, seq_len=3, stride=2, prefix=9).sequences_s.tolist() == [0, 0, 2]


@pytest.mark.parametrize("way", ["windows", "strided", "documents"])
def test_nothing_to_predict(way: Way) -> None:
    with pytest.raises(EvaluationError, match="no token to predict"):
        cut(count_up([1]), way=way, seq_len=4, stride=4)
    with pytest.raises(EvaluationError, match="no token to predict"):
        cut(count_up([1, 1] if way == "documents" else [1]), way=way, seq_len=4, stride=4, most_tokens=3)


def test_ids_beyond_the_vocabulary() -> None:
    source = count_up([9])
    spans = cut(source, way="documents", seq_len=4, stride=4, prefix=2 * PREFIX)
    with pytest.raises(EvaluationError, match=r"made up holds the token id 2000000, .* ends at 1999999"):
        list(read_batches(source, spans, batch_tokens=9, across_documents=True, mask_documents=False))


def test_strides() -> None:
    counts = {"batch_tokens": 9, "most_tokens": None}
    assert check_way("windows", seq_len=8, stride=None, **counts) == 8
    assert check_way("strided", seq_len=8, stride=None, **counts) == 4
    assert check_way("documents", seq_len=1, stride=None, **counts) == 1
    assert check_way("strided", seq_len=8, stride=3, **counts) == 3
    for way, stride, message in (
        ("strided", 9, "passes over targets"),
        ("strided", 0, "wanted 1 or more"),
        ("windows", 4, "take strided ones"),
        ("window", None, "did you mean 'windows'"),
    ):
        with pytest.raises(EvaluationError, match=message):
            check_way(way, seq_len=8, stride=stride, **counts)
