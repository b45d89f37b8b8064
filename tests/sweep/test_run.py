import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_studies import finished_study, write_study

from lathe import codec
from lathe.errors import BudgetError, StudyError
from lathe.studies import StudyResult
from lathe.sweep.kept import Reached
from lathe.sweep.run import run_study
from lathe.sweep.study import load_study

VOLATILE = {"created", "costs", "versions", "train_seconds", "commands", "study", "key"}


def carry_out(study: Path, folder: Path, **asked: Any) -> tuple[StudyResult, list[str]]:
    said: list[str] = []
    return run_study(load_study(study), folder, report=said.append, live=False, **asked), said


def steady(folder: Path) -> dict[str, Any]:
    """Give what a study found, but for seconds, dates, hosts, and where it lies."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k not in VOLATILE}
        return [strip(v) for v in value] if isinstance(value, list) else value

    rows = [json.loads(line) for line in (folder / "runs/runs.jsonl").read_text().splitlines()]
    for row in rows:
        for name in ("seconds", "created", "device", "energy_j", "git"):
            row.pop(name, None)
    found = strip(json.loads((folder / "result.json").read_text()))
    return {"result": found, "rows": rows, "law": json.loads((folder / "law.json").read_text())}


@pytest.fixture(scope="module")
def done() -> Path:
    return finished_study()


@pytest.fixture
def again(done: Path, tmp_path: Path) -> Path:
    """Copy the study that was carried out."""
    shutil.copytree(done, tmp_path / "study", dirs_exist_ok=True)
    return tmp_path / "study"


def test_the_whole_job(done: Path) -> None:
    result = codec.load(StudyResult, done / "out/result.json", kind="study-result")
    assert len(result.candidates) == 2
    chosen = next(c for c in result.candidates if c.name == result.chosen)
    assert chosen.true_loss == min(c.true_loss for c in result.candidates if c.within_budget)
    for candidate in result.candidates:
        run = json.loads((done / "out" / candidate.folder / "run.json").read_text())
        assert candidate.true_loss == run["losses"][run["validation"]]
        assert candidate.accuracies["continuation"] == run["accuracies"]["continuation"]
        assert candidate.loss_low < candidate.predicted_loss < candidate.loss_high
    assert (done / "out" / str(result.exported) / "config.json").is_file()
    assert result.prompt == "the shape of"
    assert len((done / "out/runs/runs.jsonl").read_text().splitlines()) == 21
    assert set(result.costs) == {"data", "sweep", "law", "device", "plan", "train", "evaluate", "export"}


def test_again_makes_nothing(again: Path) -> None:
    before = steady(again / "out")
    _, said = carry_out(again / "study.toml", again / "out")
    assert steady(again / "out") == before
    assert [line for line in said if not line.endswith("kept from before")] == []


def test_a_change_of_the_budget_trains_only_what_is_new(again: Path) -> None:
    write_study(again, ("top = 2", "top = 3"))
    result, said = carry_out(again / "study.toml", again / "out")
    assert len(result.candidates) == 3
    assert "sweep: kept from before" in said
    assert "2 of 3 are trained already" in said


@pytest.mark.parametrize("gone", ["law.json", "runs/runs.jsonl", "plan.json", "data"])
def test_what_was_deleted_by_hand_is_made_again(again: Path, gone: str) -> None:
    before, path = steady(again / "out"), again / "out" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    carry_out(again / "study.toml", again / "out")
    assert steady(again / "out") == before


def test_a_file_of_the_law_that_changed(done: Path, tmp_path: Path) -> None:
    """A law from elsewhere is looked at again when its file is another one."""
    rows = (done / "out/runs/runs.jsonl").read_text().splitlines()
    (tmp_path / "runs.jsonl").write_text("\n".join(rows))
    study = tmp_path / "study.toml"
    study.write_text(
        '[law]\nruns = "runs.jsonl"\nform = "width-depth"\ndraws = 20\n[device]\npreset = "a100-40gb"\n'
        '[workload]\nbatch = 1\nprompt_tokens = 8\nnew_tokens = 8\ndtype = "fp32"\n[plan]\ntokens = 4e3\nparams = 6e4\n'
    )
    for count, told in ((21, "law …"), (21, "law: kept from before"), (20, "law …")):
        (tmp_path / "runs.jsonl").write_text("\n".join(rows[:count]))
        said: list[str] = []
        with pytest.raises(Reached):
            run_study(load_study(study), tmp_path / "out", until="law", report=said.append)
        assert said == [told]


def test_weights_that_were_deleted_are_trained_again(again: Path) -> None:
    before = steady(again / "out")
    for path in (again / "out/candidates").glob("*/model.safetensors"):
        path.unlink()
    carry_out(again / "study.toml", again / "out")
    assert len(list((again / "out/candidates").glob("*/model.safetensors"))) == 2
    assert steady(again / "out") == before


def test_until(tmp_path: Path) -> None:
    with pytest.raises(Reached, match="stopped after data"):
        carry_out(write_study(tmp_path), tmp_path / "out", until="data")
    with pytest.raises(StudyError, match="there is no stage 'trian' in this study"):
        carry_out(write_study(tmp_path), tmp_path / "out", until="trian")


def test_a_budget_that_nothing_meets(again: Path) -> None:
    write_study(again, ('total_s = "median"', "total_s = 1e-9"))
    with pytest.raises(BudgetError, match="no shape of the plan fits its budget; the nearest is"):
        carry_out(again / "study.toml", again / "out")
    result = codec.load(StudyResult, again / "out/result.json", kind="study-result")
    assert result.chosen is None


def test_more_than_the_law_should_be_asked(again: Path) -> None:
    write_study(again, ("top = 2", "top = 2\nmost_flops = 1.5"))
    with pytest.raises(BudgetError, match=r"asks for up to .* FLOPs, .* times those of the largest run"):
        carry_out(again / "study.toml", again / "out")


def test_a_law_from_elsewhere_stops_at_the_plan(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(
        '[law]\nruns = "morph-2025"\nform = "width-depth"\ndraws = 20\n[device]\npreset = "a100-40gb"\n'
        '[workload]\nbatch = 1\nprompt_tokens = 128\nnew_tokens = 256\ndtype = "bf16"\n'
        "[plan]\ntokens = 29e9\nparams = 1.7e9\ntotal_s = 2.0\n"
    )
    with pytest.raises(Reached, match="plan"):
        carry_out(study, tmp_path / "out")
    assert (tmp_path / "out/plan.json").is_file()


def test_killed_at_random_it_comes_to_the_same(done: Path, tmp_path: Path) -> None:
    """Kill the study at moments over its whole length; the last call ends as the one that was never killed."""
    study, out = write_study(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "lathe", "run", str(study), "--out", str(out)]
    draw = random.Random(0)
    for _ in range(4):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(draw.uniform(2, 9))
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(30)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    assert steady(out) == steady(done / "out")
    assert (out / "report.html").is_file()
