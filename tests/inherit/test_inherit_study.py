"""Carry small comparisons out: what the arms spend, that they go on where they were stopped, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lathe import codec
from lathe.cli import main
from lathe.errors import (
    CheckpointError,
    CodecError,
    DataError,
    LatheError,
    RecipeError,
    ShapeError,
    Stopped,
    StudyError,
)
from lathe.inherit import trials
from lathe.inherit.arms import ARMS, Source
from lathe.inherit.compare import compare_starts
from lathe.inherit.results import InheritResult, Row
from lathe.inherit.serving import match_depth, predict
from lathe.inherit.study import Narrowed, Target, load_inherit_study
from lathe.latency.roofline import predict_latency
from lathe.model.checkpoint import WEIGHTS, load_shape_of, read_tensors, save_checkpoint
from lathe.presets.devices import load_device
from lathe.recipe import Recipe
from lathe.runs import Run
from lathe.train.execution import Execution
from lathe.train.loop import train
from lathe.train.meter import Peak
from tests.small_datasets import write_small_dataset
from tests.small_inherit import BATCH_TOKENS, SEQ_LEN, WORKLOAD, make_study, write_reference

TRIED = ("inherited", "random", "stacked", "distilled", "pruned", "shared", "mlp-only")
BOTH = {"arms": TRIED, "seeds": (0, 1), "equal": ("flops", "latency"), "latency_within": 0.3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Hold a dataset and a reference; trainings measure no peak, which takes longer than they do."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lathe.train.loop.find_peak", lambda device, dtype: Peak(flops_per_s=1e9, origin="made up"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        write_reference(folder)
        yield folder
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def result(home: Path) -> InheritResult:
    return compare_starts(make_study(home, **BOTH), home / "both", report=quiet)


def quiet(line: str) -> None:
    """Say nothing."""


def row(result: InheritResult, name: str) -> Row:
    return next(one for one in result.rows if one.name == name)


def train_quietly(recipe: Recipe, execution: Execution) -> Run:
    return train(recipe, execution, report=quiet)


def lasting(result: InheritResult) -> Any:
    """Give what does not hang on the clock."""
    body = codec.encode(result)
    for one in body["rows"]:
        one["trials"] = [{**trial, "seconds": 0} for trial in one["trials"]]
        for charge in one["ledger"]["charges"]:
            charge["seconds"] = None
    return {**body, "created": "", "study": {**body["study"], "name": ""}}


class TestWhatArmsSpend:
    def test_all_spend_the_same_to_half_a_step(self, result):
        steps = {"distilled": 1.0}
        for one in result.rows:
            step = one.shape.train_flops(BATCH_TOKENS, SEQ_LEN)
            step += steps.get(one.arm, 0) * BATCH_TOKENS * result.reference.shape.forward_flops((SEQ_LEN + 1) / 2)
            assert abs(one.spent - result.budget_flops) <= 0.5001 * step, one.name

    def test_tokens_are_the_inherited_arms_and_those_of_its_twin(self, result):
        assert row(result, "inherited").tokens == row(result, "random").tokens == 20 * BATCH_TOKENS
        assert row(result, "inherited").spent == result.budget_flops

    def test_a_ledger_has_every_charge(self, result, home):
        reference = json.loads((home / "reference/run.json").read_text())["flops"]
        kinds = {one.name: [charge.kind for charge in one.ledger.charges] for one in result.rows}
        assert kinds["random"] == ["training", "evaluation"]
        assert kinds["stacked"] == ["training", "training", "evaluation"]
        assert kinds["distilled"] == ["training", "training", "evaluation", "reference"]
        assert kinds["pruned"] == ["analysis", "training", "evaluation", "reference"]
        for one in result.rows:
            if ARMS[one.arm].reference:
                assert one.ledger.flops_with_reference == pytest.approx(one.ledger.flops + reference)

    def test_a_taught_runs_flops_are_its_two_charges(self, result, home):
        one = row(result, "distilled")
        run = codec.load(Run, home / "both" / one.trials[0].folder / "run.json", kind="run")
        assert sum(charge.flops or 0 for charge in one.ledger.charges[:2]) == pytest.approx(run.flops)

    def test_stacking_spends_its_share_on_half_of_the_layers(self, result):
        first = row(result, "stacked").ledger.charges[0].flops
        assert first == pytest.approx(0.25 * result.budget_flops, rel=0.15)

    def test_a_curve_ends_where_the_budget_does(self, result):
        for one in result.rows:
            assert 0.9 * one.spent < one.curve[-1][0] <= one.spent * 1.0001, one.name
        before = row(result, "pruned").ledger.charges[0].flops
        assert row(result, "pruned").curve[0][0] > before


class TestWhatIsFound:
    def test_inheriting_pays_at_once_and_in_the_end(self, result):
        inherited, random = row(result, "inherited"), row(result, "random")
        assert inherited.start_loss < random.start_loss - 1
        assert inherited.loss < random.loss
        assert inherited.lower == result.seeds == 2
        assert inherited.versus_random.difference == pytest.approx(inherited.loss - random.loss)
        assert 0 < inherited.versus_random.se < 0.3
        assert random.versus_random is None

    def test_losses_are_the_trainings_own(self, result, home):
        for one in result.rows:
            for trial in one.trials:
                run = codec.load(Run, home / "both" / trial.folder / "run.json", kind="run")
                assert trial.loss == pytest.approx(run.loss, abs=1e-5)
            assert one.loss == pytest.approx(sum(trial.loss for trial in one.trials) / 2)
            assert one.loss_sd > 0

    def test_the_reference_is_measured_on_the_same_text(self, result, home):
        run = codec.load(Run, home / "reference/run.json", kind="run")
        assert result.reference.loss == pytest.approx(run.loss, abs=1e-5)
        one = row(result, "inherited")
        assert one.versus_reference.difference == pytest.approx(one.loss - result.reference.loss)

    def test_shared_layers_are_compared_at_both(self, result):
        assert row(result, "shared").equal == ("flops",)
        other = next(one for one in result.rows if one.arm == "shared" and one.equal == ("latency",))
        assert other.name == f"shared, {other.shape.n_layers} layers"
        assert abs(other.serving.predicted_s / result.target_s - 1) <= 0.3
        assert row(result, "mlp-only").equal == ("flops", "latency")

    def test_nothing_is_measured_for_another_device(self, result, home):
        assert all(one.serving.measured_s is None for one in result.rows)
        assert not (home / "both" / "measurements.jsonl").exists()

    def test_a_result_can_be_read_again(self, result, home):
        assert codec.load(InheritResult, home / "both" / "result.json", kind="inherit-result") == result


class TestGoingOn:
    def test_what_is_done_is_not_done_again(self, result, home, monkeypatch):
        def refuse(*given: Any, **more: Any) -> Any:
            raise AssertionError("measured again")

        monkeypatch.setattr(trials, "measure_sequences", refuse)
        steps = []

        def watch(recipe: Recipe, execution: Execution) -> Run:
            before = Path(execution.out, "run.json").stat().st_mtime_ns
            run = train_quietly(recipe, execution)
            steps.append(Path(execution.out, "run.json").stat().st_mtime_ns == before)
            return run

        again = compare_starts(make_study(home, **BOTH), home / "both", train_with=watch, report=quiet)
        assert lasting(again) == lasting(result)
        assert steps == [True] * (2 * len(result.rows) + 2)

    def test_a_study_that_was_stopped_comes_to_the_same(self, result, home, tmp_path):
        left = [3]

        def stop(recipe: Recipe, execution: Execution) -> Run:
            left[0] -= 1
            if not left[0]:
                raise Stopped("stopped, as asked")
            return train_quietly(recipe, execution)

        arms = ("inherited", "stacked", "mlp-only")
        study = make_study(home, arms=arms)
        for trainings in (1, 3, 2):
            left[0] = trainings
            with pytest.raises(Stopped):
                compare_starts(study, tmp_path / "stopped", train_with=stop, report=quiet)
        found = compare_starts(study, tmp_path / "stopped", report=quiet)
        whole = compare_starts(study, tmp_path / "whole", report=quiet)
        assert lasting(found) == lasting(whole)
        # arms do not hang on which others there are
        assert row(found, "inherited").trials[0].loss == row(result, "inherited").trials[0].loss


class TestChoosingLayers:
    def test_layers_chosen_by_rank_are_paid_for(self, home, tmp_path):
        study = make_study(home, layers=None, keep_ratio=0.5, by="rank", arms=("inherited", "random"))
        found = compare_starts(study, tmp_path, report=quiet)
        assert len(found.layers) == 3
        assert row(found, "inherited").ledger.charges[0].kind == "analysis"
        assert row(found, "random").tokens > row(found, "inherited").tokens == 20 * BATCH_TOKENS


class TestLatency:
    def test_the_depth_is_the_nearest_of_all(self, home):
        shape = load_shape_of(home / "reference")
        source = Source(shape=shape, weights=read_tensors(home / "reference" / WEIGHTS), layers=(0, 1, 2))
        study, device = make_study(home, latency_within=0.5), load_device("a100-40gb")
        target = predict(source.small, device, study)
        for name in ("half-width", "shared-random", "narrowed"):
            arm = ARMS[name]
            blocks = match_depth(name, arm, source, device, study)
            times = [predict(arm.shape(source, n), device, study) for n in range(1, 7)]
            assert abs(times[blocks - 1] - target) == min(abs(time - target) for time in times)

    def test_a_latency_that_no_depth_meets_names_the_nearest(self, home, tmp_path):
        study = make_study(home, arms=("shared",), equal=("latency",), latency_within=0.01)
        with pytest.raises(StudyError, match=r"the nearest, \d+ layers, takes [\d.]+ ms, [+-]\d+%; allow that by"):
            compare_starts(study, tmp_path, report=quiet)

    def test_here_every_shape_is_measured_once(self, home, tmp_path, monkeypatch):
        measured: list[str] = []

        def measure_job(job: Any, **given: Any) -> Any:
            measured.append(job.target.name)
            found = predict_latency(job.shape, device=load_device("epyc-9554"), workload=job.workload)
            return dataclasses.replace(
                found, backend="lathe", runs=3, p95={"total_s": 1.1 * found.total_s},
                conditions={"device": "here", "threads": "1"},
            )  # fmt: skip

        monkeypatch.setattr("lathe.bench.runner.measure_job", measure_job)
        monkeypatch.setattr("lathe.bench.runner.name_device", lambda place: "here")
        monkeypatch.setattr("lathe.bench.here.probe_device", lambda *given, **more: load_device("epyc-9554"))
        study = make_study(home, arms=("inherited", "random", "shared"), device=Target(threads=1))
        found = compare_starts(study, tmp_path / "out", report=quiet)
        assert len(measured) == 3  # the reference's shape, the inherited one's, which is random's too, and the shared
        for one in found.rows:
            assert one.serving.measured_s == one.serving.best_s == pytest.approx(one.serving.predicted_s, rel=0.2)
            assert one.serving.measured_p95_s == pytest.approx(1.1 * one.serving.measured_s)
        compare_starts(study, tmp_path / "out", report=quiet)
        assert len(measured) == 3


def write(home: Path, name: str, text: str) -> Path:
    path = home / f"{name}.toml"
    path.write_text(text)
    return path


STUDY = """
reference = "reference"
layers = "0:3"
arms = ["inherited", "random"]
[recipe]
data = "data"
tokens = 1280
seq_len = 16
batch_tokens = 64
lr = 1e-2
[execution]
threads = 1
[device]
preset = "a100-40gb"
[workload]
prompt_tokens = 8
new_tokens = 8
dtype = "fp32"
"""


class TestFiles:
    def test_a_file_is_read_from_anywhere(self, home, monkeypatch, tmp_path):
        path = write(home, "study", STUDY)
        monkeypatch.chdir(tmp_path)
        study = load_inherit_study(path)
        assert study.reference == str(home / "reference")
        assert study.recipe["data"] == {"train": str(home / "data")}
        assert study.workload == WORKLOAD

    def test_the_example_is_a_study(self):
        study = load_inherit_study(Path(__file__).parents[2] / "examples/inherit.toml")
        assert study.arms == tuple(ARMS)
        assert study.recipe["init"] == {"scheme": "gpt2"}

    @pytest.mark.parametrize(
        ("old", "new", "error", "said"),
        [
            ('"random"', '"rando"', CodecError, "no arm is called 'rando'; did you mean 'random'?"),
            ('"random"', '"inherited"', CodecError, "each once"),
            ("layers =", "laiers =", CodecError, "unknown key 'laiers'; did you mean 'layers' or"),
            ('layers = "0:3"', "", CodecError, "said nowhere"),
            ('layers = "0:3"', 'layers = "0:3"\nkeep_ratio = 0.5', CodecError, "said twice"),
            ('layers = "0:3"', 'layers = "0:3"\nby = "rank"', CodecError, "leave one out"),
            ('data = "data"', "", StudyError, "nothing to train on"),
            ("lr = 1e-2", 'lr = 1e-2\nshape = "x"', StudyError, "gives shape"),
            ("lr = 1e-2", 'lr = 1e-2\ninit = {checkpoint = "x"}', StudyError, "gives init.checkpoint"),
            ("threads = 1", 'threads = 1\nout = "x"', StudyError, "gives out"),
            ("threads = 1", "treads = 1", CodecError, "unknown key 'treads'; did you mean 'threads'?"),
            ("[workload]", "[stacked]\nshare = 1.5\n[workload]", CodecError, "share=1.5 is no share"),
            ('"a100-40gb"', '"a100-40gb"\nengine = "quick"', CodecError, "engine"),
        ],
    )
    def test_a_file_that_asks_for_no_study_is_refused(self, home, old, new, error, said):
        assert old in STUDY
        with pytest.raises(error) as caught:
            load_inherit_study(write(home, "wrong", STUDY.replace(old, new)))
        assert said in str(caught.value)
        assert "wrong.toml" in str(caught.value)


class TestRefusals:
    @pytest.mark.parametrize(
        ("given", "error", "said"),
        [
            ({"reference": "/nowhere"}, CheckpointError, "there is no folder /nowhere"),
            ({"layers": "0:7"}, ShapeError, "no layer 6 in a reference of 6"),
            ({"narrowed": Narrowed(d_model=7), "arms": ("narrowed",)}, ShapeError, "widths that work"),
            ({"recipe": {"tokens": 64}, "arms": ("pruned",)}, StudyError, "FLOPs are left"),
            ({"recipe": {"tokens": 10**7}}, DataError, "epochs"),
            (
                {"recipe": {"schedule": {"warmup_steps": 19}}, "arms": ("stacked",)},
                RecipeError,
                "stacked: warmup_steps",
            ),
            ({"recipe": {"lr": "fast"}}, LatheError, "lr"),
            ({"execution": {"mesh": {"tp": 3}}}, RecipeError, "tp"),
            ({"device": Target(preset="a1000")}, LatheError, "a1000"),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_is_trained(self, home, tmp_path, given, error, said):
        with pytest.raises(error) as caught:
            compare_starts(make_study(home, **given), tmp_path, report=quiet)
        assert said in str(caught.value)
        assert not list(tmp_path.glob("runs/*/run.json"))

    def test_a_reference_of_another_vocabulary_is_refused(self, home, tmp_path):
        write_small_dataset(tmp_path / "data", train=4000, held_out=300, vocab_size=400)
        study = make_study(home, recipe={"data": {"train": str(tmp_path / "data")}})
        with pytest.raises(DataError, match="280"):
            compare_starts(study, tmp_path / "out", report=quiet)

    def test_data_of_unknown_tokens_are_doubted(self, home, tmp_path):
        write_small_dataset(tmp_path / "data", train=4000, held_out=300)
        study = make_study(home, recipe={"data": {"train": str(tmp_path / "data")}}, arms=("inherited",))
        said: list[str] = []
        found = compare_starts(study, tmp_path / "out", report=said.append)
        assert "nothing says that the reference's tokens are the data's" in found.notes[0]
        assert said[0] == f"warning: {found.notes[0]}"

    def test_a_reference_of_another_tokenizer_is_refused(self, home, tmp_path):
        folder = home / "reference"
        save_checkpoint(tmp_path / "other", load_shape_of(folder), read_tensors(folder / WEIGHTS), companions=folder)
        with (tmp_path / "other/tokenizer.json").open("a") as file:
            file.write("\n")
        with pytest.raises(RecipeError, match="is not that of the data"):
            compare_starts(make_study(home, reference=str(tmp_path / "other")), tmp_path / "out", report=quiet)

    def test_one_layer_cannot_be_stacked(self, home, tmp_path):
        with pytest.raises(StudyError, match="stacked: one layer"):
            compare_starts(make_study(home, layers="0", arms=("stacked",)), tmp_path, report=quiet)


class TestCommand:
    def test_it_carries_a_study_out_and_writes_a_page(self, home, capsys):
        path = write(home, "command", STUDY)
        main(["inherit", "--study", str(path), "--out", str(home / "command")])
        said = capsys.readouterr().out
        assert "Ways to start from layers 0:3" in said
        assert "with the reference" in said
        assert "report: " in said
        assert (home / "command/report.html").read_text().startswith("<!DOCTYPE html>")

    def test_a_study_says_all_but_where(self, home, capsys):
        path = write(home, "twice", STUDY)
        with pytest.raises(SystemExit):
            main(["inherit", str(home / "reference"), "--study", str(path)])
        assert "give --out beside it alone" in capsys.readouterr().err
