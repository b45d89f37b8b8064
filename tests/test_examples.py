"""The studies of examples/ are what they say: they load, their grids make recipes, and their plans find shapes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lathe import codec
from lathe.documents import read_document
from lathe.inherit.arms import ARMS
from lathe.inherit.growth import Growth
from lathe.inherit.study import load_inherit_study
from lathe.laws.axes import shape_columns
from lathe.laws.fit import fit
from lathe.laws.importers import read_runs
from lathe.laws.law import Law
from lathe.presets.devices import load_device
from lathe.presets.shapes import load_shape
from lathe.recipe import Recipe
from lathe.sweep.candidates import make_recipes
from lathe.sweep.entries import Entry
from lathe.sweep.grid import load_grid
from lathe.sweep.launchers import make_launcher
from lathe.sweep.run import read_execution
from lathe.sweep.stages import load_plan, make_choices
from lathe.sweep.study import Study, load_study

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FROM_LARGER = ("grow", "inherit")
"""Examples that start from a larger model, which is not there: they are read as far as they go without it."""
EXAMPLES = [path for path in sorted((ROOT / "examples").glob("*.toml")) if path.stem not in FROM_LARGER]
RUNS = {"laptop": 36, "mobilellm": 27, "morph": 27, "over-training": 20}
"""How many runs each example's grid makes."""


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def study(request: pytest.FixtureRequest) -> Study:
    return load_study(request.param)


def make_entries(study: Study) -> tuple[Entry, ...]:
    """Make a study's grid without its data, whose vocabulary is then that which was asked for."""
    assert study.grid is not None
    assert study.text is not None
    shape = {"vocab_size": study.text.vocab_size, **study.grid.get("shape", {})}
    return load_grid({**study.grid, "shape": shape}).entries


def plant_law(entries: tuple[Entry, ...]) -> Law:
    """Fit a law to what the recipes would give if losses followed one."""
    rows = [shape_columns(recipe.shape, tokens=recipe.tokens) for entry in entries for recipe in entry.recipes]
    table = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    table["loss"] = 2 + 40 / table["d_model"] ** 0.6 + 1 / table["n_layers"] ** 0.5 + 3e3 / table["tokens"] ** 0.45
    return fit(table, "width-depth", draws=20)


def test_examples_are_those_that_the_docs_name() -> None:
    assert [path.stem for path in EXAMPLES] == sorted(RUNS)


def test_an_example_is_named_as_its_file(study: Study, request: pytest.FixtureRequest) -> None:
    assert f"[{study.name}]" in request.node.name


def test_the_grid_makes_recipes(study: Study) -> None:
    entries = make_entries(study)
    assert sum(len(entry.recipes) for entry in entries) == RUNS[study.name]
    aspects = [entry.recipe.shape.aspect for entry in entries]
    assert max(aspects) > 10 * min(aspects), "so like one another, shapes cannot tell width from depth"


def test_the_launcher_and_the_executions_are_words(study: Study) -> None:
    make_launcher(study.launch.launcher, study.launch.settings)
    read_execution(study.launch.execution)


def test_the_plan_finds_shapes_and_their_recipes(study: Study, tmp_path: Path) -> None:
    entries = make_entries(study)
    device = load_device(study.device.preset or "m1")
    largest = max(6.0 * entry.recipe.shape.params * entry.recipe.tokens for entry in entries)
    make_choices(study, plant_law(entries), device, tmp_path, largest_flops=largest)
    choices = load_plan(tmp_path).choices
    assert len(choices) >= study.plan.top
    assert all(choice.params <= study.plan.params for choice in choices)
    # without data, which are not there: any vocabulary does, since the shapes have theirs
    made = make_recipes(study, [choice.shape for choice in choices], None)  # pyright: ignore[reportArgumentType]
    assert {entry.recipe.schedule.name for entry in made} == {entry.recipe.schedule.name for entry in entries}


def test_the_readme_shows_a_study(tmp_path: Path) -> None:
    document = README.read_text(encoding="utf-8").split("```toml\n")[1].partition("```")[0]
    (tmp_path / "mine.toml").write_text(document)
    study = load_study(tmp_path / "mine.toml")
    entries = make_entries(study)
    assert sum(len(entry.recipes) for entry in entries) == 27
    make_choices(study, plant_law(entries), load_device("m1"), tmp_path, largest_flops=None)
    assert load_plan(tmp_path).choices


def test_morph_trains_the_published_grid() -> None:
    """Tokens and shapes are those of the 27 published runs (Bian et al. 2025, set B)."""
    study = load_study(next(path for path in EXAMPLES if path.stem == "morph"))
    entries = make_entries(study)
    assert sum(recipe.tokens > 1e10 for entry in entries for recipe in entry.recipes) == 3
    assert {entry.recipe.tokens for entry in entries} == {
        1610612736, 2315255808, 3288334336, 4731174912, 6174015488, 12884901888
    }  # fmt: skip
    shape = load_shape("scale_open_lm_80m_v1")
    assert [entry.recipe.tokens for entry in entries if entry.recipe.shape == shape] == [1610612736, 12884901888]


def test_morph_chooses_the_published_shape(tmp_path: Path) -> None:
    """By the law of the published runs, its plan finds the model that Bian et al. trained: 3072×12."""
    study = load_study(next(path for path in EXAMPLES if path.stem == "morph"))
    law = fit(read_runs("morph-2025", where="set_b"), "auto", draws=20)
    made = make_choices(study, law, load_device("a100-40gb"), tmp_path, largest_flops=None)
    assert made.result["choices"][0] == "3072×12"


def test_the_examples_that_start_from_a_larger_model_ask_for_what_there_is() -> None:
    comparison = load_inherit_study(ROOT / "examples/inherit.toml")
    assert set(comparison.arms) == set(ARMS)
    body = read_document(ROOT / "examples/grow.toml")
    growth = codec.decode(Growth, body)
    assert growth.layers
    assert {*growth.recipe} < {field.name for field in dataclasses.fields(Recipe)}
