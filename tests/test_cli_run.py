"""`lathe run`, `lathe report` and `lathe next --study` as a user runs them: what they print and write, how they end."""

import errno
import json
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_studies import finished_study, write_study

from lathe import codec
from lathe.cli import main
from lathe.errors import Stopped
from lathe.presets.devices import load_device, save_device
from lathe.studies import StudyResult

Printed = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Copy the study that was carried out."""
    shutil.copytree(finished_study(), tmp_path / "study")
    return tmp_path / "study"


def ends(*arguments: str | Path) -> Any:
    with pytest.raises(SystemExit) as caught:
        main([str(one) for one in arguments])
    return caught.value.code


def run(home: Path, *arguments: str) -> None:
    main(["run", str(home / "study.toml"), "--out", str(home / "out"), *arguments])


@contextmanager
def full_disk(file_bytes: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class TestRun:
    def test_what_it_says_and_writes(self, home: Path, capsys: Printed) -> None:
        run(home)
        printed = capsys.readouterr()
        result = codec.load(StudyResult, home / "out/result.json", kind="study-result")
        assert f"chosen: {result.chosen}, " in printed.out
        assert "Predicted beside true" in printed.out
        assert "report.html" in printed.out
        assert printed.err == ""
        assert str(result.chosen) in (home / "out/report.html").read_text()

    def test_until(self, tmp_path: Path, capsys: Printed) -> None:
        write_study(tmp_path)
        main(["run", str(tmp_path / "study.toml"), "--until", "data", "--seed", "3"])
        printed = capsys.readouterr().out
        assert "stopped after data, as asked; what there is, is in studies/small" in printed
        assert json.loads(Path("studies/small/study.json").read_text())["seed"] == 3
        assert not Path("studies/small/report.html").exists()

    def test_dry_run_writes_nothing(self, tmp_path: Path, capsys: Printed) -> None:
        write_study(tmp_path)
        main(["run", str(tmp_path / "study.toml"), "--dry-run"])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "study small, in studies/small"
        assert lines[-1].startswith("time: ")
        assert not Path("studies").exists()

    def test_a_signal_to_stop(self, home: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop(*given: Any, **named: Any) -> None:
            raise Stopped("stopped by SIGTERM")

        monkeypatch.setattr("lathe.sweep.run.run_study", stop)
        assert ends("run", home / "study.toml") == 75
        assert capsys.readouterr().err == "lathe: stopped by SIGTERM\n"


class TestWhatTheUserGotWrong:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (("top = 2", "tops = 2"), "unknown key 'plan.tops'; did you mean 'top'"),
            (("[launch]", '[launch]\nlauncher = "slrum"'), "no launcher is called 'slrum'; did you mean 'slurm'"),
            (("slots = 2", "slot = 2"), "unknown key 'slot'; did you mean 'slots'"),
            (("spike = 1e6", "spke = 1"), "unknown key 'spke'; did you mean 'spike'"),
            (("spike = 1e6", 'out = "x"'), "[launch] execution gives out, which a sweep gives each training itself"),
            (("d_model = 24", "d_modle = 24"), "unknown key 'shape.d_modle'; did you mean 'd_model'"),
            (('"a100-40gb"', '"a100-40bg"'), "did you mean 'a100-40gb'"),
            (('dtype = "fp32"', 'dtype = "fp64"'), "dtype"),
        ],
    )
    def test_before_anything_is_trained(
        self, tmp_path: Path, capsys: Printed, change: tuple[str, str], says: str
    ) -> None:
        write_study(tmp_path, change)
        assert ends("run", tmp_path / "study.toml", "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.startswith("lathe: ")
        assert not list(tmp_path.glob("out/runs/*"))

    def test_a_device_that_cannot_compute_in_the_dtype(self, tmp_path: Path, capsys: Printed) -> None:
        device = load_device("a100-40gb")
        peaks = {dtype: peak for dtype, peak in device.flops_per_s.items() if dtype != "fp32"}
        origins = {name: origin for name, origin in device.origins.items() if name != "flops_per_s.fp32"}
        save_device(replace(device, name="half", flops_per_s=peaks, origins=origins), tmp_path / "half.toml")
        write_study(tmp_path, ('preset = "a100-40gb"', 'file = "half.toml"'))
        assert ends("run", tmp_path / "study.toml", "--out", tmp_path / "out") == 2
        assert "device 'half' has no rate for fp32; it computes in" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_launcher_that_is_not_installed(
        self, tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "submitit", None)
        write_study(tmp_path, ("settings = {slots = 2, threads = 1}", 'launcher = "slurm"'))
        assert ends("run", tmp_path / "study.toml", "--out", tmp_path / "out") == 2
        assert 'pip install "lathe[slurm]"' in capsys.readouterr().err

    def test_a_stage_that_the_study_has_not(self, tmp_path: Path, capsys: Printed) -> None:
        write_study(tmp_path)
        assert ends("run", tmp_path / "study.toml", "--until", "measure") == 2
        assert "there is no stage 'measure' in this study; its stages are data, sweep" in capsys.readouterr().err

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path, capsys: Printed) -> None:
        write_study(tmp_path)
        assert ends("run", tmp_path / "study.toml", "--out", tmp_path / "text.jsonl") == 2
        assert "text.jsonl cannot be made" in capsys.readouterr().err


class TestNothingFits:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (('total_s = "median"', "total_s = 1e-9"), "total latency"),
            (('total_s = "median"', "memory_bytes = 1e3"), "memory"),
        ],
    )
    def test_the_report_says_so_and_what_is_nearest(
        self, home: Path, capsys: Printed, change: tuple[str, str], says: str
    ) -> None:
        (home / "out/report.html").unlink(missing_ok=True)
        write_study(home, change)
        assert ends("run", home / "study.toml", "--out", home / "out") == 2
        printed = capsys.readouterr()
        assert "no shape of the plan fits its budget; the nearest is " in printed.err
        nearest = printed.err.split("the nearest is ")[1].split(":")[0]
        page = (home / "out/report.html").read_text()
        assert "nothing met the budget" in page
        assert nearest in page
        assert says in page.lower()
        assert "report.html" in printed.out
        write_study(home)  # and back again
        run(home)
        assert "nothing met the budget" not in (home / "out/report.html").read_text()


class TestFullDisk:
    def test_while_data_are_made(self, tmp_path: Path, capsys: Printed) -> None:
        study = write_study(tmp_path)
        with full_disk(4096):
            assert ends("run", study, "--out", tmp_path / "out", "--until", "data") == 2
        assert "cannot be written: File too large" in capsys.readouterr().err
        main(["run", str(study), "--out", str(tmp_path / "out"), "--until", "data"])
        assert "stopped after data" in capsys.readouterr().out

    def test_while_the_chosen_are_trained(self, home: Path, capsys: Printed) -> None:
        """Nothing but the training is done again, and it comes to the same."""
        before = codec.load(StudyResult, home / "out/result.json", kind="study-result")
        shutil.rmtree(home / "out/candidates")
        with full_disk(60_000):
            assert ends("run", home / "study.toml", "--out", home / "out") == 2
        printed = capsys.readouterr()
        assert "no recipe could be trained" in printed.err
        assert "File too large" in printed.err
        run(home)
        after = codec.load(StudyResult, home / "out/result.json", kind="study-result")
        assert [c.true_loss for c in after.candidates] == [c.true_loss for c in before.candidates]
        assert after.chosen == before.chosen
        assert "sweep: kept from before" in capsys.readouterr().out

    def test_while_the_law_is_written(self, home: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
        (home / "out/law.json").unlink()

        def fail(self: Any, path: Path) -> None:
            raise codec.CodecError(f"{path}: cannot be written: {errno.errorcode[errno.ENOSPC]}; nothing was changed")

        with monkeypatch.context() as patch:
            patch.setattr("lathe.laws.law.Law.save", fail)
            assert ends("run", home / "study.toml", "--out", home / "out") == 2
        assert "law.json: cannot be written: ENOSPC" in capsys.readouterr().err
        run(home)
        printed = capsys.readouterr().out
        assert "law …" in printed
        assert "plan: kept from before" in printed


class TestReport:
    def test_html_markdown_and_figures(self, home: Path, tmp_path: Path, capsys: Printed) -> None:
        main(["report", str(home / "out"), "--out", str(tmp_path / "page.html")])
        assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
        main(["report", str(home / "out"), "--format", "md", "--figures", str(tmp_path / "figures")])
        text = (home / "out/report.md").read_text()
        assert text.startswith("# small: ")
        drawn = sorted((tmp_path / "figures").iterdir())
        assert {path.suffix for path in drawn} == {".svg", ".png", ".pdf"}
        named = next(line for line in text.splitlines() if line.startswith("!["))
        assert (home / "out" / named.split("(")[1].rstrip(")")).resolve().is_file()
        printed = capsys.readouterr().out.splitlines()
        assert f"figures: {tmp_path / 'figures'}" in printed
        assert printed[-1] == f"report: {home / 'out/report.md'}"

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["nowhere"], "nowhere holds no result.json: carry out a study there first"),
            (["study/out", "--out", "page.md"], "page.md: the name should end in .html"),
            (["study/out", "--format", "md", "--out", "no/page.md"], "there is no folder no to write page.md in"),
        ],
    )
    def test_what_the_user_got_wrong(self, home: Path, capsys: Printed, arguments: list[str], says: str) -> None:
        assert home.is_dir()
        assert ends("report", *arguments) == 2
        assert says in capsys.readouterr().err


class TestNext:
    def test_go_adds_the_runs_and_carries_the_study_out(
        self, home: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        carried: list[Any] = []
        monkeypatch.setattr(
            sys.modules["lathe.cli.run"], "carry_out", lambda study, folder: carried.append((study.name, folder))
        )
        main(["next", "--study", str(home / "out"), "--flops", "4e8"])
        assert "Next runs: target loss" in capsys.readouterr().out
        assert not carried
        assert not (home / "out/more").exists()
        main(["next", "--study", str(home / "out"), "--flops", "4e8", "--go"])
        assert carried == [("small", home / "out")]
        assert list((home / "out/more").glob("*.json"))

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--flops", "1e9"], "give a table of runs, or --study and its folder"),
            (["--study", "nowhere", "--flops", "1e9"], "nowhere has no study.json"),
            (["--study", "study/out", "--flops", "1"], "buys none of the 15 candidates"),
            (["--study", "study/out", "--flops", "1e9", "--tokens", "1e6"], "give --shape and --tokens"),
            (["morph-2025", "--flops", "1e19", "--shape", "mobilellm-125m", "--tokens", "1e9", "--go"], "--go trains"),
        ],
    )
    def test_what_the_user_got_wrong(self, home: Path, capsys: Printed, arguments: list[str], says: str) -> None:
        assert home.is_dir()
        assert ends("next", *arguments) == 2
        assert says in capsys.readouterr().err
