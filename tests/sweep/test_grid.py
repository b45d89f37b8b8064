"""Grids: what they make, and what they refuse."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_datasets import VOCAB, write_small_dataset

from lathe.cli import main
from lathe.errors import CodecError, LatheError, RecipeError, StudyError
from lathe.sweep.choices import expand
from lathe.sweep.entries import load_entry, save_entries
from lathe.sweep.expressions import evaluate
from lathe.sweep.families import Family, find_members
from lathe.sweep.grid import load_grid, read_entries
from lathe.train.schedule import decay_start

BASE = {"seq_len": 16, "batch_tokens": 64, "lr": 1e-3}
SHAPE = {"d_model": 32, "n_layers": 2, "n_heads": 2, "vocab_size": 50}
WSD = {"name": "wsd", "warmup_steps": 2, "decay": 0.2}


def make(**document: Any) -> dict[str, Any]:
    return {"tokens": 6400, "base": BASE, "shape": SHAPE, **document}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4e-3 * sqrt(64 / d_model)", 4e-3 * math.sqrt(2)),
        ("d_model // (16 if d_model % 16 == 0 else 8)", 2),
        ("aspect >= 8 and not params > 1e6", True),
        ("1 < n_layers <= 4", True),
        ("norm in ['rmsnorm', 'layernorm']", True),
        ("n_layers not in (1, 2)", True),
        ("-2 ** 2 + max(1, round(2.6))", -1),
    ],
)
def test_expressions(text: str, value: Any) -> None:
    names = {"d_model": 32, "n_layers": 4, "aspect": 8.0, "params": 1000, "norm": "rmsnorm"}
    assert evaluate(text, names) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("d_modle * 2", "'d_modle'; did you mean 'd_model'"),
        ("__import__('os')", "names '__import__'"),
        ("d_model.real", "uses 'd_model.real'"),
        ("[x for x in (1, 2)]", "names 'x'"),
        ("'a' * 1000000000", "'a' is no number"),
        ("9 ** 9 ** 9", "has no value"),
        ("10 / (d_model - 32)", "no value for d_model=32: division by zero"),
        ("sqrt(0 - d_model)", "no value for d_model=32"),
        ("2 +", "is no expression"),
        ("1" * 501, "at most 500"),
        ("log(x=2)", "names 'x'|uses"),
        ("d_model < 'a'", "no value for d_model=32"),
    ],
)
def test_expressions_refuse(text: str, says: str) -> None:
    with pytest.raises(StudyError, match=says):
        evaluate(text, {"d_model": 32})


@settings(max_examples=200)
@given(st.text(alphabet="d_model()*/-+<>=1 2.,'[]andort%", max_size=30))
def test_expressions_end_well_or_say_why(text: str) -> None:
    with suppress(StudyError):
        evaluate(text, {"d_model": 32})


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (3, [3]),
        ([1, 2], [1, 2]),
        ({"from": 1, "to": 16, "factor": 2}, [1, 2, 4, 8, 16]),
        ({"from": 1, "to": 9, "step": 3}, [1, 4, 7]),
        ({"from": 0.1, "to": 0.3, "step": 0.1}, pytest.approx([0.1, 0.2, 0.3])),
        ({"from": 64, "to": 260, "factor": 1.5, "multiple": 16}, [64, 96, 144, 224]),
        ({"from": 1e5, "to": 4e5, "factor": 2}, [100000, 200000, 400000]),
    ],
)
def test_choices(given: Any, values: list[Any]) -> None:
    assert expand("n_layers", given) == values


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "empty list"),
        ({"from": 1, "to": 4}, "step"),
        ({"from": 1, "to": 4, "step": 1, "factor": 2}, "or factor in place of step"),
        ({"from": 1, "too": 4, "step": 1}, "unknown key 'n_layers.too'; did you mean 'to'"),
        ({"from": 1, "to": "4", "step": 1}, "should be a number"),
        ({"from": 4, "to": 1, "step": 1}, "rising range"),
        ({"from": 1, "to": 4, "factor": 1}, "rising range"),
        ({"from": 1, "to": 1e9, "step": 1}, "more than 100000 values"),
    ],
)
def test_choices_refuse(given: Any, says: str) -> None:
    with pytest.raises(CodecError, match=says):
        expand("n_layers", given)


def test_every_combination_is_an_entry() -> None:
    base = {**BASE, "lr": [1e-3, "2e-2 / d_model"]}
    shape = {**SHAPE, "d_model": [32, 64], "n_layers": {"from": 1, "to": 4, "factor": 2}, "n_heads": "d_model / 16"}
    grid = load_grid(make(base=base, shape=shape, seeds=[0, 1]))
    assert len(grid.entries) == 2 * 3 * 2 * 2
    assert len({entry.recipe.id for entry in grid.entries}) == len(grid.entries)
    first, last = grid.entries[0], grid.entries[-1]
    assert first.name == "32x1-lr0.001-seed0"
    assert last.name == "64x4-lr0.0003125-seed1"
    assert (last.recipe.shape.n_heads, last.recipe.lr, last.recipe.seed) == (4, 2e-2 / 64, 1)
    assert grid.flops == pytest.approx(sum(e.recipe.shape.train_flops(6400, 16) for e in grid.entries))


def test_rules_settle_after_what_they_name() -> None:
    shape = {**SHAPE, "d_model": 64, "d_ff": "2 * n_kv_heads * d_head", "n_heads": "d_model / 16"}
    base = {**BASE, "schedule": {"name": "cosine", "warmup_steps": "ceil(tokens / batch_tokens / 10)"}}
    base |= {"optimiser": {"embedding_lr": "5 * lr"}, "lr": "1e-3 * sqrt(32 / d_model)"}
    recipe = load_grid(make(shape=shape, base=base, tokens="20 * non_embedding_params")).entries[0].recipe
    assert (recipe.shape.n_heads, recipe.shape.d_ff) == (4, 128)
    assert recipe.tokens == 20 * recipe.shape.non_embedding_params
    assert recipe.lr == 0.000707107
    assert recipe.optimiser.embedding_lr == pytest.approx(5 * recipe.lr, rel=1e-5)
    assert recipe.schedule.warmup_steps == math.ceil(recipe.tokens / 64 / 10)


def test_token_counts_become_branches_of_one_run() -> None:
    document = make(tokens=[1e4, 4e4, 2e4], branches=True, base={**BASE, "schedule": WSD}, seeds=[0, 1])
    entries = load_grid(document).entries
    assert [entry.name for entry in entries] == ["32x2-seed0", "32x2-seed1"]
    entry = entries[0]
    assert (entry.recipe.tokens, entry.branch_at, entry.tokens) == (40000, (10000, 20000), (10000, 20000, 40000))
    branches = sum(branch.steps - decay_start(branch) for branch in entry.recipes[:-1])
    assert entry.steps == 40000 // 64 + branches
    apart = load_grid({**document, "branches": False}).entries
    assert {r.id for e in entries for r in e.recipes} == {e.recipe.id for e in apart}


def test_tokens_by_the_param() -> None:
    shape = {**SHAPE, "d_model": [32, 64]}
    document = {"tokens_per_param": [1, 2], "base": BASE, "shape": shape, "branches": False}
    for entry in load_grid(document).entries:
        ratio = float(entry.name.removeprefix(f"{entry.recipe.shape.d_model}x2-tokens_per_param"))
        assert entry.recipe.tokens == ratio * entry.recipe.shape.params


def test_constraints_keep_what_they_hold_for() -> None:
    shape = {**SHAPE, "d_model": [32, 64, 128], "n_layers": [1, 2, 4]}
    grid = load_grid(make(shape=shape, constraints=["aspect >= 16", "d_model < 100 or n_layers == 1"]))
    assert [entry.name for entry in grid.entries] == ["32x1", "32x2", "64x1", "64x2", "64x4", "128x1"]
    assert grid.dropped == 3


def test_shapes_listed_one_by_one() -> None:
    shapes = [{"d_model": 32, "n_layers": [1, 4]}, {"d_model": 64, "n_layers": 1, "d_ff": 128}]
    common = {"n_heads": "d_model / 16", "vocab_size": 50}
    found = load_grid(make(shape=common, shapes=shapes)).entries
    assert [entry.name for entry in found] == ["32x1", "32x4", "64x1"]
    assert found[-1].recipe.shape.d_ff == 128


def test_a_preset_is_a_shape() -> None:
    found = load_grid(make(shapes=["m1b_neox"])).entries
    assert found[0].recipe.shape.d_model == 2048


def test_entries_of_one_name_are_told_apart() -> None:
    shapes = [{**SHAPE, "d_ff": 64}, {**SHAPE, "d_ff": 128}]
    names = [entry.name for entry in load_grid(make(shapes=shapes)).entries]
    assert len(set(names)) == 2
    assert all(name.startswith("32x2-") for name in names)


@pytest.mark.parametrize("count", ["params", "non_embedding_params"])
def test_families_have_one_size_and_the_aspects_asked(count: str) -> None:
    family = {"params": 1e6, "aspect": [4, 16, 64], "count": count, "tolerance": 0.08, "multiple": 8}
    shape = {"vocab_size": 50, "n_heads": 1, "d_ff": "4 * d_model"}
    entries = load_grid(make(shape=shape, family=[family])).entries
    assert len(entries) == 3
    for entry, aspect in zip(entries, family["aspect"], strict=True):
        assert getattr(entry.recipe.shape, count) == pytest.approx(1e6, rel=0.08)
        assert entry.recipe.shape.aspect == pytest.approx(aspect, rel=0.3)
        assert entry.recipe.shape.d_model % 8 == 0


def test_families_find_the_nearest_of_all() -> None:
    """Set the search beside every shape there is."""
    from lathe.shape import Shape

    def build(fields: Any) -> Shape:
        return Shape.of(**fields, n_heads=1, d_ff=4 * fields["d_model"], vocab_size=50)

    family = Family(params=3e5, aspect=(5.0, 20.0), tolerance=0.1, multiple=8)
    found = find_members(family, {}, build=build)
    every = [(d, n) for d in range(8, 800, 8) for n in range(1, 200)]
    near = [(d, n) for d, n in every if abs(build({"d_model": d, "n_layers": n}).params / 3e5 - 1) <= 0.1]
    for one, aspect in zip(found, family.aspect, strict=True):
        best = min(abs(math.log(d / n / aspect)) for d, n in near)
        assert abs(math.log(one["d_model"] / one["n_layers"] / aspect)) <= best + 0.2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shap": {}}, "unknown key 'shap'; did you mean 'shape'"),
        ({"base": {**BASE, "optimizer": {}}}, "optimizer"),
        ({"base": {**BASE, "optimiser": {"beta3": 1}}}, "beta3"),
        ({"base": {**BASE, "execution": {"threads": 1}}}, "base.execution is not"),
        ({"base": {**BASE, "shape": {}}}, r"place in \[shape\]"),
        ({"shape": {**SHAPE, "d_modle": 1}}, "unknown key 'shape.d_modle'; did you mean 'd_model'"),
        ({"shape": {**SHAPE, "d_model": []}}, "shape.d_model is an empty list"),
        ({"shape": {**SHAPE, "n_heads": "d_model / 10"}}, "is 3.2 for d_model=32; wanted a whole number"),
        ({"shape": {**SHAPE, "n_heads": "n_kv_heads", "n_kv_heads": "n_heads"}}, "hangs on n_"),
        ({"shape": {**SHAPE, "n_heads": "d_modle"}}, "names 'd_modle'"),
        ({"shape": {**SHAPE, "n_heads": 3, "n_kv_heads": 2}}, "shape of d_model=32, n_layers=2"),
        ({"shape": {"d_model": 32, "n_layers": 1, "n_heads": 2}}, "vocab_size"),
        ({"constraints": ["aspect >= 800", "d_model > 0"]}, "leave none of 1 .*'aspect >= 800' holds for 0, .* for 1"),
        ({"constraints": ["d_model"]}, "constraint 'd_model' is 32; wanted true or false"),
        ({"constraints": [3]}, "no text"),
        ({"constraints": "aspect > 1"}, "should be a list"),
        ({"tokens_per_param": 3}, "twice or not at all"),
        ({"base": {**BASE, "tokens": 1000}}, "tokens stands at the top and"),
        ({"tokens": 10}, "32x2: tokens=10 is less than one batch"),
        ({"tokens": "lots"}, "names 'lots'"),
        ({"tokens": [6400, 12800], "branches": True}, "32x2: schedule=cosine has no stable phase"),
        ({"branches": 1}, "true or false"),
        ({"seeds": [0, 0]}, "are the same recipe"),
        ({"shape": {**SHAPE, "d_model": [32, 32]}}, "are the same recipe"),
        ({"shapes": [{}], "family": [{}]}, "both"),
        ({"shapes": [3]}, "a shape is 3"),
        ({"family": [{"params": 1e5, "aspect": 8}]}, "gives d_model, which a"),
        ({"seeds": list(range(1000)), "base": {**BASE, "lr": [0.1**i for i in range(200)]}}, "makes 200,000"),
        ({"base": {**BASE, "lr": "params < 3"}}, "lr = 'params < 3' is False"),
        ({"base": {**BASE, "data": {"train": "nowhere"}}}, "nowhere"),
        ({"base": {"seq_len": 16, "lr": 1e-3}}, "batch_tokens"),
    ],
)  # fmt: skip
def test_a_bad_grid_says_what_is_wrong(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(LatheError, match=f"study.toml: (.|\n)*{says}"):
        load_grid(make(**changes), source="study.toml")


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ({"params": 1e5, "aspect": []}, "aspect is an empty list"),
        ({"params": 1e5}, "'aspect' of a Family is missing"),
        ({"params": 1e5, "aspect": 8, "tolerence": 1}, "did you mean 'tolerance'"),
        ({"params": -1, "aspect": 8}, "above zero"),
        ({"params": 100, "aspect": 8}, "the nearest is 16×1 with"),
        ({"params": 3e5, "aspect": 5000, "tolerance": 0.3}, "no shape of 300000 params has an aspect near 5000"),
        ({"params": 3e5, "aspect": 8, "multiple": 5}, "a family tries all widths"),
    ],
)  # fmt: skip
def test_a_bad_family_says_what_is_wrong(family: dict[str, Any], says: str) -> None:
    with pytest.raises(LatheError, match=says):
        load_grid(make(shape={"vocab_size": 50, "n_heads": "max(1, d_model / 16)"}, family=[family]))


GRID = """
tokens = [1e3, 2e3]
branches = true

[base]
data = "text"
seq_len = 16
batch_tokens = 64
lr = 1e-3
schedule = {name = "wsd", decay = 0.2}

[shape]
d_model = [16, 32]
n_layers = 1
n_heads = 2
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_small_dataset(tmp_path / "study/text", train=4000, held_out=200)
    path = tmp_path / "study/grid.toml"
    path.write_text(GRID)
    return path


def test_a_file_with_data_beside_it(file: Path, tmp_path: Path) -> None:
    grid = load_grid(file)
    data = grid.entries[0].recipe.data
    assert data is not None
    assert data.train == str(file.parent / "text")
    assert data.content is not None
    assert grid.entries[0].recipe.shape.vocab_size == VOCAB
    write_small_dataset(tmp_path / "other", train=4000, held_out=200, seed=1)
    other = load_grid(file, data=str(tmp_path / "other")).entries[0].recipe
    assert other.data is not None
    assert other.data.train == str(tmp_path / "other")
    assert other.id != grid.entries[0].recipe.id


def test_too_few_data_are_said_at_once(file: Path) -> None:
    file.write_text(GRID.replace("2e3", "2e6"))
    with pytest.raises(LatheError, match=r"grid.toml: 16x1: "):
        load_grid(file)


def test_recipes_are_written_and_read(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = load_grid(file).entries
    paths = save_entries(entries, tmp_path / "recipes")
    assert [path.name for path in paths] == ["16x1.json", "32x1.json"]
    monkeypatch.chdir(tmp_path)
    assert tuple(map(load_entry, paths)) == entries
    assert read_entries(["recipes"]) == entries
    assert read_entries(["recipes/32x1.json", "recipes/16x1.json"]) == entries[::-1]
    assert read_entries(["study/grid.toml"]) == entries
    with pytest.raises(StudyError, match="are the same recipe"):
        read_entries(["study/grid.toml", "recipes"])
    with pytest.raises(StudyError, match="holds no recipe"):
        read_entries([tmp_path])


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shape.toml").write_text('lathe = "shape"\nversion = 1\n')
    with pytest.raises(CodecError, match="holds a shape, and a grid was wanted"):
        load_grid(tmp_path / "shape.toml")


def test_the_step_law_says_what_it_chose() -> None:
    said: list[str] = []
    base = {**BASE, "lr": "step-law", "batch_tokens": "step-law"}
    found = load_grid(make(base=base, tokens=1e6), report=said.append).entries[0].recipe
    assert found.lr > 0
    assert any("step law: lr" in line for line in said)


def test_branches_that_cannot_be(file: Path) -> None:
    file.write_text(GRID.replace("decay = 0.2", "decay = 0.2, warmup_steps = 13"))
    with pytest.raises(RecipeError, match="16x1: branch_at=1000 would decay"):
        load_grid(file)


def test_the_command_lists_and_writes(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["grid", str(file), "--out", str(tmp_path / "recipes")])
    printed = capsys.readouterr().out
    assert "2 trainings, 4 runs" in printed
    assert "16×1" in printed
    assert load_grid(file).entries[1].recipe.id in printed
    assert (tmp_path / "recipes/32x1.json").exists()
    assert load_entry(tmp_path / "recipes/16x1.json").branch_at == (1000,)
