from pathlib import Path

import pytest

from lathe.sweep.kept import Kept, Made, Reached


class Stages:
    """Two stages, of which the second hangs on the first; counts how often each is made."""

    def __init__(self, folder: Path, *, until: str | None = None) -> None:
        self.folder, self.until, self.made, self.said = folder, until, [], []

    def run(self, first: int, second: int) -> int:
        kept = Kept(self.folder, report=self.said.append, until=self.until)
        a = kept("a", lambda: self._make("a", {"value": first // 10}), asked=first)
        b = kept("b", lambda: self._make("b", {"value": second + a["value"]}), asked=second, after=("a",))
        return b["value"]

    def _make(self, name: str, result: dict[str, int]) -> Made:
        self.made.append(name)
        (self.folder / f"{name}.txt").write_text(name)
        return Made(result=result, files=(f"{name}.txt",))


def test_made_once(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    assert [stages.run(10, 5), stages.run(10, 5)] == [6, 6]
    assert stages.made == ["a", "b"]


def test_a_change_makes_what_hangs_on_it(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    stages.run(10, 5)
    assert stages.run(10, 6) == 7
    assert stages.made == ["a", "b", "b"]
    assert stages.run(20, 6) == 8
    assert stages.made == ["a", "b", "b", "a", "b"]


def test_the_same_result_leaves_what_follows(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    stages.run(10, 5)
    stages.run(11, 5)  # asked otherwise, found the same
    assert stages.made == ["a", "b", "a"]


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_text("longer")])
def test_a_file_that_is_gone_or_changed_is_made_anew(tmp_path: Path, harm) -> None:
    stages = Stages(tmp_path)
    stages.run(10, 5)
    harm(tmp_path / "a.txt")
    assert stages.run(10, 5) == 6
    assert stages.made == ["a", "b", "a"]
    assert any("a.txt is gone or was changed" in line for line in stages.said)


def test_a_shared_file_need_only_be_there(tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> Made:
        made.append("a")
        (tmp_path / "table").write_text("1\n")
        return Made(result={}, shared=("table",))

    for harm in (lambda: None, lambda: (tmp_path / "table").write_text("1\n2\n"), (tmp_path / "table").unlink):
        Kept(tmp_path, report=lambda line: None)("a", make, asked=1)
        harm()
    Kept(tmp_path, report=lambda line: None)("a", make, asked=1)
    assert made == ["a", "a"]


def test_a_broken_record_is_made_anew(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    stages.run(10, 5)
    (tmp_path / "stages/b.json").write_text("{")
    assert stages.run(10, 5) == 6
    assert stages.made == ["a", "b", "b"]


def test_until(tmp_path: Path) -> None:
    stages = Stages(tmp_path, until="a")
    with pytest.raises(Reached, match="stopped after a"):
        stages.run(10, 5)
    assert stages.made == ["a"]


def test_what_earlier_calls_took_counts(tmp_path: Path) -> None:
    kept = Kept(tmp_path, report=lambda line: None)
    kept("a", lambda: Made(result={}, before_s=100.0), asked=1)
    assert 100 < kept.done["a"].cost.seconds < 101
