"""The README's commands, run as written: they end well and print what the README says they print."""

import re
import shlex
from pathlib import Path

import pytest

from lathe.cli import main

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```console\n\$ (.*?)\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def words(line: str) -> list[str]:
    return NUMBER.sub("#", line).split()


def numbers(line: str) -> list[float]:
    return [float(n.replace(",", "")) for n in NUMBER.findall(line)]


def test_readme_is_whole() -> None:
    assert len(BLOCKS) >= 3
    assert all(shown.strip() for _, shown in BLOCKS)
    assert "@@" not in README.read_text(encoding="utf-8")


def test_commands_print_what_the_readme_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, in one folder: later commands read what earlier ones wrote. Numbers may differ by 2 %."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build").mkdir()
    for command, shown in BLOCKS:
        program, *arguments = shlex.split(command)
        assert program == "lathe"
        main(arguments)
        printed = iter(capsys.readouterr().out.splitlines())
        for line in shown.splitlines():
            if line.strip() in ("", "…"):
                continue
            match = next((p for p in printed if words(p) == words(line)), None)
            assert match is not None, f"`{command}` does not print {line!r}"
            assert numbers(match) == pytest.approx(numbers(line), rel=0.02, abs=0.011), line
