"""The built-in text: real, the same each time, and a clear error where Python has no sources."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from lathe.data import builtin
from lathe.data.builtin import builtin_documents, builtin_input
from lathe.errors import DataError


def put_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(builtin.sysconfig, "get_path", lambda name: str(folder))


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "lib"
    files = {
        "shelf.py": "'''Shelve.'''\n", "deep/er/ox.py": "x = 1\n", "empty.py": "",
        "latin.py": "# coding: latin-1\n# é\n",
        "notes.txt": "no", "test/test_ox.py": "no", "deep/tests/x.py": "no", "site-packages/y.py": "no",
        "encodings/cp437.py": "no", "_sysconfigdata_x.py": "no", "config-3.11/z.py": "no", "__pycache__/w.py": "no",
        "lib2to3/a.py": "no", "idlelib/b.py": "no", "pydoc_data/topics.py": "no",
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode("latin-1"))
    put_library(monkeypatch, folder)
    return folder


class TestThisPython:
    def test_is_megabytes_of_prose_and_code(self) -> None:
        documents = list(builtin_documents())
        assert 4e6 < sum(len(d.text.encode()) for d in documents) < 20e6
        names = [d.source.partition("/")[2] for d in documents]
        assert {"argparse.py", "asyncio/tasks.py"} < set(names)
        assert len(set(names)) == len(names)
        assert not {"test", "tests", "site-packages", "encodings"} & {part for n in names for part in n.split("/")}
        assert any("Command-line parsing library" in d.text for d in documents)
        assert all(d.text and not d.continues for d in documents)

    def test_is_the_same_again(self) -> None:
        assert builtin_input().fingerprint == builtin_input().fingerprint
        assert list(builtin_input().read()) == list(builtin_documents())

    @pytest.mark.parametrize("limit", [1_000, 300_000])
    def test_stops_at_a_limit(self, limit: int) -> None:
        documents = list(builtin_documents(limit_bytes=limit))
        whole = list(builtin_documents())[: len(documents)]
        assert documents[:-1] == whole[:-1]
        assert whole[-1].text.startswith(documents[-1].text)
        assert documents[-1].text.endswith("\n")
        assert limit - 200 <= sum(len(d.text.encode()) for d in documents) <= limit
        assert builtin_input(limit_bytes=limit).size_bytes == sum(len(d.text.encode()) for d in documents)


class TestOtherPythons:
    def test_takes_sources_alone(self, library: Path) -> None:
        found = {d.source.partition("/")[2]: d.text for d in builtin_documents()}
        assert found == {
            "shelf.py": "'''Shelve.'''\n", "deep/er/ox.py": "x = 1\n", "latin.py": "# coding: latin-1\n# é\n",
        }  # fmt: skip

    def test_zipped_library_gives_the_same(
        self, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = list(builtin_documents())
        archive = tmp_path / f"python{sys.version_info.major}{sys.version_info.minor}.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in library.rglob("*.*"):
                file.write(path, path.relative_to(library))
        put_library(monkeypatch, tmp_path / "gone")
        monkeypatch.setattr(sys, "path", [str(archive)])
        assert list(builtin_documents()) == wanted

    def test_library_without_sources(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put_library(monkeypatch, tmp_path)
        monkeypatch.setattr(sys, "path", [])
        (tmp_path / "os.pyc").write_bytes(b"")
        for read in (lambda: list(builtin_documents()), builtin_input):
            with pytest.raises(DataError, match=r"no sources of its standard library.*lathe data build FILES"):
                read()

    def test_broken_module(self, library: Path) -> None:
        (library / "broken.py").write_bytes(b"# \xff\n")
        with pytest.raises(DataError, match=r"broken.py of the standard library cannot be read"):
            list(builtin_documents())

    def test_limit_that_leaves_nothing(self) -> None:
        with pytest.raises(DataError, match="limit_bytes=0"):
            list(builtin_documents(limit_bytes=0))
