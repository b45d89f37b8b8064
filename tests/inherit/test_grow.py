"""Grow from a reference's first layers: how it ends, what it charges, and that a killed growth goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lathe import codec
from lathe.errors import CodecError, LatheError, RecipeError, StudyError
from lathe.inherit.grow import grow
from lathe.inherit.growth import Grown, Growth, load_growth
from lathe.model.checkpoint import read_tensors
from lathe.recipe import Data, Recipe
from lathe.runs import Run
from lathe.shape import Shape
from lathe.train.execution import Execution
from lathe.train.loop import train
from tests.small_datasets import VOCAB, write_small_dataset

SHAPE = Shape.of(d_model=16, n_layers=4, n_heads=2, d_ff=32, vocab_size=VOCAB, max_seq_len=16)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold a dataset that can be learned, and a reference that has learned it."""
    folder = tmp_path_factory.mktemp("place")
    write_small_dataset(folder / "data", train=6000, held_out=600, period=40)
    recipe = Recipe(
        shape=SHAPE, tokens=80 * 64, seq_len=16, batch_tokens=64, lr=1e-2, data=Data(train=str(folder / "data"))
    )
    train(recipe, Execution(out=str(folder / "reference"), threads=1, log_every=10**9), report=lambda _: None)
    return folder


def write_growth(place: Path, name: str, *, steps: int = 4, **given: Any) -> Path:
    """Write a growth's file; values in it as TOML and JSON write them alike."""
    asked = {"reference": "reference", "add": 1, "layers": 2, **given}
    recipe = {"tokens": steps * 64, "seq_len": 16, "batch_tokens": 64, "lr": 3e-3}
    lines = [f"{key} = {json.dumps(value)}" for key, value in asked.items()]
    lines += ["[recipe]", *(f"{key} = {value}" for key, value in recipe.items()), "[recipe.data]", 'train = "data"']
    path = place / f"{name}.toml"
    path.write_text("\n".join([*lines, "[execution]", "threads = 1", "save_every = 2", ""]))
    return path


def carry_out(path: Path, out: Path) -> Grown:
    return grow(*load_growth(path), out, report=lambda _: None)


def test_a_match_ends_it(place: Path, tmp_path: Path) -> None:
    grown = carry_out(write_growth(place, "far", within_se=1e4), tmp_path)
    assert (grown.ended, len(grown.rounds), grown.rounds[0].layers) == ("matched", 1, 2)
    assert grown.rounds[0].loss == pytest.approx(grown.reference_loss + grown.rounds[0].difference)


@pytest.mark.parametrize(("given", "ended", "layers"), [
    ({"most_rounds": 2}, "rounds", [2, 3]), ({}, "layers", [2, 3, 4]), ({"add": 5}, "layers", [2, 4]),
])  # fmt: skip
def test_it_ends_at_what_it_may_have(
    place: Path, tmp_path: Path, given: dict[str, Any], ended: str, layers: list[int]
) -> None:
    grown = carry_out(write_growth(place, f"end-{ended}-{layers[-1]}", within_se=0.0, steps=1, **given), tmp_path)
    assert (grown.ended, [one.layers for one in grown.rounds]) == (ended, layers)
    assert all(one.difference > 0 for one in grown.rounds)


def test_flops_end_it_before_they_are_spent(place: Path, tmp_path: Path) -> None:
    whole = carry_out(write_growth(place, "whole", within_se=0.0, steps=1), tmp_path / "whole")
    assert whole.ledger.flops is not None
    less = write_growth(place, "less", within_se=0.0, steps=1, most_flops=0.9 * whole.ledger.flops)
    grown = carry_out(less, tmp_path / "less")
    assert (grown.ended, len(grown.rounds)) == ("flops", 2)
    assert grown.ledger.flops is not None
    assert grown.ledger.flops <= 0.9 * whole.ledger.flops
    with pytest.raises(StudyError, match="not enough for one round of 2 layers"):
        carry_out(write_growth(place, "none", most_flops=1.0), tmp_path / "none")


def test_a_round_begins_with_what_is_trained_and_the_references_next_layers(place: Path, tmp_path: Path) -> None:
    grown = carry_out(write_growth(place, "begin", within_se=0.0, most_rounds=2), tmp_path)
    reference = read_tensors(place / "reference/model.safetensors")
    first, trained = (read_tensors(tmp_path / f"round-1-2/{name}/model.safetensors") for name in ("start", "run"))
    second = read_tensors(tmp_path / "round-2-3/start/model.safetensors")
    assert all(torch.equal(w, reference[name]) for name, w in first.items())
    for name, w in second.items():
        assert torch.equal(w, reference[name] if name.startswith("blocks.2.") else trained[name])
    assert len(second) > len(trained)
    assert grown.checkpoint == str(tmp_path / "round-2-3/run")
    runs = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["n_layers"] for line in runs] == [2, 3]


def test_all_of_the_reference_begins_at_its_loss(place: Path, tmp_path: Path) -> None:
    grown = carry_out(write_growth(place, "all", layers=4, most_rounds=1), tmp_path)
    assert grown.rounds[0].first_loss == grown.reference_loss


def test_the_ledger_charges_everything(place: Path, tmp_path: Path) -> None:
    grown = carry_out(write_growth(place, "ledger", within_se=0.0, most_rounds=2), tmp_path)
    by_kind = {kind: [one for one in grown.ledger.charges if one.kind == kind] for kind in ("training", "evaluation")}
    shapes = [replace(SHAPE, n_layers=n) for n in (2, 3)]
    assert [one.flops for one in by_kind["training"]] == [shape.train_flops(256, 16) for shape in shapes]
    tokens = 600 // 16 * 16
    forward = [SHAPE.forward_flops(8.5), *(2 * shape.forward_flops(8.5) for shape in shapes)]
    assert [one.flops for one in by_kind["evaluation"]] == pytest.approx([tokens * each for each in forward], rel=0.02)
    own = codec.load(Run, place / "reference/run.json", kind="run").flops
    assert grown.ledger.flops is not None
    assert own is not None
    assert grown.ledger.flops_with_reference == pytest.approx(grown.ledger.flops + own)


def test_what_the_reference_cost_may_be_said_or_unknown(place: Path, tmp_path: Path) -> None:
    said = carry_out(write_growth(place, "said", within_se=1e4, reference_tokens=1000), tmp_path / "said")
    assert said.ledger.flops is not None
    assert said.ledger.flops_with_reference == pytest.approx(said.ledger.flops + SHAPE.train_flops(1000, 16))
    for name in ("model.safetensors", "shape.json"):
        (place / "bare").mkdir(exist_ok=True)
        (place / "bare" / name).write_bytes((place / "reference" / name).read_bytes())
    bare = carry_out(write_growth(place, "unknown", within_se=1e4, reference="bare"), tmp_path / "bare")
    assert bare.ledger.flops is not None
    assert bare.ledger.flops_with_reference is None


def result(out: Path) -> dict[str, Any]:
    """Read a growth's result without seconds and folders."""
    found = json.loads((out / "grown.json").read_text().replace(str(out), "OUT"))
    for charge in found["ledger"]["charges"]:
        charge.pop("seconds")
    return found


def test_killed_at_random_moments_it_comes_to_the_same(place: Path, tmp_path: Path) -> None:
    path = write_growth(place, "killed", within_se=0.0, steps=30)
    rounds = [one.layers for one in carry_out(path, tmp_path / "whole").rounds]
    assert len(rounds) > 1
    command = [sys.executable, "-m", "lathe", "grow", str(path), "--out", str(tmp_path / "killed")]
    draw = random.Random(5)
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        wait_for(tmp_path / "killed", process)
        time.sleep(draw.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"Grown to {rounds[-1]} of 4 layers" in done.stdout
    assert result(tmp_path / "killed") == result(tmp_path / "whole")
    for number, layers in enumerate(rounds, start=1):
        made = f"round-{number}-{layers}/run/model.safetensors"
        one, other = (read_tensors(tmp_path / name / made) for name in ("killed", "whole"))
        assert all(torch.equal(w, other[name]) for name, w in one.items())
    runs = [json.loads(line) for line in (tmp_path / "killed/runs.jsonl").read_text().splitlines()]
    assert [one["n_layers"] for one in runs] == rounds


def wait_for(folder: Path, process: subprocess.Popen) -> None:
    """Wait until a growth works on something, or is over."""
    before = len(list(folder.rglob("*")))
    until = time.monotonic() + 60
    while process.poll() is None and len(list(folder.rglob("*"))) <= before and time.monotonic() < until:
        time.sleep(0.02)


def change(path: Path, *pairs: tuple[str, str]) -> Path:
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


@pytest.mark.parametrize(("old", "new", "error", "said"), [
    ("layers = 2", "layers = 5", StudyError, "layers=5 are more than the reference's 4"),
    ("layers = 2", "layers = 0", CodecError, "layers=0; wanted 1 or more"),
    ("add = 1", "ad = 1", CodecError, "did you mean 'add'"),
    ('"reference"', '"nowhere"', LatheError, "there is no folder"),
    ("seq_len = 16", "seq_length = 16", CodecError, "did you mean 'seq_len'"),
    ("threads = 1", 'out = "x"', CodecError, "gives out, which the growth says itself"),
    ("[recipe]", "[recipe.shape]\nd_model = 8\n[recipe]", CodecError, "gives shape"),
])  # fmt: skip
def test_wrong_files(place: Path, tmp_path: Path, old: str, new: str, error: type[LatheError], said: str) -> None:
    path = change(write_growth(place, f"wrong-{abs(hash((old, new)))}"), (old, new))
    with pytest.raises(error, match=said):
        carry_out(path, tmp_path)


def test_data_of_other_tokens(place: Path, tmp_path: Path) -> None:
    write_small_dataset(place / "other", train=4000, held_out=300, vocab_size=VOCAB + 7)
    path = change(write_growth(place, "other"), ('train = "data"', 'train = "other"'))
    with pytest.raises((RecipeError, LatheError), match="vocabulary"):
        carry_out(path, tmp_path)


def test_another_growths_folder(place: Path, tmp_path: Path) -> None:
    carry_out(write_growth(place, "one", within_se=1e4), tmp_path)
    write_small_dataset(place / "more", train=6000, held_out=600, period=30)
    path = change(write_growth(place, "two", within_se=1e4), ('train = "data"', 'train = "more"'))
    with pytest.raises(StudyError, match="another reference, or on other text"):
        carry_out(path, tmp_path)


def test_growth_is_a_word() -> None:
    asked = Growth(reference="x", recipe={})
    assert codec.decode(Growth, codec.encode(asked)) == asked
