"""Datasets on disk: streams over many shards, with few files open, and what is no dataset."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from made_datasets import write_dataset

from lathe.data.store import Dataset, cannot_write
from lathe.errors import DataError


class TestSplit:
    def test_reads_across_shards(self, tmp_path: Path) -> None:
        split = write_dataset(tmp_path, [[[0, 1], [2]], [], [[3, 4, 5]], [[6]]]).split("train")
        for start in range(8):
            for end in range(start, 8):
                assert split.read(start, end - start).tolist() == list(range(start, end))
        assert split.index_nc.tolist() == [[2, 2], [3, 1], [6, 3], [7, 1]]
        assert split.read(0, 0).dtype == np.uint32
        for start, count in ((-1, 2), (0, 8), (7, 1), (0, -1)):
            with pytest.raises(DataError, match="of a split that has 7"):
                split.read(start, count)

    def test_no_file_stays_open(self, tmp_path: Path) -> None:
        """A process may have fewer files open than a dataset has shards."""
        write_dataset(tmp_path, [[[number]] for number in range(200)])
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
            split = Dataset(tmp_path).split("train")
            assert split.read(0, 200).tolist() == list(range(200))
            assert len(split.index_nc) == 200
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    def test_a_shard_that_is_cut_while_in_use(self, tmp_path: Path) -> None:
        split = write_dataset(tmp_path, [[[1, 2, 3]]]).split("train")
        (tmp_path / "train-00000.bin").write_bytes(bytes(8))
        with pytest.raises(DataError, match=r"train-00000.bin was cut short while it was in use"):
            split.read(0, 3)


class TestFolders:
    def test_what_is_no_dataset(self, tmp_path: Path) -> None:
        (tmp_path / "notes.md").touch()
        for folder in (tmp_path, tmp_path / "gone"):
            with pytest.raises(DataError, match=r"it has no dataset\.json$"):
                Dataset(folder)
        (tmp_path / "train-00000.bin").touch()
        with pytest.raises(DataError, match="a build that was not finished: run it again"):
            Dataset(tmp_path)

    def test_splits_that_there_are(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has no split 'test'; it has train and held-out"):
            write_dataset(tmp_path, [[[1]]]).split("test")


def test_what_to_do_hangs_on_the_reason() -> None:
    assert str(cannot_write(Path("x"), OSError(28, "No space"))).endswith(
        "No space; free some space or write elsewhere"
    )
    assert str(cannot_write(Path("x"), OSError(13, "Denied"))).endswith("Denied; name a place that you can write to")
