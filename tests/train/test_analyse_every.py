"""Analyses at intervals of a training: in its metrics, without a trace in its result, refused where it is cut up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lathe import codec
from lathe.errors import EvaluationError, RecipeError
from lathe.evals.analyse import analyse
from lathe.evals.analysis import Analysis
from lathe.model.checkpoint import load_model
from lathe.recipe import Data, Recipe
from lathe.shape import Shape
from lathe.train import layers, loop
from lathe.train.execution import Execution
from lathe.train.loop import Trainer, train
from lathe.train.mesh import count_axes
from lathe.train.meter import DETERMINISTIC, read_metrics
from lathe.train.request import check_request
from tests.small_datasets import VOCAB, write_small_dataset

SHAPE = Shape.of(d_model=16, n_layers=2, n_heads=2, d_ff=32, vocab_size=VOCAB, max_seq_len=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_small_dataset(folder, train=2000, held_out=300)
    return str(folder)


def make_recipe(data: str, **given: Any) -> Recipe:
    values: dict[str, Any] = {
        "shape": SHAPE, "tokens": 12 * 64, "seq_len": 16, "batch_tokens": 64, "lr": 1e-2, "data": Data(train=data),
    }  # fmt: skip
    return Recipe(**values | given)


def run(recipe: Recipe, out: Path, **given: Any) -> list[str]:
    reports: list[str] = []
    train(recipe, Execution(out=str(out), **{"threads": 1, "device": "cpu", **given}), report=reports.append)
    return reports


def read(out: Path, *, kind: str = "analysis") -> list[dict[str, Any]]:
    return list(read_metrics(out / "metrics.jsonl", kind=kind))


@pytest.mark.parametrize("given", [{}, {"ema": 0.9}, {"dtype": "bf16-mixed"}])
def test_analyses_leave_no_trace_in_the_result(data: str, tmp_path: Path, given: dict[str, Any]) -> None:
    recipe = make_recipe(data, **given)
    run(recipe, tmp_path / "plain", evaluate_every=3)
    run(recipe, tmp_path / "seen", evaluate_every=3, analyse_every=4)
    curves = [[[row[name] for name in DETERMINISTIC] for row in read(tmp_path / one, kind="step")] for one in
              ("plain", "seen")]  # fmt: skip
    assert curves[0] == curves[1]
    plain, seen = (load_file(tmp_path / one / "model.safetensors") for one in ("plain", "seen"))
    assert all(torch.equal(weight, seen[name]) for name, weight in plain.items())
    assert read(tmp_path / "plain") == []
    assert [row["step"] for row in read(tmp_path / "seen")] == [4, 8, 12]


def test_a_line_holds_the_analysis_of_the_weights_then(data: str, tmp_path: Path) -> None:
    run(make_recipe(data), tmp_path / "run", analyse_every=6)
    lines = [codec.decode(Analysis, row["analysis"]) for row in read(tmp_path / "run")]
    assert [one.name for one in lines] == ["step 6", "step 12"]
    assert [(one.dataset, one.seq_len, one.sequences) for one in lines] == [("held-out", 16, 18)] * 2
    text = loop.open_text(make_recipe(data))
    sample = layers.draw_sample(text, seq_len=16)
    wanted = analyse(load_model(tmp_path / "run"), sample.tokens_nt, name="step 12", dataset="held-out")
    assert lines[1] == wanted
    assert lines[0].lens_losses != lines[1].lens_losses


def test_a_moving_average_is_what_is_analysed(data: str, tmp_path: Path) -> None:
    run(make_recipe(data, ema=0.9), tmp_path / "run", analyse_every=12)
    sample = layers.draw_sample(loop.open_text(make_recipe(data)), seq_len=16)
    wanted = analyse(load_model(tmp_path / "run"), sample.tokens_nt, name="step 12", dataset="held-out")
    assert codec.decode(Analysis, read(tmp_path / "run")[0]["analysis"]) == wanted


def test_a_resumed_run_has_each_analysis_once(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(make_recipe(data), tmp_path / "whole", analyse_every=2)
    save, calls = Trainer._save, []

    def die(self: Trainer, session: Any) -> None:
        save(self, session)
        session.saver.wait()
        calls.append(session.progress.step)
        if calls == [4, 8]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save", die)
    with pytest.raises(KeyboardInterrupt):
        run(make_recipe(data), tmp_path / "cut", analyse_every=2, save_every=4)
    run(make_recipe(data), tmp_path / "cut", analyse_every=2, save_every=4)
    assert read(tmp_path / "cut") == read(tmp_path / "whole")


def test_weights_that_went_wrong_are_noted(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: layers.Sample, decoder: Any, *, name: str) -> Analysis:
        raise EvaluationError("visit 0: no number")

    monkeypatch.setattr(layers.Sample, "analyse", fail)
    run(make_recipe(data), tmp_path / "run", analyse_every=6)
    events = [row for row in read(tmp_path / "run", kind="event") if row["event"] == "no analysis"]
    assert [(row["step"], row["reason"]) for row in events] == [(6, "visit 0: no number"), (12, "visit 0: no number")]


def test_a_compiled_training_is_analysed_uncompiled(data: str, tmp_path: Path) -> None:
    """A shape that the compiler has not seen must not make it choose other code for the next step."""
    trainer = Trainer(make_recipe(data), Execution(out=str(tmp_path), threads=1, device="cpu", analyse_every=2),
                      report=print)  # fmt: skip
    called: list[bool] = []
    decoder = trainer.engine.module
    for block in decoder.blocks:
        block.compile(backend=lambda graph, example: called.append(True) or graph.forward)
    assert trainer.sample is not None
    trainer.sample.analyse(decoder, name="now")
    trainer.close()
    assert not called


def test_held_out_text_without_a_sequence(data: str, tmp_path: Path) -> None:
    write_small_dataset(tmp_path / "short", train=2000, held_out=12)
    recipe = make_recipe(str(tmp_path / "short"))
    with pytest.raises(EvaluationError, match="holds out 12 tokens, and an analysis reads 16 or more; hold more out"):
        run(recipe, tmp_path / "run", analyse_every=4)
    run(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "cut"),
    [
        ({"fsdp": 2}, "fsdp=2"),
        ({"tp": 2}, "tp=2"),
        ({"pp": 2}, "pp=2"),
        ({"dp": 2, "fsdp": 2, "tp": 2}, "fsdp=2, tp=2"),
    ],
)
def test_a_decoder_that_is_cut_up_is_refused(data: str, tmp_path: Path, given: dict[str, int], cut: str) -> None:
    recipe = make_recipe(data, shape=Shape.of(d_model=16, n_layers=2, n_heads=2, d_ff=32, vocab_size=VOCAB))
    world = 8 if len(given) > 1 else 2
    execution = Execution(out=str(tmp_path / "run"), mesh=given, analyse_every=5)
    with pytest.raises(
        RecipeError, match=f"analyse_every=5 needs the whole decoder on each process, and {cut} cuts it"
    ):
        check_request(recipe, execution, world=world)
    with pytest.raises(RecipeError, match="train with replicas alone"):
        count_axes(execution, world)


def test_offloaded_weights_are_refused_and_replicas_are_not(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="and offload cuts it up"):
        count_axes(Execution(out=str(tmp_path), offload=True, analyse_every=5), 1)
    assert count_axes(Execution(out=str(tmp_path), mesh={"dp": 4}, analyse_every=5), 4)["dp"] == 4


@pytest.mark.parametrize("every", [0, -3])
def test_an_interval_that_is_none(every: int) -> None:
    with pytest.raises(RecipeError, match=f"analyse_every={every}; wanted 1 or more"):
        Execution(out="run", analyse_every=every)


def test_the_interval_is_no_part_of_the_recipe(data: str, tmp_path: Path) -> None:
    run(make_recipe(data), tmp_path / "run", analyse_every=6)
    assert "analyse" not in json.dumps(json.loads((tmp_path / "run" / "recipe.json").read_text()))
