"""What `lathe data` says to what it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpus import write_jsonl

from lathe.cli import main


def refuse(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Give the error of a command that ends with one."""
    with pytest.raises(SystemExit) as ended:
        main(["data", *map(str, arguments)])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_without_a_tokenizer_the_way_to_one_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = write_jsonl(tmp_path / "a.jsonl", ["one"])
    said = refuse(capsys, "build", lines, "--tokenizer", tmp_path / "none.json", "--out", tmp_path / "out")
    assert "none.json; give a tokenizer.json" in said
    assert "or train one: lathe data tokenizer" in said


@pytest.mark.parametrize("options", [("--seed", -1), ("--max-repeats", 0)])
def test_numbers_that_no_mixture_is_found_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, int]
) -> None:
    assert "wanted a seed of 0 or more, repeats above 0" in refuse(capsys, "mix", tmp_path / "runs.csv", *options)


def test_a_cleaning_that_leaves_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("datatrove", reason="needs the package datatrove, of the extra `data`")
    (tmp_path / "recipe.toml").write_text('[[steps]]\nstep = "regex"\nregex_exp = "."\n', encoding="utf-8")
    lines = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    main(["data", "clean", str(lines), "--recipe", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert "Kept 0 of 2 documents" in said.out
    assert f"note: no document is left; {tmp_path}/out/removed has what each step removed" in said.err
