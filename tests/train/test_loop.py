"""Train tiny decoders: killed and resumed runs, branches, spikes, accumulation, and what a finished run leaves."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lathe.errors import CheckpointError, DataError, RecipeError, Stopped, TrainingError
from lathe.laws.importers import read_runs
from lathe.model.checkpoint import load_model
from lathe.recipe import Data, Init, Optimiser, Recipe, Schedule
from lathe.shape import Shape
from lathe.train import loop
from lathe.train.execution import Execution
from lathe.train.launch import launch
from lathe.train.loop import Trainer, train
from lathe.train.meter import DETERMINISTIC, read_metrics
from lathe.train.shards import find_tensors, read_tensors
from lathe.train.snapshots import list_steps, step_folder
from lathe.train.spikes import Spike, SpikeWatch
from tests.small_datasets import VOCAB, write_small_dataset

SHAPE = Shape.of(d_model=16, n_layers=2, n_heads=2, d_ff=32, vocab_size=VOCAB, max_seq_len=16)
STEPS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_small_dataset(folder, train=4000, held_out=300)
    return str(folder)


def make_recipe(data: str, **given: Any) -> Recipe:
    values: dict[str, Any] = {
        "shape": SHAPE, "tokens": STEPS * 64, "seq_len": 16, "batch_tokens": 64, "lr": 1e-2, "data": Data(train=data),
        "schedule": Schedule(name="wsd", warmup_steps=3, decay=0.25),
    }  # fmt: skip
    return Recipe(**values | given)


def run(recipe: Recipe, out: Path, **given: Any) -> Any:
    reports: list[str] = []
    execution = Execution(out=str(out), **{"save_every": 5, "threads": 1, **given})
    return train(recipe, execution, report=reports.append), reports


def curve(out: Path) -> list[dict[str, Any]]:
    return [{name: row[name] for name in DETERMINISTIC} for row in read_metrics(out / "metrics.jsonl")]


def state(out: Path) -> dict[str, torch.Tensor]:
    folder = step_folder(out, list_steps(out)[-1])
    tensors = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in find_tensors(folder, "").items()}
    read_tensors(folder, tensors)
    return tensors


def assert_same(a: Path, b: Path) -> None:
    assert curve(a) == curve(b)
    for ours, theirs in (
        (state(a), state(b)),
        (load_file(a / "model.safetensors"), load_file(b / "model.safetensors")),
    ):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name
    first, second = (json.loads((out / "run.json").read_text()) for out in (a, b))
    for name in ("losses", "loss_ses", "train_loss", "recipe_id", "tokens", "flops"):
        assert first[name] == second[name], name


@pytest.fixture(scope="module")
def whole(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run of the plain recipe that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(make_recipe(data), out)
    return out


class Interrupt:
    """Send a signal to this process when a step is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: list[int], number: int = signal.SIGTERM) -> None:
        update = Trainer._update

        def wrapped(trainer: Trainer, step: int) -> None:
            update(trainer, step)
            if steps and step + 1 == steps[0]:
                steps.pop(0)
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Trainer, "_update", wrapped)


class TestResume:
    def test_stopped_runs_go_on_to_the_bit(
        self, data: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stops = [1, 7, 10, 11, 23]
        Interrupt(monkeypatch, list(stops))
        for stop in stops:
            with pytest.raises(Stopped, match=f"SIGTERM after step {stop} of 24; the state of step {stop} is kept"):
                run(make_recipe(data), tmp_path / "run")
        found, reports = run(make_recipe(data), tmp_path / "run")
        assert "going on after step 23 of 24" in reports
        assert_same(tmp_path / "run", whole)
        assert found.steps == 24

    @pytest.mark.parametrize("extra", [{"ema": 0.9}, {"optimiser": Optimiser(name="muon")}, {"z_loss": 1e-4}])
    def test_every_kind_of_state_is_kept(
        self, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any]
    ) -> None:
        recipe = make_recipe(data, tokens=12 * 64, **extra)
        run(recipe, tmp_path / "whole")
        Interrupt(monkeypatch, [4, 9])
        for _ in range(2):
            with pytest.raises(Stopped):
                run(recipe, tmp_path / "run")
        run(recipe, tmp_path / "run")
        assert_same(tmp_path / "run", tmp_path / "whole")

    def test_killed_runs_go_on_to_the_bit(self, data: str, whole: Path, tmp_path: Path) -> None:
        program = (
            "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
            "from tests.train import test_loop as t; from lathe.train.loop import Trainer\n"
            "update = Trainer._update\n"
            "def slow(trainer, step):\n"
            "    update(trainer, step); print(step + 1, flush=True); time.sleep(.02)\n"
            "Trainer._update = slow\n"
            "t.run(t.make_recipe(sys.argv[2]), Path(sys.argv[3]), save_every=2)\n"
        )
        command = [sys.executable, "-c", program, str(Path(__file__).parents[2]), data, str(tmp_path / "run")]
        for at in (5, 10, 17):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= at:
                    break
            process.kill()
            process.wait()
            process.stdout.close()
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert 10 < int(done.stdout.split()[0]) <= 24
        assert_same(tmp_path / "run", whole)

    def test_other_numbers_of_ranks_go_on(self, data: str, whole: Path, tmp_path: Path) -> None:
        program = (
            "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
            "from tests.train import test_loop as t; from lathe.errors import Stopped\n"
            "from lathe.train.loop import Trainer; update, stop = Trainer._update, int(sys.argv[4])\n"
            "def stopping(trainer, step):\n"
            "    update(trainer, step)\n"
            "    if step + 1 == stop: os.kill(os.getpid(), signal.SIGTERM)\n"
            "Trainer._update = stopping\n"
            "try: t.run(t.make_recipe(sys.argv[2]), Path(sys.argv[3]), device='cpu')\n"
            "except Stopped: sys.exit(75)\n"
        )
        command = [sys.executable, "-c", program, str(Path(__file__).parents[2]), data, str(tmp_path / "run")]
        for ranks, stop, code in ((2, 8, 75), (1, 16, 75), (2, 0, 0)):
            assert launch([*command, str(stop)], nproc=ranks) == code
        found, wanted = curve(tmp_path / "run"), curve(whole)
        assert [(row["step"], row["tokens"], row["lr"]) for row in found] == [
            (row["step"], row["tokens"], row["lr"]) for row in wanted
        ]
        assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted], abs=1e-5)
        ours, theirs = (load_file(out / "model.safetensors") for out in (tmp_path / "run", whole))
        for name, weight in ours.items():
            torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-4)

    def test_a_damaged_state_is_passed_over(self, data: str, whole: Path, tmp_path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            Interrupt(patch, [12])
            with pytest.raises(Stopped):
                run(make_recipe(data), tmp_path / "run")
        newest = step_folder(tmp_path / "run", 12)
        (shard,) = newest.glob("*.distcp")
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
        _, reports = run(make_recipe(data), tmp_path / "run")
        assert any("step 12 is damaged" in report for report in reports)
        assert "going on after step 10 of 24" in reports
        assert_same(tmp_path / "run", whole)

    def test_other_conditions_are_told(self, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        Interrupt(monkeypatch, [6])
        with pytest.raises(Stopped):
            run(make_recipe(data), tmp_path / "run", threads=2)
        _, reports = run(make_recipe(data), tmp_path / "run", threads=1)
        assert any("the number of threads was 2 and is 1 now" in report for report in reports)

    def test_resume_must_and_never(self, data: str, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
            run(make_recipe(data), tmp_path / "run", resume="must")
        assert not (tmp_path / "run").exists()
        run(make_recipe(data), tmp_path / "run")
        _, reports = run(make_recipe(data), tmp_path / "run", resume="must")
        assert "trained already" in reports[0]


class TestBranches:
    def test_a_branch_is_the_run_that_it_would_be_alone(self, data: str, tmp_path: Path) -> None:
        trunk = make_recipe(data)
        run(trunk, tmp_path / "trunk", branch_at=(8 * 64, 16 * 64))
        assert len(list_steps(tmp_path / "trunk")) == 2
        for steps in (8, 16):
            alone = replace(trunk, tokens=steps * 64)
            run(alone, tmp_path / f"alone-{steps}", runs=str(tmp_path / "alone.jsonl"))
            assert_same(tmp_path / "trunk" / "branches" / str(steps * 64), tmp_path / f"alone-{steps}")
        frame = read_runs(tmp_path / "runs.jsonl")
        assert sorted(frame["tokens"]) == [512, 1024, 1536]
        assert set(frame["trunk"]) == {trunk.id}

    def test_stopped_branches_go_on(self, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trunk, asked = make_recipe(data), {"branch_at": (16 * 64,)}
        run(trunk, tmp_path / "whole", runs=str(tmp_path / "whole.jsonl"), **asked)
        Interrupt(monkeypatch, [13, 13, 14])  # trunk, then the branch, whose decay begins after step 12
        for _ in range(3):
            with pytest.raises(Stopped):
                run(trunk, tmp_path / "run", **asked)
        run(trunk, tmp_path / "run", **asked)
        for place in ("", f"branches/{16 * 64}"):
            assert_same(tmp_path / "run" / place, tmp_path / "whole" / place)
        assert len(read_runs(tmp_path / "runs.jsonl")) == 2

    def test_a_schedule_without_a_stable_phase(self, data: str, tmp_path: Path) -> None:
        with pytest.raises(RecipeError, match="no stable phase"):
            run(make_recipe(data, schedule=Schedule(name="cosine")), tmp_path / "run", branch_at=(512,))
        assert not (tmp_path / "run").exists()


class TestSpikes:
    @pytest.fixture
    def spike(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
        """Call each of these steps a spike, once."""
        steps, judge = [8], SpikeWatch.judge

        def judged(watch: SpikeWatch, step: int, *, loss: float, grad_norm: float) -> Spike | None:
            if steps and step == steps[0]:
                steps.pop(0)
                return Spike(
                    step=step, kind="loss", reason=f"step {step}: made up", loss=loss, grad_norm=grad_norm,
                    usual_loss=None, usual_norm=None,
                )  # fmt: skip
            return judge(watch, step, loss=loss, grad_norm=grad_norm)

        monkeypatch.setattr(SpikeWatch, "judge", judged)
        yield steps
        assert not steps

    def test_training_stops_and_names_step_and_batch(self, data: str, tmp_path: Path, spike: list[int]) -> None:
        with pytest.raises(TrainingError, match=r"step 8: made up, on batch 7 of seed 0; the state of step 5 is kept"):
            run(make_recipe(data), tmp_path / "run")
        assert list_steps(tmp_path / "run") == [5]

    def test_the_batch_is_left_out(self, data: str, tmp_path: Path, whole: Path, spike: list[int]) -> None:
        _, reports = run(make_recipe(data), tmp_path / "run", on_spike="skip")
        assert any("batch 7: left out" in report for report in reports)
        assert curve(tmp_path / "run")[:7] == curve(whole)[:7]
        assert [row["step"] for row in curve(tmp_path / "run")] == list(range(1, 25))
        assert curve(tmp_path / "run")[7] != curve(whole)[7]

    def test_training_goes_back(self, data: str, tmp_path: Path, whole: Path, spike: list[int]) -> None:
        run(make_recipe(data), tmp_path / "run", on_spike="rewind")
        assert curve(tmp_path / "run")[:5] == curve(whole)[:5]
        assert [row["step"] for row in curve(tmp_path / "run")] == list(range(1, 25))
        (event,) = (
            row for row in read_metrics(tmp_path / "run/metrics.jsonl", kind="event") if row["event"] == "rewind"
        )
        assert event["left_out"] == 3  # batches 5 to 7

    def test_what_was_left_out_is_remembered(
        self, data: str, tmp_path: Path, spike: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(make_recipe(data), tmp_path / "whole", on_spike="skip")
        spike.append(8)
        Interrupt(monkeypatch, [12])
        with pytest.raises(Stopped):
            run(make_recipe(data), tmp_path / "run", on_spike="skip")
        run(make_recipe(data), tmp_path / "run", on_spike="skip")
        assert_same(tmp_path / "run", tmp_path / "whole")

    def test_a_loss_that_is_no_number(self, data: str, tmp_path: Path) -> None:
        recipe = make_recipe(data, lr=1e30, clip=None, schedule=Schedule(name="constant"))
        with pytest.raises(TrainingError, match=r"step \d: .* nan.*, on batch \d of seed 0.*lower lr"):
            run(recipe, tmp_path / "run")
        spikes = list(read_metrics(tmp_path / "run/metrics.jsonl", kind="event"))
        assert spikes[-1]["event"] == "spike"
        assert not (tmp_path / "run/run.json").exists()


class TestResults:
    def test_a_finished_run_is_a_checkpoint_and_a_row(self, data: str, whole: Path) -> None:
        model = load_model(whole)
        assert sum(p.numel() for p in model.parameters()) == SHAPE.params
        frame = read_runs(whole.parent / "runs.jsonl")
        row = frame.iloc[0]
        assert row["tokens"] == STEPS * 64
        assert row["flops"] == SHAPE.train_flops(STEPS * 64, 16)
        assert row["loss"] == row["loss_held_out"]
        rows = list(read_metrics(whole / "metrics.jsonl"))
        assert row["train_loss"] == pytest.approx(sum(r["loss"] for r in rows) / STEPS, rel=1e-12)
        assert rows[0]["loss"] == pytest.approx(3.91, abs=0.5)  # ln 50
        assert rows[-1]["loss"] < rows[0]["loss"]

    def test_a_finished_recipe_is_left_alone(self, data: str, whole: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
        _, reports = run(make_recipe(data), whole)
        assert reports == [f"this recipe is trained already; its result is in {whole}"]
        after = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
        assert {p: t for p, t in after.items() if p.name != ".lock"} == {
            p: t for p, t in before.items() if p.name != ".lock"
        }
        assert len(read_runs(whole.parent / "runs.jsonl")) == 1

    def test_the_first_weights_may_be_a_checkpoints(self, data: str, whole: Path, tmp_path: Path) -> None:
        run(make_recipe(data, init=Init(checkpoint=str(whole))), tmp_path / "run")
        assert curve(tmp_path / "run")[0]["loss"] < curve(whole)[0]["loss"] - 0.1
        other = replace(SHAPE, n_layers=3)
        with pytest.raises(CheckpointError, match="must have the recipe's shape"):
            run(make_recipe(data, shape=other, init=Init(checkpoint=str(whole))), tmp_path / "other")

    def test_held_out_losses_at_intervals(self, data: str, tmp_path: Path, whole: Path) -> None:
        run(make_recipe(data), tmp_path / "run", evaluate_every=8, evaluate_tokens=64)
        found = list(read_metrics(tmp_path / "run/metrics.jsonl", kind="evaluation"))
        assert [row["step"] for row in found] == [8, 16, 24]
        assert found[0]["losses"]["held-out"]["tokens"] <= 64
        assert curve(tmp_path / "run") == curve(whole)

    def test_a_moving_average_is_what_is_kept(self, data: str, tmp_path: Path, whole: Path) -> None:
        run(make_recipe(data, ema=0.9), tmp_path / "run")
        kept, trained = load_file(tmp_path / "run/model.safetensors"), state(tmp_path / "run")
        assert torch.equal(kept["norm.weight"], trained["ema.norm.weight"])
        assert torch.equal(trained["model.norm.weight"], state(whole)["model.norm.weight"])
        assert not torch.equal(kept["norm.weight"], trained["model.norm.weight"])


class TestBadInput:
    def test_too_few_tokens_and_other_vocabularies(self, data: str, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="repeats"):
            run(make_recipe(data, tokens=10**6), tmp_path / "run")
        with pytest.raises(DataError, match="vocabulary of 40"):
            run(make_recipe(data, shape=replace(SHAPE, vocab_size=40)), tmp_path / "run")
        run(replace(make_recipe(data, tokens=100 * 64), data=Data(train=data, repeats=2)), tmp_path / "run")

    def test_nothing_held_out(self, tmp_path: Path) -> None:
        write_small_dataset(tmp_path / "data", train=4000)
        with pytest.raises(DataError, match="holds nothing out"):
            run(make_recipe(str(tmp_path / "data")), tmp_path / "run")

    def test_folders_of_others(self, data: str, whole: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"another recipe: lr is 0\.01 there and 0\.02 here"):
            run(make_recipe(data, lr=2e-2), whole)
        (tmp_path / "thesis.tex").write_text("x")
        with pytest.raises(CheckpointError, match=r"thesis\.tex"):
            run(make_recipe(data), tmp_path)

    def test_two_processes_in_one_folder(self, data: str, tmp_path: Path) -> None:
        with loop.hold_folder(tmp_path), pytest.raises(CheckpointError, match="another process"):
            run(make_recipe(data), tmp_path)
