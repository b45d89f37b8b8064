"""Batches: every sample once an epoch, whatever the ranks; documents, mixtures, held-out reading, and bad input."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_datasets import VOCAB, count_up, write_dataset
from numpy.typing import NDArray

from lathe import codec
from lathe.data.loader import SINGLE, Batch, Loader, evaluation_batches, evaluation_windows, to_torch
from lathe.data.mixture import BLOCK, Mixture
from lathe.data.store import MANIFEST, Dataset, Manifest, Shard
from lathe.data.windows import Windows, open_shards
from lathe.errors import DataError


def whole_batch(loader: Loader, step: int, *, world: int) -> Batch:
    """Put the ranks' slices of a step together."""
    parts = [loader.batch(step, rank, world) for rank in range(world)]
    return Batch(
        tokens_bt=np.concatenate([p.tokens_bt for p in parts]),
        targets_bt=np.concatenate([p.targets_bt for p in parts]),
        documents_bt=np.concatenate([p.documents_bt for p in parts]),
    )


def windows_in_order(loader: Loader, *, steps: int, world: int) -> list[int]:
    """Name the windows of a dataset that counts up from 0, in the order of the global batches."""
    firsts = np.concatenate([whole_batch(loader, step, world=world).tokens_bt[:, 0] for step in range(steps)])
    return (firsts // loader.seq_len).tolist()


def assert_equal(found: Batch, expected: Batch) -> None:
    for name in ("tokens_bt", "targets_bt", "documents_bt"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), strict=True)


def digest(batch: Batch) -> str:
    arrays = (batch.tokens_bt.astype("<i8"), batch.targets_bt.astype("<i8"), batch.documents_bt.astype("<i4"))
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:16]


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A stream 0, 1, …, 1002 in documents of seven tokens."""
    return count_up(tmp_path_factory.mktemp("counting"), 1003)


class TestEverySampleOnce:
    @settings(max_examples=12, deadline=None)
    @given(
        seed=st.integers(0, 2**40),
        world=st.sampled_from([1, 2, 3, 7, 64]),
        per_rank=st.integers(1, 5),
        epochs=st.integers(1, 3),
        seq_len=st.integers(1, 30),
    )
    def test_any_ranks(
        self, counting: Dataset, seed: int, world: int, per_rank: int, epochs: int, seq_len: int
    ) -> None:
        loader = Loader(counting, seq_len=seq_len, batch_sequences=world * per_rank, seed=seed)
        count = 1002 // seq_len
        steps = math.ceil(epochs * count / loader.batch_sequences)
        found = windows_in_order(loader, steps=steps, world=world)
        for epoch in range(epochs):
            assert sorted(found[epoch * count : (epoch + 1) * count]) == list(range(count))

    @settings(max_examples=4, deadline=None)
    @given(seed=st.integers(0, 2**40), tokens=st.integers(1500, 9000), epochs=st.integers(1, 2))
    def test_1024_ranks(self, seed: int, tokens: int, epochs: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            loader = Loader(count_up(Path(folder), tokens), seq_len=3, batch_sequences=1024, seed=seed)
            count = (tokens - 1) // 3
            found = windows_in_order(loader, steps=math.ceil(epochs * count / 1024), world=1024)
        for epoch in range(epochs):
            assert sorted(found[epoch * count : (epoch + 1) * count]) == list(range(count))

    def test_every_target_once(self, counting: Dataset) -> None:
        loader = Loader(counting, seq_len=10, batch_sequences=100, seed=0)
        batch = loader.batch(0)
        assert sorted(batch.targets_bt.ravel().tolist()) == list(range(1, 1001))
        np.testing.assert_array_equal(batch.targets_bt, batch.tokens_bt + 1)
        assert loader.dropped_tokens == {"dataset": 2}

    def test_epochs_and_seeds_have_orders_of_their_own(self, counting: Dataset) -> None:
        loaders = [Loader(counting, seq_len=10, batch_sequences=100, seed=seed) for seed in (0, 1)]
        orders = [windows_in_order(loader, steps=3, world=1) for loader in loaders]
        epochs = [order[at : at + 100] for order in orders for at in (0, 100, 200)]
        agreeing = [np.mean(np.array(a) == np.array(b)) for i, a in enumerate(epochs) for b in epochs[:i]]
        assert max(agreeing) < 0.1
        assert max(np.mean(np.array(e) == np.arange(100)) for e in epochs) < 0.1


class TestExactness:
    def test_ranks_may_change_between_steps(self, counting: Dataset) -> None:
        loader = Loader(counting, seq_len=8, batch_sequences=12, seed=5)
        changed = [whole_batch(loader, step, world=world) for step, world in enumerate([1, 1, 3, 3, 2, 2, 12])]
        for step, batch in enumerate(changed):
            assert_equal(batch, Loader(counting, seq_len=8, batch_sequences=12, seed=5).batch(step))

    def test_known_answers(self, tmp_path: Path) -> None:
        """Pinned: the same batches on every platform and in every release."""
        assert [digest(pinned_loader(tmp_path).batch(step)) for step in (0, 1, 1000)] == PINNED

    def test_other_processes_give_the_same(self, tmp_path: Path) -> None:
        code = "import sys; from pathlib import Path; from test_loader import *; "
        code += "print(*[digest(pinned_loader(Path(sys.argv[1])).batch(step)) for step in (0, 1, 1000)])"
        found = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
            cwd=Path(__file__).parent, env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert found.stdout.split() == PINNED

    def test_steps_are_independent_of_what_was_read(self, counting: Dataset) -> None:
        loader = Loader(counting, seq_len=8, batch_sequences=12, seed=5)
        later = loader.batch(9)
        for step in (3, 0, 9):
            loader.batch(step)
        assert_equal(loader.batch(9), later)

    def test_a_dataset_is_a_mixture_of_one(self, counting: Dataset) -> None:
        alone = Loader(counting, seq_len=8, batch_sequences=12, seed=5)
        mixture = Mixture(sources={"dataset": str(counting.folder)}, weights={"dataset": 0.3})
        for step in (0, 7, 2000):
            assert_equal(alone.batch(step), Loader(mixture, seq_len=8, batch_sequences=12, seed=5).batch(step))


def pinned_loader(folder: Path) -> Loader:
    for number, name in enumerate(("code", "wiki")):
        count_up(folder / name, 5000, first=10_000 * number, document=11 + number)
    mixture = Mixture(
        sources={name: str(folder / name) for name in ("wiki", "code")}, weights={"wiki": 0.7, "code": 0.3}
    )
    return Loader(mixture, seq_len=16, batch_sequences=24, seed=2024)


PINNED = ["b474e5027b3fb2e7", "a48725698914f25e", "c49ff4fafbd52e63"]


class TestDocuments:
    @settings(max_examples=60, deadline=None)
    @given(
        lengths=st.lists(st.lists(st.integers(1, 12), max_size=8), min_size=1, max_size=5),
        seq_len=st.integers(1, 20),
        across=st.booleans(),
        data=st.data(),
    )
    def test_against_a_plain_loop(
        self, lengths: list[list[int]], seq_len: int, across: bool, data: st.DataObject
    ) -> None:
        """Over shards (some empty, some shorter than a window), in any order of windows."""
        ids = iter(range(10_000))
        shards = [[[next(ids) for _ in range(n)] for n in shard] for shard in lengths]
        stream = [(token, number) for number, d in enumerate(d for shard in shards for d in shard) for token in d]
        with tempfile.TemporaryDirectory() as folder:
            dataset = write_dataset(Path(folder), shards)
            count = max(len(stream) - 1, 0) // seq_len
            if count == 0:
                with pytest.raises(DataError, match="less than one window"):
                    Loader(dataset, seq_len=seq_len, batch_sequences=1, seed=0)
                return
            loader = Loader(dataset, seq_len=seq_len, batch_sequences=5, seed=0, across_documents=across)
            batch = loader.batch(data.draw(st.integers(0, 20)))
        for tokens, targets, documents in zip(batch.tokens_bt, batch.targets_bt, batch.documents_bt, strict=True):
            window = stream[tokens[0] : tokens[0] + seq_len + 1]
            of = [number for _, number in window]
            kept = [across or here == there for here, there in itertools.pairwise(of)]
            assert tokens.tolist() == [token for token, _ in window[:-1]]
            assert targets.tolist() == [t if k else -1 for (t, _), k in zip(window[1:], kept, strict=True)]
            assert documents.tolist() == [number - of[0] for number in of[:-1]]

    def test_few_shards_are_open_at_a_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        dataset = write_dataset(tmp_path, [[[10 * i + j for j in range(10)]] for i in range(20)])
        wanted = Loader(dataset, seq_len=7, batch_sequences=28, seed=0).batch(0)
        monkeypatch.setattr("lathe.data.windows.FEWEST_OPEN", 2)
        monkeypatch.setattr(os, "sysconf", lambda name: 8)
        assert_equal(Loader(dataset, seq_len=7, batch_sequences=28, seed=0).batch(0), wanted)
        open_shard = open_shards()
        windows = Windows(dataset.split("train"), seq_len=7, open_shard=open_shard)
        windows.read(np.arange(28))
        assert open_shard.cache_info().currsize == 2  # pyright: ignore[reportFunctionMemberAccess]

    def test_types(self, counting: Dataset, tmp_path: Path) -> None:
        small = count_up(tmp_path, 100, vocab_size=1000)
        for dataset, stored in ((counting, "uint32"), (small, "uint16")):
            batch = Loader(dataset, seq_len=8, batch_sequences=3, seed=0).batch(0)
            assert dataset.manifest.dtype == stored
            assert batch.tokens_bt.dtype == batch.targets_bt.dtype == np.int64
            assert batch.documents_bt.dtype == np.int32
            assert not np.shares_memory(batch.tokens_bt, batch.targets_bt)
            assert all(a.flags.c_contiguous and a.flags.writeable for a in (batch.tokens_bt, batch.targets_bt))


def sources_of(batch: Batch) -> NDArray[np.int64]:
    """Name each row's source where source i counts up from 100,000 · i."""
    return batch.tokens_bt[:, 0] // 100_000


class TestMixtures:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> dict[str, str]:
        for number, name in enumerate("abc"):
            count_up(tmp_path / name, 4000 + 1000 * number, first=100_000 * number)
        return {name: str(tmp_path / name) for name in "abc"}

    def test_shares_of_tokens_after_every_block(self, folders: dict[str, str]) -> None:
        weights = {"a": 0.5, "b": 0.3, "c": 0.2001}
        loader = Loader(
            Mixture(sources=folders, weights=weights), seq_len=2, batch_sequences=BLOCK // 2, seed=1, vocab_size=VOCAB
        )
        seen = np.zeros(3)
        for step in range(10):
            seen += np.bincount(sources_of(loader.batch(step)), minlength=3)
            if step % 2:
                asked = np.array(list(weights.values())) / sum(weights.values())
                assert np.abs(seen / seen.sum() - asked).max() < 1e-3

    @pytest.mark.parametrize("world", [1, 3])
    def test_every_sample_of_each_source_once_an_epoch(self, folders: dict[str, str], world: int) -> None:
        mixture = Mixture(sources=folders, weights={"a": 1, "b": 5, "c": 0.7})
        loader = Loader(mixture, seq_len=30, batch_sequences=300, seed=1)
        firsts = np.concatenate([whole_batch(loader, step, world=world).tokens_bt[:, 0] for step in range(16)])
        for number, name in enumerate("abc"):
            mine = firsts[firsts // 100_000 == number] % 100_000 // 30
            count = loader.windows[name].count
            assert len(mine) > 2 * count
            for epoch in range(len(mine) // count):
                assert sorted(mine[epoch * count : (epoch + 1) * count]) == list(range(count))

    def test_order_of_the_tables_does_not_matter(self, folders: dict[str, str]) -> None:
        weights = {"a": 1.0, "b": 5.0, "c": 0.7}
        turned = Mixture(
            sources=dict(reversed(folders.items())), weights={k: 10 * v for k, v in reversed(weights.items())}
        )
        one, other = (
            Loader(mixture, seq_len=30, batch_sequences=30, seed=1)
            for mixture in (Mixture(sources=folders, weights=weights), turned)
        )
        assert_equal(one.batch(500), other.batch(500))

    def test_caps(self, folders: dict[str, str]) -> None:
        """Source a has 3999 // 10 = 399 windows, and gives half of the samples."""
        mixture = Mixture(sources=folders, weights={"a": 2, "b": 1, "c": 1}, repeats={"a": 2, "b": 1.5})
        loader = Loader(mixture, seq_len=10, batch_sequences=4, seed=1)
        whole = 10 * BLOCK
        assert loader.epochs(whole)["a"] == 5000 / 399
        with pytest.raises(
            DataError, match=r"100,000 tokens take 12.54 epochs of the source 'a', and repeats.a is 2; ra"
        ):
            loader.check_enough(whole)
        uncapped = Loader(
            Mixture(sources=folders, weights={"c": 1, "a": 0, "b": 0}), seq_len=10, batch_sequences=4, seed=1
        )
        uncapped.check_enough(10**12)
        # just as many tokens as the cap allows are enough: the next sample of a is refused, here and when it is read
        most = max(n for n in range(1500, 1700) if loader.epochs(10 * n)["a"] * 399 <= 2 * 399 + 1e-9)
        loader.check_enough(10 * most)
        with pytest.raises(DataError, match="of the source 'a'"):
            loader.check_enough(10 * most + 1)
        loader.batch(most // 4 - 1)
        with pytest.raises(DataError, match=r"the source 'a' is used up: repeats\.a is 2"):
            loader.batch(most // 4)

    def test_a_dataset_alone_is_capped_by_data_repeats(self, folders: dict[str, str]) -> None:
        alone = Mixture(sources={SINGLE: folders["a"]}, weights={SINGLE: 1.0}, repeats={SINGLE: 1.0})
        loader = Loader(alone, seq_len=10, batch_sequences=3, seed=1)
        loader.check_enough(3990)
        with pytest.raises(DataError, match=r"^4,000 tokens take 1\.01 epochs of .*a, and data\.repeats is 1; raise"):
            loader.check_enough(4000)
        with pytest.raises(DataError, match=r"a is used up: data\.repeats is 1; raise it, ask for fewer tokens"):
            loader.batch(133)
        with pytest.raises(DataError, match=r"seq_len \+ 1 = 4001; add text or take"):
            Loader(alone, seq_len=4000, batch_sequences=1, seed=1)


class TestHeldOut:
    @pytest.mark.parametrize(
        ("tokens", "seq_len", "rows"), [(2, 5, 1), (6, 5, 1), (7, 5, 2), (100, 7, 15), (50, 1, 49)]
    )
    @pytest.mark.parametrize("batch_sequences", [1, 4, 100])
    def test_every_token_once_and_in_order(
        self, tmp_path: Path, tokens: int, seq_len: int, rows: int, batch_sequences: int
    ) -> None:
        split = count_up(tmp_path, tokens, split="held-out").split("held-out")
        batches = list(evaluation_batches(split, seq_len=seq_len, batch_sequences=batch_sequences))
        targets = np.concatenate([b.targets_bt for b in batches])
        inputs = np.concatenate([b.tokens_bt for b in batches])
        assert targets.shape == inputs.shape == (rows, seq_len)
        counted = targets >= 0
        assert targets[counted].tolist() == list(range(1, tokens))
        np.testing.assert_array_equal(inputs[counted] + 1, targets[counted])
        assert counted[:-1].all()
        assert all(len(b.tokens_bt) == batch_sequences for b in batches[:-1])

    def test_documents(self, tmp_path: Path) -> None:
        split = write_dataset(tmp_path, [[[5, 6, 0], [7, 0]], [[8, 9, 0]]]).split("train")
        (batch,) = evaluation_batches(split, seq_len=5, batch_sequences=2)
        assert batch.tokens_bt.tolist() == [[5, 6, 0, 7, 0], [8, 9, 0, 0, 0]]
        assert batch.targets_bt.tolist() == [[6, 0, 7, 0, 8], [9, 0, -1, -1, -1]]
        assert batch.documents_bt.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]  # padding is a document of its own
        (apart,) = evaluation_batches(split, seq_len=5, batch_sequences=2, across_documents=False)
        assert apart.targets_bt.tolist() == [[6, 0, -1, 0, -1], [9, 0, -1, -1, -1]]

    def test_a_part_is_evenly_spaced_and_always_the_same(self, tmp_path: Path) -> None:
        split = count_up(tmp_path, 102, split="held-out").split("held-out")  # 20 whole windows of 5, and a tail of 1
        for most, expected in ((1, [0]), (22, [0, 5, 10, 15]), (105, list(range(21))), (10**9, list(range(21)))):
            assert evaluation_windows(split, seq_len=5, most_tokens=most).tolist() == expected
            batches = evaluation_batches(split, seq_len=5, batch_sequences=3, most_tokens=most)
            assert [t // 5 for b in batches for t in b.tokens_bt[:, 0]] == expected
        with pytest.raises(DataError, match="most_tokens=0"):
            evaluation_windows(split, seq_len=5, most_tokens=0)

    @pytest.mark.parametrize("world", [1, 2, 3, 50])
    def test_ranks_share_the_batches(self, tmp_path: Path, world: int) -> None:
        split = count_up(tmp_path, 102, split="held-out").split("held-out")
        whole = [b.targets_bt.tolist() for b in evaluation_batches(split, seq_len=5, batch_sequences=4)]
        for rank in range(world):
            own = evaluation_batches(split, seq_len=5, batch_sequences=4, rank=rank, world=world)
            assert [b.targets_bt.tolist() for b in own] == whole[rank::world]

    def test_too_small(self, tmp_path: Path) -> None:
        for tokens in (0, 1):
            split = count_up(tmp_path / str(tokens), tokens).split("train")
            with pytest.raises(DataError, match=f"has {tokens} tokens; wanted 2"):
                evaluation_batches(split, seq_len=4, batch_sequences=2)


class TestBadInput:
    @pytest.mark.parametrize(
        ("about", "message"),
        [
            (
                {"vocab_size": VOCAB - 1},
                f"ids below {VOCAB}, and the model a vocabulary of {VOCAB - 1}; give the model",
            ),
            ({"seq_len": 0}, "seq_len=0; wanted 1"),
            ({"batch_sequences": 0}, "batch_sequences=0; wanted 1"),
            ({"seq_len": 1003}, "1003 tokens, less than one window of seq_len .* = 1004"),
            ({"split": "held-out"}, "its held-out split has 0 tokens"),
            ({"split": "test"}, "no split 'test'"),
        ],
    )
    def test_loaders(self, counting: Dataset, about: dict[str, int], message: str) -> None:
        with pytest.raises(DataError, match=message):
            Loader(counting, **{"seq_len": 8, "batch_sequences": 4, "seed": 0, **about})  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize(
        ("step", "rank", "world", "message"),
        [
            (0, 0, 3, "batch_sequences=4 does not split evenly over 3 ranks; take 6"),
            (0, 0, 8, "take 8, or fewer ranks"),
            (0, 2, 2, "rank=2 of world=2; wanted 0 to 1"),
            (0, -1, 2, "rank=-1"),
            (-1, 0, 1, "step=-1"),
            (0, 0, 0, "world=0"),
        ],
    )
    def test_batches(self, counting: Dataset, step: int, rank: int, world: int, message: str) -> None:
        with pytest.raises(DataError, match=message):
            Loader(counting, seq_len=8, batch_sequences=4, seed=0).batch(step, rank, world)

    def test_a_token_beyond_the_vocabulary(self, tmp_path: Path) -> None:
        loader = Loader(
            write_dataset(tmp_path, [[[1, 2, 300, 4, 5]]], vocab_size=300), seq_len=4, batch_sequences=1, seed=0
        )
        with pytest.raises(DataError, match="holds the token id 300, beyond its vocabulary of 300"):
            loader.batch(0)

    def test_files_that_change_under_the_loader(self, tmp_path: Path) -> None:
        for suffix, change in (
            (".bin", Path.unlink),
            (".idx", Path.unlink),
            (".bin", lambda path: path.write_bytes(b"")),
        ):
            folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            loader = Loader(count_up(folder, 100), seq_len=4, batch_sequences=1, seed=0)
            change(folder / f"train-00000{suffix}")
            with pytest.raises(DataError, match=f"{suffix} was changed or removed"):
                loader.batch(0)


def test_memory_is_that_of_the_batch(tmp_path: Path) -> None:
    """A split of 2 GB and 10⁸ documents, all holes on the disk, is opened and read within a megabyte."""
    tokens, documents = 10**9, 10**8
    shard = Shard(
        name="train-00000", split="train", tokens=tokens, documents=documents, text_bytes=0, sources=(), sha256="",
        index_sha256="",
    )  # fmt: skip
    for suffix, size in ((".bin", 2 * tokens), (".idx", 16 * documents)):
        with open(tmp_path / (shard.name + suffix), "wb") as file:
            file.truncate(size)
    manifest = Manifest(
        vocab_size=256,
        dtype="uint16",
        end_of_text=0,
        tokenizer_sha256=None,
        held_out=0.0,
        shards=(shard,),
        bad_lines={},
    )
    codec.save(manifest, tmp_path / MANIFEST, kind="dataset")
    tracemalloc.start()
    loader = Loader(Dataset(tmp_path), seq_len=128, batch_sequences=16, seed=0)
    loader.batch(10**5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_tensors(counting: Dataset) -> None:
    batch = Loader(counting, seq_len=8, batch_sequences=4, seed=0).batch(0)
    tensors = to_torch(batch)
    for tensor, array in zip(tensors, (batch.tokens_bt, batch.targets_bt, batch.documents_bt), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array, strict=True)


def test_loading_needs_no_torch(counting: Dataset) -> None:
    code = "import sys; from lathe.data.store import Dataset; from lathe.data.prefetch import Loader, prefetch; "
    code += "list(prefetch(Loader(Dataset(sys.argv[1]), seq_len=8, batch_sequences=4, seed=0), start=0, steps=2)); "
    code += "assert not {'torch', 'tokenizers', 'pandas'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(counting.folder)], check=True)
