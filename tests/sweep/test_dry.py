"""What a study says it would do: a line a stage, the trainings' FLOPs, and nothing written."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from small_studies import finished_study, write_study

from lathe.errors import BudgetError
from lathe.sweep.dry import describe_study
from lathe.sweep.study import load_study


def list_files(folder: Path) -> dict[str, float]:
    return {
        os.path.join(place, name): os.stat(os.path.join(place, name)).st_mtime_ns
        for place, _, names in os.walk(folder)
        for name in names
    }


def find_flops(lines: Sequence[str], start: str) -> float:
    (line,) = (line for line in lines if line.startswith(start))
    found = re.search(r"([\d.e+]+) FLOPs", line)
    assert found is not None
    return float(found[1])


def test_before_anything_is_done(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path))
    before = list_files(tmp_path)
    lines = describe_study(study, tmp_path / "out").lines
    assert list_files(tmp_path) == before
    assert lines[0] == f"study small, in {tmp_path / 'out'}"
    stages = ("data", "sweep", "law", "device", "plan", "train", "evaluate", "export")
    assert [line.split() for line in lines[1:9]] == [[name, "to", "do"] for name in stages]
    assert lines[9].startswith("sweep: 7 trainings, 21 runs, 0 done;")
    assert lines[10].startswith("candidates: 2, at most")
    assert re.fullmatch(r"time: .+ or more here, at \d+% of [\d.e+]+ FLOP/s", lines[11])


def test_what_is_done_needs_no_more(tmp_path: Path) -> None:
    home = finished_study()
    before = list_files(home)
    study = load_study(home / "study.toml")
    outline, fresh = describe_study(study, home / "out"), describe_study(study, tmp_path / "out").lines
    lines = outline.lines
    assert list_files(home) == before
    assert outline.missing == ()
    assert all("made before, in" in line for line in lines[1:9])
    assert lines[9].startswith("sweep: 7 trainings, 21 runs, 7 done;")
    assert find_flops(lines, "sweep") == 0
    assert find_flops(fresh, "sweep") > 1e8
    for said in (lines, fresh):
        assert find_flops(said, "candidates") == pytest.approx(6 * 60e3 * 3840 * 2, rel=1e-2)


def test_the_same_flops_as_the_study_takes(tmp_path: Path) -> None:
    """The vocabulary asked for is the one that the data turn out to have."""
    home = finished_study()
    study = load_study(home / "study.toml")
    (home_cost,) = (line for line in describe_study(study, tmp_path).lines if line.startswith("sweep"))
    from lathe.sweep.kept import read_stage

    stage = read_stage(home / "out", "sweep")
    assert stage is not None
    assert find_flops([home_cost], "sweep") == pytest.approx(stage.cost.flops, rel=1e-2)


def test_a_mixture_and_a_law_from_elsewhere(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(
        '[law]\nruns = "morph-2025"\n[device]\npreset = "a100-40gb"\n[workload]\nbatch = 1\nprompt_tokens = 128\n'
        'new_tokens = 256\ndtype = "bf16"\n[plan]\ntokens = 29e9\nparams = 1.7e9\n'
    )
    lines = describe_study(load_study(study), tmp_path / "out").lines
    assert "no sweep: the law is from elsewhere" in lines
    assert not any(line.split()[0] in ("data", "sweep", "mixture", "measure") for line in lines[1:])
    text = study.read_text()
    study.write_text(
        "[mixture]\nproxies = 8\ntokens = 1e4\nshape = {d_model = 32, n_layers = 1}\n"
        '[mixture.sources]\na = "a"\nb = "b"\n' + text + "[training]\nseq_len = 16\nbatch_tokens = 64\nlr = 1e-3\n"
    )
    outline = describe_study(load_study(study), tmp_path / "out")
    assert [one.split(":")[0] for one in outline.missing] == ["[mixture] source a", "[mixture] source b"]
    assert outline.lines[-1] == "what trainings take cannot be told without what is missing"


def test_all_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are those beside the study's file; what trainings take is told all the same where it can be."""
    monkeypatch.setitem(sys.modules, "submitit", None)
    changes = (
        ('["text.jsonl"]', '["text.jsonl", "more.jsonl"]\ntokenizer = "tokenizer.json"'),
        ("[law]", '[training]\ninit.checkpoint = "first"\n[law]'),
        ('preset = "a100-40gb"', 'device = "cuda:99"'),
        ("continuations = 6", 'tasks = ["copa"]\nlosses = ["wiki"]'),
        ("[launch]", '[launch]\nlauncher = "slurm"'),
        ("settings = {slots = 2, threads = 1}", ""),
    )
    study = load_study(write_study(tmp_path / "home", *changes))
    outline = describe_study(study, tmp_path / "out")
    home = tmp_path / "home"
    wanted = [
        f"[text] inputs: there is no file or folder {home}/more.jsonl",
        f"[text] tokenizer: there is no file {home}/tokenizer.json",
        f"[training] init.checkpoint: there is no folder {home}/first",
        "[device]: torch cannot use the device 'cuda:99' here",
        f"[evaluate]: task 'copa' needs copa.jsonl, and {home} has no such file",
        f"[evaluate] losses: there is no file or folder {home}/wiki",
        "[launch]: launching on Slurm needs packages that are not installed",
    ]
    assert len(outline.missing) == len(wanted)
    for said, begin in zip(outline.missing, wanted, strict=True):
        assert said.startswith(begin)
    assert find_flops(outline.lines, "sweep") > 1e8


@pytest.mark.parametrize(
    ("law", "says"),
    [
        ('runs = "morph-2052"', "[law] runs: no published table or file is called 'morph-2052'"),
        ('file = "law.json"', "[law] file: "),
    ],
)
def test_a_law_that_is_missing(tmp_path: Path, law: str, says: str) -> None:
    (tmp_path / "study.toml").write_text(
        f'[law]\n{law}\n[device]\npreset = "a100-40bg"\n[workload]\nbatch = 1\nprompt_tokens = 128\n'
        'new_tokens = 256\ndtype = "bf16"\n[plan]\ntokens = 29e9\nparams = 1.7e9\n'
    )
    found = describe_study(load_study(tmp_path / "study.toml"), tmp_path / "out").missing
    assert len(found) == 2
    assert found[0].startswith(says)
    assert "did you mean 'a100-40gb'" in found[1]


def test_more_than_the_law_should_be_asked(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, ("top = 2", "top = 2\nmost_flops = 1.5")))
    with pytest.raises(BudgetError, match="times those of the largest run"):
        describe_study(study, tmp_path / "out")
