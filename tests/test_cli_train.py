"""`lathe train` and `lathe average` as a user runs them: their flags, what they hand on, and how they end."""

import dataclasses
import itertools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_datasets import write_small_dataset

from lathe import codec
from lathe.cli import main
from lathe.cli.train import DERIVED, name_flag
from lathe.errors import Stopped, TrainingError
from lathe.recipe import Recipe
from lathe.runs import Run
from lathe.train.execution import Execution
from lathe.train.settings import list_settings

FILE = """
tokens = 2000
seq_len = 16
batch_tokens = 64
lr = 1e-3
data = "text"
shape = { d_model = 16, n_layers = 2, n_heads = 2 }
"""
Asked = list[tuple[Recipe, Execution]]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Work beside a dataset and recipe.toml; give what would be trained, by a stand-in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    write_small_dataset(Path("text"), train=4000, held_out=400)
    Path("recipe.toml").write_text(FILE)
    found: Asked = []

    def train(recipe: Recipe, execution: Execution, *, report: Callable[[str], None]) -> Run:
        found.append((recipe, execution))
        return Run(
            name="tiny", shape=recipe.shape, tokens=recipe.tokens, losses={"wiki": 3.21, "books": 4.5},
            validation="wiki", loss_ses={"wiki": 0.0123},
        )  # fmt: skip

    stand_in(monkeypatch, "loop", train=train)
    return found


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **functions: Any) -> None:
    monkeypatch.setitem(sys.modules, f"lathe.train.{module}", SimpleNamespace(**functions))


def ends(*arguments: str) -> Any:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def test_a_file_and_flags(asked: Asked, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    main(
        ["train", "recipe.toml", "--lr", "2e-3", "--tokens", "1e3", "--optimiser", "muon", "--optimiser.beta2", ".99",
         "--schedule", "wsd", "--schedule.warmup-steps", "2", "--data.mask-documents", "--data.no-across-documents",
         "--compile", "--out", "out", "--mesh", "dp=2,tp=2", "--resume", "never", "--branch-at", "5e2,640",
         "--clip", "none", "--set", "shape.d_ff=40", "schedule.final=0"]
    )  # fmt: skip
    ((recipe, execution),) = asked
    assert (recipe.lr, recipe.tokens, recipe.clip, recipe.shape.d_ff) == (2e-3, 1000, None, 40)
    assert (recipe.optimiser.name, recipe.optimiser.beta2) == ("muon", 0.99)
    assert (recipe.schedule.name, recipe.schedule.warmup_steps, recipe.schedule.final) == ("wsd", 2, 0.0)
    assert recipe.data is not None
    assert (recipe.data.mask_documents, recipe.data.across_documents) == (True, False)
    assert execution == Execution(
        out="out", mesh={"dp": 2, "tp": 2}, resume="never", branch_at=(500, 640), compile=True
    )  # fmt: skip
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "loss on wiki: 3.2100 ± 0.0123 nats a token",
        "loss on books: 4.5000 nats a token",
        "branches: out/branches",
        "run: out",
    ]
    assert printed.err == ""


def test_flags_alone(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        ["train", "--shape", "mobilellm-125m", "--set", "shape.vocab_size=50", "--tokens-per-param", "1e-5", "--data",
         "text", "--seq-len", "16", "--batch-tokens", "step-law", "--lr", "step-law"]
    )  # fmt: skip
    ((recipe, execution),) = asked
    assert recipe.shape.d_model == 576
    assert recipe.tokens == round(1e-5 * recipe.shape.params)
    assert execution.out == f"runs/{recipe.id}"
    printed = capsys.readouterr()
    assert printed.err.startswith(f"note: step law: lr = {recipe.lr:g}, batch_tokens = {recipe.batch_tokens}")


def test_a_files_keys_are_flags_too(asked: Asked) -> None:
    keys = ["--data.train", "text", "--schedule.name", "wsd", "--optimiser.name", "muon", "--init.scheme", "gpt2"]
    heads = ["--data", "text", "--schedule", "wsd", "--optimiser", "muon", "--init", "gpt2"]
    main(["train", "recipe.toml", *keys])
    main(["train", "recipe.toml", *heads])
    assert asked[0] == asked[1]
    assert asked[0][0].schedule.name == "wsd"


def test_a_runs_own_recipe(asked: Asked) -> None:
    main(["train", "recipe.toml", "--lr", "2e-3", "--out", "out"])
    Path("out").mkdir()
    codec.save(asked[0][0], "out/recipe.json", kind="recipe")
    main(["train", "out/recipe.json", "--out", "other"])
    assert asked[1] == (asked[0][0], Execution(out="other"))


def test_help_states_every_flag_with_its_default(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert ends("train", "--help") == 0
    printed = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "Example: lathe train recipe.toml --lr 1e-3" in printed
    for section in ("recipe", "data", "optimiser", "schedule", "init", "distil", "execution"):
        assert f"{section} options" in printed
    starts = [match.start() for match in re.finditer(r"(?<!instead of) --(?=[a-z])", printed)]
    texts = [printed[at:end].strip() for at, end in itertools.pairwise([*starts, len(printed)])]
    entries = {text.split()[0].rstrip(","): text for text in texts}
    for key, setting in list_settings().items():
        if key in DERIVED or key.startswith("shape."):
            continue
        flag = "--" + name_flag(key).replace("_", "-")
        assert flag in entries, key
        about = entries[flag] if not isinstance(setting.default, bool) else printed.partition(f"{flag}, ")[2][:200]
        assert re.search(r"\(default: .+\)|if not given|\(needed, here or in the file\)", about), (key, about)
        if isinstance(setting.default, int | float) and not isinstance(setting.default, bool):
            assert f"(default: {setting.default})" in about


def test_a_flag_of_every_field(asked: Asked) -> None:
    """Each that has a default is given it as text, and the recipe is the same."""
    main(["train", "recipe.toml"])
    given: list[str] = []
    for key, setting in list_settings().items():
        if key in DERIVED or key.startswith("shape.") or not isinstance(setting.default, bool | int | float | str):
            continue
        if key.startswith("distil."):  # mean nothing without a teacher
            continue
        flag = name_flag(key)
        if isinstance(setting.default, bool):
            section, _, name = flag.rpartition(".")
            name = name if setting.default else f"no-{name}"
            given.append("--" + (f"{section}.{name}" if section else name).replace("_", "-"))
        else:
            given.append(f"--{flag.replace('_', '-')}={setting.default}")
    assert len(given) > 30
    main(["train", "recipe.toml", *given])
    before, after = asked
    assert before == after


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["recipe.tml"], "recipe.tml: cannot be read: No such file"),
        (["recipe.toml", "--lr", "fast"], "lr is 'fast'; wanted a number"),
        (["recipe.toml", "--set", "lr"], "--set 'lr' is no KEY=VALUE"),
        (["recipe.toml", "--set", "optimizer.beta2=1"], "unknown setting 'optimizer.beta2'; did you mean"),
        (["recipe.toml", "--tokens", "60"], "tokens=60 is less than one batch"),
        (["recipe.toml", "--tokens", "1e6"], "raise it to"),
        (["--lr", "1"], "nothing says what to train on"),
        ([], "nothing says what to train; give a file, such as lathe train recipe.toml"),
        (["recipe.toml", "--nproc", "0"], "nproc=0; wanted 1 or more"),
        (["recipe.toml", "--nproc", "3"], "does not split into 3 data ranks"),
        (["recipe.toml", "--mesh", "dp=2"], "mesh dp=2 is for 2 processes, and there is 1"),
        (["recipe.toml", "--branch-at", "1e3"], "schedule=cosine has no stable phase"),
        (["recipe.toml", "--init", "mup"], "give base, the narrow shape that was tuned"),
    ],
)
def test_what_the_user_got_wrong(
    asked: Asked, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert ends("train", *arguments) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.startswith("lathe: ")
    assert printed.err.count("\n") == 1
    assert not asked
    assert sorted(os.listdir()) == ["recipe.toml", "text"]


@pytest.mark.parametrize(("error", "code"), [(Stopped("stopped at step 7"), 75), (TrainingError("no number"), 2)])
def test_how_a_training_that_does_not_finish_ends(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    def train(*given: Any, **named: Any) -> None:
        raise error

    stand_in(monkeypatch, "loop", train=train)
    assert ends("train", "recipe.toml") == code
    assert capsys.readouterr().err == f"lathe: {error}\n"


def test_dry_run_trains_and_writes_nothing(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []

    def estimate(recipe: Recipe, execution: Execution, **named: Any) -> Any:
        given.append((recipe, execution, named))
        return SimpleNamespace(text=lambda: "31 steps")

    stand_in(monkeypatch, "estimate", estimate=estimate)
    main(["train", "recipe.toml", "--dry-run", "--nproc", "2"])
    main(["train", "recipe.toml", "--dry-run", "--device-preset", "h100"])
    bare = FILE.replace('data = "text"', "").replace("n_heads = 2", "n_heads = 2, vocab_size = 9")
    Path("bare.toml").write_text(bare)
    main(["train", "bare.toml", "--dry-run"])
    assert capsys.readouterr().out == "31 steps\n" * 3
    assert (given[0][2]["device"], given[0][2]["world"], given[1][2]["device"].name) == (None, 2, "NVIDIA H100 SXM")
    assert given[2][0].data is None
    assert not asked
    assert sorted(os.listdir()) == ["bare.toml", "recipe.toml", "text"]


def test_several_processes_run_the_same_command(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched: list[Any] = []

    def launch(command: list[str], *, nproc: int) -> int:
        launched.append((command, nproc))
        return 75

    stand_in(monkeypatch, "launch", launch=launch)
    arguments = ["train", "recipe.toml", "--nproc", "2", "--lr", "2e-3"]
    monkeypatch.setattr(sys, "argv", ["lathe", *arguments])
    assert ends(*arguments) == 75
    assert launched == [([sys.executable, "-m", "lathe", *arguments], 2)]
    assert not asked
    monkeypatch.setenv("RANK", "1")  # as one of them
    main(arguments)
    assert len(asked) == len(launched) == 1
    assert capsys.readouterr().out == ""
    monkeypatch.delenv("RANK")
    assert ends(*arguments, "--tokens", "1") == 2  # what is wrong is said once, before anything is started
    assert len(launched) == 1


def test_average(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[Any] = []

    def average_checkpoints(folder: Path, out: Path, **named: Any) -> list[int]:
        given.append((folder, out, named))
        return [40, 60]

    stand_in(monkeypatch, "average", average_checkpoints=average_checkpoints)
    main(["average", "run", "--last", "2", "--out", "mean"])
    main(["average", "run", "--steps", "40", "60", "--out", "mean"])
    assert given == [
        (Path("run"), Path("mean"), {"last": 2, "steps": None}),
        (Path("run"), Path("mean"), {"last": None, "steps": (40, 60)}),
    ]
    assert capsys.readouterr().out.splitlines()[:2] == ["averaged: weights after step 40, 60", "checkpoint: mean"]


def test_every_field_of_the_words_is_a_setting() -> None:
    for word, prefix in ((Recipe, ""), (Execution, "execution.")):
        for field in dataclasses.fields(word):
            assert f"{prefix}{field.name}" in list_settings() or field.name in (
                "shape", "data", "optimiser", "schedule", "init", "distil",
            )  # fmt: skip
