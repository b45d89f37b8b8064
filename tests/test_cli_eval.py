"""`lathe eval` as a user runs it: what it prints, writes and adds to runs, and one clear line for bad input."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lathe import codec
from lathe.cli import main
from lathe.data.tokenizer import train_tokenizer
from lathe.evals.answers import load_answers
from lathe.evals.results import Evaluation
from lathe.laws.fit import fit
from lathe.laws.importers import read_runs
from lathe.laws.testbed import TASK_SETS
from lathe.model.checkpoint import save_checkpoint
from lathe.model.init import build
from lathe.runs import Run
from lathe.shape import Shape
from lathe.train.record import add_scores, append_run

SHAPE = Shape.of(d_model=16, n_layers=2, n_heads=2, vocab_size=300, max_seq_len=48)
TEXT = "".join(f"The cat saw {i} dogs. The dogs saw the other cat, and then they ran home.\n" for i in range(40))
ROWS = [
    {"query": f"{i} cats and {i + 1} dogs then saw", "choices": ["the cat", "the dogs then", "home"], "gold": i % 3}
    for i in range(9)
]
LONG = {"query": "the cat saw the dogs " * 40 + "and", "choices": ["ran", "then"], "gold": 0}
CATALOGUE = """
[defaults]
published = "the author's desk"

[tasks]
pets = { file = "pets.jsonl", kind = "multiple_choice", shots = 0, chance = 0.25, normalisation = "token" }
endings = { file = "endings.jsonl", kind = "language_modelling", shots = 1, chance = 0 }
said = { file = "said.jsonl", kind = "generation", shots = 0, chance = 0, max_new_tokens = 4 }
lost = { like = "pets", file = "lost.jsonl" }
glued = { like = "pets", file = "glued.jsonl", delimiter = "" }

[suites.animals]
source = "this file"
members = ["pets", "endings"]

[suites.all]
source = "this file"
members = ["pets", "lost"]
"""
OWN = ("--catalogue", "own.toml", "--data", "items")


def write_rows(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(**changes: Any) -> Run:
    given = {
        "name": "tiny", "shape": SHAPE, "tokens": 2000, "losses": {"held-out": 4.5}, "validation": "held-out",
        "recipe_id": "r0", "seed": 0,
    }  # fmt: skip
    return Run(**{**given, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with text, a tokenizer of it, and three models with first weights, each a run."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    train_tokenizer([folder / "text.txt"], vocab_size=300, out=folder / "tokenizer.json")
    (folder / "generation_config.json").write_text('{"eos_token_id": 0}')
    for seed in range(3):
        weights = build(SHAPE, scheme="llama", seed=seed).state_dict()
        out, run = folder / f"runs/{seed}", make_run(name=f"tiny-{seed}", recipe_id=f"r{seed}", seed=seed)
        save_checkpoint(out, SHAPE, weights, companions=folder)
        codec.save(run, out / "run.json", kind="run")
        append_run(folder / "runs/runs.jsonl", run)
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work beside such models and a few files of items."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    Path("own.toml").write_text(CATALOGUE, encoding="utf-8")
    write_rows("items/pets.jsonl", [{**row, "category": "even" if i % 2 else "odd"} for i, row in enumerate(ROWS)])
    write_rows("items/endings.jsonl", [{"context": row["query"], "continuation": "cats"} for row in ROWS])
    write_rows("items/said.jsonl", [{"context": row["query"], "answer": "the"} for row in ROWS[:3]])
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Evaluate, and give what was printed."""

    def call(*arguments: str) -> str:
        main(["eval", *arguments])
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return call


@pytest.fixture
def fail(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Ask for what cannot be, and give the one line that says so; nothing is written."""

    def call(*arguments: str) -> str:
        before = sorted(here.rglob("*")), Path("runs/runs.jsonl").read_bytes()
        with pytest.raises(SystemExit) as caught:
            main(["eval", *arguments])
        printed = capsys.readouterr()
        assert caught.value.code == 2
        assert printed.err.startswith("lathe: ")
        assert printed.err.count("\n") == 1, "an error is one line"
        assert (sorted(here.rglob("*")), Path("runs/runs.jsonl").read_bytes()) == before
        return printed.err

    return call


def words(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines()]


# ---- losses


@pytest.mark.parametrize(
    ("way", "shown"),
    [
        (["--way", "windows"], "windows of 48 tokens"),
        (["--way", "strided", "--seq-len", "32", "--stride", "8"], "windows of 32 tokens, 8 apart"),
        (["--way", "documents"], "documents, of up to 48 tokens, 24 apart"),
    ],
)
def test_loss(run: Callable[..., str], way: list[str], shown: str) -> None:
    printed = run("runs/0", "--loss", "text.txt", *way, "--out", "loss.json", "--no-record")
    (loss,) = codec.load(Evaluation, "loss.json", kind="evaluation").losses
    assert shown in printed
    assert f"{loss.tokens:,} tokens in {loss.sequences:,} sequences" in printed
    assert f"{loss.loss:.4f}" in printed
    scored = len(TEXT) if "documents" in way else len(TEXT) - len("The")  # elsewhere nothing stands before it
    assert loss.bits_per_byte == pytest.approx(loss.loss * loss.tokens / np.log(2) / scored, rel=1e-6)
    assert abs(loss.loss - np.log(300)) < 0.5  # first weights guess


def test_bits_of_a_part_of_the_text(run: Callable[..., str]) -> None:
    found = json.loads(run("runs/0", "--loss", "text.txt", "--most-tokens", "200", "--json", "--no-record"))
    assert found["losses"][0]["tokens"] in range(150, 201)


# ---- tasks


def test_tasks_and_what_they_write(run: Callable[..., str]) -> None:
    names = ("--tasks", "pets", "endings", "said")
    files = ("--items", "a.jsonl", "--out", "a.json", "--plot", "a.html")
    printed = run("runs/0", *names, *OWN, *files, "--categories")
    answers, evaluation = load_answers("a.jsonl"), codec.load(Evaluation, "a.json", kind="evaluation")
    assert answers.evaluation == evaluation
    assert {name: len(items) for name, items in answers.items.items()} == {"pets": 9, "endings": 9, "said": 3}
    for task in evaluation.tasks:
        row = next(row for row in words(printed) if row[:1] == [task.task])
        assert row[1:4] == [str(task.items), str(task.shots), f"{task.accuracy:.3f}"]
    assert "Accuracy per category of pets" in printed
    assert "pets" in Path("a.html").read_text(encoding="utf-8")


def test_json_is_the_evaluation(run: Callable[..., str]) -> None:
    found = json.loads(run("runs/0", "--tasks", "pets", *OWN, "--json", "--out", "a.json"))
    found.pop("created")
    kept = codec.encode(codec.load(Evaluation, "a.json", kind="evaluation"))
    kept.pop("created")
    assert found == kept


def test_no_pick_depends_on_the_batch(run: Callable[..., str]) -> None:
    for name, size in (("a", "1"), ("b", "70"), ("c", "4096")):
        run("runs/0", "--tasks", "pets", "endings", *OWN, "--items", f"{name}.jsonl", "--batch-tokens", size)
    first, *rest = (load_answers(f"{name}.jsonl").items for name in "abc")
    for other in rest:
        for task in first:
            for a, b in zip(first[task], other[task], strict=True):
                assert (a.pick, a.correct) == (b.pick, b.correct)
                assert a.log_probs == pytest.approx(b.log_probs, abs=1e-5 * max(a.tokens))


def test_suites(run: Callable[..., str]) -> None:
    printed = run("runs/0", "--tasks", "animals", "all", *OWN, "--out", "a.json")
    whole, lacking = codec.load(Evaluation, "a.json", kind="evaluation").aggregates
    assert whole.value is not None
    assert ["animals", "accuracy", f"{whole.value:.3f}", "±", f"{whole.se:.3f}", "2", "of", "2"] in words(printed)
    assert lacking.value is None
    assert ["all", "accuracy", "N/A", "1", "of", "2"] in words(printed)
    assert "! lost: no lost.jsonl, which comes from the author's desk (lost.jsonl)" in printed


def test_limit_shots_and_a_file(run: Callable[..., str]) -> None:
    shutil.move("items/pets.jsonl", "mine.jsonl")
    few = ("--file", "pets=mine.jsonl", "--shots", "2", "--limit", "4")
    found = json.loads(run("runs/0", "--tasks", "pets", *OWN, *few, "--json", "--items", "a.jsonl"))
    assert (found["tasks"][0]["items"], found["tasks"][0]["shots"]) == (4, 2)
    assert [item.number for item in load_answers("a.jsonl").items["pets"]] == [1, 3, 5, 7]


def test_a_long_item_is_cut_and_told_of(run: Callable[..., str]) -> None:
    write_rows("items/pets.jsonl", [*ROWS, LONG])
    assert "! pets: 1 of 10 items were longer than the context, and cut" in run("runs/0", "--tasks", "pets", *OWN)


def test_a_foreign_model_with_a_tokenizer_of_the_users(run: Callable[..., str]) -> None:
    Path("runs/0/tokenizer.json").rename("other.json")
    found = json.loads(run("runs/0", "--tasks", "pets", *OWN, "--tokenizer", "other.json", "--json"))
    assert found["tasks"][0]["items"] == 9


# ---- two evaluations


def test_compare(run: Callable[..., str]) -> None:
    for name in "01":
        run(f"runs/{name}", "--tasks", "animals", *OWN, "--loss", "text.txt", "--items", f"{name}.jsonl")
    printed = run("--compare", "0.jsonl", "1.jsonl")
    assert printed.startswith("A: runs/0\nB: runs/1\n")
    for title in ("Accuracy, paired by item", "Log-probability of the right answer", "Suites", "Loss"):
        assert f"{title}" in printed
    found = json.loads(run("--compare", "0.jsonl", "0.jsonl", "--json"))
    assert [(task["gained"], task["lost"], task["p"]) for task in found["tasks"]] == [(0, 0, 1.0)] * 2

    run("--compare", "0.jsonl", "1.jsonl", "--plot", "both.html")
    assert "B against A" in Path("both.html").read_text(encoding="utf-8")


def test_what_was_asked_otherwise_is_not_compared(run: Callable[..., str], fail: Callable[..., str]) -> None:
    run("runs/0", "--tasks", "pets", *OWN, "--items", "a.jsonl")
    run("runs/0", "--tasks", "pets", *OWN, "--items", "b.jsonl", "--shots", "1")
    assert "task 'pets' was not asked alike, so its items cannot be paired: shots 0 and 1" in fail(
        "--compare", "a.jsonl", "b.jsonl"
    )


# ---- training data


def test_overlap_needs_no_checkpoint(run: Callable[..., str]) -> None:
    row = {"query": "One cold morning in March the old cat saw seven dogs", "choices": ["run", "sit"], "gold": 0}
    write_rows("items/pets.jsonl", [*ROWS, row])
    Path("seen.txt").write_text("We read: one cold morning, in March, the old cat saw seven dogs run! " + TEXT)
    printed = run("--overlap", "seen.txt", "--tasks", "pets", *OWN, "--out", "dirty.jsonl")
    assert next(row for row in words(printed) if row[:1] == ["pets"])[1:6] == ["10", "0", "1", "10.00%", "1"]
    (dirty,) = map(json.loads, Path("dirty.jsonl").read_text().splitlines())
    assert (dirty["task"], dirty["number"]) == ("pets", 10)


# ---- the harness


def test_overlap_with_several_data(run: Callable[..., str]) -> None:
    row = {"query": "One cold morning in March the old cat saw seven dogs", "choices": ["run", "sit"], "gold": 0}
    write_rows("items/pets.jsonl", [*ROWS, row])
    for name in ("a.txt", "b.txt"):
        Path(name).write_text("one cold morning in March the old cat saw seven dogs run")
    reports = json.loads(run("--overlap", "a.txt", "b.txt", "--tasks", "pets", *OWN, "--out", "dirty.jsonl", "--json"))
    assert [report["data"] for report in reports] == ["a.txt", "b.txt"]
    dirty = [json.loads(line) for line in Path("dirty.jsonl").read_text().splitlines()]
    assert [item["places"][0]["source"] for item in dirty] == ["a.txt", "b.txt"]


def test_harness(run: Callable[..., str], fail: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run_harness(*given: Any, **named: Any) -> dict[str, Any]:
        asked.append((given, named))
        return {"results": {"arc_easy": {"acc,none": 0.25}}}

    monkeypatch.setitem(sys.modules, "lathe.evals.harness", SimpleNamespace(run_harness=run_harness))
    monkeypatch.setitem(sys.modules, "lm_eval.utils", SimpleNamespace(make_table=lambda found: "|arc_easy|0.25|"))
    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace())
    assert "no checkpoint was given" in fail("--harness", "arc_easy")
    assert not asked
    printed = run("runs/0", "--harness", "arc_easy", "--limit", "3", "--shots", "2", "--out", "harness.json")
    assert printed == "|arc_easy|0.25|\n"
    ((given, named),) = asked
    assert given == (Path("runs/0"), ("arc_easy",))
    assert (named["limit"], named["shots"], named["device"]) == (3, 2, "cpu")
    assert json.loads(Path("harness.json").read_text())["results"]["arc_easy"]["acc,none"] == 0.25


# ---- from scores to laws


def test_scores_join_the_run(run: Callable[..., str]) -> None:
    found = json.loads(run("runs/1", "--tasks", "pets", *OWN, "--loss", "text.txt", "--json"))
    accuracy, loss = found["tasks"][0]["accuracy"], found["losses"][0]["loss"]
    kept = codec.load(Run, "runs/1/run.json", kind="run")
    assert (kept.accuracies, kept.losses["text"]) == ({"pets": accuracy}, loss)
    assert kept.loss == 4.5  # that of training's own set
    rows = [json.loads(line) for line in Path("runs/runs.jsonl").read_text().splitlines()]
    assert [row.get("accuracy_pets") for row in rows] == [None, accuracy, None]
    assert rows[1]["loss_text"] == loss


def test_losses_of_texts_with_one_name(run: Callable[..., str]) -> None:
    for name in "ab":
        Path(name).mkdir()
        shutil.copy("text.txt", f"{name}/some.text.txt")
    run("runs/1", "--loss", "a/some.text.txt", "b/some.text.txt", "text.txt")
    found = codec.load(Run, "runs/1/run.json", kind="run").losses
    assert found.keys() == {"held-out", "a/some.text.txt", "b/some.text.txt", "text"}


def test_scores_that_are_not_to_be_recorded(run: Callable[..., str]) -> None:
    before = Path("runs/runs.jsonl").read_bytes()
    run("runs/1", "--tasks", "pets", *OWN, "--no-record")
    assert Path("runs/runs.jsonl").read_bytes() == before


def test_a_law_reads_what_eval_wrote(run: Callable[..., str]) -> None:
    for name in "012":
        run(f"runs/{name}", "--tasks", "animals", *OWN)
    runs = read_runs("runs/runs.jsonl", tasks=["pets", "endings"])
    assert runs.error.tolist() == (1 - (runs.accuracy_pets + runs.accuracy_endings) / 2).tolist()


def test_the_error_law_from_recorded_scores(here: Path) -> None:
    """Planted: Err = .85 − 2·e^(−.75·L), as the mean over tasks that lie about it."""
    for i, loss in enumerate(np.linspace(2.0, 4.0, 8).tolist()):
        error, folder = 0.85 - 2 * np.exp(-0.75 * loss), here / f"grid/{i}"
        folder.mkdir(parents=True)
        run = make_run(losses={"c4_val": loss}, validation="c4_val", recipe_id=f"g{i}", tokens=1000 * (i + 1))
        codec.save(run, folder / "run.json", kind="run")
        append_run(here / "grid/runs.jsonl", run)
        about = np.linspace(-0.02, 0.02, len(TASK_SETS["17"]))
        scores = {task: float(1 - error + d) for task, d in zip(TASK_SETS["17"], about, strict=True)}
        add_scores(folder, accuracies=scores, losses={})
    law = fit(read_runs(here / "grid/runs.jsonl", tasks="17"), "error", draws=0)
    found = law.coefficients
    assert sorted(found.values()) == pytest.approx(sorted((0.85, 2.0, 0.75)), rel=1e-5)


def test_the_testbeds_runs_by_our_way(shared_data: Path, tmp_path: Path) -> None:
    """The testbed's scores, recorded as Lathe records its own, give the law that its folder gives."""
    where = "dataset == 'c4_original' and tokens_per_param >= 20"
    theirs = read_runs(shared_data / "laws/scaling_testbed", where=where, tasks="17")
    tasks = [name for name in theirs.columns if name.startswith("accuracy_")]
    for i, row in enumerate(theirs.to_dict("records")):
        shape = Shape.of(
            d_model=row["d_model"], n_layers=row["n_layers"], n_heads=row["n_heads"], vocab_size=row["vocab_size"],
            norm="layernorm-gain",
        )  # fmt: skip
        run = make_run(
            name=row["name"], shape=shape, tokens=int(row["tokens"]), losses={"c4_val": row["loss"]},
            validation="c4_val", recipe_id=str(i),
        )  # fmt: skip
        folder = tmp_path / str(i)
        folder.mkdir()
        codec.save(run, folder / "run.json", kind="run")
        scores = {name.removeprefix("accuracy_"): row[name] for name in tasks if np.isfinite(row[name])}
        add_scores(folder, accuracies=scores, losses={})
    ours = read_runs(tmp_path / "runs.jsonl", tasks="17")
    assert ours.error.tolist() == theirs.error.tolist()
    laws = [fit(runs[["params", "tokens", "loss", "error"]], "error", draws=0) for runs in (ours, theirs)]
    assert laws[0].coefficients == laws[1].coefficients


# ---- what the user got wrong


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no checkpoint was given; name its folder first: lathe eval runs/tiny --tasks arc_easy"),
        (["runs/0"], "nothing to evaluate on"),
        (["runs/9", "--tasks", "pets"], "there is no runs/9"),
        (["runs/0", "--tasks", "pest"], "unknown task or suite 'pest'; did you mean 'pets'"),
        (["runs/0", "--tasks", "lost"], "it comes from the author's desk (lost.jsonl)"),
        (["runs/0", "--tasks", "pets", "--limit", "0"], "limit=0; wanted 1 item or more"),
        (["runs/0", "--tasks", "pets", "--shots", "9"], "ask for at most 8 shots"),
        (["runs/0", "--tasks", "pets", "--file", "pets"], "--file 'pets' is no TASK=PATH"),
        (["runs/0", "--tasks", "pets", "--file", "pets=gone.jsonl"], "gone.jsonl, given for 'pets', is no file"),
        (["runs/0", "--tasks", "pets", "--batch-tokens", "0"], "batch_tokens=0; wanted 1 or more"),
        (["runs/0", "--tasks", "pets", "--items", "a.txt"], "a.txt"),
        (["runs/0", "--tasks", "pets", "--out", "a.yaml"], "a.yaml"),
        (["runs/0", "--tasks", "pets", "--backend", "transformers"], "runs/0 has no config.json"),
        (["runs/0", "--loss", "text.txt", "--seq-len", "64"], "seq_len=64 is more than the 48 tokens"),
        (["runs/0", "--loss", "text.txt", "--stride", "7"], "stride=7 with windows"),
        (["runs/0", "--loss", "gone.txt"], "gone.txt"),
        (["--compare", "a.jsonl", "b.jsonl"], "a.jsonl: cannot be read"),
        (["--overlap", "text.txt"], "--tasks was given nothing"),
        (
            ["runs/0", "--overlap", "text.txt", "--tasks", "pets", "--loss", "text.txt", "--out", "a.jsonl"],
            "a.jsonl has room for one result",
        ),
        (["--compare", "a.jsonl", "b.jsonl", "--out", "a.json"], "--compare writes no --out"),
    ],
)
def test_what_the_user_got_wrong(fail: Callable[..., str], arguments: list[str], says: str) -> None:
    assert says in fail(*arguments, *OWN)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "items/pets.jsonl is empty; wanted one multiple_choice item a line"),
        (b'{"query": "caf\xe9", "choices": ["a", "b"], "gold": 0}\n', "line 1: byte 14 of the line is not UTF-8"),
        (b'{"query": "a", "choices": ["a", "b"], "gold": 2}\n', "line 1: gold is 2; wanted the index of one of the 2"),
        (b'{"query": "a", "choices": ["a", " "], "gold": 0}\n', "line 1: choices[1] is empty"),
        (
            b'{"query": "a", "choices": ["a", "b"], "gold": 1}\n{"context": "a", "continuation": "b"}\n',
            "line 2: the row is language_modelling {context, continuation}, and the task's are multiple_choice",
        ),
        (b'{"query": "a", "choices": ["a", "b"], "gold": 0}\n{"query": \n', "line 2: not JSON"),
    ],
)
def test_items_that_are_none(fail: Callable[..., str], content: bytes, says: str) -> None:
    Path("items/pets.jsonl").write_bytes(content)
    assert says in fail("runs/0", "--tasks", "pets", *OWN)


def test_an_answer_that_is_no_token_of_its_own(fail: Callable[..., str]) -> None:
    write_rows("items/glued.jsonl", [ROWS[0], {"query": "saw th", "choices": ["e", " cat"], "gold": 1}])
    said = fail("runs/0", "--tasks", "glued", *OWN)
    assert "glued, item 2: the answer 'e' is no token of its own after its question" in said


def test_a_checkpoint_without_its_tokenizer(fail: Callable[..., str]) -> None:
    Path("runs/0/tokenizer.json").unlink()
    assert "there is no tokenizer runs/0/tokenizer.json; put the model's" in fail("runs/0", "--tasks", "pets", *OWN)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--tasks", "pets"], "pets, item 1: the model's logits are no numbers"),
        (["--tasks", "said"], "said, item 1: the model's logits are no numbers"),
        (["--loss", "text.txt"], "text.txt: the loss of sequence 1 (text tokens 0 to 49) is no number"),
    ],
)
def test_logits_that_are_no_numbers(fail: Callable[..., str], asked: list[str], says: str) -> None:
    weights = build(SHAPE, scheme="llama", seed=0).state_dict()
    weights["embedding.weight"][:] = torch.nan
    save_checkpoint("runs/0", SHAPE, weights, companions="runs/1")
    assert says in fail("runs/0", *asked, *OWN)
