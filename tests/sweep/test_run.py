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
from small_studies import finished_study, steady, write_study

from lathe import codec
from lathe.errors import BudgetError, EvaluationError, StudyError
from lathe.report.study_page import study_page
from lathe.studies import StudyResult
from lathe.sweep.kept import Reached
from lathe.sweep.run import run_study
from lathe.sweep.study import load_study


def carry_out(study: Path, folder: Path, **asked: Any) -> tuple[StudyResult, list[str]]:
    said: list[str] = []
    return run_study(load_study(study), folder, report=said.append, live=False, **asked), said


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


def test_more_than_the_law_should_be_asked(tmp_path: Path) -> None:
    """What the grid's largest run is, is known before it is trained."""
    study = write_study(tmp_path, ("top = 2", "top = 2\nmost_flops = 1.5"))
    with pytest.raises(BudgetError, match=r"asks for up to .* FLOPs, .* times those of the largest run"):
        carry_out(study, tmp_path / "out")
    assert not (tmp_path / "out/runs").exists()


def test_finished_trainings_count_with_what_they_took(again: Path) -> None:
    """A stage made again of runs that are there takes no time: it says what they had taken."""
    out = again / "out"
    for name in ("sweep", "train"):
        (out / f"stages/{name}.json").unlink()
    result, said = carry_out(again / "study.toml", out)
    assert {"7 of 7 are trained already", "2 of 2 are trained already"} <= set(said)
    took = sum(candidate.train_seconds for candidate in result.candidates)
    assert result.costs["train"].seconds >= took > 0
    rows = [json.loads(line) for line in (out / "runs/runs.jsonl").read_text().splitlines()]
    trunks = sum(row["seconds"] for row in rows if row["tokens"] == 2560)
    assert result.costs["sweep"].seconds > trunks, "branches count, too"


def test_the_questions_hang_on_what_the_files_of_tasks_hold(again: Path) -> None:
    """Files lie beside the study's; what is asked hangs on what they hold, not on where or when they were written."""
    changes = ("continuations = 6", 'tasks = ["quiz"]\ncatalogue = "tasks.toml"\nlosses = ["more.jsonl"]')
    items = '{"query": "the shape of", "choices": ["a model", "the law"], "gold": %d}\n'
    (again / "quiz.jsonl").write_text((items % 0) * 3)
    row = '{file = "quiz.jsonl", kind = "multiple_choice", shots = 0, chance = 0.5, published = "here"}'
    (again / "tasks.toml").write_text(f"[tasks]\nquiz = {row}\n")
    shutil.copyfile(again / "text.jsonl", again / "more.jsonl")
    study, out = write_study(again, changes), again / "out"
    result, said = carry_out(study, out)
    assert "evaluate …" in said
    assert "train: kept from before" in said
    assert all(candidate.accuracies.keys() == {"quiz"} for candidate in result.candidates)
    (again / "quiz.jsonl").touch()
    assert "evaluate: kept from before" in carry_out(study, out)[1]
    (again / "quiz.jsonl").write_text((items % 0) * 2 + items % 1)
    after, said = carry_out(study, out)
    assert "evaluate …" in said
    assert [c.accuracies for c in after.candidates] != [c.accuracies for c in result.candidates]
    (again / "quiz.jsonl").unlink()
    with pytest.raises(EvaluationError, match=f"task 'quiz' needs quiz.jsonl, and {again} has no such file"):
        carry_out(study, again / "new")
    assert not (again / "new").exists(), "it is said before anything is trained"
    with pytest.raises(Reached):
        carry_out(study, again / "new", until="data")


def test_an_exponent_that_the_runs_cannot_tell_is_said(again: Path) -> None:
    """In the result's notes, and so on the page."""
    write_study(again, ('form = "width-depth"', 'form = "auto"'))
    table = again / "out/runs/runs.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    for row in rows:  # depth shall do nothing
        row["loss"] = 2 + 8 / row["d_model"] ** 0.7 + 90 / row["tokens"] ** 0.6
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = json.loads((again / "out/stages/sweep.json").read_text())
    stage["sizes"]["runs/runs.jsonl"] = table.stat().st_size
    (again / "out/stages/sweep.json").write_text(json.dumps(stage))
    result, said = carry_out(again / "study.toml", again / "out")
    assert "sweep: kept from before" in said
    (note,) = (note for note in result.notes if "depth" in note)
    assert note.startswith("these runs cannot tell the exponent of depth, nor whether depth alone does anything")
    page = study_page(result, again / "out")
    assert any(shown.lower() == f"{note.lower()}." for shown in page.notes)


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
    """Kill the study at some moment of its work; the next call ends as the one that was never killed."""
    study, out = write_study(tmp_path), tmp_path / "out"
    command = [sys.executable, "-m", "lathe", "run", str(study), "--out", str(out)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    time.sleep(random.Random(0).uniform(3, 9))  # benchmarks/kills.py kills it twenty times
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(30)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    assert steady(out) == steady(done / "out")
    assert (out / "report.html").is_file()
